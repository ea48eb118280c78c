/**
 * Files and directories as the store uses them. All synchronous: a local call costs about 5 us, an asynchronous one 20.
 * Every change passes through `effects.ts`, so that crashes, faults and power cuts can be produced at each of them.
 *
 * A file is a plain descriptor number; the caller closes it. Nothing here is durable until the matching sync: `datasync`
 * for content and size, `syncDirectory` for names. Errors are Node's system errors, unchanged.
 */
import * as fs from "node:fs";
import { dirname } from "node:path";
import { errnoOf, ShaleError } from "../errors/index.ts";
import { effect, observed } from "./effects.ts";
import {
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  fallocate,
  RENAME_NOREPLACE,
  renameat2,
  SYNC_FILE_RANGE_WRITE,
  syncFileRange,
} from "./libc.ts";
import { unlessAbsent } from "./unless-absent.ts";
import { systemError } from "./system-error.ts";

const { O_CREAT, O_EXCL, O_RDONLY, O_RDWR, O_NOFOLLOW } = fs.constants;

export type OpenMode = "read" | "read-write";

/**
 * Opens an existing file (close-on-exec). A symlink as last component is refused with ELOOP, since the store has none;
 * `followSymlink` is for files that the user named.
 */
export function openFile(
  path: string,
  mode: OpenMode = "read",
  options: { readonly followSymlink?: boolean } = {},
): number {
  const flags = (mode === "read" ? O_RDONLY : O_RDWR) | (options.followSymlink ? 0 : O_NOFOLLOW);
  return observed("open", path, () => fs.openSync(path, flags));
}

/** Creates a file for reading and writing; EEXIST when the name is taken, also by a symlink. */
export function createFile(path: string, permissions = 0o600): number {
  return effect("create", path, () => fs.openSync(path, O_RDWR | O_CREAT | O_EXCL, permissions));
}

export function closeFile(fd: number): void {
  fs.closeSync(fd);
}

/** Fills `target` from `offset`; returns the bytes read, fewer only at the end of the file. */
export function readAt(fd: number, target: Uint8Array, offset: number): number {
  return observed("read", fd, () => {
    let done = 0;
    while (done < target.length) {
      const count = fs.readSync(fd, target, done, target.length - done, offset + done);
      if (count === 0) break;
      done += count;
    }
    return done;
  });
}

/** Writes all of `bytes` at `offset`. After an error any part of it may have been written. */
export function writeAt(fd: number, bytes: Uint8Array, offset: number): void {
  effect(
    "write",
    fd,
    () => {
      let done = 0;
      while (done < bytes.length) done += fs.writeSync(fd, bytes, done, bytes.length - done, offset + done);
    },
    { offset, bytes },
  );
}

/** Sets the size; a longer file gets a hole at its end. */
export function truncate(fd: number, size: number): void {
  effect("truncate", fd, () => fs.ftruncateSync(fd, size), { length: size });
}

/**
 * Content and size survive a power cut afterwards (fdatasync). After an error the kernel may have dropped the dirty pages
 * and a second call may succeed without having written them: give the file up, never retry.
 */
export function datasync(fd: number): void {
  effect("datasync", fd, () => fs.fdatasyncSync(fd));
}

/** As {@link datasync}, with times and permissions. */
export function sync(fd: number): void {
  effect("sync", fd, () => fs.fsyncSync(fd));
}

/** The names in `path` as of now survive a power cut afterwards. */
export function syncDirectory(path: string): void {
  effect("syncDirectory", path, () => {
    const fd = fs.openSync(path, O_RDONLY | fs.constants.O_DIRECTORY);
    try {
      fs.fsyncSync(fd);
    } finally {
      fs.closeSync(fd);
    }
  });
}

/** Creates one directory; EEXIST when the name is taken. */
export function makeDirectory(path: string, permissions = 0o700): void {
  effect("mkdir", path, () => fs.mkdirSync(path, permissions));
}

/**
 * Makes sure that a directory and all above it exist, and that its name is durable: the parent is synced also when the
 * directory was there, since its creator may have died before that step. ENOTDIR when something else has the name.
 */
export function ensureDirectory(path: string, permissions = 0o700): void {
  try {
    makeDirectory(path, permissions);
  } catch (error) {
    if (errnoOf(error) === "ENOENT" && dirname(path) !== path) {
      ensureDirectory(dirname(path), permissions);
      ensureDirectory(path, permissions);
      return;
    }
    if (errnoOf(error) !== "EEXIST") throw error;
    if (!fs.statSync(path).isDirectory()) throw systemError("ENOTDIR", "mkdir", path);
  }
  syncDirectory(dirname(path));
}

/** Atomically gives `from` the name `to`, replacing a file (or an empty directory) there. */
export function rename(from: string, to: string): void {
  effect("rename", from, () => fs.renameSync(from, to), { to });
}

/** As {@link rename}, but false and no change when `to` exists. EINVAL on a file system without RENAME_NOREPLACE. */
export function renameNoReplace(from: string, to: string): boolean {
  return effect("rename", from, () => unlessExists(() => renameat2(from, to, RENAME_NOREPLACE)), { to });
}

/** A second name for a file; false when the name is taken, by whatever. */
export function linkIfAbsent(existing: string, name: string): boolean {
  return effect("link", existing, () => unlessExists(() => fs.linkSync(existing, name)), { to: name });
}

function unlessExists(run: () => void): boolean {
  try {
    run();
    return true;
  } catch (error) {
    if (errnoOf(error) === "EEXIST") return false;
    throw error;
  }
}

/** Removes a name; false when there was none. */
export function unlink(path: string): boolean {
  return effect("unlink", path, () => unlessAbsent(() => fs.unlinkSync(path)));
}

/** Removes an empty directory; false when there was none. */
export function removeDirectory(path: string): boolean {
  return effect("rmdir", path, () => unlessAbsent(() => fs.rmdirSync(path)));
}

/** Frees the blocks wholly inside the range and zeroes the rest of it; size and offsets stay. */
export function punchHole(fd: number, offset: number, length: number): void {
  effect("punch", fd, () => fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, length), {
    offset,
    length,
  });
}

/** Takes blocks for the whole file of `size` bytes; ENOSPC when there are not as many, EOPNOTSUPP where it can't be done. */
export function allocate(fd: number, size: number): void {
  effect("truncate", fd, () => fallocate(fd, 0, 0, size), { length: size });
}

/** Starts writeback of a range now, so that the later {@link datasync} has less to wait for. Makes nothing durable. */
export function startWriteback(fd: number, offset: number, length: number): void {
  syncFileRange(fd, offset, length, SYNC_FILE_RANGE_WRITE);
}

/**
 * Puts a file in place so that at any moment, power cuts included, `path` is absent, the old content or all of `bytes`.
 * Returns when the new content is durable; after an error the old or the new content is there. The temporary name is `path` + ".tmp": two writers of one path need a lock,
 * and what a crash leaves is replaced by the next writer.
 */
export function writeFileDurably(path: string, bytes: Uint8Array, permissions = 0o600): void {
  using staged = stageFile(path, bytes, permissions);
  staged.commit();
}

export interface StagedFile extends Disposable {
  /** Gives the file its name, durably. */
  commit(): void;
}

/** The first half of {@link writeFileDurably}: whatever may fail but for the renaming is behind. Dispose of it. */
export function stageFile(path: string, bytes: Uint8Array, permissions = 0o600): StagedFile {
  const temporary = `${path}.tmp`;
  unlink(temporary);
  using onFailure = new DisposableStack();
  const fd = createFile(temporary, permissions);
  onFailure.defer(() => unlink(temporary)); // on a full disk its blocks are missed
  try {
    writeAt(fd, bytes, 0);
    datasync(fd);
  } finally {
    closeFile(fd);
  }
  const uncommitted = onFailure.move();
  return {
    commit() {
      rename(temporary, path);
      uncommitted.move();
      syncDirectory(dirname(path));
    },
    [Symbol.dispose]: () => uncommitted.dispose(),
  };
}

/** The whole file; RESOURCE_EXHAUSTED when it is larger than `limit` bytes, which is checked before memory is taken. */
export function readFile(path: string, limit: number): Buffer {
  const fd = openFile(path);
  try {
    const { size } = fs.fstatSync(fd);
    if (size > limit) {
      throw new ShaleError("RESOURCE_EXHAUSTED", `Cannot read ${path}: ${size} bytes are over the limit of ${limit}`);
    }
    const bytes = Buffer.allocUnsafe(size);
    return bytes.subarray(0, readAt(fd, bytes, 0));
  } finally {
    closeFile(fd);
  }
}

export type FileKind = "file" | "directory" | "symlink" | "other";

export interface DirectoryEntry {
  readonly name: string;
  readonly kind: FileKind;
}

/** The names in a directory in byte order of their UTF-16 units, so that runs are repeatable. */
export function list(path: string): DirectoryEntry[] {
  const entries = observed("list", path, () => fs.readdirSync(path, { withFileTypes: true }));
  return entries
    .map((entry) => ({ name: entry.name, kind: kindOf(entry) }))
    .sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
}

export interface FileStatus {
  readonly kind: FileKind;
  /** Permission bits and file type, st_mode. */
  readonly mode: number;
  readonly size: number;
  /** Bytes on disk (st_blocks * 512): holes take none, shared extents count in each file. */
  readonly allocated: number;
  readonly nlink: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtimeNs: bigint;
  /** Together with `dev` the identity of the inode while someone has it open; bigint, since overlayfs uses the high bits. */
  readonly ino: bigint;
  readonly dev: bigint;
}

/** lstat, or fstat for a descriptor. ENOENT when absent. */
export function statFile(file: string | number): FileStatus {
  return observed("stat", file, () =>
    statusOf(typeof file === "number" ? fs.fstatSync(file, { bigint: true }) : fs.lstatSync(file, { bigint: true })),
  );
}

/** As {@link statFile}; undefined when the path (or a directory of it) does not exist. */
export function findFile(path: string): FileStatus | undefined {
  return observed("stat", path, () => {
    const status = fs.lstatSync(path, { bigint: true, throwIfNoEntry: false });
    return status === undefined ? undefined : statusOf(status);
  });
}

function statusOf(status: fs.BigIntStats): FileStatus {
  return {
    kind: kindOf(status),
    mode: Number(status.mode),
    size: Number(status.size), // below 2^63 on Linux, and no file system of today holds one over 2^53
    allocated: Number(status.blocks) * 512,
    nlink: Number(status.nlink),
    uid: Number(status.uid),
    gid: Number(status.gid),
    mtimeNs: status.mtimeNs,
    ino: status.ino,
    dev: status.dev,
  };
}

function kindOf(entry: { isFile(): boolean; isDirectory(): boolean; isSymbolicLink(): boolean }): FileKind {
  return entry.isFile() ? "file" : entry.isDirectory() ? "directory" : entry.isSymbolicLink() ? "symlink" : "other";
}

export interface FileSystemStatus {
  /** statfs f_type, e.g. 0xef53 (ext), 0x58465342 (XFS), 0x9123683e (btrfs), 0x01021994 (tmpfs), 0x794c7630 (overlay). */
  readonly type: number;
  readonly blockSize: number;
  readonly size: number;
  /** Bytes that an unprivileged user may still write. */
  readonly available: number;
  readonly freeInodes: number;
  /**
   * Share in use of what an unprivileged user may have, 0..1, as df(1) shows it: space that is kept for root counts as
   * neither used nor there. 0 where the file system tells no size.
   */
  readonly usedShare: number;
}

export function fileSystemStatus(path: string): FileSystemStatus {
  const status = fs.statfsSync(path);
  return {
    type: status.type,
    blockSize: status.bsize,
    size: status.blocks * status.bsize,
    available: status.bavail * status.bsize,
    freeInodes: status.ffree,
    usedShare: usedShare(status.blocks - status.bfree, status.bavail),
  };
}

function usedShare(used: number, available: number): number {
  return used + available === 0 ? 0 : used / (used + available);
}
