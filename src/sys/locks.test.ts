import assert from "node:assert/strict";
import { readFileSync, truncateSync, unlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { ShaleError } from "../errors/index.ts";
import { acquireLock, findHolder, isHeld, tryLock } from "./locks.ts";
import { findProcess } from "./process.ts";
import { Child, moduleUrl } from "./testing/child.ts";
import { withTemporaryDirectory } from "./testing/filesystems.ts";

function holder(path: string): Child {
  return new Child(`
    import { tryLock } from ${moduleUrl("locks.ts")};
    console.log(tryLock(${JSON.stringify(path)}, { command: "shale pull x" }) ? "locked" : "busy");
    setInterval(() => {}, 1000);`);
}

const inDirectory = (use: (path: string, directory: string) => Promise<void> | void) => () =>
  withTemporaryDirectory((directory) => use(join(directory, "lock"), directory));

test(
  "tryLock() excludes another task of the same process until release",
  inDirectory((path) => {
    const first = tryLock(path);
    assert.ok(first);
    assert.equal(tryLock(path), undefined);
    assert.equal(tryLock(path, { shared: true }), undefined);
    first.release();
    first.release();
    using second = tryLock(path);
    assert.ok(second);
  }),
);

test(
  "tryLock() lets shared holders in together and keeps an exclusive one out until the last is gone",
  inDirectory((path) => {
    const a = tryLock(path, { shared: true });
    const b = tryLock(path, { shared: true });
    assert.ok(a && b);
    assert.equal(tryLock(path), undefined);
    a.release();
    assert.equal(tryLock(path), undefined);
    b.release();
    using c = tryLock(path);
    assert.ok(c);
  }),
);

test(
  "tryLock() does not lose its lock when another descriptor of the file is closed",
  inDirectory((path) => {
    using lock = tryLock(path);
    assert.ok(lock);
    readFileSync(path); // opens and closes: with fcntl locks this would release
    assert.equal(isHeld(path), true);
  }),
);

test(
  "Lock.release({ unlink }) removes the file, and a lock on the removed file is no lock on the path",
  inDirectory((path) => {
    const first = tryLock(path);
    first?.release({ unlink: true });
    assert.throws(() => readFileSync(path), { code: "ENOENT" });
    using held = tryLock(path);
    unlinkSync(path); // someone cleans up behind the holder's back
    using other = tryLock(path);
    assert.ok(held && other);
  }),
);

test(
  "tryLock() takes a free lock whatever is in its file",
  inDirectory((path) => {
    for (const content of ["", "{", "null", '{"pid":1}', "\0".repeat(10_000)]) {
      writeFileSync(path, content);
      assert.equal(findHolder(path), undefined, content);
      using lock = tryLock(path);
      assert.ok(lock);
      assert.equal(findHolder(path)?.pid, process.pid);
      truncateSync(path, 0);
      assert.equal(isHeld(path), true);
    }
  }),
);

test(
  "findHolder() does not name a later process that has the pid of a dead holder",
  inDirectory((path) => {
    tryLock(path)?.release();
    const content: unknown = JSON.parse(readFileSync(path, "utf8"));
    assert.equal(findHolder(path)?.pid, process.pid);
    writeFileSync(path, JSON.stringify({ ...(content as object), startTime: 1 }));
    assert.equal(findHolder(path), undefined);
  }),
);

test(
  "isHeld() is false for an absent file and creates none",
  inDirectory((path) => {
    assert.equal(isHeld(path), false);
    assert.throws(() => readFileSync(path), { code: "ENOENT" });
  }),
);

test(
  "acquireLock() names the holding process on timeout, says when it is stopped, and gets the lock when it is killed",
  inDirectory(async (path) => {
    await using child = holder(path);
    assert.equal(await child.line(), "locked");
    await assert.rejects(acquireLock(path, { timeoutMs: 1, what: "the store" }), (error) => {
      assert.ok(ShaleError.is(error, "UNAVAILABLE"));
      assert.match(
        error.message,
        new RegExp(`^Cannot lock the store within 1 ms: process ${child.pid} \\(shale pull x\\)`),
      );
      return true;
    });
    child.kill("SIGSTOP");
    while (findProcess(child.pid)?.state !== "T") await new Promise((resolve) => setTimeout(resolve, 1));
    await assert.rejects(acquireLock(path, { timeoutMs: 1 }), (error) => {
      assert.ok(ShaleError.is(error, "UNAVAILABLE"));
      assert.match(error.message, /holds it and is stopped$/);
      assert.match(error.hint ?? "", new RegExp(`kill -CONT ${child.pid}`));
      return true;
    });
    const waiting = acquireLock(path);
    child.kill("SIGKILL");
    using lock = await waiting;
    assert.equal(findHolder(path)?.pid, process.pid);
    assert.equal(lock.path, path);
  }),
);

test(
  "acquireLock() stops waiting when its signal is aborted",
  inDirectory(async (path) => {
    using _held = tryLock(path);
    const controller = new AbortController();
    const waiting = acquireLock(path, { signal: controller.signal });
    controller.abort();
    await assert.rejects(waiting, { code: "CANCELLED" });
    await assert.rejects(acquireLock(path, { signal: controller.signal }), { code: "CANCELLED" });
  }),
);

test(
  "acquireLock() lets exactly one of many tasks in at a time, also when each removes the file",
  inDirectory(async (path) => {
    let inside = 0;
    let entered = 0;
    await Promise.all(
      Array.from({ length: 8 }, async () => {
        const lock = await acquireLock(path);
        assert.equal(++inside, 1);
        entered++;
        await new Promise((resolve) => setImmediate(resolve));
        inside--;
        lock.release({ unlink: true });
      }),
    );
    assert.equal(entered, 8);
  }),
);
