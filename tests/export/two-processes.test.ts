/** Two processes that export the same thing to the same name at the same time: one makes it, both have it, nothing else is left. */
import assert from "node:assert/strict";
import { existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { setTimeout } from "node:timers/promises";
import { lockPath } from "../../src/export/publish.ts";
import { assertSound, pull, withStore } from "../../src/store/testing/fixtures.ts";
import { tryLock } from "../../src/sys/index.ts";
import { withTemporaryDirectory } from "../../src/sys/testing/filesystems.ts";
import { type DriverEnd, filesBelow, type Place, runDriver, runShale, TAG, writeImages } from "./kill.ts";

/** Until both wait for the lock; a busy machine gets more, in further attempts. */
const WAITS_MS = [1_000, 3_000, 9_000];

/** A store with the image, and a directory to export to. */
async function withPlace(body: (place: Place) => Promise<void>): Promise<void> {
  await withTemporaryDirectory(async (scratch) => {
    writeImages(join(scratch, "layout"));
    const [root, out] = [join(scratch, "store"), join(scratch, "out")];
    await withStore(root, (store) => pull(store, join(scratch, "layout"), TAG));
    mkdirSync(out);
    await body({ root, out, target: join(out, "disk") });
    for (const directory of ["staging", "leases"]) assert.deepEqual(readdirSync(join(root, directory)), []);
    await withStore(root, (store) => assertSound(store));
  });
}

/** Two at once, who find the lock of the target held for `waitMs`; how many of them wrote a file. */
async function writersOf(
  { root, target }: Place,
  waitMs: number,
  start: (env: Readonly<Record<string, string>>) => Promise<DriverEnd>,
): Promise<number> {
  const records = [0, 1].map((number) => join(root, `../points-${number}`));
  const lock = tryLock(lockPath(target), { command: "the test" });
  assert.ok(lock);
  const ends = records.map((record) => start({ SHALE_CRASH_RECORD: record }));
  await setTimeout(waitMs);
  assert.ok(!existsSync(target), "written without the lock");
  lock.release({ unlink: true });
  for (const { code, stderr } of await Promise.all(ends)) assert.equal(code, 0, stderr);
  return records.filter((record) => readFileSync(record, "utf8").includes("export:written\t")).length;
}

/** The files that one process alone makes. */
async function madeAlone(start: (place: Place) => Promise<DriverEnd>): Promise<Readonly<Record<string, string>>> {
  let files = {};
  await withPlace(async (place) => {
    const { code, stderr } = await start(place);
    assert.equal(code, 0, stderr);
    files = filesBelow(place.out);
  });
  return files;
}

async function assertOneWrites(start: (place: Place, env?: Readonly<Record<string, string>>) => Promise<DriverEnd>) {
  const alone = await madeAlone(start);
  assert.ok(alone.disk !== undefined && alone["disk.json"] !== undefined);
  let writers = 2;
  for (let attempt = 0; writers > 1 && attempt < WAITS_MS.length; attempt++) {
    await withPlace(async (place) => {
      writers = await writersOf(place, WAITS_MS[attempt]!, (env) => start(place, env));
      assert.deepEqual(filesBelow(place.out), alone);
    });
  }
  assert.equal(writers, 1);
}

describe("two processes that make the same export", () => {
  test("of a disk with verity do the work once", () => assertOneWrites((place, env) => runDriver("disk", place, env)));

  test("of a disk without it, by the command, do the work once, and one of them says that it has the other's", async () => {
    let said: unknown[] = [];
    await assertOneWrites(async ({ root, target }, env) => {
      const end = await runShale(["--root", root, "export", TAG, "-o", target, "--json"], env);
      said.push((JSON.parse(end.stdout) as { shared: boolean }).shared);
      return end;
    });
    said = said.slice(-2).sort();
    assert.deepEqual(said, [false, true]);
  });

  test("of a cached disk do the work once, whoever of them comes late", async () => {
    for (const lateMs of [0, 100, 200, 300, 400]) {
      await withPlace(async (place) => {
        const records = [0, 1].map((number) => join(place.root, `../points-${number}`));
        // The lock of the entry is not held for them: one may have ended when the other asks for it.
        const ends = records.map(async (record, number) => {
          if (number === 1) await setTimeout(lateMs);
          const own: Place = { ...place, target: `${place.target}-${number}` };
          return await runDriver("cached", own, { SHALE_CRASH_RECORD: record });
        });
        for (const { code, stderr } of await Promise.all(ends)) assert.equal(code, 0, stderr);
        const writers = records.filter((record) => readFileSync(record, "utf8").includes("export:written\t"));
        assert.equal(writers.length, 1, `${writers.length} wrote it, the second started ${lateMs} ms after the first`);
        const made = filesBelow(place.out);
        assert.equal(made["disk-0"], made["disk-1"]);
        assert.deepEqual(Object.keys(made), ["disk-0", "disk-0.json", "disk-1", "disk-1.json"]);
      });
    }
  });
});
