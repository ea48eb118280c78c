/**
 * Power cuts while everything happens to snapshots: the driver's effects are recorded once and replayed up to a cut, with what
 * was not synced dropped, kept in part, or kept by name. Whatever is on record afterwards works or says that it has lost files.
 *
 * Files that containers write are no effects of ours, so they are never there: only trees of layers are compared.
 * SHALE_CRASH_FULL=1 tries every cut with every fate.
 */
import assert from "node:assert/strict";
import { existsSync, mkdirSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { test } from "node:test";
import { ShaleError } from "../errors/index.ts";
import { collect } from "../store/testing/fixtures.ts";
import { withTemporaryDirectory } from "../sys/testing/filesystems.ts";
import {
  type Choices,
  DROP_UNSYNCED,
  KEEP_ALL,
  NAMES_ONLY,
  readEffectsLog,
  replay,
  seededChoices,
} from "../sys/testing/power-loss.ts";
import { drive } from "./testing/drive.ts";
import { performed, unmountBelow } from "./testing/fixtures.ts";
import { opened } from "./testing/steps.ts";
import type { Snapshotter } from "./types.ts";

const FULL = process.env.SHALE_CRASH_FULL === "1";
/** Of the cuts, every so many is tried; each time with another fate. */
const EVERY = FULL ? 1 : 11;
const FATES: readonly ((cut: number) => Choices)[] = [
  () => DROP_UNSYNCED,
  () => NAMES_ONLY,
  (cut) => seededChoices(cut),
  () => KEEP_ALL,
];

const TREES: Readonly<Record<string, readonly string[]>> = { "layer-0": ["big", "etc"], "layer-1": ["etc"] };

/** The machine comes up again: what was of this boot is of another. */
function reboot(root: string): void {
  const path = join(root, "shale.db");
  if (!existsSync(path)) return;
  using database = new DatabaseSync(path);
  if (database.prepare("SELECT 1 FROM sqlite_schema WHERE name = 'snapshots'").get() === undefined) return;
  database.exec("UPDATE state SET key = 'boot before' WHERE key LIKE 'boot %'");
  database.exec("UPDATE snapshots SET boot = 'before' WHERE boot IS NOT NULL");
}

async function unlessLost<T>(run: () => Promise<T>): Promise<T | undefined> {
  try {
    return await run();
  } catch (error) {
    if (!ShaleError.is(error, "DATA_LOSS")) throw error;
    return undefined;
  }
}

async function assertUsable(snapshotter: Snapshotter, scratch: string, where: string): Promise<void> {
  for (const { name, kind } of [...snapshotter.list([])]) {
    if (kind !== "committed") {
      const mounts = await unlessLost(() => snapshotter.mounts(name));
      if (mounts !== undefined) performed(mounts, scratch, (directory) => readdirSync(directory));
      continue;
    }
    const mounts = await unlessLost(() => snapshotter.view("look", name, {}));
    const expected = TREES[name];
    if (expected !== undefined) assert.ok(mounts, `${where}: ${name} is of layers, which are durable`);
    if (mounts === undefined) continue;
    performed(mounts, scratch, (directory) => {
      const found = readdirSync(directory).sort();
      if (expected !== undefined) assert.deepEqual(found, expected, `${where}: ${name}`);
    });
    await snapshotter.remove("look");
  }
}

async function removeAll(snapshotter: Snapshotter): Promise<void> {
  for (;;) {
    const all = [...snapshotter.list([])];
    if (all.length === 0) return;
    const parents = new Set(all.map(({ parent }) => parent));
    for (const { name } of all) if (!parents.has(name)) await snapshotter.remove(name);
  }
}

test("a power cut at any moment leaves snapshots that work or say what they have lost, and can be removed", async () => {
  await withTemporaryDirectory(async (scratch) => {
    try {
      const root = join(scratch, "undisturbed");
      await drive(root, { SHALE_EFFECTS_LOG: join(scratch, "log") });
      const effects = readEffectsLog(join(scratch, "log")).filter(
        ({ path }) => path.startsWith(`${root}/`) || path === root,
      );
      assert.ok(effects.length > 100, `only ${effects.length} effects were recorded`);
      for (let cut = 0, number = 0; cut <= effects.length; cut += EVERY, number++) {
        for (const fate of FULL ? FATES : [FATES[number % FATES.length]!]) {
          const target = join(scratch, `cut-${cut}`);
          mkdirSync(target);
          replay(effects, { root, target, upTo: cut, choices: fate(cut) });
          reboot(target);
          const last = effects[cut - 1];
          const where = `after effect ${cut} (${last?.kind} ${last?.path.slice(root.length)})`;
          await opened(target, async (snapshotter, store) => {
            await assertUsable(snapshotter, scratch, where);
            await snapshotter.settled();
            await removeAll(snapshotter);
            await snapshotter.cleanup();
            collect(store);
            for (const directory of ["snapshots", "mounts", "layers", "blobs", "merged"]) {
              assert.deepEqual(readdirSync(join(target, directory)), [], `${where}: ${directory} at the end`);
            }
          });
          rmSync(target, { recursive: true });
        }
      }
    } finally {
      unmountBelow(scratch);
    }
  });
});
