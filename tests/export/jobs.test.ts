/** `--jobs` of the commands that hash: so many threads and no more; and an error of one of them is the command's. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { openStoreWithImage, writeLayout } from "./image.ts";
import { filesBelow } from "./kill.ts";

const MAIN = join(import.meta.dirname, "../../src/cli/main.ts");
const WATCH = join(import.meta.dirname, "watch-threads.ts");
/** Enough for eight threads to have each its own part. */
const SIZE = 32 << 20;

interface Ended {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
  /** Threads beside the main one. */
  readonly started: number;
  /** At one time. */
  readonly most: number;
}

describe("--jobs", () => {
  let top: string;
  let data: string;
  let image: string;
  let rootHash: string;

  before(async () => {
    top = mkdtempSync(join(tmpdir(), "shale-jobs-"));
    data = join(top, "data");
    writeFileSync(data, "shale");
    truncateSync(data, SIZE);
    await writeLayout(join(top, "layout"));
    const { store, name } = await openStoreWithImage(join(top, "store"), join(top, "layout"));
    await store.close();
    image = name;
    const { stdout } = shale(["verity", data, "-o", join(top, "tree"), "--json"]);
    ({ rootHash } = JSON.parse(stdout));
  });

  after(() => rmSync(top, { recursive: true, force: true }));

  function shale(words: readonly string[], fail?: "EIO" | "die"): Ended {
    const told = join(top, "threads");
    const before = [
      "--disable-warning=ExperimentalWarning",
      "--import",
      WATCH,
      MAIN,
      "--root",
      join(top, "store"),
      "-q",
    ];
    const { status, stdout, stderr } = spawnSync(process.execPath, [...before, ...words], {
      encoding: "utf8",
      env: { ...process.env, WATCH_THREADS: told, ...(fail === undefined ? {} : { WATCH_FAIL: fail }) },
    });
    return { status, stdout, stderr, ...JSON.parse(readFileSync(told, "utf8")) };
  }

  /** Words of each command that hashes, and of what it writes below a directory of its own. */
  const COMMANDS: readonly { readonly name: string; readonly words: (place: string) => readonly string[] }[] = [
    { name: "verity", words: (place) => ["verity", data, "-o", join(place, "tree")] },
    { name: "verify", words: () => ["verify", data, "--hash-file", join(top, "tree"), "--root-hash", rootHash] },
    { name: "export --verity", words: (place) => ["export", image, "--verity", "-o", join(place, "disk")] },
  ];

  for (const { name, words } of COMMANDS) {
    test(`is the number of threads of ${name}, the main one included`, () => {
      for (const jobs of [1, 2, 4, undefined]) {
        const place = join(top, `${name}-${jobs}`);
        mkdirSync(place);
        const { status, stderr, started, most } = shale([
          ...words(place),
          ...(jobs === undefined ? [] : ["-j", `${jobs}`]),
        ]);
        assert.equal(status, 0, stderr);
        const others = (jobs ?? availableParallelism()) - 1;
        // No more is the promise; that there are as many is known where --jobs says so and the file has parts for all.
        if (jobs === undefined || name === "export --verity") assert.ok(most <= others && most > 0 === others > 0);
        else assert.deepEqual({ started, most }, { started: others, most: others }, `--jobs ${jobs}`);
      }
    });

    for (const fail of ["EIO", "die"] as const) {
      test(`ends ${name} with the error of one thread, and leaves nothing: ${fail}`, () => {
        const place = join(top, `${name}-${fail}`);
        mkdirSync(place);
        const { status, stderr, started } = shale([...words(place), "-j", "3"], fail);
        assert.equal(started, 2);
        assert.equal(status, 1);
        assert.match(
          stderr,
          fail === "EIO" ? /^shale: Cannot .*: i\/o error\n$/ : /^shale: Cannot hash the data: a thread died\n/,
        );
        assert.deepEqual(filesBelow(place), {});
      });
    }
  }

  test("bounds the threads of all disks of a tarfs together", () => {
    const { status, stderr, most } = shale([
      "export",
      image,
      "-f",
      "tarfs",
      "--verity",
      "-j",
      "2",
      "-o",
      join(top, "tarfs"),
    ]);
    assert.equal(status, 0, stderr);
    assert.equal(most, 1);
  });
});
