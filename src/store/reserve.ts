/**
 * The reserve: room on the disk that is given up when the disk is full, so that a full store can still be opened, read, and
 * cleared (G11). SQLite needs some for every change, and even to open a database in WAL mode.
 *
 * Only what makes or looks for room may draw on it: opening, beginning an operation, removing a name, collecting garbage.
 * It is refilled when a store is opened or closed and there is room again.
 */
import { alignUp } from "../bytes/index.ts";
import { errnoOf, ShaleError } from "../errors/index.ts";
import { allocate, closeFile, createFile, fileSystemStatus, findFile, openFile, truncate } from "../sys/index.ts";

/** Enough for the pages that forgetting the payloads of an image of 30,000 files touches. */
const MAXIMUM = 16 * 1024 * 1024;
const MINIMUM = 512 * 1024;
/** Of the file system, for small ones. */
const FRACTION = 64;
/** It is given up in steps, so that each process takes what it needs and little more: an eighth of what is left. */
const STEPS = 8;
const MINIMUM_STEP = 128 * 1024;
const BLOCK = 4096;

export class Reserve {
  readonly #path: string;
  readonly #root: string;

  constructor(root: string, path: string) {
    this.#root = root;
    this.#path = path;
  }

  /** Runs `work`, again for each step of the reserve while it fails for want of room. It must be safe to run again. */
  run<T>(work: () => T): T {
    for (;;) {
      try {
        return work();
      } catch (error) {
        if (!isFullDisk(error) || !this.#give()) throw error;
      }
    }
  }

  /** Makes it as large as it should be, unless the room is better left to what needs it now. */
  refill(): void {
    const { size, available } = fileSystemStatus(this.#root);
    const wanted = Math.min(MAXIMUM, Math.max(MINIMUM, alignUp(size / FRACTION, BLOCK)));
    const present = findFile(this.#path)?.allocated ?? 0;
    if (present >= wanted || available < wanted - present) return;
    try {
      const file =
        present === 0 && findFile(this.#path) === undefined
          ? createFile(this.#path)
          : openFile(this.#path, "read-write");
      try {
        allocate(file, wanted);
      } finally {
        closeFile(file);
      }
    } catch (error) {
      // Full again, another process was first, or a file system that can't: then there is none, and nothing else changes.
      const expected = ["ENOSPC", "EDQUOT", "EEXIST", "ENOENT", "EOPNOTSUPP", "ENOTSUP", "EFBIG", "EROFS", "EACCES"];
      if (!expected.includes(errnoOf(error) ?? "")) throw error;
    }
  }

  /** False when nothing is left. */
  #give(): boolean {
    const present = findFile(this.#path)?.size ?? 0;
    if (present === 0) return false;
    const file = openFile(this.#path, "read-write");
    try {
      const step = Math.max(MINIMUM_STEP, alignUp(present / STEPS, BLOCK));
      truncate(file, Math.max(0, present - step));
    } finally {
      closeFile(file);
    }
    return true;
  }
}

/** No room for a file, or for the database. */
export function isFullDisk(error: unknown): boolean {
  const errno = errnoOf(error);
  if (errno === "ENOSPC" || errno === "EDQUOT") return true;
  return ShaleError.is(error, "RESOURCE_EXHAUSTED") && error.cause instanceof Error && "errcode" in error.cause;
}
