/**
 * System calls that take a name in an open directory, by koffi. Rules as for `libc.ts`.
 *
 * Names are byte strings (one unit, one byte) and go through one buffer of this thread: a checkout makes five such calls a
 * file, and converting each name anew would cost more than the call. Flags and structures are those of Linux on x86_64 and
 * arm64, but for the four open flags that differ between the two.
 */
import { constants } from "node:fs";
import type { ByteString } from "../bytes/index.ts";
import { AT_FDCWD, call } from "./libc-call.ts";
import { systemError } from "./system-error.ts";

/** linux/limits.h, with the NUL. */
export const PATH_MAX = 4096;

export const O_CLOEXEC = 0o2000000;
/** The same on both machines; the others that are not come from Node. */
export const O_PATH = 0o10000000;
export const AT_SYMLINK_NOFOLLOW = 0x100;
export const AT_REMOVEDIR = 0x200;
export const AT_EMPTY_PATH = 0x1000;

const first = Buffer.alloc(PATH_MAX);
const second = Buffer.alloc(PATH_MAX);

/** The name with its NUL in `buffer`; a NUL inside would silently cut it. */
function write(buffer: Buffer, name: ByteString, syscall: string): Buffer {
  if (name.length >= PATH_MAX) throw systemError("ENAMETOOLONG", syscall, name);
  if (name.includes("\0")) throw systemError("EINVAL", syscall, name);
  buffer[buffer.write(name, 0, "latin1")] = 0;
  return buffer;
}

const SYS_openat2 = 437; // include/uapi/asm-generic/unistd.h; the same on x86_64
const RESOLVE_NO_MAGICLINKS = 0x02;
const RESOLVE_NO_SYMLINKS = 0x04;
const RESOLVE_BENEATH = 0x08;
const how = new BigUint64Array(3); // struct open_how: flags, mode, resolve

/** openat2(2) that follows no symlink of any kind and never leaves `directory`. EXDEV or ELOOP when it would have to. */
export function openat2Beneath(directory: number, path: ByteString, flags: number): number {
  how[0] = BigInt(flags | O_CLOEXEC);
  how[1] = 0n;
  how[2] = BigInt(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS);
  return call(
    "int64_t syscall(int64_t, int64_t, const void *, const void *, int64_t)",
    "openat2",
    path,
    SYS_openat2,
    directory,
    write(first, path, "openat2"),
    how,
    how.byteLength,
  );
}

/** openat(2); O_CLOEXEC is added. `mode` is less the umask. */
export function openat(directory: number, name: ByteString, flags: number, mode = 0): number {
  return call(
    "int openat(int, const void *, int, uint32_t)",
    "openat",
    name,
    directory,
    write(first, name, "openat"),
    flags | O_CLOEXEC,
    mode,
  );
}

export function mkdirat(directory: number, name: ByteString, mode: number): void {
  call("int mkdirat(int, const void *, uint32_t)", "mkdirat", name, directory, write(first, name, "mkdirat"), mode);
}

export function symlinkat(target: ByteString, directory: number, name: ByteString): void {
  call(
    "int symlinkat(const void *, int, const void *)",
    "symlinkat",
    name,
    write(second, target, "symlinkat"),
    directory,
    write(first, name, "symlinkat"),
  );
}

const AT_SYMLINK_FOLLOW = 0x400;

/** Gives an open file, also one that never had a name (O_TMPFILE), a name by its path. EEXIST when it is taken. */
export function linkDescriptor(fd: number, path: ByteString): void {
  call(
    "int linkat(int, const void *, int, const void *, int)",
    "linkat",
    path,
    AT_FDCWD,
    write(second, `/proc/self/fd/${fd}`, "linkat"),
    AT_FDCWD,
    write(first, path, "linkat"),
    AT_SYMLINK_FOLLOW,
  );
}

/** linkat(2) without flags: a symlink gets a second name itself. */
export function linkat(fromDirectory: number, from: ByteString, directory: number, name: ByteString): void {
  call(
    "int linkat(int, const void *, int, const void *, int)",
    "linkat",
    name,
    fromDirectory,
    write(second, from, "linkat"),
    directory,
    write(first, name, "linkat"),
    0,
  );
}

export function mknodat(directory: number, name: ByteString, mode: number, device: bigint): void {
  call(
    "int mknodat(int, const void *, uint32_t, uint64_t)",
    "mknodat",
    name,
    directory,
    write(first, name, "mknodat"),
    mode,
    device,
  );
}

export function unlinkat(directory: number, name: ByteString, flags: number): void {
  call("int unlinkat(int, const void *, int)", "unlinkat", name, directory, write(first, name, "unlinkat"), flags);
}

/** fchownat(2) of the name itself, or with `name` "" and AT_EMPTY_PATH of the descriptor. */
export function fchownat(directory: number, name: ByteString, uid: number, gid: number, flags: number): void {
  call(
    "int fchownat(int, const void *, uint32_t, uint32_t, int)",
    "fchownat",
    name,
    directory,
    write(first, name, "fchownat"),
    uid,
    gid,
    flags,
  );
}

export function fchown(fd: number, uid: number, gid: number): void {
  call("int fchown(int, uint32_t, uint32_t)", "fchown", undefined, fd, uid, gid);
}

const UTIME_OMIT = 0x3ffffffe; // include/linux/stat.h
const times = new Uint32Array(8); // struct timespec[2], little-endian: accessed, modified

function modified(seconds: number, nanoseconds: number): Uint32Array {
  times[2] = UTIME_OMIT;
  times[4] = seconds;
  times[5] = Math.floor(seconds / 2 ** 32); // converts modulo 2^32: the high half, sign and all
  times[6] = nanoseconds;
  return times;
}

/** Sets the time of modification, nanoseconds and all; the time of access stays. */
export function setModified(fd: number, seconds: number, nanoseconds: number): void {
  call("int futimens(int, const void *)", "futimens", undefined, fd, modified(seconds, nanoseconds));
}

/** As {@link setModified} of a name, a symlink itself. */
export function setModifiedAt(directory: number, name: ByteString, seconds: number, nanoseconds: number): void {
  call(
    "int utimensat(int, const void *, const void *, int)",
    "utimensat",
    name,
    directory,
    write(first, name, "utimensat"),
    modified(seconds, nanoseconds),
    AT_SYMLINK_NOFOLLOW,
  );
}

export function renameat2(
  fromDirectory: number,
  from: ByteString,
  directory: number,
  name: ByteString,
  flags: number,
): void {
  call(
    "int renameat2(int, const void *, int, const void *, uint32_t)",
    "renameat2",
    name,
    fromDirectory,
    write(second, from, "renameat2"),
    directory,
    write(first, name, "renameat2"),
    flags,
  );
}

export function fremovexattr(fd: number, name: ByteString): void {
  call("int fremovexattr(int, const void *)", "fremovexattr", undefined, fd, write(first, name, "fremovexattr"));
}

/** readlinkat(2): the target byte by byte. EINVAL when the name is no symlink. */
export function readlinkat(directory: number, name: ByteString): ByteString {
  const length = call(
    "int64_t readlinkat(int, const void *, void *, size_t)",
    "readlinkat",
    name,
    directory,
    write(first, name, "readlinkat"),
    second,
    second.length,
  );
  return second.toString("latin1", 0, length);
}

const SYS_listxattrat = 465; // include/uapi/asm-generic/unistd.h; the same on x86_64

/** Names of extended attributes as listxattrat(2) writes them, with a NUL behind each; of the name itself, or with "" of the descriptor. */
export function listxattrat(directory: number, name: ByteString, names: Buffer): number {
  return call(
    "int64_t syscall(int64_t, int64_t, const void *, int64_t, void *, int64_t)",
    "listxattrat",
    name,
    SYS_listxattrat,
    directory,
    write(first, name, "listxattrat"),
    AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH,
    names,
    names.length,
  );
}

const STATX_BASIC_STATS = 0x7ff;
const status = Buffer.alloc(256); // struct statx
const view = new DataView(status.buffer, status.byteOffset, status.byteLength);

export interface Statx {
  readonly links: number;
  readonly uid: number;
  readonly gid: number;
  /** Type and permission bits. */
  readonly mode: number;
  readonly ino: bigint;
  readonly size: number;
  /** Bytes on disk. */
  readonly allocated: number;
  readonly mtimeSeconds: number;
  readonly mtimeNanoseconds: number;
  /** Of a character or block device. */
  readonly rdevMajor: number;
  readonly rdevMinor: number;
  /** The device that the file system is on, as in mountinfo: "259:3". */
  readonly device: string;
}

/** statx(2) of the name itself, or with "" of the descriptor. */
export function statx(directory: number, name: ByteString): Statx {
  fill(directory, name);
  return {
    links: view.getUint32(16, true),
    uid: view.getUint32(20, true),
    gid: view.getUint32(24, true),
    mode: view.getUint16(28, true),
    ino: view.getBigUint64(32, true),
    size: Number(view.getBigUint64(40, true)), // no file system of today holds a file over 2^53
    allocated: Number(view.getBigUint64(48, true)) * 512,
    mtimeSeconds: Number(view.getBigInt64(112, true)),
    mtimeNanoseconds: view.getUint32(120, true),
    rdevMajor: view.getUint32(128, true),
    rdevMinor: view.getUint32(132, true),
    device: `${view.getUint32(136, true)}:${view.getUint32(140, true)}`,
  };
}

/** Whether the file has the inode, size and time of modification that `expected` has; makes nothing, which is half of a statx. */
export function isUnchanged(fd: number, expected: Statx): boolean {
  fill(fd, "");
  return (
    view.getUint32(120, true) === expected.mtimeNanoseconds &&
    Number(view.getBigInt64(112, true)) === expected.mtimeSeconds &&
    Number(view.getBigUint64(40, true)) === expected.size &&
    view.getBigUint64(32, true) === expected.ino
  );
}

function fill(directory: number, name: ByteString): void {
  call(
    "int statx(int, const void *, int, uint32_t, void *)",
    "statx",
    name,
    directory,
    write(first, name, "statx"),
    AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH,
    STATX_BASIC_STATS,
    status,
  );
}

/** Flags that open a directory to work in it, and a new file to write it; of this machine. */
export const OPEN_DIRECTORY = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;
export const OPEN_EXISTING = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
export const OPEN_NEW = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
export const OPEN_ITSELF = O_PATH | constants.O_NOFOLLOW;
