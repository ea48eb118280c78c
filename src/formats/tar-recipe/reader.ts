import { crc32, zstdDecompressSync } from "node:zlib";
import { type ByteSource, safeNumber } from "../../bytes/index.ts";
import { ShaleError } from "../../errors/index.ts";
import {
  BLOCKS_MAX,
  BlockCursor,
  FOOTER,
  fail,
  HEADER,
  MAGIC,
  NID_BLOCK_SIZE,
  NIDS_PER_BLOCK,
  OP_BLOCK_SIZE,
  Op,
  RECORD,
  storedSizeMax,
  VERSION,
} from "./format.ts";

/** Pieces of a rebuilt tar are not larger. */
const PIECE_SIZE = 1024 * 1024;
/** Payload pieces of at least this are handed through; smaller ones are gathered, for a copy is cheaper than a piece. */
const PASS_THROUGH = 64 * 1024;

/** Gives bytes of a file by its nid: exactly `length` (at most 1 MiB) from `offset`. They must stay until the piece is used. */
export type ReadPayload = (nid: number, offset: number, length: number) => Uint8Array | Iterable<Uint8Array>;

export interface RecipePayload {
  readonly nid: number;
  /** Bytes of the payload in the tar. */
  readonly size: number;
  /** Of its first byte in the tar. */
  readonly tarOffset: number;
  /** For a sparse file: where in the file the bytes are. A file of very many segments comes as several payloads. */
  readonly segments?: readonly { readonly offset: number; readonly length: number }[];
}

interface Block {
  readonly index: number;
  readonly tarOffset: number;
  readonly fileOffset: number;
  readonly storedSize: number;
  readonly rawSize: number;
  readonly firstPayload: number;
  readonly checksum: number;
}

/**
 * Reads a recipe. The constructor checks header, footer and directory and throws FormatError; blocks are checked when they
 * are read. Holds the directory and one nid block; may be used for several rebuilds at a time.
 */
export class RecipeReader {
  readonly #source: ByteSource;
  readonly #directory: Uint8Array;
  readonly #opBlocks: number;
  readonly #nidBlocks: number;
  /** Bytes of the whole tar. */
  readonly tarSize: number;
  /** Entries of `payloads()`. */
  readonly payloadCount: number;

  constructor(source: ByteSource) {
    this.#source = source;
    if (source.size < HEADER.size + FOOTER.size) throw fail("length", `${source.size} bytes are too few`, source.size);
    const header = HEADER.read(source.read(0, HEADER.size));
    if (header.magic !== MAGIC) throw fail("magic", "this is no tar recipe", 0);
    if (header.version !== VERSION) {
      throw fail("version", `must be ${VERSION}: current value is ${header.version}`, 8, {
        hint: "a newer shale wrote this file",
      });
    }
    const footerOffset = source.size - FOOTER.size;
    const footerBytes = Buffer.from(source.read(footerOffset, FOOTER.size));
    const footer = FOOTER.read(footerBytes);
    if (footer.magic !== MAGIC || footer.version !== VERSION) {
      throw fail("footer", "is damaged, or the file is cut short", footerOffset);
    }
    const blocks = footer.opBlocks + footer.nidBlocks;
    if (blocks > BLOCKS_MAX) {
      throw fail("block count", `must be at most ${BLOCKS_MAX}: current value is ${blocks}`, footerOffset + 32);
    }
    const directoryOffset = safeNumber(footer.directoryOffset, "tar recipe", "directory offset", footerOffset + 24);
    if (directoryOffset + blocks * RECORD.size !== footerOffset) {
      throw fail("directory offset", `does not fit ${blocks} blocks`, footerOffset + 24);
    }
    this.#directory = Buffer.from(source.read(directoryOffset, blocks * RECORD.size));
    FOOTER.write(footerBytes, 0, { checksum: 0 });
    if (crc32(footerBytes, crc32(this.#directory)) !== footer.checksum) {
      throw fail("checksum", "does not match directory and footer", footerOffset + 12);
    }
    this.#opBlocks = footer.opBlocks;
    this.#nidBlocks = footer.nidBlocks;
    this.payloadCount = footer.payloads;
    this.tarSize = safeNumber(footer.tarSize, "tar recipe", "tar size", footerOffset + 16);
    this.#checkDirectory(directoryOffset);
  }

  /**
   * The tar from byte `from` (default 0) to its end, in pieces of at most 1 MiB, which the reader never overwrites. Throws
   * FormatError for damage of the recipe, DATA_LOSS when `readPayload` gives another number of bytes than asked for, and
   * what `readPayload` throws.
   */
  *rebuild(readPayload: ReadPayload, options: { readonly from?: number } = {}): Generator<Uint8Array, void, undefined> {
    const { from = 0 } = options;
    if (!Number.isSafeInteger(from) || from < 0 || from > this.tarSize) throw new RangeError(`from ${from}`);
    let buffer = Buffer.allocUnsafeSlow(PIECE_SIZE);
    let fill = 0;
    for (const piece of this.#pieces(readPayload, from)) {
      if (fill + piece.length > PIECE_SIZE || (fill > 0 && piece.length >= PASS_THROUGH)) {
        yield buffer.subarray(0, fill);
        buffer = Buffer.allocUnsafeSlow(PIECE_SIZE);
        fill = 0;
      }
      if (piece.length >= PASS_THROUGH) {
        yield piece;
        continue;
      }
      buffer.set(piece, fill);
      fill += piece.length;
    }
    if (fill > 0) yield buffer.subarray(0, fill);
  }

  /** The payloads in the order of the tar. Throws FormatError. */
  *payloads(): Generator<RecipePayload, void, undefined> {
    for (const item of this.#items(0)) if (!(item instanceof Uint8Array)) yield item;
  }

  *#pieces(readPayload: ReadPayload, from: number): Generator<Uint8Array, void, undefined> {
    let tarOffset = this.#opBlocks === 0 ? 0 : this.#block(this.#find(from)).tarOffset;
    for (const item of this.#items(from)) {
      const size = item instanceof Uint8Array ? item.length : item.size;
      const skip = Math.min(Math.max(from - tarOffset, 0), size);
      tarOffset += size;
      if (skip === size) continue;
      if (item instanceof Uint8Array) {
        yield skip === 0 ? item : item.subarray(skip);
        continue;
      }
      let skipHere = skip;
      for (const segment of item.segments ?? [{ offset: 0, length: item.size }]) {
        const skipped = Math.min(skipHere, segment.length);
        skipHere -= skipped;
        yield* readRange(readPayload, item.nid, segment.offset + skipped, segment.length - skipped);
      }
    }
  }

  /** Literals and payloads from the start of the block that has byte `from` of the tar. */
  *#items(from: number): Generator<Uint8Array | RecipePayload, void, undefined> {
    const nids = new NidReader((index) => this.#decodeNids(index));
    for (let index = this.#find(from); index < this.#opBlocks; index++) {
      const block = this.#block(index);
      const cursor = new BlockCursor(this.#load(block, OP_BLOCK_SIZE), block.fileOffset);
      const next = index + 1 < this.#opBlocks ? this.#block(index + 1) : undefined;
      const tarEnd = next?.tarOffset ?? this.tarSize;
      const payloadEnd = next?.firstPayload ?? this.payloadCount;
      let tarOffset = block.tarOffset;
      let payload = block.firstPayload;
      while (!cursor.done) {
        const item = decodeOp(cursor);
        const size = item instanceof Uint8Array ? item.length : item.size;
        // before the item is given out: no more bytes than the directory says, whatever the ops say
        if (size > tarEnd - tarOffset) throw cursor.fail("op", "goes over the end of its block in the tar");
        if (item instanceof Uint8Array) yield item;
        else {
          if (payload >= payloadEnd) throw cursor.fail("op", "has no entry in the nid list");
          yield { nid: nids.get(payload++), tarOffset, ...item };
        }
        tarOffset += size;
      }
      if (tarOffset !== tarEnd) throw cursor.fail("block", `ends at byte ${tarOffset} of the tar, not ${tarEnd}`);
      if (payload !== payloadEnd) throw cursor.fail("block", `ends at payload ${payload}, not ${payloadEnd}`);
    }
  }

  /** The last op block that begins at or before byte `offset` of the tar. */
  #find(offset: number): number {
    let low = 0;
    let high = this.#opBlocks;
    while (high - low > 1) {
      const middle = (low + high) >>> 1;
      if (this.#block(middle).tarOffset <= offset) low = middle;
      else high = middle;
    }
    return low;
  }

  #block(index: number): Block {
    const at = index * RECORD.size;
    const { tarOffset, fileOffset, ...rest } = RECORD.read(this.#directory, at);
    return {
      index,
      tarOffset: safeNumber(tarOffset, "tar recipe", "tar offset of a block", at),
      fileOffset: safeNumber(fileOffset, "tar recipe", "file offset of a block", at),
      ...rest,
    };
  }

  /** That blocks lie end to end, their sizes keep the limits, and positions in tar and nid list rise. */
  #checkDirectory(directoryOffset: number): void {
    let fileOffset: number = HEADER.size;
    let previous: Block | undefined;
    for (let index = 0; index < this.#opBlocks + this.#nidBlocks; index++) {
      const block = this.#block(index);
      const isNids = index >= this.#opBlocks;
      const at = directoryOffset + index * RECORD.size;
      if (index === this.#opBlocks) previous = undefined;
      if (block.fileOffset !== fileOffset) throw fail("file offset of a block", `must be ${fileOffset}`, at);
      if (block.rawSize === 0 || block.rawSize > (isNids ? NID_BLOCK_SIZE : OP_BLOCK_SIZE)) {
        throw fail("raw size of a block", `is out of range: current value is ${block.rawSize}`, at);
      }
      if (block.storedSize > storedSizeMax(block.rawSize)) {
        throw fail("stored size of a block", `is out of range: current value is ${block.storedSize}`, at);
      }
      if (isNids) {
        const first = (index - this.#opBlocks) * NIDS_PER_BLOCK;
        if (block.firstPayload !== first) throw fail("first payload of a block", `must be ${first}`, at);
      } else {
        const from = previous ?? { tarOffset: 0, firstPayload: 0 };
        if (previous === undefined && (block.tarOffset !== 0 || block.firstPayload !== 0)) {
          throw fail("first block", "must begin at the start of the tar", at);
        }
        if (block.tarOffset < from.tarOffset || block.tarOffset > this.tarSize) {
          throw fail("tar offset of a block", `is out of order: current value is ${block.tarOffset}`, at);
        }
        if (block.firstPayload < from.firstPayload || block.firstPayload > this.payloadCount) {
          throw fail("first payload of a block", `is out of order: current value is ${block.firstPayload}`, at);
        }
      }
      fileOffset += block.storedSize;
      previous = block;
    }
    if (fileOffset !== directoryOffset) throw fail("directory", "does not begin where the blocks end", directoryOffset);
    if (this.#nidBlocks !== Math.ceil(this.payloadCount / NIDS_PER_BLOCK)) {
      throw fail("nid block count", `does not fit ${this.payloadCount} payloads`, directoryOffset);
    }
    if (this.#opBlocks === 0 && (this.tarSize !== 0 || this.payloadCount !== 0)) {
      throw fail("tar size", "must be 0 where there are no blocks", directoryOffset);
    }
  }

  #load(block: Block, limit: number): Uint8Array {
    const stored = this.#source.read(block.fileOffset, block.storedSize);
    if (crc32(stored) !== block.checksum) throw fail("checksum", "does not match the block", block.fileOffset);
    let raw: Uint8Array;
    try {
      raw = zstdDecompressSync(stored, { maxOutputLength: Math.min(block.rawSize, limit) });
    } catch (error) {
      throw fail("block", "can't be decompressed", block.fileOffset, { cause: error });
    }
    if (raw.length !== block.rawSize) throw fail("raw size", `must be ${block.rawSize}`, block.fileOffset);
    return raw;
  }

  #decodeNids(index: number): Uint32Array {
    const block = this.#block(this.#opBlocks + index);
    const cursor = new BlockCursor(this.#load(block, NID_BLOCK_SIZE), block.fileOffset);
    const nids = new Uint32Array(Math.min(NIDS_PER_BLOCK, this.payloadCount - index * NIDS_PER_BLOCK));
    let nid = 0;
    for (let i = 0; i < nids.length; i++) {
      const zigzag = cursor.varint();
      nid += zigzag % 2 === 0 ? zigzag / 2 : -(zigzag + 1) / 2;
      if (nid < 0 || nid > 0xffffffff) throw cursor.fail("nid", `is out of range: current value is ${nid}`);
      nids[i] = nid;
    }
    if (!cursor.done) throw cursor.fail("nid block", "has more nids than payloads");
    return nids;
  }
}

/** The nid list with the block at hand decoded. */
class NidReader {
  readonly #decode: (index: number) => Uint32Array;
  #index = -1;
  #nids: Uint32Array = new Uint32Array(0);

  constructor(decode: (index: number) => Uint32Array) {
    this.#decode = decode;
  }

  get(payload: number): number {
    const index = Math.floor(payload / NIDS_PER_BLOCK);
    if (index !== this.#index) {
      this.#nids = this.#decode(index);
      this.#index = index;
    }
    return this.#nids[payload % NIDS_PER_BLOCK]!;
  }
}

function decodeOp(cursor: BlockCursor): Uint8Array | Omit<RecipePayload, "nid" | "tarOffset"> {
  const op = cursor.byte();
  if (op === Op.LITERAL) return cursor.take(cursor.varint());
  if (op === Op.PAYLOAD) return { size: cursor.varint() };
  if (op !== Op.SEGMENTS) throw cursor.fail("op", `is unknown: current value is ${op}`);
  const count = cursor.varint();
  // two varints each, so a count that lies meets the end of the block before much is allocated
  if (count > (cursor.bytes.length - cursor.at) / 2) throw cursor.fail("segment count", "is over what the block has");
  const segments: { offset: number; length: number }[] = [];
  let end = 0;
  let size = 0;
  for (let i = 0; i < count; i++) {
    const offset = end + cursor.varint();
    const length = cursor.varint();
    end = offset + length;
    size += length;
    if (!Number.isSafeInteger(end)) throw cursor.fail("segment", "is not below 2^53");
    segments.push({ offset, length });
  }
  return { size, segments };
}

function* readRange(
  readPayload: ReadPayload,
  nid: number,
  offset: number,
  length: number,
): Generator<Uint8Array, void, undefined> {
  for (let at = 0; at < length; at += PIECE_SIZE) {
    const wanted = Math.min(PIECE_SIZE, length - at);
    const given = readPayload(nid, offset + at, wanted);
    let got = 0;
    for (const piece of given instanceof Uint8Array ? [given] : given) {
      got += piece.length;
      if (got > wanted) break;
      yield piece;
    }
    if (got !== wanted) {
      throw new ShaleError(
        "DATA_LOSS",
        `Cannot rebuild tar: the file of nid ${nid} gave other than ${wanted} bytes at ${offset + at}`,
      );
    }
  }
}
