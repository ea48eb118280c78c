/**
 * EROFS images: writing one from a layer index, reading one back, and reading layers for a merge.
 *
 * `writeErofs` turns an index into the metadata image of a layer or of a merged chain: deterministic bytes, no payload
 * but small files, everything else by (device, block). `ErofsReader` reads images from bytes that it doesn't trust.
 * What the bytes mean is defined in Linux fs/erofs/erofs_fs.h and Documentation/filesystems/erofs.rst; `format.ts` has
 * it as tables. Never reads a file, mounts, or keeps an image in memory.
 */
export type { ErofsEntry } from "./directory-block.ts";
// The tables, for what else writes EROFS (composefs).
export {
  DIRENT,
  direntType,
  encodeDevice,
  FORMAT_EXTENDED,
  INODE_COMPACT,
  INODE_EXTENDED,
  Layout,
  MAGIC,
  NID_UNIT,
  SUPERBLOCK,
  SUPERBLOCK_OFFSET,
} from "./format.ts";
export type { ErofsInode } from "./inode.ts";
export {
  type ErofsExtent,
  ErofsReader,
  type ErofsWalkEntry,
  HOLE,
  PRIMARY,
} from "./reader.ts";
export {
  type ErofsDeviceSlot,
  type ErofsSuperblock,
  readDeviceTags,
  verifySuperblock,
} from "./superblock.ts";
export { erofsTree, indexFromErofs } from "./tree.ts";
export { type ErofsDevice, type ErofsImage, planErofs, type WriteErofsOptions, writeErofs } from "./writer.ts";
export { canStoreXattr } from "./xattr.ts";
