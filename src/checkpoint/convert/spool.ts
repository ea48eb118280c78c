/** Bytes that have to be read more than once, or out of order, in a file without a name. */
import { join } from "node:path";
import { createNewFile, writeAt } from "../../sys/index.ts";

export interface Spool extends Disposable {
  readonly fd: number;
  readonly size: number;
}

/** All bytes of `source`, in a file of `directory` that nobody else sees and that goes when it is disposed of. */
export async function spool(
  directory: string,
  source: AsyncIterable<Uint8Array>,
  signal: AbortSignal | undefined,
): Promise<Spool> {
  const file = createNewFile(join(directory, `shale-spool-${crypto.randomUUID()}`));
  using onFailure = new DisposableStack();
  onFailure.use(file);
  let size = 0;
  for await (const piece of source) {
    signal?.throwIfAborted();
    writeAt(file.fd, piece, size);
    size += piece.length;
  }
  onFailure.move();
  return { fd: file.fd, size, [Symbol.dispose]: () => file[Symbol.dispose]() };
}
