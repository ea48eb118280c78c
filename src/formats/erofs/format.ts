import { bytes, crc32c, i64le, struct, text, u8, u16le, u32le, u64le } from "../../bytes/index.ts";
import { type ErrorCode, FormatError } from "../../errors/index.ts";
import { FileType } from "../layer-index/index.ts";

/**
 * EROFS on disk as tables: Linux fs/erofs/erofs_fs.h. All integers are little-endian.
 */

export const MAGIC = 0xe0f5e1e2;
export const SUPERBLOCK_OFFSET = 1024;
/** What we write. Readable are {@link MIN_BLOCK_BITS}..{@link MAX_BLOCK_BITS}. */
export const BLOCK_BITS = 12;
export const BLOCK_SIZE = 1 << BLOCK_BITS;
export const MIN_BLOCK_BITS = 9;
export const MAX_BLOCK_BITS = 12;
/** An inode is at meta_blkaddr blocks + 32 * nid. */
export const NID_UNIT = 32;
/** The root's nid has 16 bits in images without the 48BIT feature. */
export const MAX_ROOT_NID = 0xffff;
/** Block address of "no block": everything is inline, or a hole. */
export const NULL_BLOCK = 0xffffffff;

/** struct erofs_super_block: 128 bytes at 1024. */
export const SUPERBLOCK = struct("erofs superblock", 128, {
  magic: u32le(0),
  checksum: u32le(4),
  featureCompat: u32le(8),
  blockBits: u8(12),
  extraSlots: u8(13),
  rootNid: u16le(14), // with 48BIT: bits 32..47 of the block count
  inodeCount: u64le(16),
  epoch: i64le(24),
  fixedNanoseconds: u32le(32),
  blocks: u32le(36),
  metaBlock: u32le(40),
  xattrBlock: u32le(44),
  uuid: bytes(48, 16),
  volumeName: bytes(64, 16),
  featureIncompat: u32le(80),
  extraDevices: u16le(86),
  deviceTableSlot: u16le(88), // in units of 128 bytes from the start of the image
  directoryBlockBits: u8(90),
  xattrPrefixCount: u8(91),
  xattrPrefixStart: u32le(92), // in units of 4 bytes
  packedNid: u64le(96),
  rootNid64: u64le(112), // with 48BIT
});

export const FeatureCompat = {
  SB_CHECKSUM: 0x1,
  MTIME: 0x2,
  PLAIN_XATTR_PREFIXES: 0x10,
} as const;

export const FeatureIncompat = {
  ZERO_PADDING: 0x1,
  COMPRESSION_CONFIGS: 0x2,
  CHUNKED_FILE: 0x4,
  DEVICE_TABLE: 0x8,
  TAIL_PACKING: 0x10,
  FRAGMENTS: 0x20,
  XATTR_PREFIXES: 0x40,
  BITS_48: 0x80,
} as const;

/** struct erofs_deviceslot. */
export const DEVICE_SLOT = struct("erofs device slot", 128, {
  tag: text(0, 64),
  blocks: u32le(64),
  firstBlock: u32le(68), // "uniaddr": where the device begins in the unified block space
  blocksHigh: u16le(72),
  firstBlockHigh: u16le(74),
});

/** struct erofs_inode_compact. */
export const INODE_COMPACT = struct("erofs compact inode", 32, {
  format: u16le(0),
  xattrCount: u16le(2),
  mode: u16le(4),
  linksOrBlockHigh: u16le(6),
  size: u32le(8),
  mtime: u32le(12), // seconds after the superblock's epoch
  union: u32le(16),
  ino: u32le(20),
  uid: u16le(24),
  gid: u16le(26),
});

/** struct erofs_inode_extended. */
export const INODE_EXTENDED = struct("erofs extended inode", 64, {
  format: u16le(0),
  xattrCount: u16le(2),
  mode: u16le(4),
  blockHigh: u16le(6),
  size: u64le(8),
  union: u32le(16),
  ino: u32le(20),
  uid: u32le(24),
  gid: u32le(28),
  mtime: i64le(32),
  mtimeNanoseconds: u32le(40),
  links: u32le(44),
});

/** Bits 1-3 of an inode's format. Bit 0 is set in extended inodes. */
export const Layout = {
  FLAT_PLAIN: 0,
  COMPRESSED_FULL: 1,
  FLAT_INLINE: 2,
  COMPRESSED_COMPACT: 3,
  CHUNK_BASED: 4,
} as const;
export const FORMAT_EXTENDED = 1;
/** With 48BIT, on a compact inode that is no directory: one link, and the field of the links holds block address bits. */
export const FORMAT_ONE_LINK = 0x10;

/** struct erofs_inode_chunk_info, the low half of the inode's union. */
export const ChunkFormat = { BITS_MASK: 0x1f, INDEXES: 0x20, BITS_48: 0x40, ALL: 0x7f } as const;

/** struct erofs_inode_chunk_index. */
export const CHUNK_INDEX = struct("erofs chunk index", 8, {
  blockHigh: u16le(0),
  device: u16le(2), // 0: primary
  block: u32le(4), // from the start of that device
});

/** struct erofs_dirent. Names follow the last dirent of a directory block, without NUL. */
export const DIRENT = struct("erofs dirent", 12, {
  nid: u64le(0),
  nameOffset: u16le(8),
  type: u8(10),
});

/** struct erofs_xattr_ibody_header, followed by u32 ids of shared xattrs, then by inline entries. */
export const XATTR_HEADER = struct("erofs xattr header", 12, { filter: u32le(0), sharedCount: u8(4) });

/** struct erofs_xattr_entry, followed by the name without its prefix and the value; padded to 4 bytes. */
export const XATTR_ENTRY = struct("erofs xattr", 4, { nameLength: u8(0), nameIndex: u8(1), valueLength: u16le(2) });

/**
 * Ours, at byte 0, in the 1024 bytes that EROFS leaves to boot loaders (composefs keeps its header there too). It covers
 * the device table, of which the superblock's checksum reaches only the first 24 slots, and leads to the inodes that no
 * name leads to. Images of other tools have no such header.
 */
export const PRIVATE_HEADER = struct("shale image header", 40, {
  magic: bytes(0, 8),
  version: u32le(8),
  /** Number of u32 nids at `unlinkedOffset`. */
  unlinkedCount: u32le(12),
  unlinkedOffset: u64le(16),
  /** CRC-32C of the device table followed by the unlinked nids. */
  tablesChecksum: u32le(24),
  /** CRC-32C of bytes 0..27. */
  headerChecksum: u32le(28),
});
export const PRIVATE_MAGIC = Uint8Array.from(Buffer.from("shale\r\n\0", "latin1"));
export const PRIVATE_VERSION = 1;
export const PRIVATE_CHECKED = 28;

/** d_type values of a dirent: FT_* of linux/fs.h. */
export function direntType(mode: number): number {
  switch (mode & FileType.MASK) {
    case FileType.REGULAR:
      return 1;
    case FileType.DIRECTORY:
      return 2;
    case FileType.CHARACTER:
      return 3;
    case FileType.BLOCK:
      return 4;
    case FileType.FIFO:
      return 5;
    case FileType.SOCKET:
      return 6;
    case FileType.SYMLINK:
      return 7;
    default:
      return 0;
  }
}

/** Linux new_encode_dev(): 12 bits of major, 20 of minor. */
export const MAX_MAJOR = 0xfff;
export const MAX_MINOR = 0xfffff;
export function encodeDevice(major: number, minor: number): number {
  return ((minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12)) >>> 0;
}
export function decodeDevice(device: number): { readonly major: number; readonly minor: number } {
  return { major: (device >>> 8) & MAX_MAJOR, minor: (device & 0xff) | ((device >>> 12) & 0xfff00) };
}

/**
 * Checksum of the superblock: CRC-32C without final inversion over the block that holds it, from byte 1024 on, with the
 * field itself as zeros. `region` begins at byte 1024 of the image.
 */
export function superblockChecksum(region: Uint8Array, blockSize: number): number {
  const length = blockSize > SUPERBLOCK_OFFSET ? blockSize - SUPERBLOCK_OFFSET : blockSize;
  const { offset } = SUPERBLOCK.fields.checksum;
  const head = crc32c(region.subarray(0, offset));
  return crc32c(region.subarray(offset + 4, length), crc32c(new Uint8Array(4), head));
}

/**
 * A u64 or i64 field as a number, for fields that are read once per inode or name: a bigint would cost as much as the
 * rest of the inode. FormatError beyond 2^53.
 */
export function readWide(view: DataView, at: number, what: string, signed = false): number {
  const high = signed ? view.getInt32(at + 4, true) : view.getUint32(at + 4, true);
  const value = high * 2 ** 32 + view.getUint32(at, true);
  if (!Number.isSafeInteger(value)) throw fail(what, `${value} is not below 2^53`);
  return value;
}

/** The other way round: a whole number from -2^53 on and below 2^53. */
export function writeWide(view: DataView, at: number, value: number): void {
  const high = Math.floor(value / 2 ** 32);
  view.setUint32(at, value - high * 2 ** 32, true);
  view.setInt32(at + 4, high, true);
}

/** A FormatError about an image. */
export function fail(
  field: string,
  problem: string,
  offset?: number,
  options: { readonly code?: ErrorCode } = {},
): FormatError {
  return new FormatError("erofs image", field, problem, offset === undefined ? options : { ...options, offset });
}
