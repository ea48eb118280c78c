import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { withTemporaryDirectory } from "../sys/testing/filesystems.ts";
import { UsageMeter } from "./usage.ts";

/** A clock that goes on by `costMs` each time that it is looked at: walking takes time, without taking any. */
class Clock {
  now = 0;
  costMs = 0;
  readonly read = (): number => {
    this.now += this.costMs;
    return this.now;
  };
  during<T>(costMs: number, run: () => T): T {
    this.costMs = costMs;
    const result = run();
    if (result instanceof Promise) {
      return result.finally(() => {
        this.costMs = 0;
      }) as T;
    }
    this.costMs = 0;
    return result;
  }
}

async function withMeter(use: (meter: UsageMeter, clock: Clock, directory: string) => Promise<void>): Promise<void> {
  await withTemporaryDirectory(async (directory) => {
    const clock = new Clock();
    await use(new UsageMeter(clock.read), clock, directory);
  });
}

const add = (directory: string, name: string) => writeFileSync(join(directory, name), "x");

describe("UsageMeter", () => {
  test("measures each time what costs little", () =>
    withMeter(async (meter, clock, directory) => {
      assert.equal((await meter.measure(1, directory)).inodes, 1);
      add(directory, "a");
      clock.now += 1;
      assert.equal((await meter.measure(1, directory)).inodes, 2);
    }));

  test("lets a number get ten times as old as measuring all takes", () =>
    withMeter(async (meter, clock, directory) => {
      // Each turn of the walk looks at the clock twice: 20 ms for each of the two.
      await clock.during(10, () => meter.measure(1, directory));
      await clock.during(10, () => meter.measure(2, directory));
      add(directory, "a");
      clock.now += 100;
      assert.equal((await meter.measure(1, directory)).inodes, 1, "400 ms are allowed");
      clock.now += 400;
      assert.equal((await meter.measure(1, directory)).inodes, 2);
    }));

  test("does not wait for what takes long when it has a number", () =>
    withMeter(async (meter, clock, directory) => {
      await clock.during(100, () => meter.measure(1, directory));
      add(directory, "a");
      clock.now += 10_000;
      assert.equal((await meter.measure(1, directory)).inodes, 1);
      // The walk that began meanwhile: until it has ended each answer is the old one, and nobody waits.
      while ((await meter.measure(1, directory)).inodes === 1) await new Promise((resolve) => setTimeout(resolve, 1));
      assert.equal((await meter.measure(1, directory)).inodes, 2);
    }));

  test("walks once for all who ask at the same time", () =>
    withMeter(async (meter, _clock, directory) => {
      mkdirSync(join(directory, "many"));
      for (let at = 0; at < 2000; at++) add(join(directory, "many"), String(at));
      const real = new UsageMeter();
      const all = await Promise.all([
        real.measure(1, directory),
        real.measure(1, directory),
        meter.measure(1, directory),
      ]);
      assert.deepEqual(
        all.map(({ inodes }) => inodes),
        [2002, 2002, 2002],
      );
    }));

  test("forgets what was removed, and is cancelled before it begins", () =>
    withMeter(async (meter, clock, directory) => {
      await clock.during(1000, () => meter.measure(1, directory));
      meter.forget(1);
      meter.forget(1);
      add(directory, "a");
      assert.equal((await meter.measure(1, directory)).inodes, 2);
      await assert.rejects(meter.measure(1, directory, AbortSignal.abort()), { code: "CANCELLED" });
    }));
});
