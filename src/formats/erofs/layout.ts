import { alignUp } from "../../bytes/index.ts";
import { ShaleError } from "../../errors/index.ts";
import { Content, FileType, type LayerIndex, NONE, ROOT } from "../layer-index/index.ts";
import { DirectoryBlocks, sortDirectories } from "./directory.ts";
import {
  DEVICE_SLOT,
  INODE_EXTENDED,
  Layout,
  MAX_ROOT_NID,
  NID_UNIT,
  NULL_BLOCK,
  PRIVATE_HEADER,
  SUPERBLOCK,
  SUPERBLOCK_OFFSET,
} from "./format.ts";
import { BlockPacker } from "./packer.ts";
import { encodeXattrs } from "./xattr.ts";

/**
 * First pass of the writer: where everything goes. The image is
 *
 *   private header | superblock | device table | records (inode, xattrs, inline tail), in blocks | whole blocks
 *
 * with the records in inode order, up to the small moves of the packer, and the whole blocks (large directories, long
 * symlinks, content that does not fit beside its inode, the list of unlinked inodes) in inode order.
 */
export const DEVICE_TABLE_OFFSET = SUPERBLOCK_OFFSET + SUPERBLOCK.size;
/** So many devices leave room for the root directory below the last nid that the superblock can name. */
export const MAX_DEVICES = 16_000;

/**
 * The image ends, and a device begins in the unified space, at a multiple of this, whatever the block size: what follows
 * the image in one file can then be shared with its source by reflink.
 */
export const IMAGE_ALIGNMENT = 4096;

export interface ImageLayout {
  readonly blockSize: number;
  readonly directories: DirectoryBlocks;
  /** By inode id; NONE when not written. */
  readonly nids: Uint32Array;
  /** By inode id: Layout.FLAT_INLINE or FLAT_PLAIN. */
  readonly layouts: Uint8Array;
  /** By inode id: first whole block in the primary, or NULL_BLOCK. */
  readonly blocks: Uint32Array;
  /** By inode id: bytes of directory data. */
  readonly directorySizes: Uint32Array;
  /** By inode id: the directory that holds a directory. */
  readonly parents: Uint32Array;
  /** Encoded xattrs by xattr set id. */
  readonly xattrs: ReadonlyMap<number, Uint8Array>;
  readonly inodes: number;
  /** Inode ids that no dirent names, when they are written. */
  readonly unlinked: readonly number[];
  readonly unlinkedBlock: number;
  /** First block after the records, and after everything. */
  readonly recordBlocks: number;
  readonly imageBlocks: number;
  readonly waste: number;
}

/** `deviceCount`: slots of the device table. */
export function planImage(
  index: LayerIndex,
  deviceCount: number,
  keepUnlinked: boolean,
  blockSize: number,
): ImageLayout {
  if (deviceCount > MAX_DEVICES) {
    throw new ShaleError(
      "RESOURCE_EXHAUSTED",
      `Cannot write an EROFS image: ${deviceCount} devices, limit ${MAX_DEVICES}`,
    );
  }
  const count = index.inodeCount;
  const nids = new Uint32Array(count).fill(NONE);
  const layouts = new Uint8Array(count);
  const blocks = new Uint32Array(count).fill(NULL_BLOCK);
  const directorySizes = new Uint32Array(count);
  const xattrs = new Map<number, Uint8Array>();
  const { named, parents } = findNames(index);
  const directories = new DirectoryBlocks(index, sortDirectories(index), blockSize);
  const head = Math.max(PRIVATE_HEADER.size, DEVICE_TABLE_OFFSET + deviceCount * DEVICE_SLOT.size);
  const packer = new BlockPacker(head, blockSize);
  const unlinked: number[] = [];
  let wholeBlocks = 0;
  let inodes = 0;

  for (let inode = 0; inode < count; inode++) {
    if (!named[inode]) {
      if (!keepUnlinked || index.isDirectory(inode)) continue;
      unlinked.push(inode);
    }
    const set = index.xattrSetId(inode);
    let area = xattrs.get(set);
    if (!area) {
      area = encodeXattrs(index.xattrs(inode));
      xattrs.set(set, area);
    }
    let size = 0;
    if (index.isDirectory(inode)) {
      size = directories.size(inode);
      directorySizes[inode] = size;
    } else if (hasOwnBytes(index, inode)) size = index.size(inode);

    const head = INODE_EXTENDED.size + area.length;
    const whole = Math.floor(size / blockSize);
    const tail = size % blockSize;
    // Only directories are split in blocks and a tail. A symlink's record must not cross a block edge even in its
    // head: kernels before 5.18 refuse the link then.
    const inline = tail > 0 && head + tail <= blockSize && (whole === 0 || index.isDirectory(inode));
    layouts[inode] = inline ? Layout.FLAT_INLINE : Layout.FLAT_PLAIN;
    const ownBlocks = inline ? whole : Math.ceil(size / blockSize);
    if (ownBlocks > 0) {
      blocks[inode] = wholeBlocks; // relative; moved behind the records below
      wholeBlocks += ownBlocks;
    }
    nids[inode] = packer.place(inline ? head + tail : head) / NID_UNIT;
    inodes++;
  }
  if (nids[ROOT]! > MAX_ROOT_NID) throw new RangeError(`root nid ${nids[ROOT]}`);

  const recordBlocks = packer.blocks;
  for (let inode = 0; inode < count; inode++) if (blocks[inode] !== NULL_BLOCK) blocks[inode]! += recordBlocks;
  const unlinkedBlock = recordBlocks + wholeBlocks;
  const end = unlinkedBlock + Math.ceil((unlinked.length * 4) / blockSize);
  const imageBlocks = alignUp(end, IMAGE_ALIGNMENT / blockSize);
  return {
    blockSize,
    directories,
    nids,
    layouts,
    blocks,
    directorySizes,
    parents,
    xattrs,
    inodes,
    unlinked,
    unlinkedBlock,
    recordBlocks,
    imageBlocks,
    waste: packer.waste,
  };
}

/** True for content that is in the image and not on a device: symlinks and inline files. */
export function hasOwnBytes(index: LayerIndex, inode: number): boolean {
  const type = index.type(inode);
  return type === FileType.SYMLINK || (type === FileType.REGULAR && index.contentKind(inode) === Content.INLINE);
}

function findNames(index: LayerIndex): { readonly named: Uint8Array; readonly parents: Uint32Array } {
  const named = new Uint8Array(index.inodeCount);
  const parents = new Uint32Array(index.inodeCount);
  named[ROOT] = 1;
  parents[ROOT] = ROOT;
  for (let dirent = 0; dirent < index.direntCount; dirent++) {
    const inode = index.direntInode(dirent);
    if (inode === NONE) continue;
    named[inode] = 1;
    if (index.isDirectory(inode)) parents[inode] = index.direntParent(dirent);
  }
  return { named, parents };
}
