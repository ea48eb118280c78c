/** The page cache written out beside this thread, before somebody waits for it. */
import { writeOutRange } from "./libc.ts";

/** A range that is worth a call; small ones would cut the device's work into pieces. */
const STEP = 8 * 1024 * 1024;

/**
 * Has a file that grows written to its device while more is made, on the thread pool, one range at a time. The sync at the end,
 * or the reflink of the file (for which XFS and btrfs write it out first), then finds little left to wait for. It makes nothing durable,
 * and errors of the device are those of the sync.
 */
export class Writeback {
  readonly #fd: number;
  #started = 0;
  #running: Promise<void> | undefined;

  /** The descriptor stays the caller's, who closes it when `settled` has resolved. */
  constructor(fd: number) {
    this.#fd = fd;
  }

  /** Says that the file's bytes before `end` will not change any more. */
  reach(end: number): void {
    if (this.#running !== undefined || end - this.#started < STEP) return;
    const [offset, length] = [this.#started, end - this.#started];
    this.#started = end;
    this.#running = writeOutRange(this.#fd, offset, length).finally(() => {
      this.#running = undefined;
    });
  }

  /** Resolves when no call is under way. */
  async settled(): Promise<void> {
    await this.#running;
  }
}
