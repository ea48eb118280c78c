import { alignUp, struct, u32le } from "../../bytes/index.ts";
import { ShaleError } from "../../errors/index.ts";
import {
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
} from "../erofs/index.ts";
import { FileType, type LayerIndex } from "../layer-index/index.ts";
import { type Content, type Entry, listNodes, type Node } from "./nodes.ts";
import { icountOf, SharedXattrs } from "./xattrs.ts";

/** Content up to this many bytes is in the image; LCFS_RECOMMENDED_INLINE_CONTENT_MAX. */
export const INLINE_LIMIT = 64;

const BLOCK_SIZE = 4096;
const BLOCK_BITS = 12;
/** FeatureCompat: MTIME, XATTR_FILTER. */
const FEATURES = 0x6;
const NULL_CHUNK = 0xffffffff;
/** A chunk covers at most 2^31 blocks. */
const MAX_CHUNK_BITS = 31 + BLOCK_BITS;

/** struct lcfs_erofs_header_s at byte 0, libcomposefs/lcfs-erofs.h. */
const HEADER = struct("composefs header", 32, {
  magic: u32le(0),
  version: u32le(4),
  flags: u32le(8),
  format: u32le(12),
});
const HEADER_MAGIC = 0xd078629a;
const HEADER_VERSION = 1;
const FLAG_HAS_ACL = 1;

export interface WriteComposefsOptions {
  /** Content of a regular file of at most {@link INLINE_LIMIT} bytes, called once for each with content. */
  readInline(inode: number): Uint8Array;
  /** fs-verity digest (SHA-256, blocks of 4096) of a larger file. */
  digestOf(inode: number): Uint8Array;
}

/** Where a node goes. */
interface Place {
  readonly offset: number;
  readonly compact: boolean;
  readonly xattrSize: number;
  /** Bytes behind inode and xattrs. */
  readonly tail: number;
  /** Whole blocks behind the metadata. */
  readonly blocks: number;
}

/**
 * The whole image, in memory: some 150 bytes an entry. A tree of a merged image: UNIMPLEMENTED for whiteouts, which format
 * version 0 does not have.
 */
export function writeComposefs(index: LayerIndex, options: WriteComposefsOptions): Uint8Array {
  const contentOf = (inode: number): Content =>
    index.size(inode) <= INLINE_LIMIT ? { bytes: options.readInline(inode) } : { digest: options.digestOf(inode) };
  const nodes = listNodes(index, contentOf);
  refuseWhiteouts(nodes, index);
  const shared = new SharedXattrs();
  for (const { xattrs } of nodes) shared.count(xattrs);
  shared.place();
  const epoch = nodes.reduce((least, node) => (isEarlier(node, least) ? node : least));

  const places: Place[] = [];
  let end = SUPERBLOCK_OFFSET + SUPERBLOCK.size;
  let dataBlocks = 0;
  for (const node of nodes) {
    const place = placeNode(node, end, epoch, shared.bodySize(node.xattrs));
    places.push(place);
    end = place.offset + inodeSize(place) + place.xattrSize + place.tail;
    dataBlocks += place.blocks;
  }
  end = alignUp(end, NID_UNIT);
  const dataStart = alignUp(end + shared.area.length, BLOCK_SIZE);
  const image = Buffer.alloc(dataStart + dataBlocks * BLOCK_SIZE);
  writeHead(image, nodes, places, epoch, end);
  let nextBlock = dataStart / BLOCK_SIZE;
  nodes.forEach((node, number) => {
    const place = places[number]!;
    const union = unionOf(node, index, place, nextBlock);
    writeInode(image, node, number, place, union);
    image.set(shared.body(node.xattrs, end % BLOCK_SIZE), place.offset + inodeSize(place));
    writeData(image, node, place, nextBlock * BLOCK_SIZE, (entry) => {
      return { nid: places[entry.node]!.offset / NID_UNIT, type: direntType(nodes[entry.node]!.mode) };
    });
    nextBlock += place.blocks;
  });
  image.set(shared.area, end);
  return image;
}

function refuseWhiteouts(nodes: readonly Node[], index: LayerIndex): void {
  for (const { inode, mode } of nodes) {
    if (inode < 0 || (mode & FileType.MASK) !== FileType.CHARACTER) continue;
    if (index.rdevMajor(inode) === 0 && index.rdevMinor(inode) === 0) {
      throw new ShaleError("UNIMPLEMENTED", "Cannot write a composefs image: the tree has whiteouts", {
        hint: "Export the whole image, not one of its layers",
      });
    }
  }
}

function writeHead(
  image: Buffer,
  nodes: readonly Node[],
  places: readonly Place[],
  epoch: Node,
  metadataEnd: number,
): void {
  const hasAcl = nodes.some(({ xattrs }) => xattrs.some(({ name }) => name.startsWith("system.posix_acl_")));
  HEADER.write(image, 0, { magic: HEADER_MAGIC, version: HEADER_VERSION, flags: hasAcl ? FLAG_HAS_ACL : 0, format: 0 });
  SUPERBLOCK.write(image, SUPERBLOCK_OFFSET, {
    magic: MAGIC,
    featureCompat: FEATURES,
    blockBits: BLOCK_BITS,
    rootNid: places[0]!.offset / NID_UNIT,
    inodeCount: BigInt(nodes.length),
    epoch: BigInt(epoch.mtimeSeconds),
    fixedNanoseconds: epoch.mtimeNanoseconds,
    blocks: image.length / BLOCK_SIZE,
    xattrBlock: Math.floor(metadataEnd / BLOCK_SIZE),
  });
}

function isEarlier(a: Node, b: Node): boolean {
  if (a.mtimeSeconds !== b.mtimeSeconds) return a.mtimeSeconds < b.mtimeSeconds;
  return a.mtimeNanoseconds < b.mtimeNanoseconds;
}

/** Where `node` goes when `end` bytes are taken. */
function placeNode(node: Node, end: number, epoch: Node, xattrSize: number): Place {
  const wanted = dataOf(node);
  let { tail, blocks } = wanted;
  const size = isType(node, FileType.DIRECTORY) ? blocks * BLOCK_SIZE + tail : node.size;
  const compact =
    node.mtimeSeconds === epoch.mtimeSeconds &&
    node.mtimeNanoseconds === epoch.mtimeNanoseconds &&
    [node.links, node.uid, node.gid].every((value) => value <= 0xffff) &&
    size <= 0xffffffff;
  const head = (compact ? INODE_COMPACT.size : INODE_EXTENDED.size) + xattrSize;
  let offset = alignUp(end, NID_UNIT);
  if (isType(node, FileType.SYMLINK)) {
    // Inode and target in one block where they fit, else the target in a block of its own.
    const total = head + tail;
    if (total >= BLOCK_SIZE) {
      blocks++;
      tail = 0;
    }
    if (Math.floor(offset / BLOCK_SIZE) !== Math.floor((offset + total - 1) / BLOCK_SIZE)) {
      offset = alignUp(offset, BLOCK_SIZE);
    }
    return { offset, compact, xattrSize, tail, blocks };
  }
  const left = BLOCK_SIZE - ((offset + head) % BLOCK_SIZE);
  if (left < tail) {
    // The tail, not the inode, must be within one block: as much padding as puts it at the beginning of the next.
    const moved = offset + alignUp(left, NID_UNIT);
    if (tail <= BLOCK_SIZE - ((moved + head) % BLOCK_SIZE)) offset = moved;
    else {
      blocks++;
      tail = 0;
      offset = alignUp(offset, BLOCK_SIZE);
    }
  }
  return { offset, compact, xattrSize, tail, blocks };
}

/** Blocks and tail of a node's data before it has a place. */
function dataOf(node: Node): { readonly tail: number; readonly blocks: number } {
  if (isType(node, FileType.DIRECTORY)) {
    const parts = splitEntries(node.entries);
    const last = sizeOfEntries(parts.at(-1)!);
    // "As a heuristic, we never inline more than half a block"
    return last > BLOCK_SIZE / 2 ? { blocks: parts.length, tail: 0 } : { blocks: parts.length - 1, tail: last };
  }
  if (node.bytes === undefined) return { blocks: 0, tail: 4 }; // the hole that stands for all of its content
  return { blocks: 0, tail: node.bytes.length };
}

function splitEntries(entries: readonly Entry[]): Entry[][] {
  const parts: Entry[][] = [[]];
  let used = 0;
  for (const entry of entries) {
    const size = DIRENT.size + entry.name.length;
    if (used + size > BLOCK_SIZE) {
      parts.push([]);
      used = 0;
    }
    parts.at(-1)!.push(entry);
    used += size;
  }
  return parts;
}

function sizeOfEntries(entries: readonly Entry[]): number {
  return entries.reduce((size, { name }) => size + DIRENT.size + name.length, 0);
}

function inodeSize({ compact }: Place): number {
  return compact ? INODE_COMPACT.size : INODE_EXTENDED.size;
}

/** The inode's union: device number, chunk format, or first block. */
function unionOf(node: Node, index: LayerIndex, place: Place, nextBlock: number): number {
  if (isType(node, FileType.CHARACTER) || isType(node, FileType.BLOCK)) {
    return node.inode < 0 ? 0 : encodeDevice(index.rdevMajor(node.inode), index.rdevMinor(node.inode));
  }
  if (node.bytes === undefined) return chunkBits(node.size) - BLOCK_BITS;
  return place.blocks > 0 ? nextBlock : 0;
}

/** log2 of the chunk that all content fits in. */
function chunkBits(size: number): number {
  let bits = BLOCK_BITS;
  while (2 ** bits < size) bits++;
  if (bits > MAX_CHUNK_BITS) {
    const limit = 2 ** MAX_CHUNK_BITS;
    throw new ShaleError(
      "RESOURCE_EXHAUSTED",
      `Cannot write a composefs image: a file of ${size} bytes, limit ${limit}`,
    );
  }
  return bits;
}

function writeInode(image: Buffer, node: Node, number: number, place: Place, union: number): void {
  const layout =
    node.bytes === undefined ? Layout.CHUNK_BASED : place.tail > 0 ? Layout.FLAT_INLINE : Layout.FLAT_PLAIN;
  const size = isType(node, FileType.DIRECTORY) ? place.blocks * BLOCK_SIZE + place.tail : node.size;
  const common = {
    format: (place.compact ? 0 : FORMAT_EXTENDED) | (layout << 1),
    xattrCount: icountOf(place.xattrSize),
    mode: node.mode,
    union,
    ino: number,
    uid: node.uid,
    gid: node.gid,
  };
  if (place.compact) {
    INODE_COMPACT.write(image, place.offset, { ...common, size, linksOrBlockHigh: node.links });
    return;
  }
  INODE_EXTENDED.write(image, place.offset, {
    ...common,
    size: BigInt(size),
    mtime: BigInt(node.mtimeSeconds),
    mtimeNanoseconds: node.mtimeNanoseconds,
    links: node.links,
  });
}

function writeData(
  image: Buffer,
  node: Node,
  place: Place,
  blockAt: number,
  entryOf: (entry: Entry) => { readonly nid: number; readonly type: number },
): void {
  const tailAt = place.offset + inodeSize(place) + place.xattrSize;
  if (isType(node, FileType.DIRECTORY)) {
    splitEntries(node.entries).forEach((part, i) => {
      writeEntries(image, part, i < place.blocks ? blockAt + i * BLOCK_SIZE : tailAt, entryOf);
    });
  } else if (node.bytes === undefined) image.writeUInt32LE(NULL_CHUNK, tailAt);
  else image.set(node.bytes, place.blocks > 0 ? blockAt : tailAt);
}

function writeEntries(
  image: Buffer,
  entries: readonly Entry[],
  at: number,
  entryOf: (entry: Entry) => { readonly nid: number; readonly type: number },
): void {
  let nameOffset = entries.length * DIRENT.size;
  entries.forEach((entry, i) => {
    const { nid, type } = entryOf(entry);
    DIRENT.write(image, at + i * DIRENT.size, { nid: BigInt(nid), nameOffset, type });
    image.write(entry.name, at + nameOffset, "latin1");
    nameOffset += entry.name.length;
  });
}

function isType(node: Node, type: number): boolean {
  return (node.mode & FileType.MASK) === type;
}
