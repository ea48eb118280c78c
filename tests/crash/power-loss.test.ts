/**
 * Power cuts at every moment of the driver: its effects are recorded once, then replayed up to each cut with what was not
 * synced dropped, kept in part, or kept by name only. What was committed before the cut must be there and complete; nothing
 * that is there may be damaged; and the work can go on.
 *
 * SHALE_CRASH_FULL=1 tries every cut with every fate.
 */
import assert from "node:assert/strict";
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { describe, test } from "node:test";
import { Store } from "../../src/store/index.ts";
import { assertSound, contentOf, pull, withStore } from "../../src/store/testing/fixtures.ts";
import { withTemporaryDirectory } from "../../src/sys/testing/filesystems.ts";
import {
  type Choices,
  DROP_UNSYNCED,
  KEEP_ALL,
  type LoggedEffect,
  NAMES_ONLY,
  readEffectsLog,
  replay,
  seededChoices,
} from "../../src/sys/testing/power-loss.ts";
import { assertRecovers, type FinalState, runDriver, stateOf } from "./harness.ts";
import { STEPS, writeImages } from "./steps.ts";

const FULL = process.env.SHALE_CRASH_FULL === "1";
const FATES: readonly (readonly [string, (cut: number) => Choices])[] = [
  ["unsynced dropped", () => DROP_UNSYNCED],
  ["names only", () => NAMES_ONLY],
  ["all kept", () => KEEP_ALL],
  ["seed 1", (cut) => seededChoices(cut)],
  ["seed 2", (cut) => seededChoices(cut + 100_000)],
];
/** Every so many cuts the driver's work is done again on what the cut left. */
const GO_ON = FULL ? 5 : 40;

interface Recording {
  readonly root: string;
  readonly marks: string;
  readonly effects: readonly LoggedEffect[];
  readonly expected: FinalState;
  readonly content: Readonly<Record<string, Readonly<Record<string, string>>>>;
}

async function record(scratch: string): Promise<Recording> {
  const layout = join(scratch, "layout");
  writeImages(layout);
  const root = join(scratch, "undisturbed");
  const marks = join(scratch, "marks");
  mkdirSync(marks);
  const end = await runDriver([root, layout, marks], { SHALE_EFFECTS_LOG: join(scratch, "log") });
  assert.equal(end.code, 0, end.stderr);
  const expected = await withStore(root, (store) => stateOf(store));
  const content = await withStore(join(scratch, "other"), async (store) => {
    await pull(store, layout, "one");
    await pull(store, layout, "two");
    return { one: contentOf(store, "one"), two: contentOf(store, "two") };
  });
  return { root, marks, effects: readEffectsLog(join(scratch, "log")), expected, content };
}

/** Steps that had returned when the power went. */
function stepsDone({ effects, marks }: Recording, cut: number): number {
  return effects.slice(0, cut).filter(({ kind, path }) => kind === "mkdir" && path.startsWith(`${marks}/`)).length;
}

/** The machine comes up again: the store was opened in another boot. */
function reboot(root: string): void {
  const path = join(root, "shale.db");
  if (!existsSync(path)) return;
  const database = new DatabaseSync(path);
  const made = database.prepare("SELECT 1 FROM sqlite_schema WHERE name = 'state'").get() !== undefined;
  if (made) database.exec("UPDATE state SET key = 'boot before' WHERE key LIKE 'boot %'");
  database.close();
}

/** Images that must be there when `done` steps had returned; while the next one runs, its image may be there or not. */
function requiredImages(done: number): { readonly required: string[]; readonly allowed: string[] } {
  const has = new Set<string>();
  for (const step of STEPS.slice(0, done)) {
    if (step.kind === "pull") has.add(step.image);
    if (step.kind === "remove") has.delete(step.image);
  }
  const next = STEPS[done];
  const allowed = new Set(has);
  if (next?.kind === "pull") allowed.add(next.image);
  if (next?.kind === "remove") has.delete(next.image);
  return { required: [...has], allowed: [...allowed] };
}

async function assertSurvives(recording: Recording, target: string, cut: number, where: string): Promise<void> {
  reboot(target);
  const { required, allowed } = requiredImages(stepsDone(recording, cut));
  await using store = Store.open(target, { create: true });
  const names = store.listImages().map((image) => image.name);
  for (const name of required) assert.ok(names.includes(name), `${where}: image ${name} is gone`);
  for (const name of names) assert.ok(allowed.includes(name), `${where}: image ${name} is there`);
  await assertSound(store, where);
  for (const name of names) assert.deepEqual(contentOf(store, name), recording.content[name], `${where}: ${name}`);
}

describe("power cut", () => {
  test("at any moment leaves what was committed, undamaged", async () => {
    await withTemporaryDirectory(async (scratch) => {
      const recording = await record(scratch);
      const { effects, root } = recording;
      assert.ok(effects.length > 150, `only ${effects.length} effects were recorded`);
      let replayed = 0;
      for (let cut = 0; cut <= effects.length; cut++) {
        const fates = FULL ? FATES : [FATES[0]!, FATES[1 + (cut % (FATES.length - 1))]!];
        for (const [name, choices] of fates) {
          const target = join(scratch, `cut-${cut}-${name.replace(" ", "-")}`);
          mkdirSync(target);
          replay(effects, { root, target, upTo: cut, choices: choices(cut) });
          const last = effects[cut - 1];
          const where = `after effect ${cut} (${last?.kind} ${last?.path.slice(root.length)}), ${name}`;
          await assertSurvives(recording, target, cut, where);
          if (replayed++ % GO_ON === 0) {
            await assertRecovers(target, join(scratch, "layout"), recording.expected, where);
          }
        }
      }
    });
  });
});
