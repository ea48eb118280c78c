/** Compressions of whole archives: what podman's reader knows. bzip2 and xz are left to the programs of those names. */

import { ShaleError } from "../../errors/index.ts";
import { type Compression, decompress, detectCompression } from "../../formats/compression/index.ts";
import { filterThrough } from "../../sys/index.ts";

export type ArchiveCompression = Compression | "bzip2" | "xz";

/** Enough of the first bytes for {@link detectArchiveCompression}. */
export const MAGIC_SIZE = 6;

/** By the first bytes: "BZh" and a level (bzip2 format, .magic), FD "7zXZ" 00 (xz file format, 2.1.1.1). */
export function detectArchiveCompression(head: Uint8Array): ArchiveCompression {
  const text = Buffer.from(head.buffer, head.byteOffset, Math.min(head.length, MAGIC_SIZE)).toString("latin1");
  if (/^BZh[1-9]/.test(text)) return "bzip2";
  if (text.startsWith("\xfd7zXZ\0")) return "xz";
  return detectCompression(head);
}

/** Pieces of the archive, each valid until the next is asked for. FormatError for damaged input or too much output. */
export function decompressArchive(
  source: AsyncIterable<Uint8Array>,
  compression: ArchiveCompression,
  options: { readonly maximumSize?: number; readonly signal?: AbortSignal },
): AsyncIterableIterator<Uint8Array> {
  if (compression !== "bzip2" && compression !== "xz") return decompress(source, compression, options);
  return bounded(filterThrough(compression, ["-dc"], source, options), compression, options.maximumSize);
}

async function* bounded(
  source: AsyncIterable<Uint8Array>,
  name: string,
  maximumSize = Number.POSITIVE_INFINITY,
): AsyncGenerator<Uint8Array, void, undefined> {
  let size = 0;
  for await (const piece of source) {
    size += piece.length;
    if (size > maximumSize) {
      throw new ShaleError("RESOURCE_EXHAUSTED", `Cannot read ${name} stream: it is more than ${maximumSize} bytes`);
    }
    yield piece;
  }
}
