/**
 * The threads of a checkout. They take a tenth of a second to start, which can be while the store is being opened. Tasks are
 * handed out as threads run out of them.
 */
import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import { cancelled } from "../async/index.ts";
import { ShaleError } from "../errors/index.ts";
import { deserializeError } from "../store/ingest/serialize-error.ts";
import { threadEnvironment } from "../sys/index.ts";
import {
  BYTES_DONE,
  type CheckoutJob,
  type DirectoryTask,
  FILES_DONE,
  type FromThread,
  HUNGRY,
  STOP,
  type ThreadResult,
  type ToThread,
} from "./protocol.ts";

/** More threads than this wait for one another in the kernel, for the journal and the tables of the file system. */
const MAXIMUM_THREADS = 8;
const TELL_EVERY_MS = 200;

interface Thread {
  readonly worker: Worker;
  readonly ended: Promise<void>;
  idle: boolean;
  /** Ended, and nobody asked it to. */
  death: { readonly cause: unknown } | undefined;
}

/** How far a checkout is. */
export interface CrewProgress {
  readonly names: number;
  readonly bytes: number;
}

export class Crew implements AsyncDisposable {
  readonly #threads: Thread[];
  #onMessage: ((thread: Thread, message: FromThread) => void) | undefined;
  #onDeath: (() => void) | undefined;

  /** One thread a core unless `jobs` says otherwise. */
  constructor(jobs = Math.min(MAXIMUM_THREADS, availableParallelism())) {
    this.#threads = Array.from({ length: Math.max(1, jobs) }, () => this.#start());
  }

  #start(): Thread {
    const name = import.meta.url.endsWith(".ts") ? "./thread.ts" : "./thread.js";
    const worker = new Worker(new URL(name, import.meta.url), {
      env: threadEnvironment(),
      trackUnmanagedFds: false, // it closes descriptors that koffi opened, of which Node would know nothing and warn
    });
    const { promise, resolve } = Promise.withResolvers<void>();
    const thread: Thread = { worker, ended: promise, idle: true, death: undefined };
    let cause: unknown;
    worker.on("message", (message: FromThread) => this.#onMessage?.(thread, message));
    worker.on("error", (error) => {
      cause = error;
    });
    worker.on("exit", () => {
      thread.death = { cause };
      this.#onDeath?.();
      resolve();
    });
    return thread;
  }

  /**
   * Runs a job from its first tasks to its end. Settles when every thread has let go of the job's descriptors; the first failure
   * stops the others. CANCELLED by the signal.
   */
  async run(
    job: CheckoutJob,
    first: readonly DirectoryTask[],
    options: { readonly signal?: AbortSignal; readonly onProgress?: (progress: CrewProgress) => void } = {},
  ): Promise<ThreadResult[]> {
    const { signal, onProgress } = options;
    const control = new BigInt64Array(job.control);
    const queue = [...first];
    const results: ThreadResult[] = [];
    const end = Promise.withResolvers<void>();
    let failure: { readonly error: unknown } | undefined;
    let finishing = false;
    const living = () => this.#threads.filter((thread) => thread.death === undefined);
    const fail = (error: unknown) => {
      failure ??= { error };
      Atomics.store(control, STOP, 1n);
      queue.length = 0;
    };
    const hand = () => {
      if (finishing) return;
      const idle = living().filter((thread) => thread.idle);
      for (const [at, thread] of idle.entries()) {
        const tasks = queue.splice(0, Math.ceil(queue.length / (idle.length - at)));
        if (tasks.length === 0) break;
        thread.idle = false;
        Atomics.sub(control, HUNGRY, 1n);
        send(thread, { kind: "tasks", tasks });
      }
      finishing = queue.length === 0 && living().every((thread) => thread.idle);
      if (finishing) for (const thread of living()) send(thread, { kind: "finish" });
      endIfAll();
    };
    const endIfAll = () => {
      if (finishing && results.length >= living().length) end.resolve();
    };
    this.#onMessage = (thread, message) => {
      switch (message.kind) {
        case "shared":
          if (failure === undefined) queue.push(...message.tasks);
          break;
        case "failed":
          fail(deserializeError(message.error));
          break;
        case "result":
          results.push(message.result);
          endIfAll();
          return;
        case "ready":
          return;
      }
      if (message.kind !== "shared") {
        thread.idle = true;
        Atomics.add(control, HUNGRY, 1n);
      }
      hand();
    };
    this.#onDeath = () => {
      // Out of memory, or a mistake of ours. Its descriptors are the process's, and closed with the checkout's.
      const cause = this.#threads.find((thread) => thread.death !== undefined)?.death?.cause;
      const why = cause instanceof Error ? `: ${cause.message}` : "";
      fail(new ShaleError("INTERNAL", `Cannot check out: a thread died${why}`, { cause }));
      hand();
      endIfAll();
    };
    const onAbort = () => fail(cancelled(signal!));
    if (signal?.aborted) onAbort();
    signal?.addEventListener("abort", onAbort, { once: true });
    const timer =
      onProgress &&
      setInterval(
        () =>
          onProgress({
            names: Number(Atomics.load(control, FILES_DONE)),
            bytes: Number(Atomics.load(control, BYTES_DONE)),
          }),
        TELL_EVERY_MS,
      );
    try {
      Atomics.store(control, HUNGRY, BigInt(this.#threads.length));
      for (const thread of this.#threads) send(thread, { kind: "job", job });
      if (living().length < this.#threads.length) this.#onDeath();
      else hand();
      await end.promise;
    } finally {
      clearInterval(timer);
      signal?.removeEventListener("abort", onAbort);
      this.#onMessage = undefined;
      this.#onDeath = undefined;
    }
    if (failure !== undefined) throw failure.error;
    return results;
  }

  /** Ends the threads, each when it has loaded and is at rest: Node aborts when one is terminated inside of native code. */
  async close(): Promise<void> {
    for (const thread of this.#threads) send(thread, { kind: "end" });
    await Promise.all(this.#threads.map(({ ended }) => ended));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

function send(thread: Thread, message: ToThread): void {
  thread.worker.postMessage(message);
}
