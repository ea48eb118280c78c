/** One zstd frame at once, for readers of chunks: a stream costs ten times as much as a small frame. */
import { constants as zlibConstants, zstdDecompressSync } from "node:zlib";
import { FormatError } from "../../errors/index.ts";
import type { FramesDecoder } from "./backend.ts";
import { parseZstdFrameHeader, ZSTD_WINDOW_MAX, ZstdBlockWalker } from "./zstd-frame.ts";

const FORMAT = "zstd chunk";
const PARAMS = { [zlibConstants.ZSTD_d_windowLogMax]: Math.log2(ZSTD_WINDOW_MAX) };
/** The decoder asks for room behind the last byte to see that there is none. */
const ROOM = 64;

/**
 * Decompresses the frame that `bytes` begins with, which has to give exactly `size` bytes; what follows it is ignored.
 * Allocates no more than `size` at a time, whatever the frame says. `decoder` is faster, and changes nothing else. FormatError.
 */
export function decompressZstdChunk(bytes: Uint8Array, size: number, decoder?: FramesDecoder): Uint8Array {
  const header = parseZstdFrameHeader(bytes, 0);
  if (header?.kind !== "frame") throw new FormatError(FORMAT, "frame", "is missing", { offset: 0 });
  if (header.dictionaryId !== 0) throw new FormatError(FORMAT, "dictionary id", "must be 0", { offset: 0 });
  if (header.contentSize !== undefined && header.contentSize !== size) {
    throw new FormatError(FORMAT, "content size", `must be ${size}: current value is ${header.contentSize}`, {
      offset: 0,
    });
  }
  const walker = new ZstdBlockWalker(header, header.size);
  const length = header.size + walker.walk(bytes.subarray(header.size));
  if (!walker.done) throw new FormatError(FORMAT, "frame", `is not complete in ${bytes.length} bytes`, { offset: 0 });
  if (decoder !== undefined) {
    const room = Buffer.allocUnsafeSlow(size);
    if (decoder.decompressSync(bytes.subarray(0, length), room) === size) return room;
    // what is wrong, zlib says
  }
  let found: Uint8Array;
  try {
    found = zstdDecompressSync(bytes.subarray(0, length), {
      maxOutputLength: size + ROOM,
      chunkSize: size + ROOM,
      params: PARAMS,
    });
  } catch (error) {
    // ZSTD_error_* of the decoder, ERR_BUFFER_TOO_LARGE over the limit
    if (!(error instanceof Error) || !("code" in error)) throw error;
    throw new FormatError(FORMAT, "frame", "can't be decompressed", { offset: 0, cause: error });
  }
  if (found.length !== size) {
    throw new FormatError(FORMAT, "frame", `gives ${found.length} bytes instead of ${size}`, { offset: 0 });
  }
  return found;
}
