/**
 * Garbage collection of a running daemon: in a thread of its own, since it reads metadata images and unlinks files, and the main thread
 * answers containerd meanwhile. One at a time; who asks while one runs gets the result of that one or, if it began before, of the next.
 */
import { Worker } from "node:worker_threads";
import { ShaleError } from "../errors/index.ts";
import { threadEnvironment } from "../sys/index.ts";

export interface Collected {
  readonly items: number;
  /** Bytes. */
  readonly freed: number;
  readonly durationMs: number;
}

/** What the thread is given. */
export interface CollectorInput {
  readonly root: string;
}

/** What the thread answers, once. */
export type CollectorReply =
  | { readonly kind: "done"; readonly items: number; readonly freed: number }
  | { readonly kind: "failed"; readonly message: string };

export class Collector {
  readonly #root: string;
  readonly #onCollected: (result: Collected | undefined, error: unknown) => void;
  #running: Promise<Collected> | undefined;
  #timer: NodeJS.Timeout | undefined;
  /** Something was removed, or may have been, since the last run began. */
  #wanted = true;

  constructor(root: string, onCollected: (result: Collected | undefined, error: unknown) => void) {
    this.#root = root;
    this.#onCollected = onCollected;
  }

  /** Tells that there may be garbage. */
  want(): void {
    this.#wanted = true;
  }

  /** Runs each `intervalMs` if there may be garbage; `urgent` says whether to run although nothing was removed. */
  start(intervalMs: number, urgent: () => boolean): void {
    this.#timer = setInterval(() => {
      if (this.#wanted || urgent()) this.collect().catch(() => undefined); // reported to onCollected
    }, intervalMs);
    this.#timer.unref();
  }

  /** Collects now. Rejects when that failed; `onCollected` has been told by then. */
  async collect(): Promise<Collected> {
    while (this.#running !== undefined) {
      const ran = await this.#running.catch(() => undefined);
      if (!this.#wanted && ran !== undefined) return ran;
    }
    this.#wanted = false;
    const started = performance.now();
    this.#running = this.#run()
      .then(({ items, freed }) => {
        const result = { items, freed, durationMs: performance.now() - started };
        this.#onCollected(result, undefined);
        return result;
      })
      .catch((error: unknown) => {
        this.#wanted = true;
        this.#onCollected(undefined, error);
        throw error;
      })
      .finally(() => {
        this.#running = undefined;
      });
    return await this.#running;
  }

  /** Resolves when no run is under way; none begins afterwards. A run is not broken off: it may be about to free what is needed. */
  async close(): Promise<void> {
    clearInterval(this.#timer);
    this.#wanted = false;
    await this.#running?.catch(() => undefined);
  }

  #run(): Promise<{ readonly items: number; readonly freed: number }> {
    const file = import.meta.url.endsWith(".ts") ? "./collector-thread.ts" : "./collector-thread.js";
    return new Promise((resolve, reject) => {
      const fail = (message: string, cause?: unknown) =>
        reject(new ShaleError("INTERNAL", `Cannot collect garbage in ${this.#root}: ${message}`, { cause }));
      const worker = new Worker(new URL(file, import.meta.url), {
        workerData: { root: this.#root } satisfies CollectorInput,
        env: threadEnvironment(),
      });
      let reply: CollectorReply | undefined;
      worker.on("message", (message: CollectorReply) => {
        reply = message;
      });
      worker.on("error", (error: unknown) => fail(error instanceof Error ? error.message : String(error), error));
      // It ends by itself: ending a thread with native code loaded takes the process along.
      worker.on("exit", () => {
        if (reply?.kind === "done") resolve(reply);
        else fail(reply?.message ?? "its thread ended without an answer");
      });
    });
  }
}
