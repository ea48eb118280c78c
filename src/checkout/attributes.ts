/**
 * Owner, mode, xattrs and times of what is written: what this process may give it, and what it has to do without.
 *
 * With full rights, everything. Without, files belong to the caller and keep their `user.` xattrs; a set-user-ID or
 * set-group-ID bit goes where it would hand out another identity than the image means. What is lost is noted, always.
 */
import { type ByteString, bytesOf } from "../bytes/index.ts";
import { errnoOf } from "../errors/index.ts";
import type { ErofsInode } from "../formats/erofs/index.ts";
import { FileType, type Xattr } from "../formats/layer-index/index.ts";
import { IMPLIED_XATTR } from "../formats/layer-index/overlay.ts";
import {
  closeFile,
  freeBytesAt,
  openItselfAt,
  type ProcessRights,
  setModifiedTime,
  setModifiedTimeAt,
  setOwner,
  setOwnerAt,
  setPermissions,
  setPermissionsOfHandle,
  setXattrOf,
  setXattrOfHandle,
} from "../sys/index.ts";
import type { Losses } from "./losses.ts";

const SET_UID = 0o4000;
const SET_GID = 0o2000;
const PERMISSIONS = 0o7777;

/** As an inode will be on disk. */
export interface Wanted {
  /** Type and permission bits. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly size: number;
  readonly mtimeSeconds: number;
  readonly mtimeNanoseconds: number;
  readonly xattrs: readonly Xattr[];
}

/** Not for this user, namespace or file system. */
const REFUSED = new Set(["EPERM", "EACCES", "EINVAL", "ENOTSUP", "EOPNOTSUPP", "E2BIG", "ERANGE", "EOVERFLOW"]);
/** An xattr that does not fit beside the inode is ENOSPC on ext4, as a full disk is: with so much free it was the former. */
const NOT_FULL = 1 << 20;

export class Attributes {
  readonly #rights: ProcessRights;
  readonly #layers: boolean;
  readonly #losses: Losses;

  /** `layers`: marks of overlayfs stay, as far as this process may write them. */
  constructor(rights: ProcessRights, layers: boolean, losses: Losses) {
    this.#rights = rights;
    this.#layers = layers;
    this.#losses = losses;
  }

  /** What `inode` should be on disk as far as this process may; notes what it may not. */
  wanted(inode: Omit<Wanted, "xattrs">, xattrs: readonly Xattr[], path: ByteString): Wanted {
    const { mode, size, mtimeSeconds, mtimeNanoseconds } = inode;
    const common = { size, mtimeSeconds, mtimeNanoseconds, xattrs: this.#xattrs(xattrs, path) };
    if (this.#rights.privileged) return { ...common, mode, uid: inode.uid, gid: inode.gid };
    const { uid, gid } = this.#rights;
    if (uid !== inode.uid || gid !== inode.gid) this.#losses.add("owner", path, `${inode.uid}:${inode.gid}`);
    let kept = mode;
    if ((mode & FileType.MASK) === FileType.REGULAR) {
      if (uid !== inode.uid) kept &= ~SET_UID;
      if (gid !== inode.gid) kept &= ~SET_GID;
      if (kept !== mode) this.#losses.add("set-id bit", path, (mode & PERMISSIONS).toString(8));
    }
    return { ...common, mode: kept, uid, gid };
  }

  #xattrs(xattrs: readonly Xattr[], path: ByteString): readonly Xattr[] {
    if (xattrs.length === 0) return xattrs;
    const kept: Xattr[] = [];
    for (const xattr of xattrs) {
      if (this.#layers && xattr.name === IMPLIED_XATTR) continue; // ours: whoever calls has put what it implies in its place
      const { name } = xattr;
      if (this.#layers && isMark(name) && !this.#rights.trusted) {
        kept.push({ ...xattr, name: `user.${name.slice("trusted.".length)}` });
      } else if (this.#rights.privileged || name.startsWith("user.") || name.startsWith("system.posix_acl_")) {
        kept.push(xattr);
      } else this.#losses.add("xattr", path, name);
    }
    return kept;
  }

  /**
   * Gives all of it to a file or directory that is open, in the order that keeps it: owner, mode, xattrs, time. `created` are the
   * permissions that it has. False when something was refused: then it is not what `wanted` says, and the loss is noted.
   */
  applyTo(fd: number, wanted: Wanted, created: number, path: ByteString): boolean {
    let complete = true;
    const { uid, gid } = wanted;
    let { mode } = wanted;
    if (uid !== this.#rights.uid || gid !== this.#rights.gid) {
      const changed = this.#tryOwner(() => setOwner(fd, uid, gid), wanted, path);
      complete = changed;
      // The bits would hand out an identity that the image does not mean.
      if (!changed && (mode & FileType.MASK) === FileType.REGULAR) mode &= ~(SET_UID | SET_GID);
      // A change of owner takes them away, also when root makes it.
      if ((mode & (SET_UID | SET_GID)) !== 0) created = -1;
    }
    if (created !== (mode & PERMISSIONS)) setPermissions(fd, mode);
    for (const xattr of wanted.xattrs) {
      if (!this.#tryXattr(fd, xattr, path, (name, value) => setXattrOf(fd, name, value))) complete = false;
    }
    setModifiedTime(fd, wanted.mtimeSeconds, wanted.mtimeNanoseconds);
    return complete;
  }

  /** As {@link applyTo} for what can't be opened, or must not be: symlinks, devices, fifos, sockets. */
  applyAt(directory: number, name: ByteString, wanted: Wanted, path: ByteString): void {
    const { mode, uid, gid, xattrs } = wanted;
    if (uid !== this.#rights.uid || gid !== this.#rights.gid) {
      this.#tryOwner(() => setOwnerAt(directory, name, uid, gid), wanted, path);
    }
    const isSymlink = (mode & FileType.MASK) === FileType.SYMLINK;
    const chmod = !isSymlink && (mode & this.#rights.umask) !== 0;
    if (chmod || xattrs.length > 0) {
      const handle = openItselfAt(directory, name);
      try {
        if (chmod) setPermissionsOfHandle(handle, mode);
        for (const xattr of xattrs) {
          this.#tryXattr(directory, xattr, path, (key, value) => setXattrOfHandle(handle, key, value));
        }
      } finally {
        closeFile(handle);
      }
    }
    setModifiedTimeAt(directory, name, wanted.mtimeSeconds, wanted.mtimeNanoseconds);
  }

  /** The permissions that a new file has after it was created with those of `mode`. */
  created(mode: number): number {
    return mode & PERMISSIONS & ~this.#rights.umask;
  }

  #tryOwner(change: () => void, { uid, gid }: Wanted, path: ByteString): boolean {
    try {
      change();
      return true;
    } catch (error) {
      if (!REFUSED.has(errnoOf(error) ?? "")) throw error;
      this.#losses.add("owner", path, `${uid}:${gid}`);
      return false;
    }
  }

  #tryXattr(
    near: number,
    { name, value }: Xattr,
    path: ByteString,
    set: (name: Uint8Array, value: Uint8Array) => void,
  ): boolean {
    try {
      set(bytesOf(name), bytesOf(value));
      return true;
    } catch (error) {
      const code = errnoOf(error) ?? "";
      if (!REFUSED.has(code) && !(code === "ENOSPC" && freeBytesAt(near) > NOT_FULL)) throw error;
      this.#losses.add("xattr", path, name);
      return false;
    }
  }
}

/** Overlayfs reads the same marks from `user.overlay.` when it is mounted with `userxattr`. */
function isMark(name: ByteString): boolean {
  return name === "trusted.overlay.opaque" || name === "trusted.overlay.origin";
}

/** What an inode of an image says, as {@link Attributes.wanted} takes it. */
export function attributesOf(inode: ErofsInode): Omit<Wanted, "xattrs"> {
  const { mode, uid, gid, size, mtimeSeconds, mtimeNanoseconds } = inode;
  return { mode, uid, gid, size, mtimeSeconds, mtimeNanoseconds };
}
