/** A named pipe that is read to nothing: for programs that must write what nobody wants. */
import { open } from "node:fs/promises";
import { unlink } from "./files.ts";
import { mknod } from "./libc.ts";

const S_IFIFO = 0o010000;
const PIECE = 1024 * 1024;

/**
 * Makes a pipe at `path`, reads and forgets what `work` has written into it, and removes it. `work` ends the pipe by ending its
 * writers. Its result, or error, is that of this call; its signal is aborted when reading fails.
 */
export async function drainFifo<T>(path: string, work: (stop: AbortSignal) => Promise<T>): Promise<T> {
  mknod(path, S_IFIFO | 0o600, 0, 0);
  const stop = new AbortController();
  try {
    // For reading and writing: opening waits for nobody, and a writer that comes and goes is no end.
    const file = await open(path, "r+");
    let done = false;
    const drain = async () => {
      const buffer = Buffer.allocUnsafeSlow(PIECE);
      while (!done) await file.read(buffer, 0, PIECE);
    };
    const draining = drain().catch((error: unknown) => stop.abort(error));
    try {
      return await work(stop.signal);
    } finally {
      done = true;
      await file.write("."); // wakes the reader
      await draining;
      await file.close();
    }
  } finally {
    unlink(path);
  }
}
