import { alignUp, crc32c } from "../../bytes/index.ts";
import { ShaleError } from "../../errors/index.ts";
import { Content, FileType, type LayerIndex, NONE, ROOT } from "../layer-index/index.ts";
import {
  BLOCK_SIZE,
  DEVICE_SLOT,
  direntType,
  encodeDevice,
  FeatureCompat,
  FeatureIncompat,
  FORMAT_EXTENDED,
  INODE_EXTENDED,
  Layout,
  MAGIC,
  MAX_MAJOR,
  MAX_MINOR,
  NID_UNIT,
  NULL_BLOCK,
  PRIVATE_CHECKED,
  PRIVATE_HEADER,
  PRIVATE_MAGIC,
  PRIVATE_VERSION,
  SUPERBLOCK,
  SUPERBLOCK_OFFSET,
  superblockChecksum,
  writeWide,
} from "./format.ts";
import { DEVICE_TABLE_OFFSET, IMAGE_ALIGNMENT, type ImageLayout, planImage } from "./layout.ts";
import { xattrCount } from "./xattr.ts";

export interface ErofsDevice {
  /** Name of the blob, at most 64 ASCII characters. */
  readonly tag: string;
  /** Length in blocks of the image. */
  readonly blocks: number;
}

export interface ErofsImage {
  /** Bytes written; a multiple of 4096. */
  readonly size: number;
  /** By device: where its bytes belong, when it is put behind the image in one file. Multiples of 4096. */
  readonly deviceOffsets: readonly number[];
  /** Bytes of image and devices together. */
  readonly totalSize: number;
  readonly rootNid: number;
  /** nid by inode id; NONE (0xffffffff) for an inode that is not written. */
  readonly nids: Uint32Array;
  /** Inodes written. */
  readonly inodes: number;
  /** Bytes between the records that hold nothing. */
  readonly waste: number;
}

export interface WriteErofsOptions {
  /** In the order of `contentDevice` in the index, and of the mount's `device=` options. */
  readonly devices: readonly ErofsDevice[];
  /** 16 bytes. */
  readonly uuid: Uint8Array;
  /**
   * All bytes of an INLINE inode. Called once per inode, in increasing inode order but for moves of about 1 MiB of
   * image, so that a spool file is read nearly sequentially; content over about 4000 bytes comes in a second such run.
   */
  readInline(inode: number): Uint8Array;
  /** Takes the image from its start to its end in pieces of about 1 MiB, each valid until it returns. */
  write(chunk: Uint8Array): void;
  /** Also write files that no dirent names (for rebuilding a layer's tar). `ErofsReader.unlinked()` finds them. */
  readonly keepUnlinked?: boolean;
  /** 512 or 4096 (unless given). Smaller blocks than the page size mount on Linux 6.4 and later. */
  readonly blockSize?: number;
  /**
   * The devices are part of the image: their bytes follow at `deviceOffsets` and no table names them. Mounts everywhere,
   * without `device=`.
   */
  readonly selfContained?: boolean;
}

/**
 * Writes an index as an EROFS image: extended inodes, superblock checksum, one extra device per blob.
 * The same index and options give the same bytes. Mounts on Linux 5.16 and later.
 *
 * Takes two passes: the layout into typed arrays (about 25 bytes an entry), then the bytes in file order.
 * ShaleError RESOURCE_EXHAUSTED when image and devices exceed 2^32 blocks or xattrs their space; INVALID_ARGUMENT for an
 * xattr or a device number that EROFS can't hold.
 */
export function writeErofs(index: LayerIndex, options: WriteErofsOptions): ErofsImage {
  const { image, write } = planErofs(index, options);
  write();
  return image;
}

/** The first pass of {@link writeErofs}: where everything goes is known before anything is written. `write` is for one call. */
export function planErofs(
  index: LayerIndex,
  options: WriteErofsOptions,
): { readonly image: ErofsImage; readonly write: () => void } {
  const blockSize = options.blockSize ?? BLOCK_SIZE;
  if (blockSize !== 512 && blockSize !== BLOCK_SIZE) throw new RangeError(`a block size of ${blockSize}`);
  const slots = options.selfContained === true ? 0 : options.devices.length;
  const layout = planImage(index, slots, options.keepUnlinked ?? false, blockSize);
  const { firstBlocks, endBlock } = placeDevices(options.devices, layout);
  return {
    image: {
      size: layout.imageBlocks * blockSize,
      deviceOffsets: firstBlocks.map((block) => block * blockSize),
      totalSize: endBlock * blockSize,
      rootNid: layout.nids[ROOT]!,
      nids: layout.nids,
      inodes: layout.inodes,
      waste: layout.waste,
    },
    write() {
      const output = new Output(options.write, blockSize);
      writeHead(output, index, options, layout, firstBlocks, endBlock);
      writeRecords(output, index, options, layout, firstBlocks);
      writeWholeBlocks(output, index, options, layout);
      output.finish(layout.imageBlocks * blockSize);
    },
  };
}

/** Of the block sizes that images are written with. */
const LARGEST_BLOCK = 4096;

/** First block of each device in the unified space, which begins with the image itself, and the block after the last. */
function placeDevices(
  devices: readonly ErofsDevice[],
  { imageBlocks, blockSize }: ImageLayout,
): { readonly firstBlocks: number[]; readonly endBlock: number } {
  const alignment = IMAGE_ALIGNMENT / blockSize;
  let next = imageBlocks;
  const firstBlocks = devices.map(({ tag, blocks }) => {
    if (!/^[\x21-\x7e]{1,64}$/.test(tag)) throw new RangeError(`device tag ${JSON.stringify(tag)}`);
    if (!Number.isSafeInteger(blocks) || blocks < 0) throw new RangeError(`device of ${blocks} blocks`);
    const first = alignUp(next, alignment);
    next = first + blocks;
    return first;
  });
  if (next >= NULL_BLOCK) {
    const problem = `image and devices need ${next} blocks, limit ${NULL_BLOCK - 1}`;
    throw new ShaleError("RESOURCE_EXHAUSTED", `Cannot write an EROFS image: ${problem}`, {
      ...(blockSize < LARGEST_BLOCK && {
        hint: `Blocks of ${LARGEST_BLOCK} bytes reach ${LARGEST_BLOCK / blockSize} times as far`,
      }),
    });
  }
  return { firstBlocks, endBlock: next };
}

function writeHead(
  output: Output,
  index: LayerIndex,
  options: WriteErofsOptions,
  layout: ImageLayout,
  firstBlocks: readonly number[],
  endBlock: number,
): void {
  const { blockSize } = layout;
  const { uuid, selfContained } = options;
  const devices = selfContained === true ? [] : options.devices;
  if (uuid.length !== 16) throw new RangeError(`a uuid of ${uuid.length} bytes`);
  const table = new Uint8Array(devices.length * DEVICE_SLOT.size);
  devices.forEach(({ tag, blocks }, i) => {
    DEVICE_SLOT.write(table, i * DEVICE_SLOT.size, { tag, blocks, firstBlock: firstBlocks[i]! });
  });
  const tables = crc32c(unlinkedTable(layout), crc32c(table));
  const header = new Uint8Array(PRIVATE_HEADER.size);
  PRIVATE_HEADER.write(header, 0, {
    magic: PRIVATE_MAGIC,
    version: PRIVATE_VERSION,
    unlinkedCount: layout.unlinked.length,
    unlinkedOffset: BigInt(layout.unlinked.length === 0 ? 0 : layout.unlinkedBlock * blockSize),
    tablesChecksum: tables,
  });
  PRIVATE_HEADER.write(header, 0, { headerChecksum: crc32c(header.subarray(0, PRIVATE_CHECKED)) });
  output.bytes.set(header, output.at(0, header.length));

  const superblock = output.at(SUPERBLOCK_OFFSET, SUPERBLOCK.size);
  SUPERBLOCK.write(output.bytes, superblock, {
    magic: MAGIC,
    featureCompat: FeatureCompat.SB_CHECKSUM | FeatureCompat.MTIME,
    blockBits: Math.log2(blockSize),
    rootNid: layout.nids[ROOT]!,
    inodeCount: BigInt(layout.inodes),
    // Compact inodes would count from here; kept so that tools show a date that means something.
    epoch: BigInt(Math.max(0, index.mtimeSeconds(ROOT))),
    fixedNanoseconds: 0,
    blocks: selfContained === true ? endBlock : layout.imageBlocks,
    uuid,
    featureIncompat: incompatFeatures(options),
    extraDevices: devices.length,
    deviceTableSlot: devices.length > 0 ? DEVICE_TABLE_OFFSET / DEVICE_SLOT.size : 0,
  });
  for (let done = 0; done < table.length; done += BLOCK_SIZE) {
    const part = table.subarray(done, done + BLOCK_SIZE);
    output.bytes.set(part, output.at(DEVICE_TABLE_OFFSET + done, part.length));
  }
}

function incompatFeatures({ devices, selfContained }: WriteErofsOptions): number {
  if (selfContained === true) return 0; // nothing of it is used: even the first EROFS kernels read such an image
  return FeatureIncompat.CHUNKED_FILE | (devices.length > 0 ? FeatureIncompat.DEVICE_TABLE : 0);
}

function writeRecords(
  output: Output,
  index: LayerIndex,
  options: WriteErofsOptions,
  layout: ImageLayout,
  firstBlocks: readonly number[],
): void {
  const { nids, directories, directorySizes, parents } = layout;
  const nidOf = (inode: number) => nids[inode]!;
  const typeOf = (inode: number) => direntType(index.mode(inode));
  for (const inode of recordOrder(layout)) {
    const inline = layout.layouts[inode] === Layout.FLAT_INLINE;
    const isDirectory = index.isDirectory(inode);
    const xattrs = layout.xattrs.get(index.xattrSetId(inode))!;
    const size = isDirectory ? directorySizes[inode]! : hasContent(index, inode) ? index.size(inode) : 0;
    const head = INODE_EXTENDED.size + xattrs.length;
    const length = head + (inline ? size % layout.blockSize : 0);
    const at = output.at(nids[inode]! * NID_UNIT, length);
    const union = unionOf(index, inode, options.devices, layout, firstBlocks);
    writeInode(output.view, at, index, inode, layout.layouts[inode]!, xattrs.length, size, union);
    output.bytes.set(xattrs, at + INODE_EXTENDED.size);
    if (!inline) continue;
    if (isDirectory) {
      const whole = Math.floor(size / layout.blockSize);
      let block = 0;
      directories.forEach(inode, parents[inode]!, nidOf, typeOf, () => {
        // Whole blocks come later in the image; only the last one is the tail.
        return block++ < whole ? SCRATCH : { bytes: output.bytes, view: output.view, at: at + head };
      });
    } else output.bytes.set(ownBytes(index, inode, options), at + head);
  }
}

const scratchBytes = new Uint8Array(BLOCK_SIZE);
const SCRATCH = { bytes: scratchBytes, view: new DataView(scratchBytes.buffer), at: 0 };

function writeInode(
  view: DataView,
  at: number,
  index: LayerIndex,
  inode: number,
  layout: number,
  xattrSize: number,
  size: number,
  union: number,
): void {
  // Without the fields' own functions: this runs once a file, often before anything is compiled.
  const f = INODE_EXTENDED.fields;
  view.setUint16(at + f.format.offset, FORMAT_EXTENDED | (layout << 1), true);
  view.setUint16(at + f.xattrCount.offset, xattrCount(xattrSize), true);
  view.setUint16(at + f.mode.offset, index.mode(inode), true);
  writeWide(view, at + f.size.offset, size);
  view.setUint32(at + f.union.offset, union, true);
  view.setUint32(at + f.ino.offset, inode + 1, true);
  view.setUint32(at + f.uid.offset, index.uid(inode), true);
  view.setUint32(at + f.gid.offset, index.gid(inode), true);
  writeWide(view, at + f.mtime.offset, index.mtimeSeconds(inode));
  view.setUint32(at + f.mtimeNanoseconds.offset, index.mtimeNanoseconds(inode), true);
  view.setUint32(at + f.links.offset, index.links(inode), true);
}

function hasContent(index: LayerIndex, inode: number): boolean {
  const type = index.type(inode);
  return type === FileType.SYMLINK || (type === FileType.REGULAR && index.contentKind(inode) !== Content.EMPTY);
}

/** i_u: device number, or start block in the unified space. */
function unionOf(
  index: LayerIndex,
  inode: number,
  devices: readonly ErofsDevice[],
  { blocks, blockSize }: ImageLayout,
  firstBlocks: readonly number[],
): number {
  const type = index.type(inode);
  if (type === FileType.CHARACTER || type === FileType.BLOCK) {
    const major = index.rdevMajor(inode);
    const minor = index.rdevMinor(inode);
    if (major > MAX_MAJOR || minor > MAX_MINOR) {
      throw new ShaleError(
        "INVALID_ARGUMENT",
        `Cannot write device ${major}:${minor}: limit ${MAX_MAJOR}:${MAX_MINOR}`,
      );
    }
    return encodeDevice(major, minor);
  }
  if (type === FileType.FIFO || type === FileType.SOCKET) return 0;
  if (type !== FileType.REGULAR || index.contentKind(inode) !== Content.EXTENT) return blocks[inode]!;
  const device = index.contentDevice(inode);
  const first = index.contentOffset(inode) / blockSize;
  const last = first + Math.ceil(index.size(inode) / blockSize);
  if (device >= devices.length || !Number.isInteger(first) || first < 0 || last > devices[device]!.blocks) {
    throw new RangeError(`inode ${inode}: blocks ${first}..${last} of device ${device}`);
  }
  return firstBlocks[device]! + first;
}

function writeWholeBlocks(output: Output, index: LayerIndex, options: WriteErofsOptions, layout: ImageLayout): void {
  const { nids, blocks, blockSize, directories, directorySizes, parents } = layout;
  const nidOf = (inode: number) => nids[inode]!;
  const typeOf = (inode: number) => direntType(index.mode(inode));
  for (let inode = 0; inode < blocks.length; inode++) {
    if (blocks[inode] === NULL_BLOCK) continue;
    const offset = blocks[inode]! * blockSize;
    if (index.isDirectory(inode)) {
      const size = directorySizes[inode]!;
      const inlineTail = layout.layouts[inode] === Layout.FLAT_INLINE;
      const end = inlineTail ? Math.floor(size / blockSize) * blockSize : size;
      let done = 0;
      directories.forEach(inode, parents[inode]!, nidOf, typeOf, () => {
        if (done >= end) return SCRATCH;
        const at = output.at(offset + done, blockSize);
        done += blockSize;
        return { bytes: output.bytes, view: output.view, at };
      });
    } else writeAll(output, offset, ownBytes(index, inode, options));
  }
  writeAll(output, layout.unlinkedBlock * layout.blockSize, unlinkedTable(layout));
}

function writeAll(output: Output, offset: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; done += BLOCK_SIZE) {
    const part = bytes.subarray(done, done + BLOCK_SIZE);
    output.bytes.set(part, output.at(offset + done, part.length));
  }
}

function unlinkedTable(layout: ImageLayout): Uint8Array {
  const table = Buffer.alloc(layout.unlinked.length * 4);
  layout.unlinked.forEach((inode, i) => {
    table.writeUInt32LE(layout.nids[inode]!, i * 4);
  });
  return table;
}

function ownBytes(index: LayerIndex, inode: number, options: WriteErofsOptions): Uint8Array {
  const bytes =
    index.type(inode) === FileType.SYMLINK
      ? Buffer.from(index.symlinkTarget(inode), "latin1")
      : options.readInline(inode);
  if (bytes.length !== index.size(inode)) {
    throw new RangeError(`inode ${inode}: ${bytes.length} bytes given, its size is ${index.size(inode)}`);
  }
  return bytes;
}

/** Inode ids by image offset. The packer fills each block in inode order, so sorting by block, stably, is enough. */
function recordOrder({ nids, inodes, recordBlocks, blockSize }: ImageLayout): Uint32Array {
  const perBlock = blockSize / NID_UNIT;
  const next = new Uint32Array(recordBlocks + 1);
  for (const nid of nids) if (nid !== NONE) next[Math.floor(nid / perBlock) + 1]!++;
  for (let block = 1; block <= recordBlocks; block++) next[block]! += next[block - 1]!;
  const order = new Uint32Array(inodes);
  for (let inode = 0; inode < nids.length; inode++) {
    const nid = nids[inode]!;
    if (nid !== NONE) order[next[Math.floor(nid / perBlock)]!++] = inode;
  }
  return order;
}

const CHUNK_SIZE = 1 << 20;

/** Sequential output through a buffer of zeros that is handed out when the next bytes don't fit. */
class Output {
  readonly bytes = new Uint8Array(CHUNK_SIZE);
  readonly view = new DataView(this.bytes.buffer);
  #start = 0;
  readonly #write: (chunk: Uint8Array) => void;
  readonly #blockSize: number;

  constructor(write: (chunk: Uint8Array) => void, blockSize: number) {
    this.#blockSize = blockSize;
    this.#write = write;
  }

  /** Where in `bytes` the image's `offset` is; `length` zeros (at most a chunk) follow. Offsets never go back. */
  at(offset: number, length: number): number {
    if (offset + length > this.#start + CHUNK_SIZE) this.#flush(offset);
    return offset - this.#start;
  }

  /** Hands out the rest, up to `size`. */
  finish(size: number): void {
    this.#flush(size);
  }

  #flush(offset: number): void {
    while (this.#start < offset) {
      const length = Math.min(CHUNK_SIZE, offset - this.#start);
      if (this.#start === 0) {
        const checksum = superblockChecksum(this.bytes.subarray(SUPERBLOCK_OFFSET), this.#blockSize);
        SUPERBLOCK.write(this.bytes, SUPERBLOCK_OFFSET, { checksum });
      }
      this.#write(this.bytes.subarray(0, length));
      this.bytes.fill(0);
      this.#start += length;
    }
  }
}
