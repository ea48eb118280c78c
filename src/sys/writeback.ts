/** The page cache written out beside this thread, before somebody waits for it. */
import { closeSync, fstatSync, openSync, readdirSync } from "node:fs";
import { join } from "node:path";
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

/** Looked at so often: at the speed of memory, some 40 MiB. */
const LOOK_MS = 20;

/**
 * {@link Writeback} of files that another program is writing: those directly in `directory`, which need not be there yet, whose name
 * `isMeant` says yes to. It is advice: what can't be read is left alone. Dispose of it when the program has ended.
 */
export class DirectoryWriteback implements AsyncDisposable {
  readonly #directory: string;
  readonly #isMeant: (name: string) => boolean;
  readonly #files = new Map<string, { readonly fd: number; readonly writeback: Writeback }>();
  readonly #timer: NodeJS.Timeout;

  constructor(directory: string, isMeant: (name: string) => boolean) {
    this.#directory = directory;
    this.#isMeant = isMeant;
    this.#timer = setInterval(() => this.#look(), LOOK_MS);
    this.#timer.unref();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#timer);
    for (const { fd, writeback } of this.#files.values()) {
      await writeback.settled();
      closeSync(fd);
    }
    this.#files.clear();
  }

  #look(): void {
    try {
      for (const name of readdirSync(this.#directory).filter(this.#isMeant)) {
        if (this.#files.has(name)) continue;
        const fd = openSync(join(this.#directory, name), "r");
        this.#files.set(name, { fd, writeback: new Writeback(fd) });
      }
      for (const { fd, writeback } of this.#files.values()) writeback.reach(fstatSync(fd).size);
    } catch {
      // Not there yet, or not for us: the program that writes it, and the sync at the end, tell of what matters.
    }
  }
}
