/** Compression into one zstd frame (RFC 8878) whose bytes depend on the content alone. */
import { constants, createZstdCompress } from "node:zlib";
import { StreamPump, STREAM_OPTIONS } from "./pump.ts";

/** Between fast and small; what the zstd command line tool, containerd and BuildKit use unless told. */
const LEVEL = 3;
/** The encoder is fed pieces of exactly this size, so that no cutting of the source can show in its output. */
const FEED = 1024 * 1024;

/**
 * What the bytes depend on beside the content; `version` is the library's (process.versions.zstd). Equal names, equal
 * bytes, on every machine.
 */
export function zstdEncoderName(version: string): string {
  return `zstd ${version} level ${LEVEL}, with size and checksum`;
}

/**
 * Compresses `size` bytes on the thread pool. A source of another size is RangeError. Pieces are of at most 1 MiB and are
 * not written to again. Bounded memory: one piece of input, two of output, and the window (2 MiB).
 */
export async function* compressZstd(
  source: AsyncIterable<Uint8Array>,
  size: number,
): AsyncGenerator<Uint8Array, void, undefined> {
  const pump = new StreamPump(
    createZstdCompress({
      ...STREAM_OPTIONS,
      pledgedSrcSize: size,
      params: { [constants.ZSTD_c_compressionLevel]: LEVEL, [constants.ZSTD_c_checksumFlag]: 1 },
    }),
  );
  try {
    let given = 0;
    for await (const piece of recut(source)) {
      given += piece.length;
      if (given > size) break;
      pump.write(piece);
      yield* piecesOf(pump);
    }
    if (given !== size) throw new RangeError(`compressZstd: ${size} bytes were promised, ${given} came`);
    pump.end();
    yield* piecesOf(pump);
  } finally {
    pump.close();
  }
}

/** What a compressor gives out until it wants more input, or has ended. */
export async function* piecesOf(pump: StreamPump): AsyncGenerator<Uint8Array, void, undefined> {
  for (;;) {
    const piece = await pump.next();
    if (piece === "drained" || piece === "ended") return;
    yield piece;
  }
}

/** The same bytes in pieces of FEED, the last one shorter. */
export async function* recut(
  source: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array, void, undefined> {
  let buffer = Buffer.allocUnsafeSlow(FEED);
  let fill = 0;
  for await (const piece of source) {
    for (let at = 0; at < piece.length; ) {
      const step = Math.min(piece.length - at, FEED - fill);
      buffer.set(piece.subarray(at, at + step), fill);
      fill += step;
      at += step;
      if (fill < FEED) continue;
      yield buffer;
      buffer = Buffer.allocUnsafeSlow(FEED);
      fill = 0;
    }
  }
  if (fill > 0) yield buffer.subarray(0, fill);
}
