/** Where an archive goes: a file, into which data moves inside the kernel, or a stream. */
import { setImmediate } from "node:timers/promises";
import { ShaleError } from "../../errors/index.ts";
import { dataRanges, moveRange, readAt, truncate, Writeback, writeAt } from "../../sys/index.ts";
import { DATA_FROM } from "../archive/index.ts";
import type { OpenContent } from "../sources/entry.ts";

/** Bytes of file content by the way they came into the archive. */
export interface MovedTotals {
  cloned: number;
  copied: number;
  written: number;
}

export interface ArchiveOutput {
  readonly position: number;
  readonly moved: MovedTotals;
  /** The bytes may be changed again once it has settled. */
  write(bytes: Uint8Array): void | Promise<void>;
  /**
   * The content of a file, `size` bytes. `seen` gets all of them, in order; without it they need not pass through this
   * process. DATA_LOSS when the file is shorter.
   */
  add(content: OpenContent, size: number, seen: ((bytes: Uint8Array) => void) | undefined): void | Promise<void>;
  /** All bytes are on their way; nothing is durable yet. */
  finish(): void | Promise<void>;
}

const PIECE = 1024 * 1024;
/** Kernel copies are cut, so that a signal is seen between two of them. */
const SLICE = 256 * 1024 * 1024;

/**
 * A new file from its first byte on. Headers, small files and the ends of large ones are gathered; whole blocks of large ones are
 * moved by `moveRange`. Dispose of it before the descriptor is closed.
 */
export class FileOutput implements ArchiveOutput, AsyncDisposable {
  readonly moved: MovedTotals = { cloned: 0, copied: 0, written: 0 };
  readonly #fd: number;
  readonly #blockSize: number;
  readonly #signal: AbortSignal | undefined;
  readonly #writeback: Writeback;
  readonly #buffer = Buffer.allocUnsafeSlow(PIECE);
  #buffered = 0;
  /** Bytes in the file. */
  #written = 0;

  constructor(fd: number, blockSize: number, signal?: AbortSignal) {
    this.#fd = fd;
    this.#blockSize = blockSize;
    this.#signal = signal;
    this.#writeback = new Writeback(fd);
  }

  get position(): number {
    return this.#written + this.#buffered;
  }

  write(bytes: Uint8Array): void {
    if (bytes.length > PIECE - this.#buffered) this.#flush();
    if (bytes.length > PIECE) {
      writeAt(this.#fd, bytes, this.#written);
      this.#written += bytes.length;
      return;
    }
    this.#buffer.set(bytes, this.#buffered);
    this.#buffered += bytes.length;
  }

  add(content: OpenContent, size: number, seen: ((bytes: Uint8Array) => void) | undefined): void | Promise<void> {
    if (size < DATA_FROM) {
      seen?.(this.#gather(content, 0, size));
      return;
    }
    this.#flush();
    // What is behind the last whole block goes out with the header that follows it: one write for both.
    const end = content.offset % this.#blockSize === 0 ? size % this.#blockSize : 0;
    const whole = size - end;
    if (whole > SLICE) return this.#addSlices(content, whole, end, seen);
    if (whole > 0) this.#move(content, 0, whole);
    this.#finishFile(content, whole, end, seen);
  }

  async finish(): Promise<void> {
    this.#flush();
    truncate(this.#fd, this.#written); // where the last bytes are a hole, nothing has set the size
    await this.#writeback.settled();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#writeback.settled();
  }

  async #addSlices(
    content: OpenContent,
    whole: number,
    end: number,
    seen: ((bytes: Uint8Array) => void) | undefined,
  ): Promise<void> {
    for (let done = 0; done < whole; done += SLICE) {
      await setImmediate();
      this.#signal?.throwIfAborted();
      this.#move(content, done, Math.min(SLICE, whole - done));
    }
    this.#finishFile(content, whole, end, seen);
  }

  #finishFile(content: OpenContent, whole: number, end: number, seen: ((bytes: Uint8Array) => void) | undefined): void {
    if (end > 0) this.#gather(content, whole, end);
    if (seen !== undefined) for (const piece of pieces(content, whole + end)) seen(piece);
  }

  /** Part of a file, into the buffer. The answer is valid until something is written. */
  #gather(content: OpenContent, from: number, length: number): Uint8Array {
    if (length > PIECE - this.#buffered) this.#flush();
    const place = this.#buffer.subarray(this.#buffered, this.#buffered + length);
    if (readAt(content.fd, place, content.offset + from) !== length) throw endsEarly();
    this.#buffered += length;
    this.moved.written += length;
    return place;
  }

  /** Part of a file behind what is written, nothing being buffered. */
  #move({ fd, offset, sparse }: OpenContent, from: number, length: number): void {
    const data = (at: number, size: number) => dataRanges(fd, at, size);
    const options = { blockSize: this.#blockSize, ...(sparse && { data }) };
    const { cloned, copied, written } = moveRange(fd, offset + from, this.#fd, this.#written, length, options);
    this.moved.cloned += cloned;
    this.moved.copied += copied;
    this.moved.written += written;
    this.#written += length;
    this.#writeback.reach(this.#written);
  }

  #flush(): void {
    if (this.#buffered === 0) return;
    writeAt(this.#fd, this.#buffer.subarray(0, this.#buffered), this.#written);
    this.#written += this.#buffered;
    this.#buffered = 0;
    this.#writeback.reach(this.#written);
  }
}

/** Where a stream goes, piece by piece. */
export interface PieceSink {
  /** An empty buffer to fill; all have the same length. */
  take(): Buffer;
  /** Takes a filled buffer, all but the last one full; it belongs to the sink from then on. */
  write(bytes: Uint8Array): Promise<void>;
}

/** A pipe: pieces of 1 MiB, which the reader may keep. */
export function pieceSink(write: (bytes: Uint8Array) => Promise<void>): PieceSink {
  return { take: () => Buffer.allocUnsafeSlow(PIECE), write };
}

/** A stream: a pipe, or a compressor. */
export class StreamOutput implements ArchiveOutput {
  readonly moved: MovedTotals = { cloned: 0, copied: 0, written: 0 };
  readonly #sink: PieceSink;
  #buffer: Buffer;
  #buffered = 0;
  #position = 0;

  constructor(sink: PieceSink) {
    this.#sink = sink;
    this.#buffer = sink.take();
  }

  get position(): number {
    return this.#position;
  }

  write(bytes: Uint8Array): void | Promise<void> {
    this.#position += bytes.length;
    if (bytes.length < this.#buffer.length - this.#buffered) {
      this.#buffer.set(bytes, this.#buffered);
      this.#buffered += bytes.length;
      return;
    }
    return this.#writeThrough(bytes);
  }

  add(content: OpenContent, size: number, seen: ((bytes: Uint8Array) => void) | undefined): void | Promise<void> {
    if (size >= this.#buffer.length - this.#buffered) return this.#addThrough(content, size, seen);
    seen?.(this.#read(content, 0, size));
    this.moved.written += size;
  }

  async finish(): Promise<void> {
    if (this.#buffered === 0) return;
    const last = this.#buffer.subarray(0, this.#buffered);
    this.#buffered = 0;
    await this.#sink.write(last);
  }

  /** Data is read to where it goes from, holes are not read. */
  async #addThrough(
    content: OpenContent,
    size: number,
    seen: ((bytes: Uint8Array) => void) | undefined,
  ): Promise<void> {
    const { fd, offset, sparse } = content;
    const zeros = async (end: number, from: number) => {
      for (let at = from; at < end; at += PIECE) {
        const piece = ZEROS.subarray(0, Math.min(PIECE, end - at));
        seen?.(piece);
        const wait = this.write(piece);
        if (wait !== undefined) await wait;
      }
    };
    let at = 0;
    for (const range of sparse ? dataRanges(fd, offset, size) : [{ offset, length: size }]) {
      await zeros(range.offset - offset, at);
      const end = range.offset - offset + range.length;
      for (at = range.offset - offset; at < end; ) {
        const length = Math.min(this.#buffer.length - this.#buffered, end - at);
        seen?.(this.#read(content, at, length));
        at += length;
        if (this.#buffered === this.#buffer.length) await this.#next();
      }
    }
    await zeros(size, at);
    this.moved.written += size;
  }

  /** Part of a file, into the room that the buffer has. */
  #read(content: OpenContent, from: number, length: number): Uint8Array {
    const place = this.#buffer.subarray(this.#buffered, this.#buffered + length);
    if (readAt(content.fd, place, content.offset + from) !== length) throw endsEarly();
    this.#buffered += length;
    this.#position += length;
    return place;
  }

  async #next(): Promise<void> {
    await this.#sink.write(this.#buffer);
    this.#buffer = this.#sink.take();
    this.#buffered = 0;
  }

  async #writeThrough(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      const step = Math.min(this.#buffer.length - this.#buffered, bytes.length - at);
      this.#buffer.set(bytes.subarray(at, at + step), this.#buffered);
      this.#buffered += step;
      at += step;
      if (this.#buffered === this.#buffer.length) await this.#next();
    }
  }
}

const ZEROS = new Uint8Array(PIECE);

/** Archives are written one file after the other: one buffer does for all. */
let readBuffer: Buffer | undefined;

/** A file's bytes; those of holes are not read. A piece is valid until the next one, of any file, is asked for. */
function* pieces({ fd, offset, sparse }: OpenContent, size: number): Generator<Uint8Array, void, undefined> {
  readBuffer ??= Buffer.allocUnsafeSlow(PIECE);
  const buffer = readBuffer;
  let at = 0;
  for (const range of sparse ? dataRanges(fd, offset, size) : [{ offset, length: size }]) {
    yield* zeros(range.offset - offset - at);
    for (at = range.offset - offset; at < range.offset - offset + range.length; ) {
      const part = buffer.subarray(0, Math.min(buffer.length, range.offset - offset + range.length - at));
      if (readAt(fd, part, offset + at) !== part.length) throw endsEarly();
      yield part;
      at += part.length;
    }
  }
  yield* zeros(size - at);
}

function* zeros(length: number): Generator<Uint8Array, void, undefined> {
  for (let left = length; left > 0; left -= PIECE) yield ZEROS.subarray(0, Math.min(PIECE, left));
}

function endsEarly(): ShaleError {
  return new ShaleError("ABORTED", "Cannot write the checkpoint: a file became shorter meanwhile", {
    hint: "See that the container is stopped or paused while its checkpoint is written",
  });
}
