/** Threads that hash. They take a tenth of a second to start, which can be while what they will hash is still being written. */
import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import { type ErrorCode, ShaleError } from "../errors/index.ts";
import { threadEnvironment } from "../sys/index.ts";
import type { HashJob } from "./verity-segments.ts";
import type { WorkerAnswer } from "./verity-worker.ts";

interface Thread {
  readonly worker: Worker;
  /** Resolves when it has let go of the job's descriptors; rejects with its error. */
  readonly ended: Promise<void>;
}

export class VerityThreads implements Disposable {
  readonly #threads: Thread[];

  /** `jobs` threads in all, the caller's included; one a core unless given. */
  constructor(jobs = availableParallelism()) {
    this.#threads = Array.from({ length: Math.max(0, jobs - 1) }, start);
  }

  /** Gives a job to at most `count` of them, each for its only time; `onFailure` is called as soon as one fails. */
  run(job: HashJob, count: number, onFailure: () => void): Promise<void>[] {
    return this.#threads.splice(0, Math.max(0, count)).map(async ({ worker, ended }) => {
      worker.ref();
      worker.on("message", ({ kind }: WorkerAnswer) => {
        if (kind === "failed") onFailure();
      });
      worker.on("error", onFailure);
      worker.postMessage(job);
      await ended;
    });
  }

  /** Ends those that had no job. */
  [Symbol.dispose](): void {
    for (const { worker } of this.#threads.splice(0)) void worker.terminate();
  }
}

function start(): Thread {
  const name = import.meta.url.endsWith(".ts") ? "./verity-worker.ts" : "./verity-worker.js";
  const worker = new Worker(new URL(name, import.meta.url), { env: threadEnvironment() });
  worker.unref();
  const ended = new Promise<void>((resolve, reject) => {
    let answer: WorkerAnswer | undefined;
    let cause: unknown;
    worker.on("message", (message: WorkerAnswer) => {
      answer = message;
    });
    worker.on("error", (error) => {
      cause = error;
    });
    worker.on("exit", () => {
      if (answer?.kind === "done") resolve();
      else reject(answer === undefined ? died(cause) : received(answer));
    });
  });
  ended.catch(() => undefined); // of a thread that had no job; whoever gave one waits for it
  return { worker, ended };
}

function died(cause: unknown): ShaleError {
  return new ShaleError("INTERNAL", "Cannot hash the data: a thread died", { cause });
}

function received({ code, message, ours }: Extract<WorkerAnswer, { kind: "failed" }>): Error {
  // The code was that of a ShaleError in the other thread.
  if (ours) return new ShaleError(code as ErrorCode, message);
  return Object.assign(new Error(message), code === undefined ? {} : { code });
}
