import { ShaleError } from "../../errors/index.ts";
import { FileType } from "../layer-index/index.ts";
import {
  ChunkFormat,
  decodeDevice,
  direntType,
  FeatureIncompat,
  FORMAT_EXTENDED,
  FORMAT_ONE_LINK,
  fail,
  INODE_COMPACT,
  INODE_EXTENDED,
  Layout,
  NID_UNIT,
  NULL_BLOCK,
  readWide,
} from "./format.ts";
import type { Metadata } from "./metadata.ts";
import type { ErofsSuperblock } from "./superblock.ts";
import { xattrAreaSize } from "./xattr.ts";

export interface ErofsInode {
  readonly nid: number;
  /** Type and permission bits. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Bytes of content, of a link target, or of directory data. */
  readonly size: number;
  readonly mtimeSeconds: number;
  readonly mtimeNanoseconds: number;
  readonly links: number;
  readonly rdevMajor: number;
  readonly rdevMinor: number;
  /** How the bytes are laid out, and where; {@link ErofsReader.extents} makes sense of it. */
  readonly layout: number;
  /** First block in the unified space; -1 for none. */
  readonly startBlock: number;
  readonly chunkFormat: number;
  /** Image offset and length of the xattrs; the inline tail follows them. */
  readonly xattrOffset: number;
  readonly xattrSize: number;
}

/** Decodes the inode `nid`. FormatError when it is none, UNIMPLEMENTED for compressed ones. */
export function decodeInode(metadata: Metadata, superblock: ErofsSuperblock, nid: number): ErofsInode {
  const offset = superblock.metaOffset + nid * NID_UNIT;
  let at = metadata.locate("inode", offset, INODE_COMPACT.size);
  const compact = INODE_COMPACT.fields;
  const format = metadata.view.getUint16(at + compact.format.offset, true);
  const extended = (format & FORMAT_EXTENDED) !== 0;
  if (extended) at = metadata.locate("inode", offset, INODE_EXTENDED.size);
  const { view } = metadata;

  const layout = (format >> 1) & 7;
  if (layout === Layout.COMPRESSED_FULL || layout === Layout.COMPRESSED_COMPACT) {
    throw new ShaleError("UNIMPLEMENTED", `Cannot read erofs image: inode ${nid} is compressed`);
  }
  if (layout > Layout.CHUNK_BASED) throw fail("inode format", `0x${format.toString(16)} has no such layout`, offset);

  const mode = view.getUint16(at + compact.mode.offset, true);
  const union = view.getUint32(at + compact.union.offset, true);
  const type = mode & FileType.MASK;
  if (direntType(mode) === 0) throw fail("inode mode", `0o${mode.toString(8)} has no file type`, offset);
  const isDevice = type === FileType.CHARACTER || type === FileType.BLOCK;
  const device = isDevice ? decodeDevice(union) : NO_DEVICE;
  const wide = (superblock.featureIncompat & FeatureIncompat.BITS_48) !== 0;

  let uid: number;
  let gid: number;
  let size: number;
  let mtimeSeconds: number;
  let mtimeNanoseconds: number;
  let links: number;
  let blockHigh = 0;
  let addressBits = 32;
  if (extended) {
    const f = INODE_EXTENDED.fields;
    uid = view.getUint32(at + f.uid.offset, true);
    gid = view.getUint32(at + f.gid.offset, true);
    size = readWide(view, at + f.size.offset, "inode size");
    mtimeSeconds = readWide(view, at + f.mtime.offset, "inode mtime", true);
    mtimeNanoseconds = view.getUint32(at + f.mtimeNanoseconds.offset, true);
    links = view.getUint32(at + f.links.offset, true);
    if (wide) {
      blockHigh = view.getUint16(at + f.blockHigh.offset, true);
      addressBits = 48;
    }
  } else {
    const shared = view.getUint16(at + compact.linksOrBlockHigh.offset, true);
    const oneLink = wide && type !== FileType.DIRECTORY && (format & FORMAT_ONE_LINK) !== 0;
    uid = view.getUint16(at + compact.uid.offset, true);
    gid = view.getUint16(at + compact.gid.offset, true);
    size = view.getUint32(at + compact.size.offset, true);
    // Unsigned on Linux 6.15 and later; earlier kernels show the epoch, and their mkfs wrote 0 here.
    mtimeSeconds = superblock.epoch + view.getUint32(at + compact.mtime.offset, true);
    mtimeNanoseconds = superblock.fixedNanoseconds;
    links = oneLink ? 1 : shared;
    if (oneLink) {
      blockHigh = shared;
      addressBits = 48;
    }
  }
  if (mtimeNanoseconds >= 1e9) throw fail("inode mtime", "has a second or more of nanoseconds", offset);

  const chunked = layout === Layout.CHUNK_BASED;
  if (chunked && (union & 0xffff & ~ChunkFormat.ALL) !== 0) {
    throw fail("chunk format", `0x${(union & 0xffff).toString(16)} has unknown bits`, offset);
  }
  const hasBytes = type === FileType.REGULAR || type === FileType.DIRECTORY || type === FileType.SYMLINK;
  const block = union + blockHigh * 2 ** 32;
  const nullBlock = addressBits === 48 ? 2 ** 48 - 1 : NULL_BLOCK;
  return {
    nid,
    mode,
    uid,
    gid,
    size,
    mtimeSeconds,
    mtimeNanoseconds,
    links,
    rdevMajor: device.major,
    rdevMinor: device.minor,
    layout,
    startBlock: chunked || !hasBytes || block === nullBlock ? -1 : block,
    chunkFormat: chunked ? union & 0xffff : 0,
    xattrOffset: offset + (extended ? INODE_EXTENDED.size : INODE_COMPACT.size),
    xattrSize: xattrAreaSize(view.getUint16(at + compact.xattrCount.offset, true)),
  };
}

const NO_DEVICE = { major: 0, minor: 0 };
