import type { StoreContext } from "./context.ts";
import { indexLayers } from "./payload-index.ts";

/** After a layer was committed: who waits for it is answered, and starts what it wants to start. */
const LATER_MS = 300;

/**
 * Indexing for processes that others wait for: a while after the request, with turns of the event loop between its
 * transactions. Nobody misses it: the next ingest has it done first. What is not done when the process ends is left to
 * the next one that indexes.
 */
export class LateIndexer {
  readonly #context: StoreContext;
  readonly #begin: () => Disposable;
  #timer: NodeJS.Timeout | undefined;
  #running: Promise<void> | undefined;
  #stopped = false;
  #onError: (error: unknown) => void = () => undefined;

  /** `begin` takes a lease. */
  constructor(context: StoreContext, begin: () => Disposable) {
    this.#context = context;
    this.#begin = begin;
  }

  /** `onError` is told of what went wrong; nothing but sharing is lost by it. */
  request(onError: (error: unknown) => void): void {
    if (this.#stopped) return;
    this.#onError = onError;
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      const running: Promise<void> = (this.#running ?? Promise.resolve())
        .then(() => this.#run())
        .finally(() => {
          if (this.#running === running) this.#running = undefined;
        });
      this.#running = running;
    }, LATER_MS).unref();
  }

  /** Does at once what was asked for. */
  catchUp(): void {
    if (this.#timer === undefined && this.#running === undefined) return;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    try {
      using _ = this.#begin();
      for (const _ of indexLayers(this.#context));
    } catch (error) {
      this.#onError(error);
    }
  }

  /** Resolves when nothing of it is under way, nor will be. */
  async close(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#timer);
    await this.#running;
  }

  async #run(): Promise<void> {
    try {
      using _ = this.#begin();
      for (const _ of indexLayers(this.#context)) {
        await new Promise((resolve) => setImmediate(resolve));
        if (this.#stopped) return;
      }
    } catch (error) {
      this.#onError(error);
    }
  }
}
