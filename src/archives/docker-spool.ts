/** Compressed archives: a range of bytes inside can only be read from a decompressed copy. */
import { join } from "node:path";
import { type Compression, decompress } from "../formats/compression/index.ts";
import { closeFile, createFile, openFile, readAt, statFile, unlink, writeAt } from "../sys/index.ts";
import { readFileRange } from "./file-range.ts";

const DEFAULT_MAXIMUM = 64 * 1024 ** 3;

/** The first bytes of a file, enough to tell its compression. */
export function readHead(path: string): Uint8Array {
  const fd = openFile(path);
  try {
    const head = Buffer.alloc(4);
    return head.subarray(0, readAt(fd, head, 0));
  } finally {
    closeFile(fd);
  }
}

/**
 * Decompresses the file at `path` into a new file of `directory`, and returns its path. Nothing is left when it fails. The
 * copy is not made durable: it is read back in this operation or never.
 */
export async function spoolArchive(
  path: string,
  compression: Compression,
  directory: string,
  options: { readonly maximumSize?: number; readonly signal?: AbortSignal },
): Promise<string> {
  const { maximumSize = DEFAULT_MAXIMUM, signal } = options;
  const target = join(directory, "archive.tar");
  const fd = createFile(target);
  let complete = false;
  try {
    let size = 0;
    const settings = signal === undefined ? { maximumSize } : { maximumSize, signal };
    for await (const piece of decompress(fileBytes(path), compression, settings)) {
      writeAt(fd, piece, size);
      size += piece.length;
    }
    complete = true;
    return target;
  } finally {
    closeFile(fd);
    if (!complete) unlink(target);
  }
}

async function* fileBytes(path: string): AsyncGenerator<Uint8Array> {
  yield* readFileRange({ path, offset: 0, length: statFile(path).size });
}
