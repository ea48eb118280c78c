/** The attributes of a tar entry as those of an inode: ranges checked, xattrs that may not be kept reported. */
import { type TarEntry, tarError } from "../tar/index.ts";
import { FileType, type InodeAttributes, type Xattr } from "./index.ts";
import type { NoticeKind } from "./notices.ts";
import { isOverlayXattr } from "./overlay.ts";

/** Linux's dev_t in user space and on disk: 12 and 20 bits, linux/kdev_t.h. */
const MAX_MAJOR = 0xfff;
const MAX_MINOR = 0xfffff;
/** 2^32-1 means "no change" to chown(2). */
const MAX_ID = 0xfffffffe;
/** linux/limits.h PATH_MAX, without the NUL. */
const MAX_SYMLINK_TARGET = 4095;
/** Bytes of all xattrs of one inode: EROFS counts them in 16 bits of 4 bytes. */
const MAX_XATTR_AREA = 4 * 0xfffe;
/** EROFS keeps the length of a value in 16 bits. */
const MAX_XATTR_VALUE = 0xffff;

const TYPE_BITS = {
  file: FileType.REGULAR,
  directory: FileType.DIRECTORY,
  symlink: FileType.SYMLINK,
  hardlink: FileType.REGULAR,
  character: FileType.CHARACTER,
  block: FileType.BLOCK,
  fifo: FileType.FIFO,
} as const;

const NO_XATTRS: readonly Xattr[] = [];

export type Report = (kind: NoticeKind, entry: TarEntry, message: string) => void;

export function attributesOf(entry: TarEntry, report: Report): InodeAttributes {
  const fail = (field: string, problem: string) => tarError(field, problem, entry.headerOffset, { path: entry.path });
  if (entry.uid > MAX_ID) throw fail("uid", `${entry.uid} is more than ${MAX_ID}`);
  if (entry.gid > MAX_ID) throw fail("gid", `${entry.gid} is more than ${MAX_ID}`);
  const symlink = entry.type === "symlink";
  if (symlink && entry.linkTarget.length > MAX_SYMLINK_TARGET) {
    throw fail("link name", `has more than ${MAX_SYMLINK_TARGET} bytes`);
  }
  if (entry.rdevMajor > MAX_MAJOR || entry.rdevMinor > MAX_MINOR) {
    throw fail("device number", `${entry.rdevMajor}:${entry.rdevMinor} is more than ${MAX_MAJOR}:${MAX_MINOR}`);
  }
  return {
    // Linux shows every symlink as 0777, whatever its header says
    mode: TYPE_BITS[entry.type] | (symlink ? 0o777 : entry.mode),
    uid: entry.uid,
    gid: entry.gid,
    mtimeSeconds: entry.mtimeSeconds,
    mtimeNanoseconds: entry.mtimeNanoseconds,
    size: symlink ? entry.linkTarget.length : entry.size,
    rdevMajor: entry.rdevMajor,
    rdevMinor: entry.rdevMinor,
    xattrs: entry.xattrs.length === 0 ? NO_XATTRS : keptXattrs(entry, report),
  };
}

function keptXattrs(entry: TarEntry, report: Report): readonly Xattr[] {
  const kept: Xattr[] = [];
  let area = 12;
  for (const xattr of entry.xattrs) {
    const rest = nameRest(xattr.name);
    if (isOverlayXattr(xattr.name)) {
      // would hide files of other layers or redirect into them; container tools never ship them
      report("overlay-xattr", entry, `xattr ${xattr.name} left out: it would steer overlayfs`);
    } else if (rest === undefined) {
      report("unsupported-xattr", entry, `xattr ${xattr.name} left out: EROFS stores no such name`);
    } else {
      if (xattr.value.length > MAX_XATTR_VALUE) {
        throw tarError("xattr", `${xattr.name} has more than ${MAX_XATTR_VALUE} bytes`, entry.headerOffset, {
          path: entry.path,
          code: "RESOURCE_EXHAUSTED",
        });
      }
      kept.push(xattr);
      area += Math.ceil((4 + rest + xattr.value.length) / 4) * 4;
    }
  }
  if (area > MAX_XATTR_AREA) {
    throw tarError("xattrs", `take ${area} bytes, more than ${MAX_XATTR_AREA}`, entry.headerOffset, {
      path: entry.path,
      code: "RESOURCE_EXHAUSTED",
    });
  }
  return kept;
}

/** Length of the name after its prefix; undefined for a name that EROFS has no prefix for. */
function nameRest(name: string): number | undefined {
  if (name === "system.posix_acl_access" || name === "system.posix_acl_default") return 0;
  const rest = /^(?:user|trusted|security)\.(.+)$/s.exec(name)?.[1];
  return rest?.length;
}
