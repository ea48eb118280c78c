/**
 * Exports whose signal is aborted at any of their steps: they end with CANCELLED when their work has stopped, what was at the target
 * is still there, nothing but complete files is beside it, and the next run makes what an undisturbed one does.
 */
import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { ShaleError } from "../../src/errors/index.ts";
import { exportTarfs } from "../../src/export/index.ts";
import type { ManifestRecord, Store, StoreOperation } from "../../src/store/index.ts";
import { isRoot, mountInfo } from "../../src/sys/index.ts";
import { unmountBelow } from "../../src/sys/testing/filesystems.ts";
import { FORMATS, type Format, Steps } from "./formats.ts";
import { openStoreWithImage, writeLayout } from "./image.ts";
import { filesBelow } from "./kill.ts";

const OLD = "an older export";
/** Of all steps of a run: the first, the last, and some between. */
const STEPS = 4;

describe("an export that is aborted", () => {
  let top: string;
  let store: Store;
  let manifest: ManifestRecord;
  let operation: StoreOperation;

  before(async () => {
    top = mkdtempSync(join(tmpdir(), "shale-abort-"));
    await writeLayout(join(top, "layout"));
    ({ store, manifest } = await openStoreWithImage(join(top, "store"), join(top, "layout")));
    operation = store.begin("test of aborts");
  });

  after(async () => {
    operation[Symbol.dispose]();
    await store.close();
    unmountBelow(top); // ext4 has mounts, which a failure may leave
    rmSync(top, { recursive: true, force: true });
  });

  const isCancelled = (error: unknown) => ShaleError.is(error, "CANCELLED");

  async function abortAtEveryStep({ name, target, make }: Format): Promise<void> {
    const undisturbed = join(top, `${name}-undisturbed`);
    mkdirSync(undisturbed);
    const all = new Steps(0, () => {});
    await make(operation, manifest, undisturbed, { progress: all });
    const expected = filesBelow(undisturbed);
    for (let number = 0; number <= STEPS; number++) {
      const step = Math.round((number * all.told) / STEPS); // step 0: before it begins
      const place = join(top, `${name}-${number}`);
      const old = join(place, target(manifest));
      mkdirSync(place);
      writeFileSync(old, OLD);
      const stop = new AbortController();
      if (step === 0) stop.abort();
      const progress = new Steps(step, () => stop.abort());
      const what = `${name}, step ${step} of ${all.told}`;
      await assert.rejects(make(operation, manifest, place, { progress, signal: stop.signal }), isCancelled, what);
      assert.equal(readFileSync(old, "utf8"), OLD, what);
      for (const [path, digest] of Object.entries(filesBelow(place))) {
        if (path !== target(manifest)) assert.equal(digest, expected[path], `${what}: ${path}`);
      }
      assert.deepEqual(
        mountInfo().filter(({ mountPoint }) => mountPoint.startsWith(place)),
        [],
        what,
      );
      await make(operation, manifest, place);
      assert.deepEqual(filesBelow(place), expected, what);
    }
  }

  for (const format of FORMATS) {
    const skip = format.name === "ext4" && !isRoot() ? "needs root" : false;
    test(`leaves what was there and complete files: ${format.name}`, { skip }, () => abortAtEveryStep(format));
  }

  // SIGINT is an event as well: who never waits for one would make all layers before it is heard.
  for (const { name, make } of [
    ...FORMATS.filter(({ name }) => name === "tar"),
    {
      name: "tarfs without disks",
      make: (...[operation, manifest, place, running]: Parameters<Format["make"]>) =>
        exportTarfs(operation, manifest, place, running),
    },
  ]) {
    test(`hears of it while it works, however small the layers: ${name}`, async () => {
      const place = join(top, `${name}-small`);
      mkdirSync(place);
      const stop = new AbortController();
      setImmediate(() => stop.abort());
      await assert.rejects(make(operation, manifest, place, { signal: stop.signal }), isCancelled);
      assert.deepEqual(filesBelow(place), {});
    });
  }
});
