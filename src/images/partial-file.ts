/**
 * A file that gets its name only when it is complete and durable. Until then it is `NAME.partial` beside it, locked by its
 * writer; what a killed writer left is not locked, and the next one to that name removes it.
 */
import { dirname } from "node:path";
import { delay } from "../async/index.ts";
import { errnoOf, ShaleError } from "../errors/index.ts";
import {
  closeFile,
  createFile,
  datasync,
  findFile,
  type Lock,
  realPath,
  rename,
  startWriteback,
  statFile,
  syncDirectory,
  truncate,
  tryLock,
  writeAt,
} from "../sys/index.ts";
import { explainWriteError } from "./write-error.ts";

/** Unless told: made to be handed on, like the files of a layout. */
const PERMISSIONS = 0o644;
/** Bytes after which the kernel is asked to begin writing, so that the sync at the end is short. */
const WRITEBACK = 32 * 1024 * 1024;
const POLL_MS = 50;

export class PartialFile implements Disposable {
  /** Where it will be. */
  readonly path: string;
  readonly #partial: string;
  readonly #fd: number;
  readonly #lock: Lock;
  #size = 0;
  #started = 0;
  #state: "open" | "published" | "closed" = "open";

  /**
   * Begins a file at `path`, which may exist; a symlink there is followed. Waits for another writer to it. Refuses, with
   * FAILED_PRECONDITION, what is no regular file: a device must not be replaced by an archive.
   */
  static async open(
    path: string,
    options: { readonly signal?: AbortSignal; readonly permissions?: number } = {},
  ): Promise<PartialFile> {
    const target = realPath(path) ?? path;
    const there = findFile(target);
    if (there !== undefined && there.kind !== "file" && there.kind !== "symlink") {
      const state = there.kind === "directory" ? "it is a directory" : "it is not a regular file";
      throw new ShaleError("FAILED_PRECONDITION", `Cannot write ${path}: ${state}`, {
        hint: there.kind === "directory" ? "Name a file in it" : "Write to stdout with -o -, and redirect that",
      });
    }
    const partial = `${target}.partial`;
    try {
      for (;;) {
        const made = create(partial, options.permissions ?? PERMISSIONS);
        if (made !== undefined) return new PartialFile(target, partial, made.fd, made.lock);
        await delay(POLL_MS, options);
      }
    } catch (error) {
      throw explainWriteError(error, `Cannot write ${path}`);
    }
  }

  private constructor(path: string, partial: string, fd: number, lock: Lock) {
    this.path = path;
    this.#partial = partial;
    this.#fd = fd;
    this.#lock = lock;
  }

  /** Bytes so far. */
  get size(): number {
    return this.#size;
  }

  /** Appends. RESOURCE_EXHAUSTED when the disk is full. */
  write(bytes: Uint8Array): void {
    try {
      writeAt(this.#fd, bytes, this.#size);
    } catch (error) {
      throw explainWriteError(error, `Cannot write ${this.path}`);
    }
    this.#size += bytes.length;
    if (this.#size - this.#started < WRITEBACK) return;
    startWriteback(this.#fd, this.#started, this.#size - this.#started);
    this.#started = this.#size;
  }

  /** Writes over bytes that are there. */
  patch(offset: number, bytes: Uint8Array): void {
    if (offset + bytes.length > this.#size) throw new RangeError(`patch at ${offset} of ${this.#size}`);
    writeAt(this.#fd, bytes, offset);
  }

  /** Takes back what was written behind byte `size`. */
  cut(size: number): void {
    if (size > this.#size) throw new RangeError(`cut at ${size} of ${this.#size}`);
    truncate(this.#fd, size);
    this.#size = size;
    this.#started = Math.min(this.#started, size);
  }

  /** Gives the file its name, in place of what had it. When this returns, it survives a power cut. */
  publish(): void {
    try {
      datasync(this.#fd);
      rename(this.#partial, this.path);
      this.#state = "published";
      syncDirectory(dirname(this.path));
    } catch (error) {
      throw explainWriteError(error, `Cannot write ${this.path}`);
    }
  }

  /** Removes the file unless it was published. Idempotent. */
  [Symbol.dispose](): void {
    if (this.#state === "closed") return;
    const published = this.#state === "published";
    this.#state = "closed";
    closeFile(this.#fd);
    this.#lock.release({ unlink: !published });
  }
}

/**
 * A new file that is ours and locked; undefined when another has the name, or had it until now. Always a new one, and what
 * is there is never written to: it could be a link to something else, or someone could have it open.
 */
function create(partial: string, permissions: number): { readonly fd: number; readonly lock: Lock } | undefined {
  let fd: number;
  try {
    fd = createFile(partial, permissions);
  } catch (error) {
    if (errnoOf(error) !== "EEXIST") throw error;
    // Shared, which writes no holder into the file. Who gets it knows that no writer is alive: a writer that was about to
    // lock its new file finds it gone and makes another.
    tryLock(partial, { shared: true })?.release({ unlink: true });
    return undefined;
  }
  const lock = tryLock(partial, { command: "shale save" });
  if (lock !== undefined && statFile(fd).ino === findFile(partial)?.ino) {
    truncate(fd, 0); // the lock has left its holder's name
    return { fd, lock };
  }
  closeFile(fd);
  lock?.release({ unlink: true });
  return undefined;
}
