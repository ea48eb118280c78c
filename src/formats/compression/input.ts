/** The compressed stream as a cursor over its chunks, without copying except where a header is cut by a chunk's end. */
import { throwIfAborted } from "../../async/index.ts";
import { concatBytes } from "../../bytes/index.ts";
import { FormatError } from "../../errors/index.ts";

const EMPTY = new Uint8Array(0);

export class InputReader {
  readonly #source: AsyncIterator<Uint8Array>;
  readonly #format: string;
  readonly #signal: AbortSignal | undefined;
  #chunk: Uint8Array = EMPTY;
  #at = 0;
  /** Stream offset of the chunk's first byte. */
  #base = 0;
  #done = false;

  constructor(source: AsyncIterable<Uint8Array>, format: string, signal: AbortSignal | undefined) {
    this.#source = source[Symbol.asyncIterator]();
    this.#format = format;
    this.#signal = signal;
  }

  /** Stream offset of the next byte. */
  get offset(): number {
    return this.#base + this.#at;
  }

  /** What is at hand: a view, possibly empty, valid until `more`. */
  get rest(): Uint8Array {
    return this.#at === 0 ? this.#chunk : this.#chunk.subarray(this.#at);
  }

  get length(): number {
    return this.#chunk.length - this.#at;
  }

  /** Steps over `count` bytes at hand; back when negative. */
  advance(count: number): void {
    const at = this.#at + count;
    if (at < 0 || at > this.#chunk.length) throw new RangeError(`advance by ${count} at ${this.#at}`);
    this.#at = at;
  }

  /** The next `count` bytes, which must be at hand. */
  take(count: number): Uint8Array {
    const at = this.#at;
    this.advance(count);
    return this.#chunk.subarray(at, at + count);
  }

  /** Adds the next chunk to what is at hand; false at the end of the stream. */
  async more(): Promise<boolean> {
    throwIfAborted(this.#signal);
    const left = this.rest;
    while (!this.#done) {
      // a chunk may be reused by its source as soon as the next one is asked for: keep what is left of it (a copy:
      // slice() of a Buffer is a view)
      const kept = left.length === 0 ? EMPTY : new Uint8Array(left);
      const { done, value } = await this.#source.next();
      throwIfAborted(this.#signal);
      if (done) {
        this.#done = true;
        this.#base += this.#at;
        this.#at = 0;
        this.#chunk = kept;
        return false;
      }
      if (value.length === 0) continue;
      this.#base += this.#at;
      this.#at = 0;
      this.#chunk = kept.length === 0 ? value : concatBytes([kept, value]);
      return true;
    }
    return false;
  }

  /** Makes at least `count` bytes be at hand, or throws FormatError: `field` is cut short. */
  async need(count: number, field: string): Promise<void> {
    while (this.length < count) {
      if (!(await this.more())) throw this.truncated(field);
    }
  }

  truncated(field: string): FormatError {
    return this.fail(field, "the stream ends here", this.offset + this.length);
  }

  fail(field: string, problem: string, offset: number, cause?: unknown): FormatError {
    return new FormatError(this.#format, field, problem, { offset, cause });
  }

  /** Lets the source go, whether it was read to its end or not. */
  async close(): Promise<void> {
    if (this.#done) return;
    this.#done = true;
    await this.#source.return?.();
  }
}
