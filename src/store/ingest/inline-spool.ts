/**
 * Holds the small payloads of one ingest until the metadata image is written: in memory at first, then in a file of the
 * staging directory, so that 1,000,000 small files need no memory. Reads come nearly in the order of writes.
 */
import { closeFile, createFile, readAt, unlink, writeAt } from "../../sys/index.ts";

/** Most layers stay below this and never touch the file. */
const MEMORY_LIMIT = 24 * 1024 * 1024;
const PIECE = 1024 * 1024;
/** Read-ahead of the file; larger than any payload that is kept inline. */
const WINDOW = 256 * 1024;
const NOTHING = new Uint8Array(0);

export class InlineSpool {
  readonly #path: string;
  #file: number | undefined;
  /** Pieces of PIECE bytes; the ones before `#spilled` are in the file. */
  #pieces: Buffer[] = [];
  #spilled = 0;
  #size = 0;
  #window = Buffer.alloc(0);
  #windowStart = 0;

  constructor(path: string) {
    this.#path = path;
  }

  get size(): number {
    return this.#size;
  }

  /** All of it: nothing had to go to the file. */
  get isInMemory(): boolean {
    return this.#file === undefined;
  }

  append(bytes: Uint8Array): void {
    let at = 0;
    while (at < bytes.length) {
      const within = this.#size % PIECE;
      if (within === 0) this.#nextPiece();
      const count = Math.min(bytes.length - at, PIECE - within);
      this.#pieces.at(-1)!.set(bytes.subarray(at, at + count), within);
      this.#size += count;
      at += count;
    }
  }

  /** The bytes are valid until the next call. */
  read(offset: number, length: number): Uint8Array {
    if (length === 0) return NOTHING; // there may be no piece at its place
    const spilledBytes = this.#spilled * PIECE;
    if (offset >= spilledBytes) {
      const first = Math.floor(offset / PIECE) - this.#spilled;
      const within = offset % PIECE;
      const piece = this.#pieces[first]!;
      if (within + length <= PIECE) return piece.subarray(within, within + length);
      const rest = this.#pieces[first + 1]!.subarray(0, length - (PIECE - within));
      return Buffer.concat([piece.subarray(within), rest]);
    }
    if (offset + length > spilledBytes) {
      const head = Buffer.from(this.read(offset, spilledBytes - offset));
      return Buffer.concat([head, this.read(spilledBytes, length - head.length)]);
    }
    if (offset < this.#windowStart || offset + length > this.#windowStart + this.#window.length) {
      this.#windowStart = offset;
      this.#window = Buffer.allocUnsafeSlow(Math.min(WINDOW, spilledBytes - offset));
      readAt(this.#file!, this.#window, offset);
    }
    const at = offset - this.#windowStart;
    return this.#window.subarray(at, at + length);
  }

  /** Frees everything; the file is removed. */
  close(): void {
    this.#pieces = [];
    if (this.#file === undefined) return;
    closeFile(this.#file);
    this.#file = undefined;
    unlink(this.#path);
  }

  #nextPiece(): void {
    if (this.#pieces.length * PIECE >= MEMORY_LIMIT) {
      this.#file ??= createFile(this.#path);
      for (const piece of this.#pieces) {
        writeAt(this.#file, piece, this.#spilled * PIECE);
        this.#spilled++;
      }
      this.#pieces = [];
    }
    this.#pieces.push(Buffer.allocUnsafeSlow(PIECE));
  }
}
