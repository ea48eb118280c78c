/**
 * Where the bytes of an archive come from: a file whose parts can be passed over and copied inside the kernel, a stream, or a
 * zstd file with an index of its frames. All are read forward, by one reader.
 */
import { setImmediate } from "node:timers/promises";
import type { TarInput } from "../../formats/tar/index.ts";
import { readAt } from "../../sys/index.ts";

/** A place in an open file. The descriptor belongs to the archive. */
export interface FilePlace {
  readonly fd: number;
  readonly offset: number;
}

export interface ArchiveInput extends TarInput {
  /** Where the next byte lies; undefined when it is in no file as it is. */
  place(): FilePlace | undefined;
  close(): void | Promise<void>;
}

/** Read at once for headers and small files, where all is read; content is read in larger pieces. */
const WINDOW = 64 * 1024;
/** Behind what was passed over, doubled with each that follows: where every third file is cloned, 64 KiB would be all of that one. */
const FIRST_WINDOW = 16 * 1024;
const PIECE = 1024 * 1024;
const BETWEEN_TURNS = 32 * 1024 * 1024;
const NOTHING = new Uint8Array(0);

/** Bytes `start` to `end` of a plain file; the descriptor stays the caller's. */
export class FileInput implements ArchiveInput {
  readonly #fd: number;
  readonly #end: number;
  readonly #window = Buffer.allocUnsafeSlow(WINDOW);
  #large: Buffer | undefined;
  #windowAt = 0;
  #windowLength = 0;
  #windowSize = FIRST_WINDOW;
  /** Bytes in large pieces. */
  #sinceTurn = 0;
  #position: number;

  constructor(fd: number, start: number, end: number) {
    this.#fd = fd;
    this.#position = start;
    this.#end = end;
  }

  read(length: number): Uint8Array {
    const wanted = Math.min(length, this.#end - this.#position);
    if (wanted > WINDOW) {
      const bytes = Buffer.allocUnsafe(wanted);
      const count = readAt(this.#fd, bytes, this.#position);
      this.#position += count;
      return bytes.subarray(0, count);
    }
    if (wanted <= 0) return NOTHING;
    const inside = this.#position - this.#windowAt;
    if (inside < 0 || inside + wanted > this.#windowLength) this.#fill(wanted);
    const start = this.#position - this.#windowAt;
    const bytes = this.#window.subarray(start, Math.min(start + wanted, this.#windowLength));
    this.#position += bytes.length;
    return bytes;
  }

  /** Of content that is read through, a promise comes now and then: else no Ctrl-C would, for as long as it takes. */
  piece(limit: number): Uint8Array | Promise<Uint8Array> {
    if (this.#sinceTurn >= BETWEEN_TURNS) {
      this.#sinceTurn = 0;
      return setImmediate().then(() => this.piece(limit));
    }
    const inside = this.#position - this.#windowAt;
    const held = inside >= 0 && inside < this.#windowLength ? this.#windowLength - inside : 0;
    if (limit <= held || (limit <= WINDOW && held === 0)) return this.read(limit);
    if (held > 0) return this.read(held);
    this.#large ??= Buffer.allocUnsafeSlow(PIECE);
    const wanted = Math.min(limit, PIECE, this.#end - this.#position);
    const count = readAt(this.#fd, this.#large.subarray(0, Math.max(0, wanted)), this.#position);
    this.#position += count;
    this.#sinceTurn += count;
    return this.#large.subarray(0, count);
  }

  skip(length: number): number {
    const skipped = Math.min(length, this.#end - this.#position);
    this.#position += skipped;
    return skipped;
  }

  place(): FilePlace {
    return { fd: this.#fd, offset: this.#position };
  }

  close(): void {} // the descriptor is the caller's

  #fill(wanted: number): void {
    const inOrder = this.#position <= this.#windowAt + this.#windowLength;
    this.#windowSize = inOrder ? Math.min(WINDOW, 2 * this.#windowSize) : FIRST_WINDOW;
    const window = this.#window.subarray(0, Math.max(this.#windowSize, wanted));
    this.#windowAt = this.#position;
    this.#windowLength = readAt(this.#fd, window, this.#position);
  }
}

/** Pieces as they come; a piece of the source may be reused by it once the next one is asked for. */
export class StreamInput implements ArchiveInput {
  readonly #source: AsyncIterator<Uint8Array>;
  #chunk: Uint8Array = NOTHING;
  #at = 0;
  #ended = false;

  constructor(source: AsyncIterable<Uint8Array>) {
    this.#source = source[Symbol.asyncIterator]();
  }

  read(length: number): Uint8Array | Promise<Uint8Array> {
    if (this.#chunk.length - this.#at >= length) return this.#take(length);
    return this.#gather(length);
  }

  piece(limit: number): Uint8Array | Promise<Uint8Array> {
    const held = this.#chunk.length - this.#at;
    if (held > 0) return this.#take(Math.min(limit, held));
    return this.#more().then((more) => (more ? this.#take(Math.min(limit, this.#chunk.length)) : NOTHING));
  }

  async skip(length: number): Promise<number> {
    let left = length;
    while (left > 0) {
      const held = this.#chunk.length - this.#at;
      if (held === 0 && !(await this.#more())) break;
      const step = Math.min(left, this.#chunk.length - this.#at);
      this.#at += step;
      left -= step;
    }
    return length - left;
  }

  place(): undefined {
    return undefined;
  }

  async close(): Promise<void> {
    if (this.#ended) return;
    this.#ended = true;
    await this.#source.return?.();
  }

  #take(length: number): Uint8Array {
    const bytes = this.#chunk.subarray(this.#at, this.#at + length);
    this.#at += length;
    return bytes;
  }

  /** Callers ask for header bytes only, so `length` is below the limit of an extended header. */
  async #gather(length: number): Promise<Uint8Array> {
    const parts: Uint8Array[] = [];
    let have = 0;
    while (have < length) {
      if (this.#chunk.length === this.#at && !(await this.#more())) break;
      const part = this.#take(Math.min(length - have, this.#chunk.length - this.#at));
      parts.push(Uint8Array.from(part)); // the next chunk may be the same buffer
      have += part.length;
    }
    return Buffer.concat(parts);
  }

  async #more(): Promise<boolean> {
    while (!this.#ended) {
      const next = await this.#source.next();
      if (next.done === true) {
        this.#ended = true;
        this.#chunk = NOTHING;
        this.#at = 0;
        return false;
      }
      this.#chunk = next.value;
      this.#at = 0;
      if (this.#chunk.length > 0) return true;
    }
    return false;
  }
}

/** What a nested tar is read from where it lies in no file: the content of the outer tar's current entry. */
export interface BoundedSource {
  readonly remaining: number;
  /** Undefined at the end. */
  read(limit: number): Uint8Array | undefined | Promise<Uint8Array | undefined>;
  skip(length: number): void | Promise<void>;
}

/** The rest of another tar's current entry, as a tar of its own. */
export class BoundedInput implements ArchiveInput {
  readonly #source: BoundedSource;

  constructor(source: BoundedSource) {
    this.#source = source;
  }

  read(length: number): Uint8Array | Promise<Uint8Array> {
    const wanted = Math.min(length, this.#source.remaining);
    const first = this.#source.read(wanted) ?? NOTHING;
    return first instanceof Uint8Array && first.length === wanted ? first : this.#gather(first, wanted);
  }

  piece(limit: number): Uint8Array | Promise<Uint8Array> {
    const given = this.#source.read(limit) ?? NOTHING;
    return given instanceof Uint8Array ? given : given.then((bytes) => bytes ?? NOTHING);
  }

  async #gather(given: Uint8Array | Promise<Uint8Array | undefined>, wanted: number): Promise<Uint8Array> {
    const first = (await given) ?? NOTHING;
    if (first.length === wanted) return first;
    const parts = [Uint8Array.from(first)];
    for (let have = first.length; have < wanted; ) {
      const part = await this.#source.read(wanted - have);
      if (part === undefined) break;
      parts.push(Uint8Array.from(part)); // views end with the next call
      have += part.length;
    }
    return Buffer.concat(parts);
  }

  async skip(length: number): Promise<number> {
    const skipped = Math.min(length, this.#source.remaining);
    await this.#source.skip(skipped);
    return skipped;
  }

  place(): undefined {
    return undefined;
  }

  close(): void {} // the outer tar stays open
}
