/**
 * Power cuts at every moment of a checkout: its effects are recorded once, then replayed up to each cut with what was not synced
 * dropped, or kept in part. The target is absent or has all its content; so has every link source that nothing marks as doubtful;
 * and the checkout can be made again. Owners, modes and times are not in the model.
 */
import assert from "node:assert/strict";
import { existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import type { CheckoutOptions } from "../../src/checkout/index.ts";
import { assertSound, noise, pull, tar, withStore, writeImage } from "../../src/store/testing/fixtures.ts";
import { withTemporaryDirectory } from "../../src/sys/testing/filesystems.ts";
import {
  type Choices,
  DROP_UNSYNCED,
  KEEP_ALL,
  NAMES_ONLY,
  readEffectsLog,
  replay,
  seededChoices,
  snapshotTree,
} from "../../src/sys/testing/power-loss.ts";
import { runDriver } from "./harness.ts";

/** Each cut with everything dropped, and with one of these. */
const FATES: readonly ((cut: number) => Choices)[] = [() => NAMES_ONLY, (cut) => seededChoices(cut), () => KEEP_ALL];
/** Every so many cuts the checkout is made again on what the cut left. */
const GO_ON = 60;
const TAG = "image";

/** Path and content of every file; symlinks are not in the model. */
function contentOf(directory: string): Readonly<Record<string, string>> {
  const names = readdirSync(directory, { recursive: true, encoding: "utf8" }).sort();
  const files = names.filter((name) => lstatSync(join(directory, name)).isFile());
  return Object.fromEntries(files.map((name) => [name, readFileSync(join(directory, name), "latin1")]));
}

const isMark = (name: string) => name.startsWith("unsynced-");

/** Every link source is whole, unless a mark says that they may not be. */
function assertSources(store: string, whole: ReadonlySet<string>, message: string): void {
  const links = join(store, "links");
  if (!existsSync(links) || readdirSync(links).some(isMark)) return;
  for (const [name, content] of Object.entries(contentOf(links))) assert.ok(whole.has(content), `${message}: ${name}`);
}

async function cutEverywhere(scratch: string, options: Omit<CheckoutOptions, "signal" | "onProgress">): Promise<void> {
  const layout = join(scratch, "layout");
  writeImage(layout, TAG, [
    tar({
      "etc/": "",
      "etc/small": "small",
      "etc/same": { type: "hardlink", linkTarget: "etc/small" },
      "usr/lib/large": noise(70_000, "large"),
      "usr/more": noise(5000, "more"),
    }),
  ]);
  const place = join(scratch, "place");
  mkdirSync(join(place, "parent"), { recursive: true });
  await withStore(join(place, "store"), (store) => pull(store, layout, TAG));
  const base = join(scratch, "base");
  snapshotTree(place, base);
  rmSync(join(base, "store/reserve"), { force: true }); // megabytes, written for each cut
  const run = (directory: string, more: Partial<CheckoutOptions>, env: Readonly<Record<string, string>> = {}) =>
    runDriver({
      ...{ root: join(directory, "store"), target: join(directory, "parent/tree"), layout, tag: TAG, env },
      options: { ...options, ...more },
    });
  const log = join(scratch, "log");
  const end = await run(place, {}, { SHALE_EFFECTS_LOG: log });
  assert.equal(end.code, 0, end.stderr);
  const wanted = contentOf(join(place, "parent/tree"));
  const whole = new Set(Object.values(wanted));
  const effects = readEffectsLog(log);
  assert.ok(effects.length > 30, `only ${effects.length} effects`);

  const first = effects.findIndex(({ path }) => path.includes(".shale-"));
  for (let cut = first; cut <= effects.length; cut++) {
    const fates = [DROP_UNSYNCED, FATES[cut % FATES.length]!(cut)];
    for (const [number, choices] of fates.entries()) {
      const left = join(scratch, "left");
      replay(effects, { root: place, target: left, base, upTo: cut, choices });
      const message = `cut ${cut} of ${effects.length}, fate ${number}`;
      const tree = join(left, "parent/tree");
      if (existsSync(tree)) assert.deepEqual(contentOf(tree), wanted, message);
      else assert.notEqual(cut, effects.length, message);
      assertSources(join(left, "store"), whole, message);
      if (number === 0 && (cut % GO_ON === 0 || cut === effects.length)) await goOn(left, message);
      rmSync(left, { recursive: true });
    }
  }

  async function goOn(left: string, message: string): Promise<void> {
    const links = join(left, "store/links");
    // The machine has come up again.
    for (const mark of existsSync(links) ? readdirSync(links).filter(isMark) : []) {
      writeFileSync(join(links, mark), "another boot");
    }
    const again = await run(left, { replace: true });
    assert.equal(again.code, 0, `${message}: ${again.stderr}`);
    assert.deepEqual(contentOf(join(left, "parent/tree")), wanted, message);
    assert.deepEqual(readdirSync(join(left, "parent")), ["tree"], message);
    assertSources(join(left, "store"), whole, message);
    await withStore(join(left, "store"), (store) => assertSound(store, message));
  }
}

describe("a power cut during a checkout", () => {
  for (const link of ["copy", "hardlink"] as const) {
    test(`by ${link} leaves nothing or all of it`, async () => {
      await withTemporaryDirectory((scratch) => cutEverywhere(scratch, { link }));
    });
  }
});
