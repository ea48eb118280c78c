import { delay } from "../async/index.ts";
import { Failure } from "./failure.ts";

/** How often and how patiently a host is asked again. */
export interface RetryPolicy {
  /** Requests in a row that may fail without progress before a host is given up. */
  readonly attempts: number;
  /** The same, for a host behind which another one waits. */
  readonly attemptsBeforeFallback: number;
  /** First wait; each further one is twice as long, up to `maxMs`, of which a random half is taken off. */
  readonly baseMs: number;
  readonly maxMs: number;
  /** A server that asks (Retry-After) for a longer wait than this is given up instead. */
  readonly maxRetryAfterMs: number;
  /** All waits of one call together. */
  readonly maxTotalWaitMs: number;
  /** Requests of one call together, also where each made progress. */
  readonly maxRequests: number;
}

export const DEFAULT_RETRY: RetryPolicy = {
  attempts: 6,
  attemptsBeforeFallback: 2,
  baseMs: 500,
  maxMs: 15_000,
  maxRetryAfterMs: 60_000,
  maxTotalWaitMs: 300_000,
  maxRequests: 200,
};

/** Counts failures of one call; says whether, and after which wait, to go on with the same host. */
export class Retries {
  readonly #policy: RetryPolicy;
  #inRow = 0;
  #requests = 0;
  #waitedMs = 0;

  constructor(policy: RetryPolicy) {
    this.#policy = policy;
  }

  /** Call it before each request. False when the call has made too many. */
  begin(): boolean {
    return ++this.#requests <= this.#policy.maxRequests;
  }

  /** The last request brought something, or another host's turn begins. */
  reset(): void {
    this.#inRow = 0;
  }

  /** How many times in a row it went wrong. */
  get inRow(): number {
    return this.#inRow;
  }

  /** The wait before the next request to the same host, or undefined to give it up. */
  waitAfter(failure: Failure, hasFallback: boolean): number | undefined {
    const policy = this.#policy;
    this.#inRow++;
    if (!failure.again || this.#requests >= policy.maxRequests) return undefined;
    if (this.#inRow >= (hasFallback ? policy.attemptsBeforeFallback : policy.attempts)) return undefined;
    const backoff = Math.min(policy.maxMs, policy.baseMs * 2 ** (this.#inRow - 1));
    const wanted = Math.max(backoff * (0.5 + Math.random() / 2), failure.waitMs ?? 0);
    if (wanted > policy.maxRetryAfterMs || this.#waitedMs + wanted > policy.maxTotalWaitMs) return undefined;
    this.#waitedMs += wanted;
    return wanted;
  }
}

/**
 * `task` until it succeeds or its failure is final, which is thrown. Anything that is not a Failure is thrown at once.
 */
export async function withRetries<T>(
  policy: RetryPolicy,
  options: {
    readonly hasFallback: boolean;
    readonly signal?: AbortSignal;
    readonly onRetry: (failure: Failure, attempt: number, waitMs: number) => void;
  },
  task: () => Promise<T>,
): Promise<T> {
  const retries = new Retries(policy);
  for (;;) {
    retries.begin();
    try {
      return await task();
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      const waitMs = retries.waitAfter(error, options.hasFallback);
      if (waitMs === undefined) throw error;
      options.onRetry(error, retries.inRow, waitMs);
      await delay(waitMs, options.signal === undefined ? {} : { signal: options.signal });
    }
  }
}
