/**
 * Decompression of layers: gzip (RFC 1952, any number of members) and zstd (RFC 8878, any number of frames, skippable
 * ones too), as one stream of pieces. This is the bottleneck of a pull, so it runs ahead of its consumer: while the
 * consumer hashes one piece synchronously, the next ones are decompressed on another thread.
 *
 * Guarantees
 * - Every byte of the source is asked for and accounted for: a stream that ends early, carries bytes that belong to no
 *   member or frame, or fails a checksum is a FormatError. Zero padding after the last gzip member is accepted (tapes and
 *   some registries add it), as GNU gzip does.
 * - The bytes, and the code, field and offset of an error, depend neither on where the source was cut nor on the backend;
 *   but of damaged deflate data one backend may say that it is invalid, another that its CRC-32 is wrong.
 * - Bounded memory: at most LOOKAHEAD + 5 pieces of PIECE_SIZE, one input chunk, and the window of a zstd frame, which
 *   must not be over 2^27 bytes (the limit of the zstd command line tool without --long=31).
 * - A call that is aborted, or whose iterator is returned early, settles after its work has stopped.
 *
 * Ownership: a piece is valid until the next one is asked for; its buffer is then filled again. An input chunk must stay
 * unchanged until the next chunk is asked for, which is when it was used up. The best input chunk is about 1 MiB.
 *
 * Framing (headers, trailers, where a member or frame ends) is parsed here and not left to node:zlib: node:zlib drops
 * what follows a gzip member and begins with a zero byte, and of several zstd frames in one write, Node 24 decodes one.
 *
 * Pure but for the thread pool: no files, network, clock or randomness. Backends: {@link zlibInflate} is always there;
 * `loadIsal()` of sys/isal.ts gives a faster one for gzip where the machine has libisal, `loadZstdFrames()` of sys/zstd-frames.ts one
 * for the many small frames of zstd:chunked, and for the frames of checkpoint archives.
 */
import { throwIfAborted } from "../../async/index.ts";
import type { FramesBackend, InflateBackend } from "./backend.ts";
import { gunzip } from "./gzip.ts";
import { type Compression, compressionName } from "./detect.ts";
import { InputReader } from "./input.ts";
import { overLimit, type PieceSettings, producePieces } from "./pieces.ts";
import { unzstd } from "./zstd.ts";
import { zlibInflate } from "./zlib-inflate.ts";

export type { FrameEncoder, FramesBackend, FramesDecoder, InflateBackend, Inflater, InflateStep } from "./backend.ts";
export { type Compression, detectCompression } from "./detect.ts";
export {
  type CompressedBatch,
  compressFrames,
  compressGzipMember,
  type FrameBatch,
  type FrameCompressor,
  frameCompressor,
  type FrameSettings,
} from "./frames.ts";
export { type GzipMember, scanGzipMembers } from "./gzip.ts";
export { gunzipAtOnce } from "./gzip-chunk.ts";
export { type GzipHeader, parseGzipHeader } from "./gzip-header.ts";
export { LOOKAHEAD, PIECE_SIZE } from "./pieces.ts";
export { zlibInflate } from "./zlib-inflate.ts";
export { scanZstdFrames, type ZstdFrame } from "./zstd.ts";
export { decompressZstdChunk } from "./zstd-chunk.ts";
export { compressZstd, zstdEncoderName } from "./zstd-compress.ts";
export * from "./zstd-seekable.ts";
export { parseZstdFrameHeader, ZSTD_WINDOW_MAX, type ZstdFrameHeader } from "./zstd-frame.ts";

export interface DecompressOptions {
  /** Inflates gzip members; default {@link zlibInflate}. */
  readonly inflate?: InflateBackend;
  /** Decompresses zstd frames that are at hand together; without it each is taken by itself. */
  readonly frames?: FramesBackend | undefined;
  readonly signal?: AbortSignal;
  /** More decompressed bytes than this are FormatError RESOURCE_EXHAUSTED; default no limit. */
  readonly maximumSize?: number;
}

/**
 * Decompresses a stream into pieces of about 1 MiB (each valid until the next is asked for). "none" hands the chunks
 * through. Throws FormatError (see the header of this module) or CANCELLED. Work begins with the first piece asked for.
 */
export function decompress(
  source: AsyncIterable<Uint8Array>,
  compression: Compression,
  options: DecompressOptions = {},
): AsyncIterableIterator<Uint8Array> {
  const { inflate = zlibInflate, frames, signal, maximumSize = Number.POSITIVE_INFINITY } = options;
  const settings = { format: compressionName(compression), maximumSize, signal };
  if (compression === "none") return passThrough(source, settings);
  return producePieces(settings, async (sink) => {
    const input = new InputReader(source, settings.format, signal);
    try {
      if (compression === "gzip") await gunzip(input, sink, inflate);
      else await unzstd(input, sink, frames);
    } finally {
      await input.close();
    }
  });
}

/** Without a queue: there is no work to run ahead with, and a chunk that waited would be overwritten by its source. */
async function* passThrough(
  source: AsyncIterable<Uint8Array>,
  settings: PieceSettings,
): AsyncGenerator<Uint8Array, void, undefined> {
  throwIfAborted(settings.signal);
  let size = 0;
  for await (const chunk of source) {
    throwIfAborted(settings.signal);
    size += chunk.length;
    if (size > settings.maximumSize) throw overLimit(settings);
    if (chunk.length > 0) yield chunk;
  }
}
