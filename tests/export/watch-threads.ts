/**
 * Loaded by `--import` before a command: counts the threads that it starts, and can have one fail. WATCH_THREADS names the file that
 * is told `{started, most}` at the end; with WATCH_FAIL=EIO the first read of data in a thread fails, with WATCH_FAIL=die it ends the
 * thread. The main thread, once others have work, waits for the failure before it reads.
 */
import fs, { writeFileSync } from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { exit } from "node:process";
import { getEnvironmentData, isMainThread, setEnvironmentData, Worker } from "node:worker_threads";

const KEY = "watch-threads";
/** So that a test fails, and does not hang, when no thread reads. */
const LIMIT_MS = 20_000;
/** Of a read that is one of data; modules are read in smaller pieces. */
const LEAST = 65_536;

const { WATCH_THREADS, WATCH_FAIL } = process.env;
const original = fs.readSync;

if (isMainThread) watch();
else if (WATCH_FAIL !== undefined) failReads(new Int32Array(getEnvironmentData(KEY) as SharedArrayBuffer));

function watch(): void {
  const failed = new Int32Array(new SharedArrayBuffer(4));
  setEnvironmentData(KEY, failed.buffer);
  let [started, live, most] = [0, 0, 0];
  process.on("worker", (worker: Worker) => {
    started++;
    most = Math.max(most, ++live);
    worker.on("exit", () => live--);
  });
  if (WATCH_FAIL !== undefined) {
    const { postMessage } = Worker.prototype;
    Worker.prototype.postMessage = function (this: Worker, value: unknown) {
      postMessage.call(this, value);
      if (value !== null) holdReads(failed); // null: no work
    };
  }
  process.on("exit", () => writeFileSync(WATCH_THREADS!, JSON.stringify({ started, most })));
}

function patchReads(before: (length: number) => void): void {
  fs.readSync = ((...args: Parameters<typeof fs.readSync>) => {
    before(args[1].byteLength);
    return original(...args);
  }) as typeof fs.readSync;
  syncBuiltinESMExports();
}

function holdReads(failed: Int32Array): void {
  patchReads((length) => {
    if (length >= LEAST) Atomics.wait(failed, 0, 0, LIMIT_MS);
  });
}

function failReads(failed: Int32Array): void {
  patchReads((length) => {
    if (length < LEAST) return;
    Atomics.store(failed, 0, 1);
    Atomics.notify(failed, 0);
    if (WATCH_FAIL === "die") exit();
    throw Object.assign(new Error("EIO: i/o error, read"), { code: "EIO", syscall: "read" });
  });
}
