/** A stream of bytes cut into pieces that are held until they are no longer needed, the next one being read meanwhile. */

export interface Piece {
  readonly size: number;
  /** Nothing comes after it. The last piece may be empty. */
  readonly isLast: boolean;
  /** Its bytes from `from` on. */
  bytes(from: number): Uint8Array;
}

export type Bytes = Iterable<Uint8Array> | AsyncIterable<Uint8Array>;

/**
 * Pieces of exactly `size` bytes but for the last one. Chunks of the source are kept, not copied, until a piece is asked
 * for its bytes; they are shown to `onChunk` in order, which has seen all of them when the last piece comes.
 */
export class HeldPieces implements AsyncDisposable {
  readonly #source: AsyncIterator<Uint8Array> | Iterator<Uint8Array>;
  readonly #size: number;
  readonly #onChunk: (chunk: Uint8Array) => void;
  /** The part of a chunk that belongs to the next piece. */
  #rest: Uint8Array = new Uint8Array(0);
  #ended = false;
  #ahead: Promise<Piece> | undefined;

  constructor(source: Bytes, size: number, onChunk: (chunk: Uint8Array) => void) {
    this.#source = Symbol.asyncIterator in source ? source[Symbol.asyncIterator]() : source[Symbol.iterator]();
    this.#size = size;
    this.#onChunk = onChunk;
  }

  /** Throws what the source throws. Not to be called after the last piece. */
  async next(): Promise<Piece> {
    const piece = await (this.#ahead ?? this.#read());
    this.#ahead = undefined;
    if (!piece.isLast) {
      this.#ahead = this.#read();
      this.#ahead.catch(() => {}); // `next` or dispose waits for it
    }
    return piece;
  }

  /** Waits for what is being read, then ends the source. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#ahead?.catch(() => {});
    if (!this.#ended) await this.#source.return?.();
  }

  async #read(): Promise<Piece> {
    const parts: Uint8Array[] = [];
    let held = 0;
    const take = (chunk: Uint8Array) => {
      const part = chunk.subarray(0, this.#size - held);
      this.#rest = chunk.subarray(part.length);
      if (part.length === 0) return;
      parts.push(part);
      held += part.length;
    };
    take(this.#rest);
    // one byte is looked ahead, or a blob of exactly one piece would take two requests
    while (!this.#ended && this.#rest.length === 0) {
      const { done, value } = await this.#source.next();
      if (done === true) {
        this.#ended = true;
        break;
      }
      this.#onChunk(value);
      take(value);
    }
    return {
      size: held,
      isLast: this.#ended && this.#rest.length === 0,
      bytes(from) {
        if (parts.length > 1) parts.splice(0, parts.length, Buffer.concat(parts));
        return (parts[0] ?? new Uint8Array(0)).subarray(from);
      },
    };
  }
}
