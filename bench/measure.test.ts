import assert from "node:assert/strict";
import { linkSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { allocatedBytes, interleave, median, peakMemory } from "./measure.ts";
import { run } from "./process.ts";

describe("measure", () => {
  it("median() is the middle of the sorted values, by number", () => {
    assert.equal(median([10, 9, 100]), 10);
    assert.equal(median([4, 1, 3, 2]), 2.5);
    assert.equal(median([7]), 7);
    assert.throws(() => median([]), RangeError);
  });

  it("interleave() gives everyone each place equally often", () => {
    assert.deepEqual(interleave(["a", "b", "c"], 3), ["a", "b", "c", "b", "c", "a", "c", "a", "b"]);
    assert.deepEqual(interleave(["a", "b"], 1), ["a", "b"]);
    assert.deepEqual(interleave([], 2), []);
  });

  it("allocatedBytes() counts a file with two names once, and its directories", () => {
    const directory = mkdtempSync(join(tmpdir(), "shale-measure-"));
    try {
      writeFileSync(join(directory, "a"), Buffer.alloc(100_000, 1), { flush: true });
      const before = allocatedBytes(directory);
      assert.equal(before, (statSync(join(directory, "a")).blocks + statSync(directory).blocks) * 512);
      linkSync(join(directory, "a"), join(directory, "b"));
      assert.equal(allocatedBytes(directory), before);
    } finally {
      rmSync(directory, { recursive: true });
    }
  });

  it("peakMemory() finds what a grandchild held for a moment", async () => {
    const hold = `"${process.execPath}" -e 'globalThis.held = Buffer.alloc(200_000_000, 1); setTimeout(() => {}, 50)'; true`;
    const seen = await peakMemory([], () => run(["sh", "-c", hold]));
    assert.ok(seen.peak > 200_000_000, `${seen.peak}`);
    assert.ok(seen.peak < 1_000_000_000, `${seen.peak}`);
    assert.equal((await peakMemory([], async () => 7)).value, 7);
  });

  it("run() rejects with the command, its exit code and what it printed", async () => {
    await assert.rejects(run(["sh", "-c", "echo why >&2; exit 3"]), /Cannot run sh -c .*: ended with 3: why$/s);
    await assert.rejects(run(["/nonexistent/program"]), /Cannot run \/nonexistent\/program: .*ENOENT/);
    assert.equal(await run(["echo", "ok"]), "ok\n");
  });

  it("run() kills the command when its signal is aborted, and settles after that", async () => {
    const stop = new AbortController();
    const running = run(["sleep", "1000"], { signal: stop.signal });
    stop.abort();
    await assert.rejects(running, /Cannot run sleep 1000: AbortError/);
  });
});
