/**
 * Garbage collection of a running daemon, in the background. One at a time; who asks while one runs gets the result of that one or, if it began before, of the next.
 */
import { runInBackground } from "./job.ts";

export interface Collected {
  readonly items: number;
  /** Bytes. */
  readonly freed: number;
  readonly durationMs: number;
}

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
    this.#running = runInBackground({ kind: "collect", root: this.#root })
      .then(({ items, bytes }) => {
        const result = { items, freed: bytes, durationMs: performance.now() - started };
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
}
