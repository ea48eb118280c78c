import { type ByteSource, crc32c, safeNumber } from "../../bytes/index.ts";
import { ShaleError } from "../../errors/index.ts";
import {
  DEVICE_SLOT,
  FeatureCompat,
  FeatureIncompat,
  fail,
  MAGIC,
  MAX_BLOCK_BITS,
  MIN_BLOCK_BITS,
  PRIVATE_CHECKED,
  PRIVATE_HEADER,
  PRIVATE_MAGIC,
  PRIVATE_VERSION,
  SUPERBLOCK,
  SUPERBLOCK_OFFSET,
  superblockChecksum,
} from "./format.ts";

export interface ErofsSuperblock {
  readonly blockSize: number;
  /** Blocks of the image itself. */
  readonly blocks: number;
  readonly rootNid: number;
  readonly inodeCount: number;
  readonly epoch: number;
  readonly fixedNanoseconds: number;
  readonly uuid: Uint8Array;
  readonly volumeName: string;
  readonly featureCompat: number;
  readonly featureIncompat: number;
  /** Byte offsets: nid 0, the shared xattrs, the long xattr prefixes, the device table. */
  readonly metaOffset: number;
  readonly sharedXattrOffset: number;
  readonly xattrPrefixOffset: number;
  readonly xattrPrefixCount: number;
  readonly deviceTableOffset: number;
  readonly deviceCount: number;
}

export interface ErofsDeviceSlot {
  readonly tag: string;
  /** Length in blocks. */
  readonly blocks: number;
  /** Where it begins in the unified block space; 0 when the image only addresses it by number. */
  readonly firstBlock: number;
}

const KNOWN_INCOMPAT = Object.values(FeatureIncompat).reduce((all, bit) => all | bit, 0);

/**
 * Reads and checks the superblock, its checksum included. FormatError when it is damaged or the image is cut off,
 * UNIMPLEMENTED when the image needs something that this reader doesn't know.
 */
export function decodeSuperblock(image: ByteSource): ErofsSuperblock {
  const end = SUPERBLOCK_OFFSET + SUPERBLOCK.size;
  if (image.size < end) throw fail("length", `${image.size} bytes are too short for a superblock`);
  const sb = SUPERBLOCK.read(image.read(SUPERBLOCK_OFFSET, SUPERBLOCK.size));
  if (sb.magic !== MAGIC) throw fail("magic", `0x${sb.magic.toString(16)} is not EROFS`, SUPERBLOCK_OFFSET);
  if (sb.blockBits < MIN_BLOCK_BITS || sb.blockBits > MAX_BLOCK_BITS) {
    throw fail("blockBits", `must be ${MIN_BLOCK_BITS}..${MAX_BLOCK_BITS}: current value is ${sb.blockBits}`);
  }
  const blockSize = 2 ** sb.blockBits;
  if (sb.featureCompat & FeatureCompat.SB_CHECKSUM) checkSuperblock(image, blockSize, sb.checksum);
  const unknown = (sb.featureIncompat & ~KNOWN_INCOMPAT) >>> 0;
  if (unknown !== 0 || sb.directoryBlockBits !== 0) {
    throw new ShaleError("UNIMPLEMENTED", `Cannot read erofs image: it uses features 0x${unknown.toString(16)}`);
  }
  const wide = (sb.featureIncompat & FeatureIncompat.BITS_48) !== 0 && sb.rootNid64 !== 0n;
  const blocks = sb.blocks + (wide ? sb.rootNid * 2 ** 32 : 0);
  if (blocks * blockSize > image.size) {
    throw fail("blocks", `the image has ${image.size} bytes, its superblock says ${blocks * blockSize}`);
  }
  return {
    blockSize,
    blocks,
    rootNid: wide ? safeNumber(sb.rootNid64, "erofs image", "root nid") : sb.rootNid,
    inodeCount: safeNumber(sb.inodeCount, "erofs image", "inode count"),
    epoch: safeNumber(sb.epoch, "erofs image", "epoch"),
    fixedNanoseconds: sb.fixedNanoseconds,
    uuid: sb.uuid,
    volumeName: Buffer.from(sb.volumeName).toString("latin1").replace(/\0.*$/s, ""),
    featureCompat: sb.featureCompat,
    featureIncompat: sb.featureIncompat,
    metaOffset: sb.metaBlock * blockSize,
    sharedXattrOffset: sb.xattrBlock * blockSize,
    xattrPrefixOffset: sb.xattrPrefixStart * 4,
    xattrPrefixCount: sb.featureIncompat & FeatureIncompat.XATTR_PREFIXES ? sb.xattrPrefixCount : 0,
    deviceTableOffset: sb.deviceTableSlot * DEVICE_SLOT.size,
    // The bit is also COMPR_HEAD2's: without devices it says nothing.
    deviceCount: sb.featureIncompat & FeatureIncompat.DEVICE_TABLE ? sb.extraDevices : 0,
  };
}

/**
 * Throws FormatError (DATA_LOSS for a wrong checksum) unless superblock, device table and, in images of ours, the
 * private header are what was written.
 */
export function verifySuperblock(image: ByteSource): void {
  readDevices(image, decodeSuperblock(image));
}

/** The device tags of an image, in order, reading nothing but superblock and tables, and those only when sound. */
export function readDeviceTags(image: ByteSource): string[] {
  return readDevices(image, decodeSuperblock(image)).devices.map(({ tag }) => tag);
}

/** The device table, and the nids of the inodes that no name leads to (none in images of others). */
export function readDevices(
  image: ByteSource,
  superblock: ErofsSuperblock,
): { readonly devices: readonly ErofsDeviceSlot[]; readonly unlinked: readonly number[] } {
  const { deviceCount, deviceTableOffset } = superblock;
  const table = readRange(image, "device table", deviceTableOffset, deviceCount * DEVICE_SLOT.size);
  const unlinked = readUnlinked(image, superblock, table);
  const devices = Array.from({ length: deviceCount }, (_, i) => {
    const slot = DEVICE_SLOT.read(table, i * DEVICE_SLOT.size);
    const wide = superblock.featureIncompat & FeatureIncompat.BITS_48 ? 2 ** 32 : 0;
    return {
      tag: slot.tag,
      blocks: slot.blocks + slot.blocksHigh * wide,
      firstBlock: slot.firstBlock + slot.firstBlockHigh * wide,
    };
  });
  return { devices, unlinked };
}

function readUnlinked(image: ByteSource, superblock: ErofsSuperblock, deviceTable: Uint8Array): readonly number[] {
  const bytes = image.read(0, PRIVATE_HEADER.size);
  const header = PRIVATE_HEADER.read(bytes);
  // Any sign of our header makes it ours: a flipped bit in the magic must not turn the checks off.
  const equal = header.magic.reduce((count, byte, i) => count + (byte === PRIVATE_MAGIC[i] ? 1 : 0), 0);
  if (equal < PRIVATE_MAGIC.length - 2) return [];
  if (equal < PRIVATE_MAGIC.length || crc32c(bytes.subarray(0, PRIVATE_CHECKED)) !== header.headerChecksum) {
    throw fail("image header", "wrong checksum", 0, DAMAGED);
  }
  if ((superblock.featureCompat & FeatureCompat.SB_CHECKSUM) === 0) {
    throw fail("featureCompat", "says that there is no checksum, and we write one", SUPERBLOCK_OFFSET, DAMAGED);
  }
  if (header.version !== PRIVATE_VERSION) {
    const problem = `its header has version ${header.version}, known is ${PRIVATE_VERSION}`;
    throw new ShaleError("UNIMPLEMENTED", `Cannot read erofs image: ${problem}`);
  }
  const offset = safeNumber(header.unlinkedOffset, "erofs image", "unlinked inodes");
  const list = readRange(image, "unlinked inodes", offset, header.unlinkedCount * 4);
  if (crc32c(list, crc32c(deviceTable)) !== header.tablesChecksum) {
    throw fail("device table", "wrong checksum", undefined, DAMAGED);
  }
  const view = new DataView(list.buffer, list.byteOffset, list.byteLength);
  return Array.from({ length: header.unlinkedCount }, (_, i) => view.getUint32(i * 4, true));
}

const DAMAGED = { code: "DATA_LOSS" } as const;

function checkSuperblock(image: ByteSource, blockSize: number, stored: number): void {
  const length = blockSize > SUPERBLOCK_OFFSET ? blockSize - SUPERBLOCK_OFFSET : blockSize;
  const found = superblockChecksum(readRange(image, "superblock", SUPERBLOCK_OFFSET, length), blockSize);
  if (found !== stored) {
    const problem = `is 0x${found.toString(16)}, the superblock says 0x${stored.toString(16)}`;
    throw fail("checksum", problem, SUPERBLOCK_OFFSET, DAMAGED);
  }
}

function readRange(image: ByteSource, what: string, offset: number, length: number): Uint8Array {
  if (offset + length > image.size) throw fail(what, `${length} bytes end after the image`, offset);
  return image.read(offset, length);
}
