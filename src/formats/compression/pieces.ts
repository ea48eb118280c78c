/**
 * The hand-over from the decompressor to its consumer: a bounded queue that the decompressor fills on its own, so that a
 * piece is always being decompressed while the consumer is at work on another, and a ring of output buffers.
 *
 * Buffers are reused because a fresh MiB costs 256 page faults and, until it is collected, memory.
 */
import { cancelled, throwIfAborted } from "../../async/index.ts";
import { FormatError } from "../../errors/index.ts";

/** Bytes of a full piece. 1 MiB: smaller halves the speed of node:zlib, larger only costs memory. */
export const PIECE_SIZE = 1024 * 1024;
/** Pieces that may wait for the consumer; one more may be on its way. */
export const LOOKAHEAD = 2;

export interface PieceSettings {
  /** For messages. */
  readonly format: string;
  readonly maximumSize: number;
  readonly signal: AbortSignal | undefined;
}

export function overLimit({ format, maximumSize }: PieceSettings): FormatError {
  return new FormatError(format, "decompressed size", `is over the limit of ${maximumSize} bytes`, {
    code: "RESOURCE_EXHAUSTED",
  });
}

/** Where a decompressor puts its bytes. A method that returns a promise wants it awaited before the next call. */
export interface PieceSink {
  /** Bytes so far. */
  readonly size: number;
  /** Hands out the piece at hand if it has less than `count` bytes of room. */
  reserve(count: number): Promise<void> | undefined;
  /** The room of the piece at hand, never empty. */
  room(): Uint8Array;
  /** Says that the first `count` bytes of `room()` were filled. */
  advance(count: number): Promise<void> | undefined;
  /** Hands out bytes of the caller's after those at hand; they must stay until the consumer asks for the next piece. */
  append(piece: Uint8Array): Promise<void> | undefined;
}

/** The consumer is gone; unwinds the decompressor and is never seen outside. */
class Abandoned extends Error {}

/** Runs `work` with a sink and gives what it puts there, then the error that it ended with. */
export async function* producePieces(
  settings: PieceSettings,
  work: (sink: PieceSink) => Promise<void>,
): AsyncGenerator<Uint8Array, void, undefined> {
  const { signal } = settings;
  throwIfAborted(signal);
  const ring = new PieceRing(settings);
  const onAbort = () => ring.abandon(cancelled(signal!));
  signal?.addEventListener("abort", onAbort, { once: true });
  const done = work(ring).then(
    () => ring.finish(),
    (error: unknown) => ring.fail(error),
  );
  try {
    for (;;) {
      const piece = await ring.take();
      if (piece === undefined) return;
      yield piece;
    }
  } finally {
    ring.abandon(new Abandoned());
    await done; // never rejects: fail() keeps the error for take()
    signal?.removeEventListener("abort", onAbort);
  }
}

interface Waiting {
  readonly bytes: Uint8Array;
  /** The ring's buffer that the bytes are in, if it is one of the ring. */
  readonly buffer: Uint8Array | undefined;
}

class PieceRing implements PieceSink {
  readonly #settings: PieceSettings;
  readonly #queue: Waiting[] = [];
  readonly #free: Uint8Array[] = [];
  #current: Uint8Array | undefined;
  #fill = 0;
  #size = 0;
  /** The buffer of the piece that the consumer has. */
  #lent: Uint8Array | undefined;
  #ended = false;
  #failure: { readonly error: unknown } | undefined;
  #abandoned: Error | undefined;
  #wakeProducer: (() => void) | undefined;
  #wakeConsumer: (() => void) | undefined;

  constructor(settings: PieceSettings) {
    this.#settings = settings;
  }

  get size(): number {
    return this.#size;
  }

  reserve(count: number): Promise<void> | undefined {
    return this.#current !== undefined && PIECE_SIZE - this.#fill < count ? this.#flush() : undefined;
  }

  room(): Uint8Array {
    // unpooled, so that no other Buffer shares the memory that another thread writes into
    this.#current ??= this.#free.pop() ?? Buffer.allocUnsafeSlow(PIECE_SIZE);
    return this.#current.subarray(this.#fill);
  }

  advance(count: number): Promise<void> | undefined {
    this.#count(count);
    this.#fill += count;
    return this.#fill === PIECE_SIZE ? this.#flush() : undefined;
  }

  append(piece: Uint8Array): Promise<void> | undefined {
    if (piece.length === 0) return undefined;
    this.#count(piece.length);
    if (this.#fill === 0) return this.#put({ bytes: piece, buffer: undefined });
    this.#enqueue(this.#takeCurrent()); // at most one more than LOOKAHEAD for a moment
    return this.#put({ bytes: piece, buffer: undefined });
  }

  finish(): void {
    if (this.#fill > 0) this.#enqueue(this.#takeCurrent());
    this.#ended = true;
    this.#wakeConsumer?.();
  }

  fail(error: unknown): void {
    this.#failure = { error };
    this.#ended = true;
    this.#wakeConsumer?.();
  }

  /** Makes the decompressor end at its next hand-over. */
  abandon(reason: Error): void {
    this.#abandoned ??= reason;
    this.#wakeProducer?.();
  }

  /** The next piece, undefined after the last. Takes the one before it back. */
  async take(): Promise<Uint8Array | undefined> {
    if (this.#lent !== undefined) {
      this.#free.push(this.#lent);
      this.#lent = undefined;
    }
    while (this.#queue.length === 0 && !this.#ended) {
      await new Promise<void>((resolve) => {
        this.#wakeConsumer = resolve;
      });
      this.#wakeConsumer = undefined;
    }
    // an abort overtakes the pieces that wait, but only once the work has stopped
    if (this.#abandoned !== undefined) {
      while (!this.#ended) {
        await new Promise<void>((resolve) => {
          this.#wakeConsumer = resolve;
        });
      }
      throw this.#abandoned;
    }
    const next = this.#queue.shift();
    if (next !== undefined) {
      this.#wakeProducer?.();
      this.#lent = next.buffer;
      return next.bytes;
    }
    if (this.#failure !== undefined) throw this.#failure.error;
    return undefined;
  }

  #count(bytes: number): void {
    if (this.#abandoned !== undefined) throw this.#abandoned;
    this.#size += bytes;
    if (this.#size > this.#settings.maximumSize) throw overLimit(this.#settings);
  }

  #takeCurrent(): Waiting {
    const buffer = this.#current!;
    const bytes = this.#fill === PIECE_SIZE ? buffer : buffer.subarray(0, this.#fill);
    this.#current = undefined;
    this.#fill = 0;
    return { bytes, buffer };
  }

  #flush(): Promise<void> | undefined {
    return this.#put(this.#takeCurrent());
  }

  #enqueue(piece: Waiting): void {
    this.#queue.push(piece);
    this.#wakeConsumer?.();
  }

  #put(piece: Waiting): Promise<void> | undefined {
    this.#enqueue(piece);
    return this.#queue.length > LOOKAHEAD ? this.#waitForRoom() : undefined;
  }

  async #waitForRoom(): Promise<void> {
    while (this.#queue.length > LOOKAHEAD && this.#abandoned === undefined) {
      await new Promise<void>((resolve) => {
        this.#wakeProducer = resolve;
      });
      this.#wakeProducer = undefined;
    }
    if (this.#abandoned !== undefined) throw this.#abandoned;
  }
}
