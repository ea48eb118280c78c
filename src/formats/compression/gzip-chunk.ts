/** Gzip members at once, for the many small ones of a layer that is read in parts. */
import { gunzipSync } from "node:zlib";

/** What may stand in a member behind the chunk that is wanted: padding and the headers of a few entries. */
const ROOM = 4096;
/** More than this is decompressed into several buffers, so that a large limit does not cost a large one. */
const BUFFER_MAX = 256 * 1024;

/**
 * All that the members in `bytes` decompress to, if that is at most `limit` and 4 KiB. Undefined where it is more, or where
 * they are damaged: a stream tells which.
 */
export function gunzipAtOnce(bytes: Uint8Array, limit: number): Uint8Array | undefined {
  const most = limit + ROOM;
  try {
    return gunzipSync(bytes, { maxOutputLength: most, chunkSize: Math.min(most, BUFFER_MAX) });
  } catch (error) {
    // Z_DATA_ERROR and the like, ERR_BUFFER_TOO_LARGE over the limit
    if (!(error instanceof Error) || !("code" in error)) throw error;
    return undefined;
  }
}
