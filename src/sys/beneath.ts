/**
 * Work in a directory that others may change meanwhile: every name is one component in an open directory, and opening a path
 * follows no symlink and never leaves the directory that it begins in, whatever another process puts in its way.
 *
 * A directory is a descriptor, which the caller closes. Names are byte strings; one that is empty, "." or ".." or has a slash is
 * refused. Every change is an effect. Errors are system errors, unchanged.
 */
import * as fs from "node:fs";
import { type ByteString, byteString, displayBytes } from "../bytes/index.ts";
import { errnoOf } from "../errors/index.ts";
import { effectAt, observed } from "./effects.ts";
import { closeFile } from "./files.ts";
import {
  cloneFile,
  encodeDevice,
  getXattr,
  listXattrs,
  type Path,
  RENAME_EXCHANGE,
  RENAME_NOREPLACE,
  setXattr,
  syncfs,
  XATTR_SIZE_MAX,
} from "./libc.ts";
import {
  AT_REMOVEDIR,
  AT_SYMLINK_NOFOLLOW,
  fchown,
  fchownat,
  fremovexattr,
  isUnchanged,
  linkat,
  listxattrat,
  mkdirat,
  mknodat,
  OPEN_DIRECTORY,
  OPEN_EXISTING,
  OPEN_ITSELF,
  OPEN_NEW,
  openat,
  openat2Beneath,
  PATH_MAX,
  renameat2,
  readlinkat,
  type Statx,
  setModified,
  setModifiedAt,
  statx,
  symlinkat,
  unlinkat,
} from "./libc-at.ts";
import { systemError } from "./system-error.ts";
import { unlessAbsent } from "./unless-absent.ts";

export type { Statx } from "./libc-at.ts";

/** Opens a directory that the user named, through symlinks if need be: from here on all is relative to it. */
export function openDirectory(path: string): number {
  return observed("open", path, () => fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY));
}

/**
 * The directory at `path` below `directory`, "" being that itself. ELOOP, EXDEV or ENOTDIR when something else than a
 * directory is in the way. A path of any length is walked in pieces.
 */
export function openDirectoryBeneath(directory: number, path: ByteString): number {
  let here = directory;
  try {
    for (const piece of piecesOf(path)) {
      const next = observed("open", here, () => openPiece(here, piece));
      if (here !== directory) closeFile(here);
      here = next;
    }
    return here;
  } catch (error) {
    if (here !== directory) closeFile(here);
    throw error;
  }
}

/** A path cut at slashes into what one system call takes. */
function* piecesOf(path: ByteString): Generator<ByteString> {
  let start = 0;
  while (path.length - start >= PATH_MAX) {
    const end = path.lastIndexOf("/", start + PATH_MAX - 2);
    if (end <= start) throw systemError("ENAMETOOLONG", "open", displayBytes(path.slice(start, start + 300)));
    yield path.slice(start, end);
    start = end + 1;
  }
  yield path.length === start ? "." : path.slice(start);
}

let hasOpenat2 = true;

function openPiece(directory: number, path: ByteString): number {
  return tryOpenat2(directory, path, OPEN_DIRECTORY) ?? openStepwise(directory, path);
}

/** Undefined where the kernel or a seccomp filter does not know the call. */
function tryOpenat2(directory: number, path: ByteString, flags: number): number | undefined {
  if (!hasOpenat2) return undefined;
  try {
    return openat2Beneath(directory, path, flags);
  } catch (error) {
    // Linux before 5.6 says ENOSYS, a filter may say EPERM, which for what is opened here can mean nothing else.
    if (errnoOf(error) !== "ENOSYS" && errnoOf(error) !== "EPERM") throw error;
    hasOpenat2 = false;
    return undefined;
  }
}

function openStepwise(directory: number, path: ByteString): number {
  let here = directory;
  for (const name of path.split("/")) {
    try {
      const next = openat(here, name === "." ? name : checked(name), OPEN_DIRECTORY);
      if (here !== directory) closeFile(here);
      here = next;
    } catch (error) {
      if (here !== directory) closeFile(here);
      throw error;
    }
  }
  return here;
}

/** An existing file below `directory`, for reading; rules as for {@link openDirectoryBeneath}, the path being a short one. */
export function openFileBeneath(directory: number, path: ByteString): number {
  return observed("open", directory, () => {
    const file = tryOpenat2(directory, path, OPEN_EXISTING);
    if (file !== undefined) return file;
    const slash = path.lastIndexOf("/");
    const parent = openStepwise(directory, slash < 0 ? "." : path.slice(0, slash));
    try {
      return openat(parent, checked(path.slice(slash + 1)), OPEN_EXISTING);
    } finally {
      closeFile(parent);
    }
  });
}

/** Throws EINVAL for what is not the name of one thing in a directory. */
function checked(name: ByteString): ByteString {
  if (name === "" || name === "." || name === ".." || name.includes("/")) {
    throw systemError("EINVAL", "open", displayBytes(name));
  }
  return name;
}

/** A new file for writing; EEXIST when the name is taken, also by a symlink. `mode` is less the umask. */
export function createFileAt(directory: number, name: ByteString, mode: number): number {
  return effectAt("create", directory, name, () => openat(directory, checked(name), OPEN_NEW, mode));
}

/** A handle of whatever has the name, a symlink itself: for its attributes, not for its content. */
export function openItselfAt(directory: number, name: ByteString): number {
  return observed("open", directory, () => openat(directory, checked(name), OPEN_ITSELF));
}

export function makeDirectoryAt(directory: number, name: ByteString, mode = 0o700): void {
  effectAt("mkdir", directory, name, () => mkdirat(directory, checked(name), mode));
}

export function makeSymlinkAt(target: ByteString, directory: number, name: ByteString): void {
  effectAt("symlink", directory, name, () => symlinkat(target, directory, checked(name)));
}

/** A device, fifo or socket; `mode` has the type, and permissions less the umask. */
export function makeNodeAt(directory: number, name: ByteString, mode: number, major: number, minor: number): void {
  effectAt("create", directory, name, () => {
    mknodat(directory, checked(name), mode, encodeDevice(major, minor));
    return false as const; // no descriptor, which the recorder of effects would want
  });
}

/** A second name for a file. EXDEV across mounts, EMLINK when it has as many names as its file system takes. */
export function linkAt(fromDirectory: number, from: ByteString, directory: number, name: ByteString): void {
  effectAt("link", fromDirectory, from, () => linkat(fromDirectory, from, directory, checked(name)), {
    directory,
    name,
  });
}

/** False when there was nothing. */
export function unlinkAt(directory: number, name: ByteString): boolean {
  return effectAt("unlink", directory, name, () => unlessAbsent(() => unlinkat(directory, checked(name), 0)));
}

/** Removes an empty directory; false when there was none. */
export function removeDirectoryAt(directory: number, name: ByteString): boolean {
  return effectAt("rmdir", directory, name, () => unlessAbsent(() => unlinkat(directory, checked(name), AT_REMOVEDIR)));
}

/** Renames within or between directories; false and no change when the new name is taken. */
export function renameNoReplaceAt(directory: number, from: ByteString, to: ByteString): boolean {
  return effectAt(
    "rename",
    directory,
    from,
    () => {
      try {
        renameat2(directory, checked(from), directory, checked(to), RENAME_NOREPLACE);
        return true;
      } catch (error) {
        if (errnoOf(error) === "EEXIST") return false;
        if (errnoOf(error) !== "EINVAL" && errnoOf(error) !== "ENOSYS") throw error;
      }
      // A file system without the flag. What comes to the name between the two steps is not lost, unless it is an empty directory.
      if (findAt(directory, to) !== undefined) return false;
      renameat2(directory, from, directory, to, 0);
      return true;
    },
    { directory, name: to },
  );
}

/** Swaps two names in one step. EINVAL on a file system that can't. */
export function exchangeAt(directory: number, one: ByteString, other: ByteString): void {
  effectAt(
    "rename",
    directory,
    one,
    () => renameat2(directory, checked(one), directory, checked(other), RENAME_EXCHANGE),
    {
      directory,
      name: other,
    },
  );
}

/** Of the name itself, not of what a symlink leads to; undefined when there is nothing. */
export function findAt(directory: number, name: ByteString): Statx | undefined {
  try {
    return observed("stat", directory, () => statx(directory, name));
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return undefined;
    throw error;
  }
}

/** The target of a symlink. EINVAL when the name is something else. */
export function readLinkAt(directory: number, name: ByteString): ByteString {
  return observed("read", directory, () => readlinkat(directory, checked(name)));
}

/**
 * The extended attributes of a name (a symlink itself; of `directory` with "") that this user may read, by name. None where the
 * file system has no such thing.
 */
export function readXattrsAt(directory: number, name: ByteString): readonly XattrValue[] {
  return observed("read", directory, () => {
    try {
      const listed = tryListxattrat(directory, name);
      if (listed?.length === 0) return NO_XATTRS;
      const file = name === "" ? directory : Buffer.from(`/proc/self/fd/${directory}/${checked(name)}`, "latin1");
      const names = listed ?? listXattrs(file);
      if (names.length === 0) return NO_XATTRS;
      return names.sort().map((key) => ({ name: key, value: byteString(getXattr(file, Buffer.from(key, "latin1"))) }));
    } catch (error) {
      if (errnoOf(error) === "ENOTSUP" || errnoOf(error) === "EOPNOTSUPP") return NO_XATTRS;
      throw error;
    }
  });
}

let hasListxattrat = true;
let listed: Buffer | undefined;

/** Undefined where the kernel (before 6.13) or a seccomp filter does not know the call: by a path it takes twice as long. */
function tryListxattrat(directory: number, name: ByteString): string[] | undefined {
  if (!hasListxattrat) return undefined;
  listed ??= Buffer.allocUnsafeSlow(XATTR_SIZE_MAX);
  try {
    const length = listxattrat(directory, name === "" ? name : checked(name), listed);
    return length === 0 ? [] : listed.toString("latin1", 0, length - 1).split("\0");
  } catch (error) {
    if (errnoOf(error) !== "ENOSYS" && errnoOf(error) !== "EPERM") throw error;
    hasListxattrat = false;
    return undefined;
  }
}

export interface XattrValue {
  readonly name: ByteString;
  readonly value: ByteString;
}
const NO_XATTRS: readonly XattrValue[] = [];

export function statDescriptor(fd: number): Statx {
  return observed("stat", fd, () => statx(fd, ""));
}

/** Whether an open file has the inode, size and time of modification that it had. */
export function isStill(fd: number, expected: Statx): boolean {
  return observed("stat", fd, () => isUnchanged(fd, expected));
}

export function setOwner(fd: number, uid: number, gid: number): void {
  fchown(fd, uid, gid);
}
export function setOwnerAt(directory: number, name: ByteString, uid: number, gid: number): void {
  fchownat(directory, checked(name), uid, gid, AT_SYMLINK_NOFOLLOW);
}
export function setPermissions(fd: number, mode: number): void {
  fs.fchmodSync(fd, mode & 0o7777);
}
/** The time of modification with its nanoseconds; that of access stays. */
export function setModifiedTime(fd: number, seconds: number, nanoseconds: number): void {
  setModified(fd, seconds, nanoseconds);
}
export function setModifiedTimeAt(directory: number, name: ByteString, seconds: number, nanoseconds: number): void {
  setModifiedAt(directory, checked(name), seconds, nanoseconds);
}

/** What {@link openItselfAt} opened, for calls that want a path: the kernel resolves it to the very inode. */
function pathOfHandle(handle: number): string {
  return `/proc/self/fd/${handle}`;
}
/** chmod of what {@link openItselfAt} opened; not for symlinks, which have no permissions. */
export function setPermissionsOfHandle(handle: number, mode: number): void {
  fs.chmodSync(pathOfHandle(handle), mode & 0o7777);
}
/** Sets an attribute of a file or directory that is open. EPERM, ENOTSUP, ENOSPC, E2BIG where it can't be had. */
export function setXattrOf(fd: number, name: Path, value: Uint8Array): void {
  setXattr(fd, name, value);
}
/** As {@link setXattrOf}, of what {@link openItselfAt} opened; also of symlinks. */
export function setXattrOfHandle(handle: number, name: Path, value: Uint8Array): void {
  setXattr(pathOfHandle(handle), name, value, { follow: true });
}

/** Takes from a new directory what it has from the one that it was made in: a default ACL, and its set-group-ID bit. */
export function removeInherited(directory: number, mode: number): void {
  for (const name of ["system.posix_acl_default", "system.posix_acl_access"]) {
    try {
      getXattr(directory, name);
      fremovexattr(directory, name);
    } catch (error) {
      if (!["ENODATA", "ENOTSUP", "EOPNOTSUPP"].includes(errnoOf(error) ?? "")) throw error;
    }
  }
  setPermissions(directory, mode);
}

/** Makes `target` share all blocks of `source`. ENOTSUP, EXDEV or EINVAL where that is not possible. */
export function reflinkFile(source: number, target: number): void {
  cloneFile(source, target);
}

/** The names in an open directory, in no order. */
export function listDirectory(directory: number): { readonly name: ByteString; readonly isDirectory: boolean }[] {
  return observed("list", directory, () =>
    fs
      .readdirSync(`/proc/self/fd/${directory}`, { withFileTypes: true, encoding: "buffer" })
      .map((entry) => ({ name: byteString(entry.name), isDirectory: entry.isDirectory() })),
  );
}

/**
 * Removes a name with everything below it, following no symlink, also while others move directories about; false when there was
 * nothing. What other processes add meanwhile makes it fail with ENOTEMPTY; a mount point inside with EBUSY.
 */
export function removeTreeAt(directory: number, name: ByteString): boolean {
  try {
    return unlinkAt(directory, name);
  } catch (error) {
    if (errnoOf(error) !== "EISDIR") throw error;
  }
  // A stack of its own, and no descriptor kept open: a tree may be deeper than either allows.
  const levels: { readonly path: ByteString; readonly children: ByteString[] }[] = [];
  const descend = (path: ByteString) => {
    const here = openToEmpty(directory, path);
    try {
      levels.push({ path, children: removeFiles(here) });
    } finally {
      closeFile(here);
    }
  };
  descend(name);
  for (let level = levels.at(-1); level !== undefined; level = levels.at(-1)) {
    const child = level.children.pop();
    if (child !== undefined) {
      descend(`${level.path}/${child}`);
      continue;
    }
    levels.pop();
    const parent = levels.at(-1);
    if (parent === undefined) break;
    const above = openDirectoryBeneath(directory, parent.path);
    try {
      removeDirectoryAt(above, level.path.slice(parent.path.length + 1));
    } finally {
      closeFile(above);
    }
  }
  return removeDirectoryAt(directory, name);
}

/** Removes what is not a directory; the names of what is. */
function removeFiles(directory: number): ByteString[] {
  const children: ByteString[] = [];
  for (const { name, isDirectory } of listDirectory(directory)) {
    if (isDirectory) children.push(name);
    else unlinkAt(directory, name);
  }
  return children;
}

/** A directory to empty. One whose owner may not list or change it is made so first, which takes no right but owning it. */
function openToEmpty(directory: number, path: ByteString): number {
  let fd: number;
  try {
    fd = openDirectoryBeneath(directory, path);
  } catch (error) {
    if (errnoOf(error) !== "EACCES") throw error;
    const slash = path.lastIndexOf("/");
    const parent = slash < 0 ? directory : openDirectoryBeneath(directory, path.slice(0, slash));
    try {
      const handle = openItselfAt(parent, path.slice(slash + 1));
      try {
        setPermissionsOfHandle(handle, 0o700);
      } finally {
        closeFile(handle);
      }
    } finally {
      if (parent !== directory) closeFile(parent);
    }
    return openDirectoryBeneath(directory, path);
  }
  const { mode, uid } = statDescriptor(fd);
  if ((mode & 0o300) !== 0o300 && uid === process.geteuid?.()) setPermissions(fd, 0o700);
  return fd;
}

/** Everything written to the file system of an open directory survives a power cut afterwards. */
export function syncFileSystemOf(directory: number): void {
  effectAt("syncFileSystem", directory, ".", () => syncfs(directory));
}

/** The names in an open directory as of now survive a power cut afterwards. */
export function syncNames(directory: number): void {
  effectAt("syncDirectory", directory, ".", () => fs.fsyncSync(directory));
}

/** Bytes that an unprivileged user may still write to the file system of an open file or directory. */
export function freeBytesAt(fd: number): number {
  const { bavail, bsize } = fs.statfsSync(pathOfHandle(fd));
  return bavail * bsize;
}
