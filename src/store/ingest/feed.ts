/**
 * Feeds an ingest with the bytes of a file while another thread still writes it: the download goes to disk, where it
 * survives a kill, and the ingest follows right behind.
 */
import { cancelled } from "../../async/index.ts";
import { ShaleError } from "../../errors/index.ts";
import { closeFile, openFile, readAt } from "../../sys/index.ts";
import type { FeedSource } from "./protocol.ts";

/** Small pieces halve the speed of inflation; larger ones gain nothing. */
const PIECE = 1024 * 1024;

/** Slots of the shared counter, an Int32Array pair with BigInt64 halves: how much is there, and in which state. */
const AVAILABLE = 0;
const STATE = 1;
const GROWING = 0n;
const COMPLETE = 1n;
const FAILED = 2n;

/** The writer's end: tells how far the file has grown. */
export class FeedProgress {
  readonly shared = new SharedArrayBuffer(16);
  readonly #slots = new BigInt64Array(this.shared);

  /** `available` counts from the start of the file. */
  advance(available: number): void {
    Atomics.store(this.#slots, AVAILABLE, BigInt(available));
    Atomics.notify(this.#slots, AVAILABLE);
  }

  complete(): void {
    this.#end(COMPLETE);
  }

  /** The reader stops with ABORTED; whoever waits for both reports the writer's own error. */
  fail(): void {
    this.#end(FAILED);
  }

  #end(state: bigint): void {
    Atomics.store(this.#slots, STATE, state);
    // Wakes a reader that waits for the counter to change; it looks at the state first.
    Atomics.notify(this.#slots, AVAILABLE);
  }
}

/**
 * The bytes of `source` in pieces, waiting for those that are still to come. Ends after `length` bytes or with the file. A
 * piece is good until the one after the next is asked for: two buffers serve all, since a garbage collector that is left to
 * free hundreds of them lets memory grow by as many MiB.
 */
export async function* readFeed(source: FeedSource, signal: AbortSignal): AsyncGenerator<Uint8Array> {
  const file = openFile(source.path);
  try {
    const end = source.offset + source.length;
    const newBuffer = () => Buffer.allocUnsafeSlow(Math.min(PIECE, Math.max(1, source.length)));
    let [buffer, other] = [newBuffer(), newBuffer()];
    for (let at = source.offset; at < end; ) {
      if (signal.aborted) throw cancelled(signal);
      const available = source.growth === undefined ? end : await grown(source.growth, at, signal);
      const count = readAt(file, buffer.subarray(0, Math.min(PIECE, available - at, end - at)), at);
      if (count === 0) return; // shorter than promised: the digest will not match, and says so
      at += count;
      yield buffer.subarray(0, count);
      [buffer, other] = [other, buffer];
    }
  } finally {
    closeFile(file);
  }
}

/**
 * Asks `source` for each item as soon as the one before it has been handed out and this thread has nothing else to do: while it
 * waits for another thread to inflate a piece, as a rule. Failures come in their turn.
 */
export async function* readAhead<T>(source: AsyncGenerator<T, void, undefined>): AsyncGenerator<T, void, undefined> {
  const ask = () => {
    const next = source.next();
    next.catch(() => {}); // whoever awaits it hears of it
    return next;
  };
  let next = ask();
  try {
    for (;;) {
      const { done, value } = await next;
      if (done === true) return;
      let asked: typeof next | undefined;
      const soon = setImmediate(() => {
        asked = ask();
      });
      yield value;
      clearImmediate(soon);
      next = asked ?? ask();
    }
  } finally {
    await source.return();
  }
}

/** Resolves with how many bytes are there as soon as that is more than `at`, or the file is complete. */
async function grown(shared: SharedArrayBuffer, at: number, signal: AbortSignal): Promise<number> {
  const slots = new BigInt64Array(shared);
  for (;;) {
    // State before size: a size that is read after COMPLETE is final.
    const state = Atomics.load(slots, STATE);
    const available = Atomics.load(slots, AVAILABLE);
    if (state === FAILED) throw new ShaleError("ABORTED", "Stopped because the download failed");
    if (Number(available) > at || state === COMPLETE) return Number(available);
    if (signal.aborted) throw cancelled(signal);
    if (state !== GROWING) throw new RangeError(`feed state ${state}`);
    const wait = Atomics.waitAsync(slots, AVAILABLE, available, 1000);
    if (wait.async) await wait.value;
  }
}
