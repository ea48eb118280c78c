/** A file that forgets what is written to it: for programs that must write what nobody wants, and change its mode. */
import { closeSync, constants, openSync } from "node:fs";
import { open } from "node:fs/promises";
import { errnoOf } from "../errors/index.ts";
import { unlink } from "./files.ts";
import { mknod } from "./libc.ts";

const S_IFCHR = 0o020000;
const S_IFIFO = 0o010000;
const PIECE = 1024 * 1024;

/**
 * Makes a null device of its own at `path` for the time of `work`. Where devices can't be made or opened (a mount with nodev,
 * no right to), it is a pipe that is read to nothing; then the signal is aborted when reading fails.
 */
export async function withNullDevice<T>(path: string, work: (stop: AbortSignal) => Promise<T>): Promise<T> {
  try {
    if (makesDevice(path)) return await work(new AbortController().signal);
    return await withDrainedPipe(path, work);
  } finally {
    unlink(path);
  }
}

function makesDevice(path: string): boolean {
  try {
    mknod(path, S_IFCHR | 0o600, 1, 3); // Documentation/admin-guide/devices.txt: /dev/null
    closeSync(openSync(path, constants.O_WRONLY));
    return true;
  } catch (error) {
    if (!["EPERM", "EACCES", "ENXIO"].includes(errnoOf(error) ?? "")) throw error;
    unlink(path);
    return false;
  }
}

async function withDrainedPipe<T>(path: string, work: (stop: AbortSignal) => Promise<T>): Promise<T> {
  mknod(path, S_IFIFO | 0o600, 0, 0);
  const stop = new AbortController();
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
}
