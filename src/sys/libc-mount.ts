/**
 * Mounts and namespaces by koffi. Rules as for `libc.ts`. The mount calls go through syscall(2): their numbers (424 and above) are
 * the same on both machines, and glibc has wrappers only since 2.36.
 */
import { AT_FDCWD, call, cString, type Path } from "./libc-call.ts";

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
  setAttributes(mountFd, BigInt64Array.of(BigInt(set), BigInt(clear), BigInt(propagation), 0n));
}

const MOUNT_ATTR_IDMAP = 0x00100000;

/** mount_setattr(2) with MOUNT_ATTR_IDMAP on a detached mount's fd. EINVAL where the file system can't; Linux 5.12. */
export function mountSetIdMap(mountFd: number, userNamespaceFd: number): void {
  setAttributes(mountFd, BigInt64Array.of(BigInt(MOUNT_ATTR_IDMAP), 0n, 0n, BigInt(userNamespaceFd)));
}

const AT_EMPTY_PATH = 0x1000;

/** `attributes` is struct mount_attr (linux/mount.h): attr_set, attr_clr, propagation, userns_fd. */
function setAttributes(mountFd: number, attributes: BigInt64Array): void {
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
