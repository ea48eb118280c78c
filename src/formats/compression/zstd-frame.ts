/**
 * The framing of zstd, RFC 8878: frame headers, and where a frame ends. The end is found from block headers alone,
 * without decompressing.
 */
import { FormatError } from "../../errors/index.ts";

const FORMAT = "zstd stream";
/** 3.1.1. */
const MAGIC = 0xfd2fb528;
/** 3.1.2: 0x184D2A50 to 0x184D2A5F. */
const SKIPPABLE_MAGIC = 0x184d2a50;
const SKIPPABLE_HEADER_SIZE = 8;
const BLOCK_HEADER_SIZE = 3;
const CHECKSUM_SIZE = 4;
/** 3.1.1.2.4: Block_Maximum_Size is the smaller of Window_Size and this. */
const BLOCK_MAX = 128 * 1024;
const BLOCK_RLE = 1;
const BLOCK_COMPRESSED = 2;
const BLOCK_RESERVED = 3;
/** 3.1.1.1.3 and 3.1.1.1.4: field sizes by flag value. */
const DICTIONARY_ID_SIZES = [0, 1, 2, 4] as const;
const CONTENT_SIZE_SIZES = [0, 2, 4, 8] as const;

/** The largest window that is accepted, 128 MiB: ZSTD_WINDOWLOG_LIMIT_DEFAULT of the reference decoder. */
export const ZSTD_WINDOW_MAX = 2 ** 27;

export type ZstdFrameHeader =
  | {
      readonly kind: "frame";
      /** Bytes of the header. */
      readonly size: number;
      /** Bytes of memory that decoding needs to look back on. */
      readonly windowSize: number;
      /** Decompressed bytes, if the frame says. */
      readonly contentSize: number | undefined;
      /** 0: none. */
      readonly dictionaryId: number;
      readonly hasChecksum: boolean;
    }
  | {
      readonly kind: "skippable";
      readonly size: number;
      /** The low four bits of the magic number. */
      readonly variant: number;
      /** Bytes of user data after the header. */
      readonly dataSize: number;
    };

/**
 * Parses the frame header at `offset`; undefined when `bytes` ends within a header that is sound so far. `streamOffset` is
 * where `bytes` begins in the stream, for messages. Checks nothing but the header's own format: limits on the window and
 * the dictionary are the decoder's. Throws FormatError.
 */
export function parseZstdFrameHeader(bytes: Uint8Array, offset: number, streamOffset = 0): ZstdFrameHeader | undefined {
  const fail = (field: string, problem: string, at: number, code?: "RESOURCE_EXHAUSTED") =>
    new FormatError(FORMAT, field, problem, { offset: streamOffset + at, ...(code && { code }) });
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const available = bytes.length - offset;
  if (available < 4) {
    if (available > 0 && !beginsMagic(bytes, offset)) throw fail("magic", "this is no zstd frame", offset);
    return undefined;
  }
  const magic = view.getUint32(offset, true);
  if ((magic & 0xfffffff0) >>> 0 === SKIPPABLE_MAGIC) {
    if (available < SKIPPABLE_HEADER_SIZE) return undefined;
    const dataSize = view.getUint32(offset + 4, true);
    return { kind: "skippable", size: SKIPPABLE_HEADER_SIZE, variant: magic & 0xf, dataSize };
  }
  if (magic !== MAGIC) throw fail("magic", "this is no zstd frame", offset);
  if (available < 5) return undefined;

  // 3.1.1.1.1: Frame_Content_Size_flag(2) Single_Segment(1) unused(1) reserved(1) Content_Checksum(1) Dictionary_ID(2)
  const descriptor = bytes[offset + 4]!;
  if (descriptor & 0x08) throw fail("frame header descriptor", "the reserved bit is set", offset + 4);
  const singleSegment = (descriptor & 0x20) !== 0;
  const contentSizeFlag = descriptor >> 6;
  const contentSizeSize = contentSizeFlag === 0 && singleSegment ? 1 : CONTENT_SIZE_SIZES[contentSizeFlag]!;
  const dictionaryIdSize = DICTIONARY_ID_SIZES[descriptor & 3]!;
  const size = 5 + (singleSegment ? 0 : 1) + dictionaryIdSize + contentSizeSize;
  if (available < size) return undefined;

  let at = offset + 5;
  let windowSize = 0;
  if (!singleSegment) {
    // 3.1.1.1.2
    const base = 2 ** (10 + (bytes[at]! >> 3));
    windowSize = base + (base / 8) * (bytes[at]! & 7);
    at += 1;
  }
  const dictionaryId = readUint(view, at, dictionaryIdSize);
  at += dictionaryIdSize;
  let contentSize: number | undefined;
  if (contentSizeSize > 0) {
    contentSize = readUint(view, at, contentSizeSize) + (contentSizeSize === 2 ? 256 : 0);
    if (!Number.isSafeInteger(contentSize)) {
      throw fail("content size", `is over the limit of ${Number.MAX_SAFE_INTEGER} bytes`, at, "RESOURCE_EXHAUSTED");
    }
    if (singleSegment) windowSize = contentSize;
  }
  return { kind: "frame", size, windowSize, contentSize, dictionaryId, hasChecksum: (descriptor & 0x04) !== 0 };
}

function readUint(view: DataView, at: number, size: number): number {
  if (size === 0) return 0;
  if (size === 1) return view.getUint8(at);
  if (size === 2) return view.getUint16(at, true);
  if (size === 4) return view.getUint32(at, true);
  return Number(view.getBigUint64(at, true));
}

/** Whether fewer than four bytes can become a magic number. */
function beginsMagic(bytes: Uint8Array, offset: number): boolean {
  const frame = [0x28, 0xb5, 0x2f];
  const skippable = [0x50, 0x2a, 0x4d];
  const head = [...bytes.subarray(offset)];
  return (
    head.every((byte, i) => byte === frame[i]) ||
    head.every((byte, i) => (i === 0 ? byte & 0xf0 : byte) === skippable[i])
  );
}

/** Walks the blocks of one frame (what follows its header) over any cutting of the bytes. RFC 8878, 3.1.1.2. */
export class ZstdBlockWalker {
  readonly #checksum: boolean;
  readonly #blockMax: number;
  /** Bytes to step over before the next block header, or before the end when `#last`. */
  #skip = 0;
  #last = false;
  #contentMax = 0;
  /** A block header that was cut: its bytes so far. */
  #partial = 0;
  #partialSize = 0;
  #offset: number;

  /** `offset`: of the first block header in the stream, for messages. */
  constructor(header: ZstdFrameHeader & { kind: "frame" }, offset: number) {
    this.#checksum = header.hasChecksum;
    this.#blockMax = Math.min(header.windowSize, BLOCK_MAX);
    this.#offset = offset;
  }

  /** Whether the whole frame was walked. */
  get done(): boolean {
    return this.#last && this.#skip === 0;
  }

  /** So many bytes are in the blocks so far, at most, whatever the frame header says. */
  get contentMax(): number {
    return this.#contentMax;
  }

  /** Walks on and gives the number of bytes that belong to the frame. All of them, unless `done`. Throws FormatError. */
  walk(bytes: Uint8Array): number {
    let at = 0;
    while (at < bytes.length && !this.done) {
      if (this.#skip > 0) {
        const step = Math.min(this.#skip, bytes.length - at);
        this.#skip -= step;
        at += step;
        continue;
      }
      this.#partial |= bytes[at++]! << (8 * this.#partialSize++);
      if (this.#partialSize < BLOCK_HEADER_SIZE) continue;
      this.#beginBlock(this.#partial, this.#offset + at - BLOCK_HEADER_SIZE);
      this.#partial = 0;
      this.#partialSize = 0;
    }
    this.#offset += at;
    return at;
  }

  #beginBlock(header: number, offset: number): void {
    const type = (header >> 1) & 3;
    const size = header >> 3;
    if (type === BLOCK_RESERVED) throw new FormatError(FORMAT, "block type", "is reserved", { offset });
    if (size > this.#blockMax) {
      const problem = `must be at most ${this.#blockMax}: current value is ${size}`;
      throw new FormatError(FORMAT, "block size", problem, { offset });
    }
    this.#contentMax += type === BLOCK_COMPRESSED ? this.#blockMax : size;
    this.#last = (header & 1) !== 0;
    this.#skip = type === BLOCK_RLE ? 1 : size;
    if (this.#last && this.#checksum) this.#skip += CHECKSUM_SIZE;
  }
}
