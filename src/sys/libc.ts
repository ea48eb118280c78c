/**
 * System calls that Node lacks, by koffi: one typed function per call, in this file and in `libc-at.ts` only.
 *
 * Guarantees: a failed call throws an error shaped like Node's own (`code` "EAGAIN", `errno`, `syscall`, `path`). Calls
 * are synchronous and block the thread. As in Node, errno 95 is named "ENOTSUP", also where man pages say EOPNOTSUPP. koffi (16 ms) is loaded by the first call, not by the import. Paths are UTF-8
 * strings, or bytes where a name may not be UTF-8. Offsets are numbers below 2^53.
 *
 * Works on x86_64 and arm64, glibc and musl. The mount calls go through syscall(2): their numbers (424 and above) are the
 * same on both machines, and glibc has wrappers only since 2.36.
 */
import { createRequire } from "node:module";
import { systemError } from "./system-error.ts";

export type Path = string | Uint8Array;

type Native = (...args: readonly unknown[]) => number;
interface Library {
  func(definition: string): Native;
}
interface Koffi {
  load(name: string): Library;
  errno(): number;
}

let koffi: Koffi | undefined;
let library: Library | undefined;
const functions = new Map<string, Native>();

function load(): Library {
  koffi = createRequire(import.meta.url)("koffi") as Koffi;
  const musl = process.arch === "arm64" ? "libc.musl-aarch64.so.1" : "libc.musl-x86_64.so.1";
  try {
    return koffi.load("libc.so.6");
  } catch (error) {
    try {
      return koffi.load(musl);
    } catch {
      throw error; // neither is there: the message about glibc is the useful one
    }
  }
}

/** Calls a libc function; throws when it answers -1. For this file and `libc-at.ts`. */
export function call(definition: string, syscall: string, path: Path | undefined, ...args: readonly unknown[]): number {
  let native = functions.get(definition);
  if (native === undefined) {
    library ??= load();
    native = library.func(definition);
    functions.set(definition, native);
  }
  const result = native(...args);
  if (result === -1) throw systemError(koffi!.errno(), syscall, path === undefined ? undefined : display(path));
  return result;
}

function display(path: Path): string {
  return typeof path === "string" ? path : Buffer.from(path).toString();
}

/** NUL-terminated bytes; a NUL inside would silently cut the path, so it is refused as the kernel refuses empty ones. */
function cString(path: Path, syscall: string): Buffer {
  const text = typeof path === "string" ? Buffer.from(path) : path;
  if (text.includes(0)) throw systemError("EINVAL", syscall, display(path));
  return Buffer.concat([text, Buffer.of(0)]);
}

export const AT_FDCWD = -100;

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

/** Syncs the whole file system that `fd` is on. */
export function syncfs(fd: number, path?: string): void {
  call("int syncfs(int)", "syncfs", path, fd);
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

/** Largest value the kernel stores, linux/limits.h XATTR_SIZE_MAX; also the limit of a list of names. */
export const XATTR_SIZE_MAX = 65536;

/** Filled by the two calls below and copied from at once; 64 KiB anew for each file of a tree kept the garbage collector busy. */
let scratch: Buffer | undefined;

/** One value, by path without following a symlink, or by fd. ENODATA when the file has no such attribute. */
export function getXattr(file: Path | number, name: Path): Buffer {
  scratch ??= Buffer.allocUnsafeSlow(XATTR_SIZE_MAX);
  const value = scratch;
  const key = cString(name, "getxattr");
  const length =
    typeof file === "number"
      ? call(
          "int64_t fgetxattr(int, const void *, void *, size_t)",
          "fgetxattr",
          undefined,
          file,
          key,
          value,
          value.length,
        )
      : call(
          "int64_t lgetxattr(const void *, const void *, void *, size_t)",
          "lgetxattr",
          file,
          cString(file, "lgetxattr"),
          key,
          value,
          value.length,
        );
  return Buffer.from(value.subarray(0, length)); // a copy of the right size: 64 KiB would stay alive otherwise
}

/**
 * Creates or replaces one value, by path without following a symlink unless told to. EPERM or ENOTSUP for a namespace that
 * this user or file system does not have.
 */
export function setXattr(
  file: Path | number,
  name: Path,
  value: Uint8Array,
  { follow = false }: { readonly follow?: boolean } = {},
): void {
  const key = cString(name, "setxattr");
  if (typeof file === "number") {
    call(
      "int fsetxattr(int, const void *, const void *, size_t, int)",
      "fsetxattr",
      undefined,
      file,
      key,
      value,
      value.length,
      0,
    );
    return;
  }
  const syscall = follow ? "setxattr" : "lsetxattr";
  call(
    `int ${syscall}(const void *, const void *, const void *, size_t, int)`,
    syscall,
    file,
    cString(file, syscall),
    key,
    value,
    value.length,
    0,
  );
}

/** Names of all attributes that this user may see, one byte a character. */
export function listXattrs(file: Path | number): string[] {
  scratch ??= Buffer.allocUnsafeSlow(XATTR_SIZE_MAX);
  const names = scratch;
  const length =
    typeof file === "number"
      ? call("int64_t flistxattr(int, void *, size_t)", "flistxattr", undefined, file, names, names.length)
      : call(
          "int64_t llistxattr(const void *, void *, size_t)",
          "llistxattr",
          file,
          cString(file, "llistxattr"),
          names,
          names.length,
        );
  return names.toString("latin1", 0, length).split("\0").slice(0, -1);
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

// --- mounts ----------------------------------------------------------------------------------------------------------

const SYS = {
  open_tree: 428,
  move_mount: 429,
  fsopen: 430,
  fsconfig: 431,
  fsmount: 432,
  mount_setattr: 442,
} as const; // include/uapi/asm-generic/unistd.h; x86_64 has the same numbers

const SYSCALL_NUMBERS = "int64_t syscall(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t)";

/** Opens a configuration context of a file system type; returns its fd (close-on-exec). ENODEV: unknown type. */
export function fsopen(type: string): number {
  const FSOPEN_CLOEXEC = 1;
  return call(
    "int64_t syscall(int64_t number, const void *type, int64_t flags)",
    "fsopen",
    undefined,
    SYS.fsopen,
    cString(type, "fsopen"),
    FSOPEN_CLOEXEC,
  );
}

export const FSCONFIG_SET_FLAG = 0;
export const FSCONFIG_SET_STRING = 1;
export const FSCONFIG_CMD_CREATE = 6;

/** fsconfig(2). The kernel refuses a string value of more than 255 bytes with EINVAL. */
export function fsconfig(fd: number, command: number, key: string | null, value: Path | null): void {
  call(
    "int64_t syscall(int64_t number, int64_t fd, int64_t command, const void *key, const void *value, int64_t aux)",
    "fsconfig",
    undefined,
    SYS.fsconfig,
    fd,
    command,
    key === null ? null : cString(key, "fsconfig"),
    value === null ? null : cString(value, "fsconfig"),
    0,
  );
}

export const MOUNT_ATTR_RDONLY = 0x1;
export const MOUNT_ATTR_NOSUID = 0x2;
export const MOUNT_ATTR_NODEV = 0x4;
export const MOUNT_ATTR_NOEXEC = 0x8;

/** fsmount(2): a detached mount, as an fd that closes on exec. */
export function fsmount(fd: number, attributes: number): number {
  const FSMOUNT_CLOEXEC = 1;
  return call(SYSCALL_NUMBERS, "fsmount", undefined, SYS.fsmount, fd, FSMOUNT_CLOEXEC, attributes, 0, 0);
}

/** move_mount(2) of a detached mount onto `target`, a directory or file. */
export function moveMount(mountFd: number, target: Path): void {
  const MOVE_MOUNT_F_EMPTY_PATH = 4;
  call(
    "int64_t syscall(int64_t, int64_t, const void *, int64_t, const void *, int64_t)",
    "move_mount",
    target,
    SYS.move_mount,
    mountFd,
    cString("", "move_mount"),
    AT_FDCWD,
    cString(target, "move_mount"),
    MOVE_MOUNT_F_EMPTY_PATH,
  );
}

/** open_tree(2) with OPEN_TREE_CLONE: a detached copy of the mount (and below it with `recursive`) at `path`. */
export function openTreeClone(path: Path, recursive = false): number {
  const OPEN_TREE_CLONE = 1;
  const OPEN_TREE_CLOEXEC = 0o2000000;
  const AT_RECURSIVE = 0x8000;
  return call(
    "int64_t syscall(int64_t, int64_t, const void *, int64_t)",
    "open_tree",
    path,
    SYS.open_tree,
    AT_FDCWD,
    cString(path, "open_tree"),
    OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (recursive ? AT_RECURSIVE : 0),
  );
}

export const MS_PRIVATE = 1 << 18;

/** mount_setattr(2) on a mount's fd: attributes to set and clear, and the propagation (0 leaves it). Linux 5.12. */
export function mountSetAttributes(mountFd: number, set: number, clear: number, propagation = 0): void {
  const AT_EMPTY_PATH = 0x1000;
  const attributes = BigInt64Array.of(BigInt(set), BigInt(clear), BigInt(propagation), 0n); // struct mount_attr
  call(
    "int64_t syscall(int64_t, int64_t, const void *, int64_t, void *, int64_t)",
    "mount_setattr",
    undefined,
    SYS.mount_setattr,
    mountFd,
    cString("", "mount_setattr"),
    AT_EMPTY_PATH,
    attributes,
    attributes.byteLength,
  );
}

const MOUNT_ATTR_IDMAP = 0x00100000;

/** mount_setattr(2) with MOUNT_ATTR_IDMAP on a detached mount's fd. EINVAL where the file system can't; Linux 5.12. */
export function mountSetIdMap(mountFd: number, userNamespaceFd: number): void {
  const AT_EMPTY_PATH = 0x1000;
  const attributes = BigInt64Array.of(BigInt(MOUNT_ATTR_IDMAP), 0n, 0n, BigInt(userNamespaceFd)); // struct mount_attr
  call(
    "int64_t syscall(int64_t, int64_t, const void *, int64_t, void *, int64_t)",
    "mount_setattr",
    undefined,
    SYS.mount_setattr,
    mountFd,
    cString("", "mount_setattr"),
    AT_EMPTY_PATH,
    attributes,
    attributes.byteLength,
  );
}

export const MNT_DETACH = 2;
export const UMOUNT_NOFOLLOW = 8;

/** umount2(2). EBUSY while in use (unless MNT_DETACH), EINVAL when `target` is not a mount point. */
export function umount(target: Path, flags: number): void {
  call("int umount2(const void *, int)", "umount2", target, cString(target, "umount2"), flags);
}

export const CLONE_NEWNS = 0x00020000;

/** unshare(2) for the calling thread only: libuv's pool (asynchronous fs calls) and worker threads stay where they are. */
export function unshare(flags: number): void {
  call("int unshare(int)", "unshare", undefined, flags);
}

/** setns(2) for the calling thread only. EINVAL for a mount namespace while the thread shares its root with others. */
export function setns(fd: number, type: number): void {
  call("int setns(int, int)", "setns", undefined, fd, type);
}
