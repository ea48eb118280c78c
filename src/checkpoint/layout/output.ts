/** Where an archive goes: a file, into which data moves inside the kernel, or a stream. */
import { ShaleError } from "../../errors/index.ts";
import { dataRanges, moveRange, readAt, startWriteback, truncate, writeAt } from "../../sys/index.ts";
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

/** A new file from its first byte on. Headers and small files are gathered, large ones moved by `moveRange`. */
export class FileOutput implements ArchiveOutput {
  readonly moved: MovedTotals = { cloned: 0, copied: 0, written: 0 };
  readonly #fd: number;
  readonly #blockSize: number;
  readonly #signal: AbortSignal | undefined;
  readonly #buffer = Buffer.allocUnsafeSlow(PIECE);
  #buffered = 0;
  /** Bytes in the file. */
  #written = 0;

  constructor(fd: number, blockSize: number, signal?: AbortSignal) {
    this.#fd = fd;
    this.#blockSize = blockSize;
    this.#signal = signal;
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

  add(content: OpenContent, size: number, seen: ((bytes: Uint8Array) => void) | undefined): void {
    if (size < DATA_FROM) {
      if (size > PIECE - this.#buffered) this.#flush();
      const place = this.#buffer.subarray(this.#buffered, this.#buffered + size);
      if (readAt(content.fd, place, content.offset) !== size) throw endsEarly();
      seen?.(place);
      this.#buffered += size;
      this.moved.written += size;
      return;
    }
    this.#flush();
    const { fd, sparse } = content;
    const data = (offset: number, length: number) => dataRanges(fd, offset, length);
    const options = { blockSize: this.#blockSize, ...(sparse && { data }) };
    for (let done = 0; done < size; ) {
      this.#signal?.throwIfAborted();
      const length = Math.min(SLICE, size - done);
      const { cloned, copied, written } = moveRange(
        content.fd,
        content.offset + done,
        this.#fd,
        this.#written + done,
        length,
        options,
      );
      this.moved.cloned += cloned;
      this.moved.copied += copied;
      this.moved.written += written;
      done += length;
    }
    this.#written += size;
    if (seen !== undefined) for (const piece of pieces(content, size)) seen(piece);
  }

  finish(): void {
    this.#flush();
    truncate(this.#fd, this.#written); // where the last bytes are a hole, nothing has set the size
  }

  #flush(): void {
    if (this.#buffered === 0) return;
    writeAt(this.#fd, this.#buffer.subarray(0, this.#buffered), this.#written);
    startWriteback(this.#fd, this.#written, this.#buffered); // the sync at the end has less to wait for
    this.#written += this.#buffered;
    this.#buffered = 0;
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

  async add(content: OpenContent, size: number, seen: ((bytes: Uint8Array) => void) | undefined): Promise<void> {
    for (const piece of pieces(content, size)) {
      seen?.(piece);
      const wait = this.write(piece);
      if (wait !== undefined) await wait;
    }
    this.moved.written += size;
  }

  async finish(): Promise<void> {
    if (this.#buffered === 0) return;
    const last = this.#buffer.subarray(0, this.#buffered);
    this.#buffered = 0;
    await this.#sink.write(last);
  }

  async #writeThrough(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      const step = Math.min(this.#buffer.length - this.#buffered, bytes.length - at);
      this.#buffer.set(bytes.subarray(at, at + step), this.#buffered);
      this.#buffered += step;
      at += step;
      if (this.#buffered < this.#buffer.length) continue;
      await this.#sink.write(this.#buffer);
      this.#buffer = this.#sink.take();
      this.#buffered = 0;
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
