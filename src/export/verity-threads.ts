/** Threads that hash. They take a tenth of a second to start, which can be while what they will hash is still being written. */
import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import { ShaleError } from "../errors/index.ts";
import { deserializeError } from "../store/ingest/serialize-error.ts";
import { threadEnvironment } from "../sys/index.ts";
import type { HashJob } from "./verity-segments.ts";
import { NO_JOB, type WorkerAnswer } from "./verity-protocol.ts";

interface Thread {
  readonly worker: Worker;
  /** Resolves when it has let go of the job's descriptors; rejects with its error. */
  readonly ended: Promise<void>;
}

export class VerityThreads implements AsyncDisposable {
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

  /**
   * Ends those that had no job, as soon as they have loaded: Node aborts the whole process when a native module (koffi) loads in a
   * thread that is being terminated.
   */
  async [Symbol.asyncDispose](): Promise<void> {
    const unused = this.#threads.splice(0);
    for (const { worker } of unused) {
      worker.ref();
      worker.postMessage(NO_JOB);
    }
    await Promise.allSettled(unused.map(({ ended }) => ended));
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
      else reject(answer === undefined ? died(cause) : deserializeError(answer.error));
    });
  });
  ended.catch(() => undefined); // of a thread that had no job; whoever gave one waits for it
  return { worker, ended };
}

function died(cause: unknown): ShaleError {
  return new ShaleError("INTERNAL", "Cannot hash the data: a thread died", { cause });
}
