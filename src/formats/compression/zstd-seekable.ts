/**
 * zstd as independent frames with an index behind them: the "seekable format" of zstd (contrib/seekable_format,
 * zstd_seekable_compression_format.md 0.1.0). Any zstd reads it as one stream; who knows the index decompresses single frames,
 * and several at a time.
 *
 * The index is a skippable frame (RFC 8878, 3.1.2) of the magic number 0x184D2A5E: an entry for each frame (its compressed
 * and decompressed size, and a checksum where the descriptor's first bit says so), then the footer: u32le number of frames, a
 * descriptor byte, u32le 0x8F92EAB1.
 */
import { promisify } from "node:util";
import { constants, zstdCompress, zstdDecompress } from "node:zlib";
import { FormatError } from "../../errors/index.ts";
import type { FrameEncoder, FramesBackend, FramesDecoder } from "./backend.ts";

const INDEX_MAGIC = 0x184d2a5e;
const FOOTER_MAGIC = 0x8f92eab1;
const HEADER = 8;
export const SEEKABLE_FOOTER_SIZE = 9;
/** Frames of one stream that are taken: their index has 8 or 12 bytes for each. */
export const SEEKABLE_FRAMES_MAX = 1 << 22;
/** Bytes of a frame, decompressed, that are taken: a reader holds one in memory. */
export const SEEKABLE_FRAME_MAX = 16 * 1024 * 1024;

/** What zstd adds to bytes that can't be compressed, amply: ZSTD_compressBound(). */
const COMPRESSED_MAX = SEEKABLE_FRAME_MAX + SEEKABLE_FRAME_MAX / 16;

const FORMAT = "zstd seekable index";
const NOTHING = new Uint8Array(0);
const compress = promisify(zstdCompress);
const decompress = promisify(zstdDecompress);

export interface SeekableFrame {
  readonly compressedOffset: number;
  readonly compressedSize: number;
  readonly offset: number;
  readonly size: number;
}

/** Makes one frame after the other, of at most SEEKABLE_FRAME_MAX bytes each. Equal bytes give equal frames with the same backend. */
export class SeekableFrameEncoder {
  readonly #level: number;
  readonly #encoder: FrameEncoder | undefined;
  #room = NOTHING;

  constructor(level: number, backend?: FramesBackend) {
    this.#level = level;
    this.#encoder = backend?.openEncoder(level);
  }

  /** Valid until the next call, which has to wait for this one. */
  async compress(content: Uint8Array): Promise<Uint8Array> {
    if (this.#encoder === undefined) return await compressSeekableFrame(content, this.#level);
    const bound = boundOf(content.length);
    if (this.#room.length < bound) this.#room = Buffer.allocUnsafeSlow(bound);
    const size = await this.#encoder.compress(content, this.#room);
    if (size === undefined) throw new RangeError(`${content.length} bytes do not fit into ${bound}`);
    return this.#room.subarray(0, size);
  }

  /** Not while a call is under way. */
  close(): void {
    this.#encoder?.close();
  }
}

/** ZSTD_compressBound(), amply. */
function boundOf(size: number): number {
  return size + Math.ceil(size / 128) + 1024;
}

/** One frame of `bytes` (at most SEEKABLE_FRAME_MAX), on the thread pool. Equal bytes give equal frames. */
export async function compressSeekableFrame(bytes: Uint8Array, level: number): Promise<Uint8Array> {
  return await compress(bytes, {
    // One buffer for the whole frame: the default of 16 KiB makes a hundred, and joins them.
    chunkSize: boundOf(bytes.length),
    pledgedSrcSize: bytes.length, // tables of its size, and the size in the frame's header
    params: {
      [constants.ZSTD_c_compressionLevel]: level,
      [constants.ZSTD_c_checksumFlag]: 1,
      [constants.ZSTD_c_contentSizeFlag]: 1,
    },
  });
}

/** Decompresses one frame after the other, as {@link decompressSeekableFrame} does. */
export class SeekableFrameDecoder {
  readonly #decoder: FramesDecoder | undefined;
  #room = NOTHING;

  constructor(backend?: FramesBackend) {
    this.#decoder = backend?.open();
  }

  /** Valid until the next call, which has to wait for this one. */
  async decompress(bytes: Uint8Array, frame: SeekableFrame): Promise<Uint8Array> {
    if (this.#decoder === undefined) return await decompressSeekableFrame(bytes, frame);
    if (this.#room.length < frame.size) this.#room = Buffer.allocUnsafeSlow(frame.size);
    const size = await this.#decoder.decompress(bytes, this.#room.subarray(0, frame.size));
    // Damaged, or not of this size: the other way tells which.
    return size === frame.size ? this.#room.subarray(0, size) : await decompressSeekableFrame(bytes, frame);
  }

  /** Not while a call is under way. */
  close(): void {
    this.#decoder?.close();
  }
}

/** A frame's content, which must have the size that the index says. */
export async function decompressSeekableFrame(bytes: Uint8Array, frame: SeekableFrame): Promise<Uint8Array> {
  let content: Uint8Array;
  try {
    const size = Math.max(64, frame.size);
    content = await decompress(bytes, { chunkSize: size, maxOutputLength: size });
  } catch (cause) {
    throw new FormatError("zstd stream", "frame", "the frame that begins here can't be decompressed", {
      offset: frame.compressedOffset,
      cause,
    });
  }
  if (content.length !== frame.size) {
    throw new FormatError("zstd stream", "frame", `has ${content.length} bytes, its index says ${frame.size}`, {
      offset: frame.compressedOffset,
    });
  }
  return content;
}

/** The index of frames that follow one another from byte 0. */
export function encodeSeekableIndex(frames: readonly Pick<SeekableFrame, "compressedSize" | "size">[]): Uint8Array {
  const bytes = Buffer.alloc(HEADER + frames.length * 8 + SEEKABLE_FOOTER_SIZE);
  bytes.writeUInt32LE(INDEX_MAGIC, 0);
  bytes.writeUInt32LE(bytes.length - HEADER, 4);
  let at = HEADER;
  for (const { compressedSize, size } of frames) {
    bytes.writeUInt32LE(compressedSize, at);
    bytes.writeUInt32LE(size, at + 4);
    at += 8;
  }
  bytes.writeUInt32LE(frames.length, at);
  bytes.writeUInt32LE(FOOTER_MAGIC, at + 5);
  return bytes;
}

/** The size of the index frame, told by the last {@link SEEKABLE_FOOTER_SIZE} bytes of a file; undefined when there is none. */
export function seekableIndexSize(footer: Uint8Array): number | undefined {
  const bytes = Buffer.from(footer.buffer, footer.byteOffset, footer.byteLength);
  if (bytes.length < SEEKABLE_FOOTER_SIZE || bytes.readUInt32LE(5) !== FOOTER_MAGIC) return undefined;
  const count = bytes.readUInt32LE(0);
  if (count > SEEKABLE_FRAMES_MAX || (bytes[4]! & 0x7c) !== 0) return undefined; // reserved bits: another version
  return HEADER + count * entrySize(bytes[4]!) + SEEKABLE_FOOTER_SIZE;
}

/** Decodes the index frame of a file of `fileSize` bytes. FormatError unless its frames fill the file up to it. */
export function decodeSeekableIndex(index: Uint8Array, fileSize: number): readonly SeekableFrame[] {
  const bytes = Buffer.from(index.buffer, index.byteOffset, index.byteLength);
  const fail = (field: string, problem: string) => new FormatError(FORMAT, field, problem);
  if (bytes.length < HEADER + SEEKABLE_FOOTER_SIZE || bytes.readUInt32LE(0) !== INDEX_MAGIC) {
    throw fail("magic", "is not that of an index frame");
  }
  if (bytes.readUInt32LE(4) !== bytes.length - HEADER) throw fail("size", "does not match the frame");
  const footer = bytes.subarray(bytes.length - SEEKABLE_FOOTER_SIZE);
  const count = footer.readUInt32LE(0);
  const step = entrySize(footer[4]!);
  if (HEADER + count * step + SEEKABLE_FOOTER_SIZE !== bytes.length) throw fail("frames", "don't fill the index");
  const frames: SeekableFrame[] = [];
  let compressedOffset = 0;
  let offset = 0;
  for (let i = 0; i < count; i++) {
    const compressedSize = bytes.readUInt32LE(HEADER + i * step);
    const size = bytes.readUInt32LE(HEADER + i * step + 4);
    if (size > SEEKABLE_FRAME_MAX || compressedSize > COMPRESSED_MAX) {
      throw new FormatError(FORMAT, `frame ${i}`, `is over the limit of ${SEEKABLE_FRAME_MAX} bytes`, {
        code: "RESOURCE_EXHAUSTED",
      });
    }
    frames.push({ compressedOffset, compressedSize, offset, size });
    compressedOffset += compressedSize;
    offset += size;
  }
  if (compressedOffset !== fileSize - bytes.length) {
    throw fail("frames", `end at byte ${compressedOffset}, the index begins at ${fileSize - bytes.length}`);
  }
  return frames;
}

function entrySize(descriptor: number): number {
  return (descriptor & 0x80) === 0 ? 8 : 12;
}
