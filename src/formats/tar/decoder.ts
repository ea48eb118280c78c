import { type ByteString, displayBytes } from "../../bytes/index.ts";
import type { ErrorCode, FormatError } from "../../errors/index.ts";
import { type Segment, type TarEntry, type TarSink, tarError } from "./entry.ts";
import { countField, type Draft, readEntryHeader, tooLarge } from "./entry-header.ts";
import { type ExtendedKind, ExtendedHeaders, extendedKindOf } from "./extended-headers.ts";
import { BLOCK_SIZE, checksumMatches, type Dialect, FIELDS, isZero } from "./header.ts";
import { DEFAULT_TAR_LIMITS, type TarLimits } from "./limits.ts";
import type { Fail, PaxHeader } from "./pax.ts";
import { decodeOldSparse, OLD_SPARSE_EXTENSION, OLD_SPARSE_HEADER, SparseMapReader, segmentsOf } from "./sparse.ts";

/** What the next byte belongs to. */
type State =
  | "header"
  | "meta" // body of an extended header
  | "old-sparse" // extension block of an old GNU sparse header
  | "sparse-map" // block of a sparse 1.0 map
  | "payload"
  | "skip" // padding, and data without a meaning
  | "one-zero" // after the first zero block
  | "trailer" // after the second
  | "closed"; // ended or failed

const PARTS: Readonly<Record<State, string>> = {
  header: "header",
  meta: "extended header",
  "old-sparse": "sparse map",
  "sparse-map": "sparse map",
  payload: "content",
  skip: "padding",
  "one-zero": "end of archive",
  trailer: "end of archive",
  closed: "tar",
};

export interface TarDecoderOptions extends Partial<TarLimits> {
  /**
   * The tar may end within the padding of its last file, as layers of `umoci insert` (0.4.7) do, and as Go takes for the end. Only
   * where a digest vouches for the whole: else such an end may be a cut. False unless given.
   */
  readonly mayLackPadding?: boolean;
}

/**
 * Push decoder: give it the tar by `write`, then call `end`. See index.ts for what it accepts. Throws FormatError at the
 * first byte that can't be meant; a decoder that has thrown is not used any more. Holds at most one block, one extended
 * header and one sparse map, whatever the size of the tar.
 */
export class TarDecoder {
  readonly #sink: TarSink;
  readonly #limits: TarLimits;
  readonly #mayLackPadding: boolean;
  #state: State = "header";
  /** Bytes of the tar before the current chunk. */
  #base = 0;
  /** Start in the current chunk of bytes that still go to sink.raw(). */
  #rawFrom = 0;
  #remaining = 0;
  #padding = 0;

  /** A block that was cut by the end of a chunk. */
  readonly #held = Buffer.alloc(BLOCK_SIZE);
  #heldLength = 0;

  /** The body of an extended header that is cut by the end of a chunk. */
  #metaBody: Buffer | undefined;
  #metaLength = 0;
  /** What was said before the entry's own header. */
  readonly #said: ExtendedHeaders;

  #draft: Draft | undefined;
  #oldSparseMap: number[] = [];
  #mapReader: SparseMapReader | undefined;
  #path: ByteString | undefined;

  constructor(sink: TarSink, options: TarDecoderOptions = {}) {
    const { mayLackPadding = false, ...limits } = options;
    this.#sink = sink;
    this.#mayLackPadding = mayLackPadding;
    this.#limits = { ...DEFAULT_TAR_LIMITS, ...limits };
    this.#said = new ExtendedHeaders(this.#limits);
  }

  /** The chunk is not kept after the call. */
  write(chunk: Uint8Array): void {
    if (this.#state === "closed") throw new RangeError("write() to a tar decoder that has ended or failed");
    const bytes = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    let done = false;
    try {
      this.#decode(bytes);
      this.#flushRaw(bytes, bytes.length);
      this.#rawFrom = 0;
      this.#base += bytes.length;
      done = true;
    } finally {
      if (!done) this.#state = "closed";
    }
  }

  /**
   * How many bytes `write` can take next without going past the start of an entry or the end of its payload, and whether
   * they are payload. Lets a reader that can seek ask for headers only. Infinite behind the end of the archive.
   */
  get pending(): { readonly payload: boolean; readonly length: number } {
    switch (this.#state) {
      case "payload":
        return { payload: true, length: this.#remaining };
      case "skip":
      case "meta":
        return { payload: false, length: this.#remaining };
      case "trailer":
      case "closed":
        return { payload: false, length: Number.POSITIVE_INFINITY };
      default:
        return { payload: false, length: BLOCK_SIZE - this.#heldLength };
    }
  }

  /** The next `length` bytes of the payload were taken elsewhere: they reach no sink. RangeError beyond the payload's end. */
  skipPayload(length: number): void {
    if (this.#state !== "payload" || length > this.#remaining) {
      throw new RangeError(`skipPayload(${length}) in state ${this.#state} with ${this.#remaining} bytes left`);
    }
    this.#base += length;
    this.#remaining -= length;
    if (this.#remaining === 0) this.#finishEntry();
  }

  /** The tar is complete: FormatError unless it ends at an entry's end or after the end-of-archive blocks. */
  end(): void {
    const state = this.#state;
    this.#state = "closed";
    if (state === "closed") throw new RangeError("end() of a tar decoder that has ended or failed");
    if (state === "trailer") return;
    if (state === "one-zero" && this.#heldLength === 0) return;
    if (state === "header" && this.#heldLength === 0) {
      if (this.#said.firstOffset < 0) return;
      throw tarError("extended header", "the tar ends before its entry", this.#said.firstOffset);
    }
    const inPadding = state === "skip" && this.#remaining <= this.#padding && this.#said.firstOffset < 0;
    if (inPadding && this.#mayLackPadding) return;
    throw tarError(PARTS[state], "is cut off: the tar ends inside it", this.#base, {
      path: state === "payload" ? this.#path : undefined,
    });
  }

  #decode(bytes: Buffer): void {
    const length = bytes.length;
    let at = 0;
    while (at < length) {
      switch (this.#state) {
        case "payload": {
          const count = Math.min(this.#remaining, length - at);
          this.#flushRaw(bytes, at);
          this.#sink.payload(view(bytes, at, at + count));
          at += count;
          this.#rawFrom = at;
          this.#remaining -= count;
          if (this.#remaining === 0) this.#finishEntry();
          break;
        }
        case "skip": {
          const count = Math.min(this.#remaining, length - at);
          at += count;
          this.#remaining -= count;
          if (this.#remaining === 0) this.#state = "header";
          break;
        }
        case "meta":
          at += this.#readMeta(bytes, at);
          break;
        case "trailer":
          if (!isZero(bytes, at, length)) throw this.#trailingGarbage(bytes, at);
          at = length;
          break;
        default: {
          if (this.#heldLength === 0 && length - at >= BLOCK_SIZE) {
            at += BLOCK_SIZE;
            this.#readBlock(bytes, at - BLOCK_SIZE, bytes, at);
            break;
          }
          const count = bytes.copy(this.#held, this.#heldLength, at, at + BLOCK_SIZE - this.#heldLength);
          this.#heldLength += count;
          at += count;
          if (this.#heldLength === BLOCK_SIZE) {
            this.#heldLength = 0;
            this.#readBlock(this.#held, 0, bytes, at);
          }
        }
      }
    }
  }

  /** A whole block at `start` of `block`; it ends at `at` of the current chunk. */
  #readBlock(block: Buffer, start: number, chunk: Buffer, at: number): void {
    switch (this.#state) {
      case "header":
        this.#readHeader(block, start, chunk, at);
        return;
      case "one-zero":
        if (!isZero(block, start, start + BLOCK_SIZE)) {
          throw tarError("end of archive", "one zero block, then more data", this.#base + at - BLOCK_SIZE);
        }
        this.#state = "trailer";
        return;
      case "old-sparse": {
        const draft = this.#currentDraft();
        const [pairs, extended] = OLD_SPARSE_EXTENSION;
        const fail = this.#failAt(draft.headerOffset, draft.path);
        if (!decodeOldSparse(block, start, pairs, extended, this.#oldSparseMap, this.#limits, fail)) {
          this.#startSparse(draft, this.#oldSparseMap, chunk, at);
        }
        return;
      }
      case "sparse-map": {
        const draft = this.#currentDraft();
        const reader = this.#mapReader;
        if (reader === undefined) throw new RangeError("no map reader");
        this.#remaining -= BLOCK_SIZE;
        const complete = reader.addBlock(block, start, start + BLOCK_SIZE);
        if (complete) this.#startSparse(draft, reader.map, chunk, at);
        else if (this.#remaining < BLOCK_SIZE) {
          throw this.#failAt(draft.headerOffset, draft.path)("sparse map", "is longer than the stored data");
        }
        return;
      }
      default:
        throw new RangeError(`no block is read in state ${this.#state}`);
    }
  }

  #readHeader(block: Buffer, start: number, chunk: Buffer, at: number): void {
    const offset = this.#base + at - BLOCK_SIZE;
    if (block[start] === 0 && isZero(block, start, start + BLOCK_SIZE)) {
      if (this.#said.firstOffset >= 0) {
        throw tarError("extended header", "the archive ends before its entry", this.#said.firstOffset);
      }
      this.#path = undefined;
      this.#state = "one-zero";
      return;
    }
    if (!checksumMatches(block, start)) {
      const before =
        this.#path === undefined ? "" : `; the entry before is "${displayBytes(this.#path.slice(0, 200))}"`;
      throw tarError("header", `checksum does not match${before}`, offset);
    }
    const flag = String.fromCharCode(block[start + FIELDS.type.offset]!);
    const kind = extendedKindOf(flag);
    if (kind !== undefined) {
      this.#startMeta(kind, block, start, offset);
      return;
    }
    if (flag === "V") {
      // GNU volume label: names the archive, not a file. It has no data; if a writer gave it some, it means nothing.
      this.#skipData(countField(block, start, FIELDS.size, offset, "volume label"));
      return;
    }
    this.#readEntry(flag, block, start, offset, chunk, at);
  }

  // extended headers

  #startMeta(kind: ExtendedKind, block: Buffer, start: number, offset: number): void {
    const size = countField(block, start, FIELDS.size, offset, undefined);
    this.#said.begin(kind, size, offset);
    this.#metaBody = undefined;
    this.#metaLength = 0;
    this.#remaining = size;
    this.#padding = paddingOf(size);
    if (size === 0) this.#finishMeta(block, start, start);
    else this.#state = "meta";
  }

  #readMeta(bytes: Buffer, at: number): number {
    const count = Math.min(this.#remaining, bytes.length - at);
    if (this.#metaBody === undefined && count === this.#remaining) {
      this.#finishMeta(bytes, at, at + count);
      return count;
    }
    this.#metaBody ??= Buffer.allocUnsafe(this.#remaining);
    bytes.copy(this.#metaBody, this.#metaLength, at, at + count);
    this.#metaLength += count;
    this.#remaining -= count;
    if (this.#remaining === 0) this.#finishMeta(this.#metaBody, 0, this.#metaLength);
    return count;
  }

  /** The body is complete: bytes `start` to `stop`. */
  #finishMeta(bytes: Buffer, start: number, stop: number): void {
    this.#metaBody = undefined;
    this.#skip(this.#padding);
    this.#said.finish(bytes, start, stop);
  }

  // entries

  #readEntry(flag: string, block: Buffer, start: number, offset: number, chunk: Buffer, at: number): void {
    const { draft, dialect, dumpSize } = readEntryHeader(flag, block, start, offset, this.#said, this.#limits);
    const { sparse } = this.#said.pax;
    this.#path = draft.path;
    this.#said.clear();
    this.#remaining = draft.size;
    this.#padding = paddingOf(draft.size);
    if (flag === "S") {
      this.#startOldSparse(draft, dialect, block, start, chunk, at);
    } else if (sparse !== undefined) {
      this.#startPaxSparse(draft, sparse, chunk, at);
    } else {
      this.#emit(draft, chunk, at);
      if (dumpSize > 0) this.#skipData(dumpSize);
    }
  }

  /** The header is complete at `at` of the chunk: hands out what precedes, then the entry. */
  #emit(entry: TarEntry, chunk: Buffer, at: number): void {
    this.#flushRaw(chunk, at);
    this.#sink.entry(entry);
    if (this.#remaining === 0) this.#finishEntry();
    else this.#state = "payload";
  }

  #finishEntry(): void {
    this.#sink.endEntry();
    this.#skip(this.#padding);
  }

  // sparse files

  #startOldSparse(draft: Draft, dialect: Dialect, block: Buffer, start: number, chunk: Buffer, at: number): void {
    const fail = this.#failAt(draft.headerOffset, draft.path);
    if (dialect !== "gnu") throw fail("type flag", "S without GNU magic: star's sparse files are not supported");
    draft.size = countField(block, start, FIELDS.sparseRealSize, draft.headerOffset, draft.path);
    this.#draft = draft;
    this.#oldSparseMap = [];
    const [pairs, extended] = OLD_SPARSE_HEADER;
    if (decodeOldSparse(block, start, pairs, extended, this.#oldSparseMap, this.#limits, fail)) {
      this.#state = "old-sparse";
    } else {
      this.#startSparse(draft, this.#oldSparseMap, chunk, at);
    }
  }

  #startPaxSparse(draft: Draft, sparse: NonNullable<PaxHeader["sparse"]>, chunk: Buffer, at: number): void {
    const fail = this.#failAt(draft.headerOffset, draft.path);
    if (draft.type !== "file") throw fail("sparse map", `belongs to a ${draft.type}`);
    if (sparse.size === undefined) throw fail("sparse map", "comes without the size of the file");
    draft.size = sparse.size;
    const version = `${sparse.major ?? 0}.${sparse.minor ?? (sparse.map === undefined ? 0 : 1)}`;
    if (version === "1.0" && sparse.map === undefined) {
      if (this.#remaining < BLOCK_SIZE) throw fail("sparse map", "is longer than the stored data");
      this.#draft = draft;
      this.#mapReader = new SparseMapReader(this.#limits, fail);
      this.#state = "sparse-map";
    } else if ((version === "0.0" || version === "0.1") && (sparse.map !== undefined || sparse.size === 0)) {
      this.#startSparse(draft, sparse.map ?? [], chunk, at);
    } else {
      throw fail("sparse format", `${version} with${sparse.map === undefined ? "out" : ""} a map is not known`);
    }
  }

  #startSparse(draft: Draft, map: readonly number[], chunk: Buffer, at: number): void {
    if (draft.size > this.#limits.fileSize) throw tooLarge(draft.size, this.#limits, draft.headerOffset, draft.path);
    const fail = this.#failAt(draft.headerOffset, draft.path);
    const segments: readonly Segment[] | undefined = segmentsOf(map, draft.size, this.#remaining, fail);
    draft.segments = segments;
    this.#draft = undefined;
    this.#mapReader = undefined;
    this.#oldSparseMap = [];
    this.#emit(draft, chunk, at);
  }

  #currentDraft(): Draft {
    if (this.#draft === undefined) throw new RangeError("no entry is being read");
    return this.#draft;
  }

  // helpers

  /** Passes over data without a meaning, and its padding. */
  #skipData(size: number): void {
    this.#padding = 0;
    this.#skip(size + paddingOf(size));
  }

  #skip(count: number): void {
    this.#remaining = count;
    this.#state = count === 0 ? "header" : "skip";
  }

  #flushRaw(bytes: Buffer, end: number): void {
    if (end > this.#rawFrom) this.#sink.raw(view(bytes, this.#rawFrom, end));
    this.#rawFrom = end;
  }

  #failAt(offset: number, path: ByteString | undefined): Fail {
    return (field: string, problem: string, code?: ErrorCode): FormatError =>
      tarError(field, problem, offset, { path, code });
  }

  #trailingGarbage(bytes: Buffer, at: number): FormatError {
    let i = at;
    while (bytes[i] === 0) i++;
    return tarError("end of archive", "is followed by bytes that are not zero", this.#base + i);
  }
}

/** Half the cost of Buffer.subarray(), twice an entry. */
function view(bytes: Buffer, start: number, end: number): Uint8Array {
  return new Uint8Array(bytes.buffer, bytes.byteOffset + start, end - start);
}

function paddingOf(size: number): number {
  const rest = size % BLOCK_SIZE;
  return rest === 0 ? 0 : BLOCK_SIZE - rest;
}
