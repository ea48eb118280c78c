/** Durability of many files at once. */
import * as fs from "node:fs";
import { delay } from "../async/index.ts";
import { effect } from "./effects.ts";
import { closeFile } from "./files.ts";
import { syncfs, syncfsAside } from "./libc.ts";

/**
 * Everything that was written to the file system of `path`, an existing directory, survives a power cut afterwards (syncfs), what
 * other programs wrote there included. For thousands of small files, where a sync for each would take milliseconds each.
 */
export function syncFileSystem(path: string): void {
  const fd = fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY);
  try {
    effect("syncFileSystem", path, () => syncfs(fd, path));
  } finally {
    closeFile(fd);
  }
}

/** Written between two syncs: shorter pauses write the same inode tables again and again, longer ones leave the disk idle. */
const PAUSE_MS = 100;

/**
 * Syncs the file system of an open directory over and over, on a thread of its own, until it is disposed of, which waits for the
 * last of these syncs. For whoever writes for seconds and syncs then: the disk works while files are being made, not after them.
 *
 * The kernel begins by itself only when a tenth of the memory waits to be written, and starting writeback of single files
 * (sync_file_range) leaves what a loop device or a disk's cache holds. Nothing is durable by this: errors are left to the sync at the
 * end, by a descriptor that was opened before the first write, which is told of each that came since. So it is no effect, either.
 */
export function syncMeanwhile(directory: number): AsyncDisposable {
  const ending = new AbortController();
  const run = async () => {
    // The error of a sync is told once to each descriptor: this one takes none away from the caller's.
    const fd = fs.openSync(`/proc/self/fd/${directory}`, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY);
    try {
      while (await pause(ending.signal)) if (!(await syncfsAside(fd))) return;
    } finally {
      closeFile(fd);
    }
  };
  const ended = run();
  ended.catch(() => undefined); // told by the disposal
  return {
    async [Symbol.asyncDispose]() {
      ending.abort();
      await ended;
    },
  };
}

/** False when it was ended. */
async function pause(signal: AbortSignal): Promise<boolean> {
  try {
    await delay(PAUSE_MS, { signal });
    return true;
  } catch (error) {
    if (signal.aborted) return false;
    throw error;
  }
}
