/**
 * SIGKILL at each crash point of the driver (C1-C13): another process must be able to open the store, find nothing
 * damaged and nothing left over, and do the same work with the same result.
 *
 * SHALE_CRASH_FULL=1 tries every point; else the first and the last of each name.
 */
import assert from "node:assert/strict";
import { readdirSync, readFileSync, truncateSync, unlinkSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { mapConcurrent } from "../../src/async/index.ts";
import { withStore } from "../../src/store/testing/fixtures.ts";
import { withTemporaryDirectory } from "../../src/sys/testing/filesystems.ts";
import { assertRecovers, type FinalState, runDriver, stateOf } from "./harness.ts";
import { runSteps, writeImages } from "./steps.ts";

const FULL = process.env.SHALE_CRASH_FULL === "1";
/** Beside the driver this process works too. */
const AT_A_TIME = 2;

/** Runs the driver undisturbed: its crash points as NAME#K, and where it ends. */
async function record(scratch: string): Promise<{ readonly points: string[]; readonly expected: FinalState }> {
  writeImages(join(scratch, "layout"));
  const log = join(scratch, "points");
  const end = await runDriver([join(scratch, "undisturbed"), join(scratch, "layout")], { SHALE_CRASH_RECORD: log });
  assert.equal(end.code, 0, end.stderr);
  const seen = new Map<string, number>();
  const points = readFileSync(log, "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => {
      const name = line.slice(0, line.indexOf("\t"));
      seen.set(name, (seen.get(name) ?? 0) + 1);
      return `${name}#${seen.get(name)}`;
    });
  const expected = await withStore(join(scratch, "undisturbed"), (store) => stateOf(store));
  return { points, expected };
}

function firstAndLast(points: readonly string[]): string[] {
  const last = new Map<string, string>();
  for (const point of points) last.set(point.slice(0, point.indexOf("#")), point);
  return points.filter((point) => point.endsWith("#1") || last.get(point.slice(0, point.indexOf("#"))) === point);
}

describe("SIGKILL", () => {
  test("at each crash point leaves a store that opens, is sound, and goes on", async () => {
    await withTemporaryDirectory(async (scratch) => {
      const { points, expected } = await record(scratch);
      assert.ok(points.length > 150, `only ${points.length} crash points were passed`);
      const chosen = FULL ? points : firstAndLast(points);
      let killed = 0;
      await mapConcurrent(chosen, AT_A_TIME, async (point, number) => {
        const root = join(scratch, String(number));
        const end = await runDriver([root, join(scratch, "layout")], { SHALE_CRASH_AT: point });
        // Two layers may share a commit or not, so the last one of a name is not passed by every run.
        if (end.signal === "SIGKILL") killed++;
        else assert.equal(end.code, 0, `${point}: ${end.stderr}`);
        await assertRecovers(root, join(scratch, "layout"), expected, point);
      });
      assert.ok(killed > chosen.length * 0.8, `${killed} of ${chosen.length} runs were killed`);
    });
  });

  test("during the recovery from a SIGKILL, twice, changes nothing about that", async () => {
    await withTemporaryDirectory(async (scratch) => {
      const { expected } = await record(scratch);
      const layout = join(scratch, "layout");
      const cases = [
        ["commit:layer-renamed", "unlink#1", "unlink#2"],
        ["commit:directories-synced", "recover:files-removed", "rmdir#1"],
        ["merged:renamed", "unlink#1", "recover:files-removed"],
        ["datasync#2", "rmdir#1", "rmdir#2"],
      ] as const;
      await mapConcurrent(cases, AT_A_TIME, async ([first, ...more], number) => {
        const root = join(scratch, String(number));
        const end = await runDriver([root, layout], { SHALE_CRASH_AT: first });
        assert.equal(end.signal, "SIGKILL", `${first}: ${end.stderr}`);
        for (const point of more) {
          const again = await runDriver([root], { SHALE_CRASH_AT: point });
          assert.equal(again.signal, "SIGKILL", `${first}, then ${point}: ${again.stderr}`);
        }
        await assertRecovers(root, layout, expected, [first, ...more].join(", then "));
      });
    });
  });

  test("while a damaged or truncated lease file is there (C16) leaves nothing behind either", async () => {
    await withTemporaryDirectory(async (scratch) => {
      const layout = join(scratch, "layout");
      writeImages(layout);
      const root = join(scratch, "store");
      const end = await runDriver([root, layout], { SHALE_CRASH_AT: "commit:layer-renamed" });
      assert.equal(end.signal, "SIGKILL", end.stderr);
      const [lease] = readdirSync(join(root, "leases"));
      truncateSync(join(root, "leases", lease!), 3);
      await withStore(root, async (store) => {
        assert.deepEqual(readdirSync(join(root, "staging")), []);
        await runSteps(store, layout);
      });
      const second = await runDriver([join(scratch, "other"), layout], { SHALE_CRASH_AT: "commit:layer-renamed" });
      assert.equal(second.signal, "SIGKILL", second.stderr);
      for (const name of readdirSync(join(scratch, "other/leases"))) unlinkSync(join(scratch, "other/leases", name));
      await withStore(join(scratch, "other"), () => {
        for (const directory of ["staging", "layers", "blobs", "leases"]) {
          assert.deepEqual(readdirSync(join(scratch, "other", directory)), [], directory);
        }
      });
    });
  });
});
