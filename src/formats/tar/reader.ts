/**
 * A tar by pull: entry by entry, the content of each read, or passed over by an input that can seek. What the decoder says of
 * a tar (index.ts) holds here too; only the end of the input is noticed later where content is passed over.
 */
import type { TarEntry } from "./entry.ts";
import { tarError } from "./entry.ts";
import { TarDecoder } from "./decoder.ts";
import type { TarLimits } from "./limits.ts";

/** Where a tar is read from, forward only. Calls don't overlap. Views are valid until the next call. */
export interface TarInput {
  /** Exactly `length` bytes; fewer only at the end of the input. */
  read(length: number): Uint8Array | Promise<Uint8Array>;
  /** At least one and at most `limit` bytes, however many are at hand; none only at the end of the input. */
  piece(limit: number): Uint8Array | Promise<Uint8Array>;
  /** Passes over `length` bytes; answers how many of them were there. */
  skip(length: number): number | Promise<number>;
}

export interface TarReaderOptions {
  readonly limits?: Partial<TarLimits>;
  /** Given every byte that is not content, in order, before the entry that it belongs to is returned. */
  readonly onHeader?: (bytes: Uint8Array) => void;
}

/** Zeros behind the end of the archive are read in pieces of this size. */
const TRAILER_PIECE = 64 * 1024;

export class TarReader {
  readonly #input: TarInput;
  readonly #decoder: TarDecoder;
  #found: TarEntry | undefined;
  #piece: Uint8Array | undefined;
  #offset = 0;
  #ended = false;

  constructor(input: TarInput, options: TarReaderOptions = {}) {
    this.#input = input;
    const { onHeader } = options;
    this.#decoder = new TarDecoder(
      {
        raw: (bytes) => onHeader?.(bytes),
        entry: (entry) => {
          this.#found = entry;
        },
        payload: (bytes) => {
          this.#piece = bytes;
        },
        endEntry: () => undefined,
      },
      options.limits,
    );
  }

  /** Content of the current entry that was neither read nor passed over; 0 for what has none. */
  get remaining(): number {
    const { payload, length } = this.#decoder.pending;
    return payload ? length : 0;
  }

  /** Bytes of the tar so far: while content is left, the place of its next byte. */
  get offset(): number {
    return this.#offset;
  }

  /**
   * The next entry, after what is left of the current one; undefined at the end of the tar, which is then verified. At once where the
   * input has the bytes at hand: a promise for each 512 bytes is most of the work otherwise.
   */
  next(): TarEntry | undefined | Promise<TarEntry | undefined> {
    if (this.#ended) return undefined;
    if (this.remaining > 0) return this.#nextBehindContent();
    this.#found = undefined;
    while (!this.#ended && this.#found === undefined) {
      const given = this.#ask();
      if (!(given instanceof Uint8Array)) return this.#nextFrom(given);
      this.#take(given);
    }
    return this.#found;
  }

  /** The next bytes of the current entry's content, at most `limit`; undefined when it has all been read. */
  read(limit: number): Uint8Array | undefined | Promise<Uint8Array | undefined> {
    const { remaining } = this;
    if (remaining === 0) return undefined;
    const given = this.#input.piece(Math.min(limit, remaining));
    return given instanceof Uint8Array ? this.#takeContent(given) : given.then((bytes) => this.#takeContent(bytes));
  }

  /** Passes over content of the current entry. FormatError when the input ends before it does. */
  skip(length: number): void | Promise<void> {
    if (length === 0) return;
    const given = this.#input.skip(length);
    if (typeof given === "number") this.#passed(given, length);
    else return given.then((skipped) => this.#passed(skipped, length));
  }

  #passed(skipped: number, length: number): void {
    if (skipped < length) {
      throw tarError("content", "is cut off: the tar ends inside it", this.#offset + skipped, {
        path: this.#found?.path,
      });
    }
    this.#decoder.skipPayload(length);
    this.#offset += length;
  }

  async #nextBehindContent(): Promise<TarEntry | undefined> {
    await this.skip(this.remaining);
    return await this.next();
  }

  async #nextFrom(first: Promise<Uint8Array>): Promise<TarEntry | undefined> {
    this.#take(await first);
    while (!this.#ended && this.#found === undefined) {
      const given = this.#ask();
      this.#take(given instanceof Uint8Array ? given : await given);
    }
    return this.#found;
  }

  /** What the decoder waits for; behind the end of the archive, whatever there is. */
  #ask(): Uint8Array | Promise<Uint8Array> {
    const { length } = this.#decoder.pending;
    return length === Number.POSITIVE_INFINITY ? this.#input.piece(TRAILER_PIECE) : this.#input.read(length);
  }

  #take(bytes: Uint8Array): void {
    const { length } = this.#decoder.pending;
    const isLast = length === Number.POSITIVE_INFINITY ? bytes.length === 0 : bytes.length < length;
    if (bytes.length > 0) this.#decoder.write(bytes);
    this.#offset += bytes.length;
    if (this.#found !== undefined || !isLast) return;
    this.#decoder.end();
    this.#ended = true;
  }

  #takeContent(bytes: Uint8Array): Uint8Array | undefined {
    if (bytes.length === 0) this.#decoder.end(); // throws: the tar ends inside of an entry
    this.#decoder.write(bytes);
    this.#offset += bytes.length;
    return this.#piece;
  }
}
