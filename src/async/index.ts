/**
 * Structured concurrency: bounded maps and waits that end when their signal ends. An aborted call settles after its
 * work has stopped, never before.
 */
import { ShaleError } from "../errors/index.ts";

export { AsyncGroup } from "./group.ts";
export { Slots } from "./slots.ts";

/** Throws ShaleError CANCELLED when the signal is aborted. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw cancelled(signal);
}

export function cancelled(signal: AbortSignal): ShaleError {
  if (signal.reason instanceof ShaleError) return signal.reason;
  return new ShaleError("CANCELLED", "Stopped on request", { cause: signal.reason });
}

/**
 * Runs `task` over `source` with at most `limit` at a time and returns the results in order. The first failure aborts
 * the signal that the other tasks see, waits until they have settled, and is rethrown.
 */
export async function mapConcurrent<T, R>(
  source: Iterable<T> | AsyncIterable<T>,
  limit: number,
  task: (item: T, index: number, signal: AbortSignal) => Promise<R>,
  options: { readonly signal?: AbortSignal } = {},
): Promise<R[]> {
  if (!(limit >= 1)) throw new RangeError(`limit must be at least 1: current value is ${limit}`);
  const group = new AbortController();
  const signal = options.signal ? AbortSignal.any([options.signal, group.signal]) : group.signal;
  const results: R[] = [];
  const running = new Set<Promise<void>>();
  let failure: { readonly error: unknown } | undefined;
  let index = 0;
  try {
    for await (const item of source) {
      if (failure || signal.aborted) break;
      const at = index++;
      const one: Promise<void> = task(item, at, signal)
        .then(
          (value) => {
            results[at] = value;
          },
          (error: unknown) => {
            failure ??= { error };
            group.abort(error);
          },
        )
        .finally(() => running.delete(one));
      running.add(one);
      if (running.size >= limit) await Promise.race(running);
    }
  } finally {
    await Promise.all(running);
  }
  if (failure) throw failure.error;
  throwIfAborted(options.signal);
  return results;
}

/** Resolves after `ms` milliseconds; rejects with CANCELLED as soon as the signal is aborted. */
export function delay(ms: number, options: { readonly signal?: AbortSignal } = {}): Promise<void> {
  const { signal } = options;
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(cancelled(signal));
    const stop = () => {
      clearTimeout(timer);
      reject(cancelled(signal!));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    signal?.addEventListener("abort", stop, { once: true });
  });
}
