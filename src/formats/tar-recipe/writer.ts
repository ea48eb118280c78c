import { crc32, constants as zlibConstants, zstdCompressSync } from "node:zlib";
import { concatBytes } from "../../bytes/index.ts";
import {
  FOOTER,
  HEADER,
  MAGIC,
  NID_BLOCK_SIZE,
  NIDS_PER_BLOCK,
  OP_BLOCK_SIZE,
  Op,
  putVarint,
  RECORD,
  VARINT_MAX,
  VERSION,
  varintSize,
} from "./format.ts";

export interface RecipeSegment {
  /** In the file, rising and without overlap. */
  readonly offset: number;
  readonly length: number;
}

/** Explicit, so that no default of Node changes the bytes that we write. */
const LEVEL = { [zlibConstants.ZSTD_c_compressionLevel]: 3 };
/** A literal's length is written when its end is known, into 3 bytes: 21 bits, more than a block has. */
const LITERAL_LENGTH_SIZE = 3;
/** An op byte and a varint. */
const OP_MAX = 1 + VARINT_MAX;
/** Segments of one op; a file with more has several ops with the same nid. At most 16 bytes each, so this fits a block. */
const SEGMENTS_MAX = 4096;

/**
 * Writes a recipe while its tar goes by: `raw` and `payload` in the order of the tar, then `finish`, once. `write` gets
 * the bytes of the file in order; the writer never touches them again.
 */
export class RecipeWriter {
  readonly #write: (bytes: Uint8Array) => void;
  readonly #block = Buffer.allocUnsafeSlow(OP_BLOCK_SIZE);
  #fill = 0;
  /** Where the bytes of the literal at hand begin in the block; 0: none is open. */
  #literal = 0;
  #fileSize = 0;
  #tarSize = 0;
  #blockTarOffset = 0;
  #blockPayload = 0;
  readonly #records: Uint8Array[] = [];
  #inodes = new Uint32Array(1024);
  #payloads = 0;

  constructor(write: (bytes: Uint8Array) => void) {
    this.#write = write;
    const header = Buffer.alloc(HEADER.size);
    HEADER.write(header, 0, { magic: MAGIC, version: VERSION });
    this.#emit(header);
  }

  /** Bytes of the tar so far. */
  get tarSize(): number {
    return this.#tarSize;
  }

  /** The next bytes of the tar are these. They are copied. */
  raw(bytes: Uint8Array): void {
    let at = 0;
    while (at < bytes.length) {
      if (this.#literal === 0) {
        this.#reserve(1 + LITERAL_LENGTH_SIZE + 1);
        this.#block[this.#fill] = Op.LITERAL;
        this.#fill += 1 + LITERAL_LENGTH_SIZE;
        this.#literal = this.#fill;
      }
      const length = Math.min(bytes.length - at, OP_BLOCK_SIZE - this.#fill);
      this.#block.set(bytes.subarray(at, at + length), this.#fill);
      this.#fill += length;
      this.#tarSize += length;
      at += length;
      if (this.#fill === OP_BLOCK_SIZE) this.#endBlock();
    }
  }

  /**
   * The next bytes of the tar are a payload, the content of `inode` (an id of the layer index): its first `size` bytes,
   * or, for a sparse file, its `segments` one after the other; `size` then says nothing about the tar.
   */
  payload(inode: number, size: number, segments?: readonly RecipeSegment[]): void {
    if (segments === undefined) {
      if (!isSize(size)) throw new RangeError(`payload of ${size} bytes`);
      if (size === 0) return;
      this.#closeLiteral();
      this.#reserve(OP_MAX);
      this.#block[this.#fill++] = Op.PAYLOAD;
      this.#fill = putVarint(this.#block, this.#fill, size);
      this.#addPayload(inode, size);
      return;
    }
    const filled = segments.filter(({ length }) => length > 0);
    for (let i = 0; i < filled.length; i += SEGMENTS_MAX) this.#segments(inode, filled.slice(i, i + SEGMENTS_MAX));
  }

  /** After the image was written: `nids` by inode id, as the EROFS writer gives them. Ends the file. */
  finish(nids: Uint32Array): { readonly size: number; readonly tarSize: number } {
    this.#closeLiteral();
    if (this.#fill > 0) this.#endBlock();
    const opBlocks = this.#records.length;
    this.#writeNids(nids);
    const directory = concatBytes(this.#records);
    const footer = Buffer.alloc(FOOTER.size);
    FOOTER.write(footer, 0, {
      magic: MAGIC,
      version: VERSION,
      tarSize: BigInt(this.#tarSize),
      directoryOffset: BigInt(this.#fileSize),
      opBlocks,
      nidBlocks: this.#records.length - opBlocks,
      payloads: this.#payloads,
    });
    FOOTER.write(footer, 0, { checksum: crc32(footer, crc32(directory)) });
    if (directory.length > 0) this.#emit(directory);
    this.#emit(footer);
    return { size: this.#fileSize, tarSize: this.#tarSize };
  }

  #segments(inode: number, segments: readonly RecipeSegment[]): void {
    let space = OP_MAX;
    let end = 0;
    let size = 0;
    for (const { offset, length } of segments) {
      if (!isSize(offset) || !isSize(length) || offset < end) throw new RangeError(`segment ${offset}+${length}`);
      space += varintSize(offset - end) + varintSize(length);
      end = offset + length;
      size += length;
    }
    this.#closeLiteral();
    this.#reserve(space);
    this.#block[this.#fill++] = Op.SEGMENTS;
    let at = putVarint(this.#block, this.#fill, segments.length);
    end = 0;
    for (const { offset, length } of segments) {
      at = putVarint(this.#block, at, offset - end);
      at = putVarint(this.#block, at, length);
      end = offset + length;
    }
    this.#fill = at;
    this.#addPayload(inode, size);
  }

  #addPayload(inode: number, size: number): void {
    if (this.#payloads === this.#inodes.length) {
      const grown = new Uint32Array(this.#inodes.length * 2);
      grown.set(this.#inodes);
      this.#inodes = grown;
    }
    this.#inodes[this.#payloads++] = inode;
    this.#tarSize += size;
  }

  #closeLiteral(): void {
    if (this.#literal === 0) return;
    const length = this.#fill - this.#literal;
    const at = this.#literal - LITERAL_LENGTH_SIZE;
    this.#block[at] = (length & 0x7f) | 0x80;
    this.#block[at + 1] = ((length >> 7) & 0x7f) | 0x80;
    this.#block[at + 2] = length >> 14;
    this.#literal = 0;
  }

  #reserve(count: number): void {
    if (OP_BLOCK_SIZE - this.#fill < count) this.#endBlock();
  }

  #endBlock(): void {
    this.#closeLiteral();
    this.#emitBlock(this.#block.subarray(0, this.#fill), this.#blockTarOffset, this.#blockPayload);
    this.#fill = 0;
    this.#blockTarOffset = this.#tarSize;
    this.#blockPayload = this.#payloads;
  }

  #writeNids(nids: Uint32Array): void {
    const block = Buffer.allocUnsafe(Math.min(NID_BLOCK_SIZE, this.#payloads * 5));
    for (let first = 0; first < this.#payloads; first += NIDS_PER_BLOCK) {
      const last = Math.min(first + NIDS_PER_BLOCK, this.#payloads);
      let at = 0;
      let previous = 0;
      for (let i = first; i < last; i++) {
        const inode = this.#inodes[i]!;
        const nid = nids[inode];
        if (nid === undefined) throw new RangeError(`inode ${inode} has no nid`);
        const delta = nid - previous;
        at = putVarint(block, at, delta < 0 ? -2 * delta - 1 : 2 * delta);
        previous = nid;
      }
      this.#emitBlock(block.subarray(0, at), 0, first);
    }
  }

  #emitBlock(raw: Uint8Array, tarOffset: number, firstPayload: number): void {
    const stored = zstdCompressSync(raw, { params: LEVEL });
    const record = Buffer.alloc(RECORD.size);
    RECORD.write(record, 0, {
      tarOffset: BigInt(tarOffset),
      fileOffset: BigInt(this.#fileSize),
      storedSize: stored.length,
      rawSize: raw.length,
      firstPayload,
      checksum: crc32(stored),
    });
    this.#records.push(record);
    this.#emit(stored);
  }

  #emit(bytes: Uint8Array): void {
    this.#fileSize += bytes.length;
    this.#write(bytes);
  }
}

function isSize(value: number): boolean {
  return Number.isSafeInteger(value) && value >= 0;
}
