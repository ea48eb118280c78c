/**
 * Pieces compressed each on its own: a zstd frame (RFC 8878) or a gzip member (RFC 1952) apiece, so that each can be
 * decompressed without the others. The bytes depend on the piece and the settings alone.
 */
import { crc32, constants, createDeflateRaw, deflateRawSync, zstdCompressSync } from "node:zlib";
import { STREAM_OPTIONS, StreamPump } from "./pump.ts";
import { piecesOf, recut } from "./zstd-compress.ts";

export interface FrameSettings {
  readonly kind: "zstd" | "gzip";
  readonly level: number;
}

/** Pieces end to end. */
export interface FrameBatch {
  readonly bytes: Uint8Array;
  /** Of each piece; none is empty. */
  readonly lengths: readonly number[];
}

export interface CompressedBatch extends FrameBatch {
  /** The memory that the batch came in, to be used for another; absent where it stayed with the compressor. */
  readonly spare?: Uint8Array;
}

/** Compresses batches, as many at a time as it likes: the work of another thread, as a rule. */
export interface FrameCompressor {
  readonly settings: FrameSettings;
  /** How many batches it can work on at a time. */
  readonly lanes: number;
  /** The frames of a batch. `batch.bytes` and its buffer are the compressor's until then. */
  compress(batch: FrameBatch): Promise<CompressedBatch>;
}

/** ID1 ID2 CM FLG MTIME(4) XFL OS: no name, no time, "unknown" as system, so that nothing but the content shows. */
const GZIP_HEADER = Buffer.from([0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]);
const GZIP_TRAILER_SIZE = 8;

export function compressFrames(batch: FrameBatch, { kind, level }: FrameSettings): FrameBatch {
  const parts: Uint8Array[] = [];
  const lengths: number[] = [];
  let at = 0;
  for (const length of batch.lengths) {
    const piece = batch.bytes.subarray(at, at + length);
    at += length;
    const size = kind === "zstd" ? addZstd(parts, piece, level) : addGzip(parts, piece, level);
    lengths.push(size);
  }
  return { bytes: Buffer.concat(parts), lengths };
}

/** On this thread: for small jobs and tests. */
export function frameCompressor(settings: FrameSettings): FrameCompressor {
  return {
    settings,
    lanes: 1,
    compress: async (batch) => ({ ...compressFrames(batch, settings), spare: batch.bytes }),
  };
}

/**
 * What node:zlib is to allocate for the output: about what is needed. Its default, 128 KiB for zstd, is most of the cost of a
 * small frame and fills memory faster than it is collected.
 */
function roomFor(size: number): number {
  return Math.max(64, Math.min(size + (size >> 6) + 64, 1024 * 1024));
}

function addZstd(parts: Uint8Array[], piece: Uint8Array, level: number): number {
  const frame = zstdCompressSync(piece, {
    // tables for this size, not for the level's largest window: eight times as fast for a small file
    pledgedSrcSize: piece.length,
    chunkSize: roomFor(piece.length),
    params: { [constants.ZSTD_c_compressionLevel]: level },
  });
  parts.push(frame);
  return frame.length;
}

function addGzip(parts: Uint8Array[], piece: Uint8Array, level: number): number {
  const deflated = deflateRawSync(piece, { level, chunkSize: roomFor(piece.length) });
  const trailer = Buffer.alloc(GZIP_TRAILER_SIZE);
  trailer.writeUInt32LE(crc32(piece), 0);
  trailer.writeUInt32LE(piece.length % 2 ** 32, 4);
  parts.push(GZIP_HEADER, deflated, trailer);
  return GZIP_HEADER.length + deflated.length + GZIP_TRAILER_SIZE;
}

/**
 * One gzip member of a stream of any length, on the thread pool. Pieces are of at most 1 MiB and are not written to again.
 * The bytes do not depend on how the source was cut.
 */
export async function* compressGzipMember(
  source: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
  level: number,
): AsyncGenerator<Uint8Array, void, undefined> {
  const pump = new StreamPump(createDeflateRaw({ ...STREAM_OPTIONS, level }));
  try {
    yield GZIP_HEADER;
    let checksum = 0;
    let size = 0;
    for await (const piece of recut(source)) {
      checksum = crc32(piece, checksum);
      size += piece.length;
      pump.write(piece);
      yield* piecesOf(pump);
    }
    pump.end();
    yield* piecesOf(pump);
    const trailer = Buffer.alloc(GZIP_TRAILER_SIZE);
    trailer.writeUInt32LE(checksum, 0);
    trailer.writeUInt32LE(size % 2 ** 32, 4);
    yield trailer;
  } finally {
    pump.close();
  }
}
