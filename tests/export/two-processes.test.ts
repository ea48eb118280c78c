/** Two processes that export the same thing to the same name at the same time: one makes it, both have it, nothing else is left. */
import assert from "node:assert/strict";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { setTimeout } from "node:timers/promises";
import { lockPath } from "../../src/export/publish.ts";
import { assertSound, pull, withStore } from "../../src/store/testing/fixtures.ts";
import { tryLock } from "../../src/sys/index.ts";
import { withTemporaryDirectory } from "../../src/sys/testing/filesystems.ts";
import { filesBelow, type Place, runDriver, TAG, writeImages } from "./kill.ts";

/** Until both wait for the lock; a busy machine gets more, in further attempts. */
const WAITS_MS = [1_000, 3_000, 9_000];

/** How many of two processes wrote the file. Both met the lock held, if they had come that far within `waitMs`. */
async function exportTwice(what: string, place: Place, waitMs: number): Promise<number> {
  const records = [0, 1].map((number) => join(place.out, `../points-${number}`));
  for (const record of records) rmSync(record, { force: true });
  const lock = tryLock(lockPath(place.target), { command: "the test" });
  assert.ok(lock);
  const ends = records.map((record) => runDriver(what, place, { SHALE_CRASH_RECORD: record }));
  await setTimeout(waitMs);
  assert.ok(!existsSync(place.target), "written without the lock");
  lock.release({ unlink: true });
  for (const { code, stderr } of await Promise.all(ends)) assert.equal(code, 0, stderr);
  return records.filter((record) => readFileSync(record, "utf8").includes("export:written\t")).length;
}

describe("two processes that make the same export", () => {
  for (const what of ["disk", "cached"]) {
    test(`of ${what} at the same time do the work once`, () =>
      withTemporaryDirectory(async (scratch) => {
        writeImages(join(scratch, "layout"));
        const root = join(scratch, "store");
        await withStore(root, (store) => pull(store, join(scratch, "layout"), TAG));
        const alone: Place = { root, out: join(scratch, "alone"), target: join(scratch, "alone", "disk") };
        mkdirSync(alone.out);
        assert.equal((await runDriver("disk", alone)).code, 0);

        let writers = 0;
        for (const [attempt, waitMs] of WAITS_MS.entries()) {
          const out = join(scratch, `out-${attempt}`);
          mkdirSync(out);
          writers = await exportTwice(what, { root, out, target: join(out, "disk") }, waitMs);
          assert.deepEqual(filesBelow(out), filesBelow(alone.out));
          for (const directory of ["staging", "leases"]) assert.deepEqual(readdirSync(join(root, directory)), []);
          if (writers <= 1) break;
        }
        // The cache may have it from an earlier attempt: then only bytes and leftovers are shown for it, not that one process did the
        // work. Two can: ExportCache.ensureDisk looks before it plans, and locks after.
        assert.ok(writers === 1 || (what === "cached" && writers === 0), `${writers} wrote it`);
        await withStore(root, (store) => assertSound(store));
      }));
  }
});
