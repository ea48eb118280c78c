/**
 * Locks between tasks and processes: flock(2) on a file.
 *
 * Guarantees: a lock dies with its process, also by SIGKILL or a power cut; there are no stale locks, whatever is in the
 * file. The lock belongs to the open file description, so two tasks of one process exclude each other too (fcntl locks
 * would not), and closing another descriptor of the file does not drop it. The file is created when absent and may be
 * removed by the holder on release: who locked a file that is no longer the one at the path tries again.
 *
 * An exclusive holder writes who it is into the file, for messages only. On a network file system flock may be local.
 */
import { delay, throwIfAborted } from "../async/index.ts";
import { errnoOf, ShaleError } from "../errors/index.ts";
import { observed } from "./effects.ts";
import { closeFile, createFile, findFile, openFile, readAt, statFile, truncate, unlink, writeAt } from "./files.ts";
import { flock, LOCK_EX, LOCK_NB, LOCK_SH } from "./libc.ts";
import { findProcess, processStartTime } from "./process.ts";

export interface LockHolder {
  readonly pid: number;
  /** See processStartTime(): tells a holder from a later process with the same pid. */
  readonly startTime: number;
  readonly command: string;
  /** ISO 8601. */
  readonly since: string;
}

export interface Lock extends Disposable {
  readonly path: string;
  /** Releases; with `unlink` the file goes first, while the lock is held. A second call does nothing. */
  release(options?: { readonly unlink?: boolean }): void;
}

export interface TryLockOptions {
  /** Any number of shared holders, or one exclusive (the default). Shared holders leave no name. */
  readonly shared?: boolean;
  /** What the holder is doing, for the messages of those who wait. The command line unless given. */
  readonly command?: string;
}

export interface AcquireLockOptions extends TryLockOptions {
  readonly signal?: AbortSignal;
  /** Without it the wait is as long as the holder holds. */
  readonly timeoutMs?: number;
  /** What is locked, for messages: "the store /var/lib/shale". The path unless given. */
  readonly what?: string;
}

const POLL_MS = 20;
const HOLDER_LIMIT = 4096;
const COMMAND_LIMIT = 1024;

/** Takes the lock if it is free now; undefined when another has it. */
export function tryLock(path: string, options: TryLockOptions = {}): Lock | undefined {
  const shared = options.shared ?? false;
  for (;;) {
    const fd = openLockFile(path);
    if (fd === undefined) continue; // removed between two steps: its holder has just released it
    let keep = false;
    try {
      if (!flockNow(fd, shared ? LOCK_SH : LOCK_EX, path)) return undefined;
      if (!isStillAt(fd, path)) continue;
      if (!shared) writeHolderOrRemove(fd, path, options.command);
      keep = true;
      return lockOf(path, fd);
    } finally {
      if (!keep) closeFile(fd);
    }
  }
}

/** On a full disk no empty lock file stays behind. */
function writeHolderOrRemove(fd: number, path: string, command: string | undefined): void {
  try {
    writeHolder(fd, command);
  } catch (error) {
    unlink(path);
    throw error;
  }
}

/**
 * Takes the lock, waiting for it. CANCELLED by the signal; UNAVAILABLE, with the holder's name, after `timeoutMs`. Waiters
 * poll every 20 ms, so the order among them is not theirs.
 */
export async function acquireLock(path: string, options: AcquireLockOptions = {}): Promise<Lock> {
  const deadline = options.timeoutMs === undefined ? undefined : performance.now() + options.timeoutMs;
  for (;;) {
    throwIfAborted(options.signal);
    const lock = tryLock(path, options);
    if (lock !== undefined) return lock;
    if (deadline !== undefined && performance.now() >= deadline) throw timedOut(path, options);
    await delay(POLL_MS, options.signal === undefined ? {} : { signal: options.signal });
  }
}

/**
 * Whether someone holds the lock at this moment, in any mode. For reports only: it may change before the answer arrives, and
 * asking takes the lock for some microseconds, during which a {@link tryLock} of another fails. To act, take the lock.
 */
export function isHeld(path: string): boolean {
  let fd: number;
  try {
    fd = openFile(path);
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return false;
    throw error;
  }
  try {
    return !flockNow(fd, LOCK_EX, path);
  } finally {
    closeFile(fd);
  }
}

/** Who holds the lock exclusively, as far as it says so and is still running; for messages. */
export function findHolder(path: string): LockHolder | undefined {
  const holder = readHolder(path);
  return holder !== undefined && processStartTime(holder.pid) === holder.startTime ? holder : undefined;
}

function openLockFile(path: string): number | undefined {
  try {
    return openFile(path, "read-write");
  } catch (error) {
    if (errnoOf(error) !== "ENOENT") throw error;
  }
  try {
    return createFile(path);
  } catch (error) {
    if (errnoOf(error) === "EEXIST") return undefined;
    throw error;
  }
}

/** Locks what is open, a directory say, without waiting; false when someone else has it locked. Ends with the descriptor. */
export function tryLockDescriptor(fd: number, path: string): boolean {
  return flockNow(fd, LOCK_EX, path);
}

function flockNow(fd: number, operation: number, path: string): boolean {
  return observed("lock", path, () => {
    try {
      flock(fd, operation | LOCK_NB, path);
      return true;
    } catch (error) {
      if (errnoOf(error) === "EAGAIN") return false;
      throw error;
    }
  });
}

function isStillAt(fd: number, path: string): boolean {
  const mine = statFile(fd);
  const there = findFile(path);
  return mine.nlink > 0 && there !== undefined && there.ino === mine.ino && there.dev === mine.dev;
}

function lockOf(path: string, fd: number): Lock {
  let held = true;
  return {
    path,
    release(options = {}) {
      if (!held) return;
      held = false;
      try {
        if (options.unlink) unlink(path);
      } finally {
        closeFile(fd);
      }
    },
    [Symbol.dispose]() {
      this.release();
    },
  };
}

function writeHolder(fd: number, command: string | undefined): void {
  const holder: LockHolder = {
    pid: process.pid,
    startTime: processStartTime() ?? 0,
    command: (command ?? process.argv.slice(1).join(" ")).slice(0, COMMAND_LIMIT),
    since: new Date().toISOString(),
  };
  truncate(fd, 0);
  writeAt(fd, Buffer.from(JSON.stringify(holder)), 0);
}

/** What the file says, checked; undefined when it is empty, cut short or foreign: the lock itself is in the kernel. */
function readHolder(path: string): LockHolder | undefined {
  let fd: number;
  try {
    fd = openFile(path);
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return undefined;
    throw error;
  }
  try {
    const bytes = Buffer.allocUnsafe(HOLDER_LIMIT);
    const value: unknown = JSON.parse(bytes.toString("utf8", 0, readAt(fd, bytes, 0)));
    return isHolder(value) ? value : undefined;
  } catch (error) {
    if (error instanceof SyntaxError) return undefined;
    throw error;
  } finally {
    closeFile(fd);
  }
}

function isHolder(value: unknown): value is LockHolder {
  if (typeof value !== "object" || value === null) return false;
  const { pid, startTime, command, since } = value as Record<string, unknown>;
  return (
    Number.isInteger(pid) && typeof startTime === "number" && typeof command === "string" && typeof since === "string"
  );
}

function timedOut(path: string, options: AcquireLockOptions): ShaleError {
  const holder = findHolder(path);
  const by =
    holder === undefined ? "another process" : `process ${holder.pid} (${holder.command}) since ${holder.since}`;
  const stopped = holder !== undefined && findProcess(holder.pid)?.state === "T";
  const hint = stopped
    ? `Process ${holder.pid} is stopped: continue it with kill -CONT ${holder.pid}, or end it`
    : "Try again when it has ended";
  return new ShaleError(
    "UNAVAILABLE",
    `Cannot lock ${options.what ?? path} within ${options.timeoutMs} ms: ${by} ${stopped ? "holds it and is stopped" : "holds it"}`,
    { hint },
  );
}
