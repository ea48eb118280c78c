/**
 * A disk that gets full while an export runs: after any of its steps, with nothing or a little left. What was at the target is still
 * there, nothing but complete files is beside it, and the next run, with room, makes what an undisturbed one does.
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, rmSync, statfsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { errnoOf, ShaleError } from "../../src/errors/index.ts";
import { exportComposefs } from "../../src/export/index.ts";
import { mountInfo, run } from "../../src/sys/index.ts";
import { needsRoot, withTemporaryDirectory } from "../../src/sys/testing/filesystems.ts";
import { FORMATS, type Format, Steps } from "./formats.ts";
import { exportBench } from "./image.ts";
import { filesBelow } from "./kill.ts";

const OLD = "an older export";
/** Of all steps of a run: the first, the last, and some between. */
const STEPS = 5;
/** Bytes that are left, in turn. Nothing; a page or two, for a tree but not for its file's sidecar; some blocks of data. */
const LEFT = [0, 4096, 300_000];

const bench = exportBench("full-disk");

/** A file system of `size` bytes, in memory: it is full to the page. */
function withTmpfs(size: number, use: (directory: string) => Promise<void>): Promise<void> {
  return withTemporaryDirectory(async (directory) => {
    const { code, stderr } = await run("mount", ["-t", "tmpfs", "-o", `size=${size}`, "tmpfs", directory]);
    assert.equal(code, 0, stderr.toString());
    await use(directory);
  });
}

const isFull = (error: unknown) => ShaleError.is(error, "RESOURCE_EXHAUSTED") || errnoOf(error) === "ENOSPC";

/** Takes all the room of a file system but `left` bytes. */
function fill(path: string, left: number): void {
  const { bavail, bsize } = statfsSync(join(path, ".."));
  const length = bavail * bsize - left;
  if (length <= 0) return;
  const { status, stderr } = spawnSync("fallocate", ["-l", `${length}`, path], { encoding: "utf8" });
  assert.equal(status, 0, stderr);
}

async function fillAtEveryStep(disk: string, { name, target, make }: Format): Promise<void> {
  const all = new Steps(0, () => {});
  const undisturbed = join(disk, "undisturbed");
  mkdirSync(undisturbed);
  await make(bench.operation, bench.manifest, undisturbed, { progress: all });
  const expected = filesBelow(undisturbed);
  let failed = 0;
  for (const left of LEFT) {
    for (let number = 0; number < STEPS; number++) {
      const step = 1 + Math.round((number * (all.told - 1)) / (STEPS - 1));
      const place = join(disk, "place");
      const old = join(place, target(bench.manifest));
      mkdirSync(place);
      writeFileSync(old, OLD);
      const what = `${name}, step ${step} of ${all.told}, ${left} bytes left`;
      const progress = new Steps(step, () => fill(join(disk, "filler"), left));
      try {
        await make(bench.operation, bench.manifest, place, { progress });
      } catch (error) {
        failed++;
        assert.ok(isFull(error), `${what}: ${String(error)}`);
        assert.equal(readFileSync(old, "utf8"), OLD, what);
        for (const [path, digest] of Object.entries(filesBelow(place))) {
          if (path !== target(bench.manifest)) assert.equal(digest, expected[path], `${what}: ${path}`);
        }
        assert.deepEqual(
          mountInfo().filter(({ mountPoint }) => mountPoint.startsWith(place)),
          [],
          what,
        );
      }
      rmSync(join(disk, "filler"), { force: true });
      await make(bench.operation, bench.manifest, place);
      assert.deepEqual(filesBelow(place), expected, what);
      rmSync(place, { recursive: true });
    }
  }
  assert.ok(failed >= STEPS, `${failed} runs met the full disk`);
}

describe("an export whose disk gets full", () => {
  for (const format of FORMATS) {
    test(`leaves complete files and what was there, and can be made again: ${format.name}`, needsRoot, () =>
      withTmpfs(100 << 20, (disk) => fillAtEveryStep(disk, format)),
    );
  }
});

describe("an export to a disk that is too small", () => {
  for (const { name, make } of FORMATS) {
    test(`says beforehand what it needs, and leaves nothing: ${name}`, needsRoot, () =>
      withTmpfs(3 << 20, async (disk) => {
        await assert.rejects(make(bench.operation, bench.manifest, disk), (error) => {
          assert.ok(ShaleError.is(error, "RESOURCE_EXHAUSTED"), String(error));
          assert.match(error.message, /it needs \d+ bytes, and \d+ are free there/);
          return true;
        });
        const complete = Object.keys(filesBelow(disk)).filter((path) => !/^[0-9a-f]{64}(\.layer\..*)?$/.test(path));
        assert.deepEqual(complete, [], "but layers of a tarfs that had room");
      }),
    );
  }

  test("of composefs asks the disk of the objects for their room, and that of the image for its own", needsRoot, () =>
    withTmpfs(3 << 20, (small) =>
      withTmpfs(100 << 20, async (large) => {
        const image = join(large, "image.cfs");
        await assert.rejects(exportComposefs(bench.operation, bench.manifest, image, { objects: small }), (error) =>
          ShaleError.is(error, "RESOURCE_EXHAUSTED"),
        );
        assert.deepEqual([filesBelow(large), filesBelow(small)], [{}, {}]);
        await exportComposefs(bench.operation, bench.manifest, join(small, "image.cfs"), {
          objects: join(large, "objects"),
        });
        assert.deepEqual(Object.keys(filesBelow(small)), ["image.cfs"]);
      }),
    ),
  );

  test("ends the command with status 1 and one line that says why", needsRoot, () =>
    withTmpfs(3 << 20, async (disk) => {
      const main = join(import.meta.dirname, "../../src/cli/main.ts");
      const node = ["--disable-warning=ExperimentalWarning", main, "--root", join(bench.top, "store"), "-q"];
      for (const format of ["disk", "tar"]) {
        const words = ["export", bench.store.listImages()[0]!.name, "--format", format, "-o", join(disk, "out")];
        const { status, stderr } = spawnSync(process.execPath, [...node, ...words], { encoding: "utf8" });
        assert.equal(status, 1);
        assert.match(stderr, /^shale: Cannot write \S+\/out: it needs .*\nhint: Free space, or .*\n$/);
        assert.deepEqual(filesBelow(disk), {});
      }
    }),
  );
});
