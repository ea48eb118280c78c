/** Descriptors that can only be read forward: pipes, sockets, terminals. */
import { createReadStream } from "node:fs";

const PIECE = 1024 * 1024;

/**
 * What is left to read, in pieces of at most 1 MiB that stay good. The descriptor stays the caller's. A pipe that ends early
 * is simply its end: what is missing is for the format to notice.
 */
export async function* readDescriptor(
  fd: number,
  options: { readonly signal?: AbortSignal } = {},
): AsyncGenerator<Uint8Array, void, undefined> {
  const { signal } = options;
  const stream = createReadStream("", { fd, autoClose: false, highWaterMark: PIECE, ...(signal && { signal }) });
  try {
    for await (const chunk of stream) yield chunk as Buffer;
  } finally {
    stream.destroy();
  }
}
