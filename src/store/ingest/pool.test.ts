import assert from "node:assert/strict";
import { describe, it, type TestContext } from "node:test";
import { Worker } from "node:worker_threads";
import { IngestPool } from "./pool.ts";

/** What happens to threads from now on, in order. */
function watchThreads(t: TestContext): string[] {
  const events: string[] = [];
  const { emit, terminate } = Worker.prototype;
  t.mock.method(Worker.prototype, "emit", function (this: Worker, name: string, ...values: unknown[]) {
    if (name === "message") events.push("loaded");
    return Reflect.apply(emit, this, [name, ...values]);
  });
  t.mock.method(Worker.prototype, "terminate", function (this: Worker) {
    events.push("terminated");
    return Reflect.apply(terminate, this, []);
  });
  return events;
}

// Seen in CI: a thread that was terminated while it loaded koffi took the whole process with it (SIGABRT in
// node::Environment::TryLoadAddon). The window is a few milliseconds, so what is tested is the order.
describe("IngestPool", () => {
  it("close() terminates no thread before it has loaded", async (t) => {
    const events = watchThreads(t);
    const pool = new IngestPool(2);
    pool.warm(2);
    await pool.close();
    assert.equal(events.filter((event) => event === "terminated").length, 2);
    assert.equal(events[0], "loaded");
    assert.equal(events[3], "terminated");
    await pool.close();
    assert.equal(events.length, 4, "a second close finds nothing to do");
  });

  it("ends a thread by itself that has nothing to do, once it has loaded", async (t) => {
    const events = watchThreads(t);
    await using pool = new IngestPool(1, 1);
    const waiting = setInterval(() => undefined, 1000); // an idle thread keeps no process alive
    pool.warm(1);
    while (events.length < 2) await new Promise((resolve) => setTimeout(resolve, 5));
    clearInterval(waiting);
    assert.deepEqual(events, ["loaded", "terminated"]);
  });

  it("rest() terminates no thread before it has loaded", async (t) => {
    const events = watchThreads(t);
    await using pool = new IngestPool(1);
    pool.warm(1);
    await pool.rest();
    assert.deepEqual(events, ["loaded", "terminated"]);
  });
});
