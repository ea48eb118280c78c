/**
 * System calls that Node lacks, by koffi: one typed function per call, here and in the files beside it: `libc-at.ts` (names in open
 * directories), `libc-xattr.ts`, `libc-mount.ts`. The last two are part of this interface.
 *
 * Calls are synchronous and block the thread; what a failed one throws is in `libc-call.ts`. Paths are UTF-8 strings, or bytes where
 * a name may not be UTF-8. Offsets are numbers below 2^53.
 */
import { AT_FDCWD, call, callAside, cString, type Path } from "./libc-call.ts";
import { systemError } from "./system-error.ts";

export { AT_FDCWD, type Path } from "./libc-call.ts";
export * from "./libc-mount.ts";
export * from "./libc-xattr.ts";

// --- locks and leases ------------------------------------------------------------------------------------------------

export const LOCK_SH = 1;
export const LOCK_EX = 2;
export const LOCK_NB = 4;
export const LOCK_UN = 8;

/** flock(2). With LOCK_NB a conflict is EAGAIN. The lock belongs to the open file description, not to the process. */
export function flock(fd: number, operation: number, path?: string): void {
  call("int flock(int, int)", "flock", path, fd, operation);
}

export const F_RDLCK = 0;
export const F_WRLCK = 1;
export const F_UNLCK = 2;
const F_SETLEASE = 1024;
const F_GETLEASE = 1025;

/**
 * fcntl(F_SETLEASE). A write lease is granted only if nobody else, the kernel's own file-backed mounts included, has the
 * file open; otherwise EAGAIN. The lease ends with `fd`. Needs the file's owner or CAP_LEASE.
 */
export function setLease(fd: number, type: number, path?: string): void {
  call("int fcntl(int, int, int64_t)", "fcntl(F_SETLEASE)", path, fd, F_SETLEASE, type);
}

const F_SETSIG = 10;

/** fcntl(F_SETSIG): the signal sent when someone opens the leased file, instead of SIGIO, which ends the process. */
export function setLeaseSignal(fd: number, signal: number): void {
  call("int fcntl(int, int, int64_t)", "fcntl(F_SETSIG)", undefined, fd, F_SETSIG, signal);
}

export function getLease(fd: number): number {
  return call("int fcntl(int, int, int64_t)", "fcntl(F_GETLEASE)", undefined, fd, F_GETLEASE, 0);
}

// --- file content ----------------------------------------------------------------------------------------------------

export const FALLOC_FL_KEEP_SIZE = 1;
export const FALLOC_FL_PUNCH_HOLE = 2;

export function fallocate(fd: number, mode: number, offset: number, length: number, path?: string): void {
  call("int fallocate(int, int, int64_t, int64_t)", "fallocate", path, fd, mode, offset, length);
}

/** copy_file_range(2): bytes copied, which may be fewer than `length`, 0 at the end of `source`. */
export function copyFileRange(
  source: number,
  sourceOffset: number,
  target: number,
  targetOffset: number,
  length: number,
): number {
  const from = BigInt64Array.of(BigInt(sourceOffset));
  const to = BigInt64Array.of(BigInt(targetOffset));
  return call(
    "int64_t copy_file_range(int, void *, int, void *, size_t, uint32_t)",
    "copy_file_range",
    undefined,
    source,
    from,
    target,
    to,
    length,
    0,
  );
}

const FICLONE = 0x40049409;
const FICLONERANGE = 0x4020940d;

/** Shares all blocks of `source` with `target`. ENOTSUP, EXDEV or EINVAL where that is not possible. */
export function cloneFile(source: number, target: number): void {
  ioctlNumber(target, FICLONE, source, "ioctl(FICLONE)");
}

/** Shares a range (multiples of the file system's block size; length 0 is "to the end"). linux/fs.h file_clone_range. */
export function cloneRange(
  source: number,
  sourceOffset: number,
  target: number,
  targetOffset: number,
  length: number,
): void {
  const range = BigInt64Array.of(BigInt(source), BigInt(sourceOffset), BigInt(length), BigInt(targetOffset));
  ioctl(target, FICLONERANGE, range, "ioctl(FICLONERANGE)");
}

/** pipe2(2) with O_CLOEXEC: the ends for reading and writing. Node's own "pipes" are sockets. */
export function pipe(): { readonly read: number; readonly write: number } {
  const O_CLOEXEC = 0o2000000;
  const ends = new Int32Array(2);
  call("int pipe2(void *, int)", "pipe2", undefined, ends, O_CLOEXEC);
  return { read: ends[0]!, write: ends[1]! };
}

export const SYNC_FILE_RANGE_WAIT_BEFORE = 1;
export const SYNC_FILE_RANGE_WRITE = 2;
export const SYNC_FILE_RANGE_WAIT_AFTER = 4;

/** Starts or awaits writeback of a range. Never makes data durable: no metadata and no disk cache flush. */
export function syncFileRange(fd: number, offset: number, length: number, flags: number): void {
  call("int sync_file_range(int, int64_t, int64_t, uint32_t)", "sync_file_range", undefined, fd, offset, length, flags);
}

/** Starts writeback of a range, on the thread pool: it waits where the device has more to do than it takes. Never rejects. */
export async function writeOutRange(fd: number, offset: number, length: number): Promise<void> {
  const definition = "int sync_file_range(int, int64_t, int64_t, uint32_t)";
  await callAside(definition, fd, offset, length, SYNC_FILE_RANGE_WRITE); // a failure is nobody's concern
}

/** Syncs the whole file system that `fd` is on. */
export function syncfs(fd: number, path?: string): void {
  call("int syncfs(int)", "syncfs", path, fd);
}

/** As {@link syncfs}, on another thread. False when it failed. */
export function syncfsAside(fd: number): Promise<boolean> {
  return callAside("int syncfs(int)", fd);
}

export const SEEK_DATA = 3;
export const SEEK_HOLE = 4;

/** lseek(2); ENXIO when there is no data after `offset`. Moves the file position, which this program does not use. */
export function lseek(fd: number, offset: number, whence: number): number {
  return call("int64_t lseek(int, int64_t, int)", "lseek", undefined, fd, offset, whence);
}

export const POSIX_FADV_SEQUENTIAL = 2;
export const POSIX_FADV_WILLNEED = 3;
export const POSIX_FADV_DONTNEED = 4;

/** posix_fadvise(3), which returns its errno instead of setting it. */
export function fadvise(fd: number, offset: number, length: number, advice: number): void {
  const errno = call(
    "int posix_fadvise(int, int64_t, int64_t, int)",
    "posix_fadvise",
    undefined,
    fd,
    offset,
    length,
    advice,
  );
  if (errno !== 0) throw systemError(errno, "posix_fadvise");
}

// --- sockets ---------------------------------------------------------------------------------------------------------

/** sockaddr_un has 108 bytes for a path, unix(7). */
const SUN_PATH_SIZE = 108;

/**
 * Sends one datagram to a unix socket; a name that begins with "@" is abstract, as systemd writes it. Node has no datagrams on unix
 * sockets. ENAMETOOLONG, ECONNREFUSED (nobody reads), ENOENT.
 */
export function sendUnixDatagram(name: string, bytes: Uint8Array): void {
  const [AF_UNIX, SOCK_DGRAM, SOCK_CLOEXEC, MSG_NOSIGNAL] = [1, 2, 0o2000000, 0x4000];
  const path = Buffer.from(name.startsWith("@") ? `\0${name.slice(1)}` : name);
  if (path.length >= SUN_PATH_SIZE) throw systemError(36, "sendto", name); // ENAMETOOLONG
  const address = Buffer.alloc(2 + path.length + (path[0] === 0 ? 0 : 1)); // an abstract name ends with its length, not a NUL
  new Uint16Array(address.buffer, address.byteOffset, 1)[0] = AF_UNIX;
  path.copy(address, 2);
  const fd = call("int socket(int, int, int)", "socket", name, AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  try {
    call(
      "int64_t sendto(int, const void *, size_t, int, const void *, uint32_t)",
      "sendto",
      name,
      fd,
      bytes,
      bytes.length,
      MSG_NOSIGNAL,
      address,
      address.length,
    );
  } finally {
    call("int close(int)", "close", name, fd);
  }
}

// --- names and attributes --------------------------------------------------------------------------------------------

export const RENAME_NOREPLACE = 1;
export const RENAME_EXCHANGE = 2;

/** renameat2(2). NOREPLACE: EEXIST when the new name is taken. EINVAL on a file system without the flag. */
export function renameat2(from: Path, to: Path, flags: number): void {
  call(
    "int renameat2(int, const void *, int, const void *, uint32_t)",
    "renameat2",
    from,
    AT_FDCWD,
    cString(from, "renameat2"),
    AT_FDCWD,
    cString(to, "renameat2"),
    flags,
  );
}

/** mknod(2): `mode` has type and permission bits (the umask applies). */
export function mknod(path: Path, mode: number, major: number, minor: number): void {
  call(
    "int mknodat(int, const void *, uint32_t, uint64_t)",
    "mknodat",
    path,
    AT_FDCWD,
    cString(path, "mknodat"),
    mode,
    encodeDevice(major, minor),
  );
}

/** glibc's gnu_dev_makedev (sys/sysmacros.h): the low and high parts of both numbers are interleaved. */
export function encodeDevice(major: number, minor: number): bigint {
  return (
    ((BigInt(major) & 0xfffff000n) << 32n) |
    ((BigInt(major) & 0xfffn) << 8n) |
    ((BigInt(minor) & 0xffffff00n) << 12n) |
    (BigInt(minor) & 0xffn)
  );
}

export interface FileTime {
  readonly seconds: number;
  readonly nanoseconds: number;
}

const AT_SYMLINK_NOFOLLOW = 0x100;

/** utimensat(2) with nanoseconds (Node's utimes takes a double); does not follow a symlink. */
export function setTimes(path: Path, accessed: FileTime, modified: FileTime): void {
  const times = BigInt64Array.of(
    BigInt(accessed.seconds),
    BigInt(accessed.nanoseconds),
    BigInt(modified.seconds),
    BigInt(modified.nanoseconds),
  );
  call(
    "int utimensat(int, const void *, void *, int)",
    "utimensat",
    path,
    AT_FDCWD,
    cString(path, "utimensat"),
    times,
    AT_SYMLINK_NOFOLLOW,
  );
}

// --- ioctls ----------------------------------------------------------------------------------------------------------

/** ioctl(2) with a pointer argument that the kernel reads or fills. */
export function ioctl(fd: number, request: number, argument: ArrayBufferView, syscall: string, path?: string): number {
  return call("int ioctl(int fd, uint64_t request, void *argument)", syscall, path, fd, request, argument);
}

/** ioctl(2) with an integer argument. */
export function ioctlNumber(fd: number, request: number, argument: number, syscall: string, path?: string): number {
  return call("int ioctl(int, uint64_t, int64_t)", syscall, path, fd, request, argument);
}

// --- time ------------------------------------------------------------------------------------------------------------

const CLOCK_REALTIME = 0;

/** clock_gettime(CLOCK_REALTIME) in nanoseconds since 1970: Date.now() cuts to milliseconds, hrtime has another origin. */
export function wallClock(): bigint {
  const time = new BigInt64Array(2); // struct timespec
  call("int clock_gettime(int, void *)", "clock_gettime", undefined, CLOCK_REALTIME, time);
  return time[0]! * 1_000_000_000n + time[1]!;
}
