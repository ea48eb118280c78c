/** Tables and numbers of a tar recipe; the format is described in index.ts. */
import { struct, text, u32le, u64le } from "../../bytes/index.ts";
import { FormatError, type ShaleErrorOptions } from "../../errors/index.ts";

export const MAGIC = "shaletar";
export const VERSION = 1;

export const HEADER = struct("tar recipe header", 16, { magic: text(0, 8), version: u32le(8) });

/** `checksum` is the CRC-32 of the directory and the footer with this field zero. */
export const FOOTER = struct("tar recipe footer", 64, {
  magic: text(0, 8),
  version: u32le(8),
  checksum: u32le(12),
  tarSize: u64le(16),
  directoryOffset: u64le(24),
  opBlocks: u32le(32),
  nidBlocks: u32le(36),
  /** Entries of the nid list. */
  payloads: u32le(40),
});

/** One block. Blocks lie end to end from the header to the directory, in the order of the directory. */
export const RECORD = struct("tar recipe block", 32, {
  /** Of the block's first byte in the tar; 0 for a nid block. */
  tarOffset: u64le(0),
  fileOffset: u64le(8),
  storedSize: u32le(16),
  rawSize: u32le(20),
  /** Index in the nid list of the first payload of the block. */
  firstPayload: u32le(24),
  /** CRC-32 of the stored bytes. */
  checksum: u32le(28),
});

export const Op = { LITERAL: 0, PAYLOAD: 1, SEGMENTS: 2 } as const;

/** Ops of one block before compression. Larger compresses a little better and makes random access dearer. */
export const OP_BLOCK_SIZE = 256 * 1024;
export const NIDS_PER_BLOCK = 65536;
/** Longest varint: 8 * 7 bits hold 2^53 - 1. */
export const VARINT_MAX = 8;
/** A difference of two u32 in zigzag has 33 bits. */
export const NID_BLOCK_SIZE = NIDS_PER_BLOCK * 5;
/** What zstd adds at most to bytes that it can't compress: ZSTD_COMPRESSBOUND is size + size/256 + 64. */
export function storedSizeMax(rawSize: number): number {
  return rawSize + Math.ceil(rawSize / 256) + 64;
}
/** 2^21 blocks are 512 GiB of headers; bounds the directory at 64 MiB. */
export const BLOCKS_MAX = 2 ** 21;

/** Writes a varint at `at` and gives the offset after it. Arithmetic and not shifts: values go up to 2^53 - 1. */
export function putVarint(bytes: Uint8Array, at: number, value: number): number {
  let rest = value;
  let end = at;
  while (rest >= 0x80) {
    bytes[end++] = (rest % 0x80) | 0x80;
    rest = Math.floor(rest / 0x80);
  }
  bytes[end++] = rest;
  return end;
}

export function varintSize(value: number): number {
  let size = 1;
  for (let rest = value; rest >= 0x80; rest = Math.floor(rest / 0x80)) size++;
  return size;
}

/** Reads a decompressed block. `blockOffset` is where the block is in the file: errors are told by it. */
export class BlockCursor {
  readonly bytes: Uint8Array;
  readonly #blockOffset: number;
  at = 0;

  constructor(bytes: Uint8Array, blockOffset: number) {
    this.bytes = bytes;
    this.#blockOffset = blockOffset;
  }

  get done(): boolean {
    return this.at === this.bytes.length;
  }

  byte(): number {
    if (this.at >= this.bytes.length) throw this.fail("op", "is cut by the end of its block");
    return this.bytes[this.at++]!;
  }

  varint(): number {
    let value = 0;
    let scale = 1;
    for (let i = 0; i < VARINT_MAX; i++) {
      const byte = this.byte();
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) {
        if (!Number.isSafeInteger(value)) break;
        return value;
      }
      scale *= 0x80;
    }
    throw this.fail("varint", "is not below 2^53");
  }

  take(length: number): Uint8Array {
    if (length > this.bytes.length - this.at) throw this.fail("literal", "is cut by the end of its block");
    this.at += length;
    return this.bytes.subarray(this.at - length, this.at);
  }

  fail(field: string, problem: string): FormatError {
    return fail(field, `${problem} (at ${this.at} of the decompressed block)`, this.#blockOffset);
  }
}

export function fail(field: string, problem: string, offset: number, options: ShaleErrorOptions = {}): FormatError {
  return new FormatError("tar recipe", field, problem, { ...options, offset });
}
