/**
 * Exports whose signal is aborted at any of their steps: they end with CANCELLED when their work has stopped, what was at the target
 * is still there, nothing but complete files is beside it, and the next run makes what an undisturbed one does.
 */
import assert from "node:assert/strict";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { ShaleError } from "../../src/errors/index.ts";
import { exportTarfs } from "../../src/export/index.ts";
import { isRoot, mountInfo } from "../../src/sys/index.ts";
import { FORMATS, type Format, Steps } from "./formats.ts";
import { exportBench } from "./image.ts";
import { filesBelow } from "./kill.ts";

const OLD = "an older export";
/** Of all steps of a run: the first, the last, and some between. */
const STEPS = 4;

describe("an export that is aborted", () => {
  const bench = exportBench("abort");

  const isCancelled = (error: unknown) => ShaleError.is(error, "CANCELLED");

  async function abortAtEveryStep({ name, target, make }: Format): Promise<void> {
    const undisturbed = join(bench.top, `${name}-undisturbed`);
    mkdirSync(undisturbed);
    const all = new Steps(0, () => {});
    await make(bench.operation, bench.manifest, undisturbed, { progress: all });
    const expected = filesBelow(undisturbed);
    for (let number = 0; number <= STEPS; number++) {
      const step = Math.round((number * all.told) / STEPS); // step 0: before it begins
      const place = join(bench.top, `${name}-${number}`);
      const old = join(place, target(bench.manifest));
      mkdirSync(place);
      writeFileSync(old, OLD);
      const stop = new AbortController();
      if (step === 0) stop.abort();
      const progress = new Steps(step, () => stop.abort());
      const what = `${name}, step ${step} of ${all.told}`;
      await assert.rejects(
        make(bench.operation, bench.manifest, place, { progress, signal: stop.signal }),
        isCancelled,
        what,
      );
      assert.equal(readFileSync(old, "utf8"), OLD, what);
      for (const [path, digest] of Object.entries(filesBelow(place))) {
        if (path !== target(bench.manifest)) assert.equal(digest, expected[path], `${what}: ${path}`);
      }
      assert.deepEqual(
        mountInfo().filter(({ mountPoint }) => mountPoint.startsWith(place)),
        [],
        what,
      );
      await make(bench.operation, bench.manifest, place);
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
      const place = join(bench.top, `${name}-small`);
      mkdirSync(place);
      const stop = new AbortController();
      setImmediate(() => stop.abort());
      await assert.rejects(make(bench.operation, bench.manifest, place, { signal: stop.signal }), isCancelled);
      assert.deepEqual(filesBelow(place), {});
    });
  }
});
