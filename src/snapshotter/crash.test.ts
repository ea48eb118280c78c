/**
 * SIGKILL at the crash points of everything that happens to snapshots: the next process finds each of them whole or absent,
 * nothing left over, does the same work with the same result, and can remove it all.
 *
 * SHALE_CRASH_FULL=1 tries every point; else the first and the last of each name.
 */
import assert from "node:assert/strict";
import { readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { mapConcurrent } from "../async/index.ts";
import { assertSound, collect } from "../store/testing/fixtures.ts";
import { withTemporaryDirectory } from "../sys/testing/filesystems.ts";
import { drive } from "./testing/drive.ts";
import { mountsBelow, performed, unmountBelow } from "./testing/fixtures.ts";
import { opened, runSteps } from "./testing/steps.ts";
import type { SnapshotInfo, Snapshotter } from "./types.ts";

const FULL = process.env.SHALE_CRASH_FULL === "1";
const AT_A_TIME = 2;

/** The crash points of an undisturbed run, as NAME#K. */
async function record(scratch: string): Promise<string[]> {
  const log = join(scratch, "points");
  await drive(join(scratch, "undisturbed"), { SHALE_CRASH_RECORD: log });
  const seen = new Map<string, number>();
  return readFileSync(log, "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => {
      const name = line.slice(0, line.indexOf("\t"));
      seen.set(name, (seen.get(name) ?? 0) + 1);
      return `${name}#${seen.get(name)}`;
    });
}

/** The first and the last of each name; all of those that are about snapshots. */
function chosen(points: readonly string[]): string[] {
  if (FULL) return [...points];
  const last = new Map(points.map((point) => [point.slice(0, point.indexOf("#")), point]));
  return points.filter(
    (point) =>
      point.endsWith("#1") || point.startsWith("snapshot:") || last.get(point.slice(0, point.indexOf("#"))) === point,
  );
}

const files: Readonly<Record<string, readonly string[]>> = {
  "layer-0": ["big", "etc"],
  "layer-1": ["etc"],
  plain: ["etc", "plain"],
};

/** Every snapshot is whole: what it stands on can be mounted, and shows what it should. */
async function assertWhole(snapshotter: Snapshotter, scratch: string, where: string): Promise<void> {
  for (const { name, kind } of [...snapshotter.list([])]) {
    if (kind !== "committed") {
      performed(await snapshotter.mounts(name), scratch, (directory) => readdirSync(directory, { recursive: true }));
      continue;
    }
    const mounts = await snapshotter.view("look", name, {});
    performed(mounts, scratch, (directory) => {
      const expected = files[name] ?? ["etc", "remote"]; // the remote one has a name of ours
      assert.deepEqual(readdirSync(directory).sort(), expected, `${where}: ${name}`);
    });
    await snapshotter.remove("look");
    await snapshotter.usage(name);
  }
}

const withoutTimes = (infos: Iterable<SnapshotInfo>) =>
  [...infos]
    .map(({ name, parent, kind, labels }) => [name.replace(/^shale\/\d+/, "shale"), parent, kind, labels])
    .sort();

async function assertRecovers(root: string, scratch: string, expected: unknown, where: string): Promise<void> {
  await opened(root, async (snapshotter, store) => {
    await assertWhole(snapshotter, scratch, where);
    await assertSound(store, where);
  });
  await runSteps(root);
  await opened(root, async (snapshotter, store) => {
    assert.deepEqual(withoutTimes(snapshotter.list([])), expected, where);
    await assertWhole(snapshotter, scratch, where);
    await snapshotter.settled();
    for (;;) {
      const all = [...snapshotter.list([])];
      const parents = new Set(all.map(({ parent }) => parent));
      const leaves = all.filter(({ name }) => !parents.has(name));
      if (leaves.length === 0) break;
      for (const { name } of leaves) await snapshotter.remove(name);
    }
    await snapshotter.cleanup();
    collect(store);
    for (const directory of ["snapshots", "mounts", "layers", "blobs", "merged", "staging"]) {
      assert.deepEqual(readdirSync(join(root, directory)), [], `${where}: ${directory} at the end`);
    }
    assert.deepEqual(mountsBelow(root), [], where);
  });
}

async function withScratch(use: (scratch: string) => Promise<void>): Promise<void> {
  await withTemporaryDirectory(async (scratch) => {
    try {
      await use(scratch);
    } finally {
      unmountBelow(scratch);
    }
  });
}

describe("SIGKILL", () => {
  test("at each crash point leaves snapshots that are whole or absent, and nothing else", () =>
    withScratch(async (scratch) => {
      const points = await record(scratch);
      const expected = await opened(join(scratch, "undisturbed"), async (snapshotter) =>
        withoutTimes(snapshotter.list([])),
      );
      assert.ok(points.filter((point) => point.startsWith("snapshot:")).length > 15, "too few crash points");
      const tried = chosen(points);
      let killed = 0;
      await mapConcurrent(tried, AT_A_TIME, async (point, number) => {
        const root = join(scratch, String(number));
        const { signal } = await drive(root, { SHALE_CRASH_AT: point });
        if (signal === "SIGKILL") killed++; // what runs in the background does not come in the same order each time
        await assertRecovers(root, scratch, expected, point);
        rmSync(root, { recursive: true });
      });
      assert.ok(killed > tried.length * 0.8, `${killed} of ${tried.length} runs were killed`);
    }));

  test("during the recovery from a SIGKILL changes nothing about that", () =>
    withScratch(async (scratch) => {
      const root = join(scratch, "undisturbed");
      await drive(root, {});
      const expected = await opened(root, async (snapshotter) => withoutTimes(snapshotter.list([])));
      await mapConcurrent(
        [
          ["snapshot:directory#2", "snapshot:directory#1", "rmdir#1"],
          ["snapshot:removed#1", "rmdir#1", "snapshot:directory#1"],
          ["unmount#1", "unmount#1", "mount#1"],
        ],
        AT_A_TIME,
        async ([first, ...more], number) => {
          const other = join(scratch, String(number));
          for (const point of [first, ...more]) await drive(other, { SHALE_CRASH_AT: point! });
          await assertRecovers(other, scratch, expected, `${first}, ${more}`);
        },
      );
    }));
});
