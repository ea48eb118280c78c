/**
 * Two or more pieces of work that belong together: the first failure stops the others, and everything has settled before
 * the group ends. The failure reported is the first one, not that of a piece which was stopped because of it.
 */
export class AsyncGroup implements AsyncDisposable {
  readonly #controller = new AbortController();
  readonly #signal: AbortSignal;
  readonly #running = new Set<Promise<unknown>>();
  #failure: { readonly error: unknown } | undefined;

  constructor(signal: AbortSignal) {
    this.#signal = AbortSignal.any([signal, this.#controller.signal]);
  }

  run<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const running = work(this.#signal);
    const watched = running.then(
      () => undefined,
      (error: unknown) => {
        this.#failure ??= { error };
        this.#controller.abort(error);
      },
    );
    this.#running.add(watched);
    return running;
  }

  /** The results, after all work has settled. */
  async all<T extends readonly Promise<unknown>[]>(
    work: readonly [...T],
  ): Promise<{ -readonly [K in keyof T]: Awaited<T[K]> }> {
    await Promise.all(this.#running);
    if (this.#failure !== undefined) throw this.#failure.error;
    return (await Promise.all(work)) as { -readonly [K in keyof T]: Awaited<T[K]> };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#controller.abort();
    await Promise.all(this.#running);
  }
}
