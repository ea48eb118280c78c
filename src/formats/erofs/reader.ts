import { type ByteSource, type ByteString, byteString, displayBytes } from "../../bytes/index.ts";
import { ShaleError } from "../../errors/index.ts";
import { FileType, type Xattr } from "../layer-index/index.ts";
import { DirectoryBlock, type ErofsEntry } from "./directory-block.ts";
import { DirectoryGuard } from "./directory-guard.ts";
import { CHUNK_INDEX, ChunkFormat, FeatureCompat, FeatureIncompat, fail, Layout, XATTR_HEADER } from "./format.ts";
import { decodeInode, type ErofsInode } from "./inode.ts";
import { Metadata } from "./metadata.ts";
import { decodeSuperblock, type ErofsDeviceSlot, type ErofsSuperblock, readDevices } from "./superblock.ts";
import { decodeXattr, type LongPrefix } from "./xattr.ts";

/** In {@link ErofsExtent}: the image itself, and a range of zeros that is nowhere. */
export const PRIMARY = -1;
export const HOLE = -2;

export interface ErofsExtent {
  /** 0-based position in `devices`, or PRIMARY or HOLE. */
  readonly device: number;
  readonly offset: number;
  readonly length: number;
}

export interface ErofsWalkEntry {
  /** Relative to the root, without a leading slash; "" for the root itself. */
  readonly path: ByteString;
  readonly inode: ErofsInode;
}

const PIECE_SIZE = 1 << 20;
const NO_XATTRS: readonly Xattr[] = [];
/** Content in the image up to this comes through the cache of metadata: it lies beside the inodes. */
const SMALL_SIZE = 4096;
/** PATH_MAX: the kernel takes no longer target, nor do we. */
const MAX_LINK_SIZE = 4096;
/** As the kernel, MAXSYMLINKS. */
const MAX_LINKS = 40;
/** Of a path while it is walked or resolved: far beyond what a system call takes, and a bound for damaged images. */
const MAX_PATH = 1 << 20;

/**
 * Reads EROFS images: ours, and uncompressed ones of mkfs.erofs (block sizes 512..4096, compact inodes, chunk indexes,
 * shared xattrs, long xattr prefixes, 48-bit addresses, flattened devices).
 *
 * Bytes are not trusted: whatever they are, a call returns or throws FormatError (UNIMPLEMENTED for compression and
 * unknown features), in time and memory bounded by the image's size and the arguments. Holds at most 4 MiB of cache.
 * Wrong but well-formed content goes unnoticed, except in superblock and device table, which have checksums.
 */
export class ErofsReader {
  readonly superblock: ErofsSuperblock;
  readonly devices: readonly ErofsDeviceSlot[];
  readonly #image: ByteSource;
  readonly #metadata: Metadata;
  readonly #unlinked: readonly number[];
  readonly #openDevice: ((tag: string, index: number) => ByteSource) | undefined;
  readonly #opened: (ByteSource | undefined)[] = [];
  /** Devices that have a place in the unified space, by that place. */
  readonly #byBlock: readonly { readonly device: number; readonly first: number; readonly end: number }[];
  #longPrefixes: readonly LongPrefix[] | undefined;

  /**
   * `openDevice` is called at most once per device, when its bytes are first read. Without it only flattened images
   * (devices appended to the image) have their content; metadata is always there.
   */
  constructor(image: ByteSource, openDevice?: (tag: string, index: number) => ByteSource) {
    this.#image = image;
    this.superblock = decodeSuperblock(image);
    const { devices, unlinked } = readDevices(image, this.superblock);
    this.devices = devices;
    this.#unlinked = unlinked;
    this.#metadata = new Metadata(image);
    this.#openDevice = openDevice;
    this.#byBlock = devices
      .map(({ firstBlock, blocks }, device) => ({ device, first: firstBlock, end: firstBlock + blocks }))
      .filter(({ first, end }) => first > 0 && end > first)
      .sort((a, b) => a.first - b.first);
  }

  get rootNid(): number {
    return this.superblock.rootNid;
  }

  inode(nid: number): ErofsInode {
    return decodeInode(this.#metadata, this.superblock, nid);
  }

  /** FormatError when it is no directory. */
  get root(): ErofsInode {
    const root = this.inode(this.rootNid);
    if ((root.mode & FileType.MASK) !== FileType.DIRECTORY) throw fail("root", `inode ${root.nid} is no directory`);
    return root;
  }

  /** Inodes that were written though nothing names them (`keepUnlinked`), in inode order. */
  unlinked(): readonly number[] {
    return this.#unlinked;
  }

  xattrs(inode: ErofsInode): readonly Xattr[] {
    if (inode.xattrSize === 0) return NO_XATTRS;
    const area = this.#metadata.bytes("xattrs", inode.xattrOffset, inode.xattrSize);
    const { sharedCount } = XATTR_HEADER.read(area);
    const list: Xattr[] = [];
    let at = XATTR_HEADER.size + 4 * sharedCount;
    if (at > area.length) throw fail("xattrs", `${sharedCount} shared ids do not fit`, inode.xattrOffset);
    const ids = new DataView(area.buffer, area.byteOffset, area.byteLength);
    for (let i = 0; i < sharedCount; i++) list.push(this.#sharedXattr(ids.getUint32(XATTR_HEADER.size + 4 * i, true)));
    while (at < area.length) {
      const { xattr, next } = decodeXattr(area, at, this.#prefixes(), inode.xattrOffset);
      list.push(xattr);
      at = next;
    }
    return list;
  }

  /** Entries in byte order of their names, without "." and "..". */
  *directory(inode: ErofsInode): Generator<ErofsEntry> {
    let previous: ByteString | undefined;
    const count = this.#directoryBlocks(inode);
    for (let number = 0; number < count; number++) {
      const block = this.#directoryBlock(inode, number);
      for (let i = 0; i < block.count; i++) {
        const entry = block.entry(i);
        if (previous !== undefined && !(previous < entry.name)) {
          throw fail("directory", `inode ${inode.nid}: ${displayBytes(entry.name)} is out of order`);
        }
        previous = entry.name;
        if (entry.name !== "." && entry.name !== "..") yield entry;
      }
    }
  }

  /** Finds a name as the kernel does, by bisection over blocks and then entries. */
  lookup(directory: ErofsInode, name: ByteString): ErofsEntry | undefined {
    let low = 0;
    let high = this.#directoryBlocks(directory) - 1;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (this.#directoryBlock(directory, middle).entry(0).name <= name) low = middle;
      else high = middle - 1;
    }
    if (high < 0) return undefined;
    const block = this.#directoryBlock(directory, low);
    let first = 0;
    let last = block.count - 1;
    while (first <= last) {
      const middle = (first + last) >> 1;
      const entry = block.entry(middle);
      if (entry.name === name) return entry;
      if (entry.name < name) first = middle + 1;
      else last = middle - 1;
    }
    return undefined;
  }

  /**
   * The inode at `path`, absolute or relative to the root; ".." stays at the root. A symlink in the last place is
   * followed unless `followSymlinks` is false. NOT_FOUND; FAILED_PRECONDITION for a component that is no directory or a
   * chain of over 40 links.
   */
  resolve(path: ByteString, options: { readonly followSymlinks?: boolean } = {}): ErofsInode {
    const follow = options.followSymlinks ?? true;
    const stack = [this.root];
    const pending = path.split("/").reverse();
    let links = 0;
    let length = path.length;
    const refuse = (problem: string) =>
      new ShaleError("FAILED_PRECONDITION", `Cannot open ${displayBytes(path.slice(0, MAX_LINK_SIZE))}: ${problem}`);
    for (let name = pending.pop(); name !== undefined; name = pending.pop()) {
      const here = stack.at(-1)!;
      if ((here.mode & FileType.MASK) !== FileType.DIRECTORY) throw refuse("a component is not a directory");
      if (name === "" || name === ".") continue;
      if (name === "..") {
        if (stack.length > 1) stack.pop();
        continue;
      }
      const entry = this.lookup(here, name);
      if (!entry) throw new ShaleError("NOT_FOUND", `Cannot open ${displayBytes(path)}: no such file`);
      const inode = this.inode(entry.nid);
      if ((inode.mode & FileType.MASK) === FileType.SYMLINK && (follow || pending.length > 0)) {
        if (++links > MAX_LINKS) throw refuse(`more than ${MAX_LINKS} symbolic links`);
        const target = this.readlink(inode);
        length += target.length;
        if (length > MAX_PATH) throw refuse(`more than ${MAX_PATH} bytes of path`);
        if (target.startsWith("/")) stack.length = 1;
        for (const part of target.split("/").reverse()) pending.push(part);
      } else stack.push(inode);
    }
    return stack.at(-1)!;
  }

  readlink(inode: ErofsInode): ByteString {
    if ((inode.mode & FileType.MASK) !== FileType.SYMLINK) throw new RangeError(`inode ${inode.nid} is no symlink`);
    if (inode.size > MAX_LINK_SIZE) throw fail("symlink", `inode ${inode.nid}: a target of ${inode.size} bytes`);
    return byteString(this.read(inode, 0, inode.size));
  }

  /** Where the bytes of a file are, in order and without gaps. Adjacent chunks are one extent. */
  extents(inode: ErofsInode): Iterable<ErofsExtent> {
    return inode.layout === Layout.CHUNK_BASED ? this.#chunkExtents(inode) : this.#mapFlat(inode, 0, inode.size);
  }

  *#chunkExtents(inode: ErofsInode): Generator<ErofsExtent> {
    let last: ErofsExtent | undefined;
    for (const part of this.#mapChunks(inode, 0, inode.size)) {
      const joins = last?.device === part.device && (part.device === HOLE || last.offset + last.length === part.offset);
      if (last && joins) last = { ...last, length: last.length + part.length };
      else {
        if (last) yield last;
        last = part;
      }
    }
    if (last) yield last;
  }

  /**
   * Up to `length` bytes from `offset`; fewer only at the end of the file. Allocates no more than it returns, and may
   * return a view of the cache: callers don't write to it.
   */
  read(inode: ErofsInode, offset: number, length: number): Uint8Array {
    const end = Math.min(inode.size, offset + length);
    if (offset >= end) return new Uint8Array(0);
    // All before the allocation: a lying size fails here.
    const parts =
      inode.layout === Layout.CHUNK_BASED
        ? [...this.#mapChunks(inode, offset, end)]
        : this.#mapFlat(inode, offset, end);
    if (parts.length === 1 && parts[0]!.device !== HOLE) return this.#readExtent(parts[0]!);
    const result = new Uint8Array(end - offset);
    let done = 0;
    for (const part of parts) {
      if (part.device !== HOLE) result.set(this.#readExtent(part), done);
      done += part.length;
    }
    return result;
  }

  /** The whole content in pieces of at most 1 MiB. */
  *content(inode: ErofsInode): Generator<Uint8Array> {
    for (let offset = 0; offset < inode.size; offset += PIECE_SIZE) yield this.read(inode, offset, PIECE_SIZE);
  }

  /**
   * Everything below the root, the root first, a directory before its entries, those in byte order; a hard link once
   * per name.
   */
  *walk(): Generator<ErofsWalkEntry> {
    const guard = new DirectoryGuard(this);
    const root = this.root;
    yield { path: "", inode: root };
    const open = [{ prefix: "", entries: guard.open(root) }];
    for (let here = open.at(-1); here !== undefined; here = open.at(-1)) {
      const next = here.entries.next();
      if (next.done) {
        open.pop();
        continue;
      }
      const inode = this.inode(next.value.nid);
      const path = here.prefix + next.value.name;
      yield { path, inode };
      if ((inode.mode & FileType.MASK) !== FileType.DIRECTORY) continue;
      if (path.length > MAX_PATH) throw fail("directory", `inode ${inode.nid}: nested over ${MAX_PATH} bytes deep`);
      open.push({ prefix: `${path}/`, entries: guard.open(inode) });
    }
  }

  #directoryBlocks(inode: ErofsInode): number {
    if ((inode.mode & FileType.MASK) !== FileType.DIRECTORY) throw new RangeError(`inode ${inode.nid} is no directory`);
    if (inode.size > this.#image.size) throw fail("directory", `inode ${inode.nid}: larger than the image`);
    return Math.ceil(inode.size / this.superblock.blockSize);
  }

  #directoryBlock(inode: ErofsInode, number: number): DirectoryBlock {
    const { blockSize } = this.superblock;
    const offset = number * blockSize;
    const length = Math.min(blockSize, inode.size - offset);
    const [part, ...more] = this.#map(inode, offset, offset + length);
    if (!part || more.length > 0 || part.device === HOLE) throw fail("directory", `inode ${inode.nid}: a split block`);
    const bytes =
      part.device === PRIMARY ? this.#metadata.bytes("directory", part.offset, part.length) : this.#readExtent(part);
    return new DirectoryBlock(bytes, inode.nid);
  }

  /** Splits `from`..`to` of a file (within its size) into extents, checked against image and devices. */
  #map(inode: ErofsInode, from: number, to: number): Iterable<ErofsExtent> {
    return inode.layout === Layout.CHUNK_BASED ? this.#mapChunks(inode, from, to) : this.#mapFlat(inode, from, to);
  }

  #mapFlat(inode: ErofsInode, from: number, to: number): readonly ErofsExtent[] {
    const { blockSize } = this.superblock;
    const extents: ErofsExtent[] = [];
    const tail = inode.layout === Layout.FLAT_INLINE ? inode.size % blockSize : 0;
    const blocksEnd = inode.size - tail;
    if (from < blocksEnd) {
      const length = Math.min(to, blocksEnd) - from;
      if (inode.startBlock < 0) extents.push({ device: HOLE, offset: 0, length });
      else {
        // The whole file has to be where it begins, not only the part asked for.
        const { device, offset } = this.#unified(inode.startBlock, blocksEnd, inode.nid);
        extents.push({ device, offset: offset + from, length });
      }
    }
    if (to > blocksEnd) {
      const tailOffset = inode.xattrOffset + inode.xattrSize;
      if ((tailOffset % blockSize) + tail > blockSize) throw fail("inline data", "crosses a block edge", tailOffset);
      const skip = Math.max(0, from - blocksEnd);
      this.#metadata.check("inline data", tailOffset, tail);
      extents.push({ device: PRIMARY, offset: tailOffset + skip, length: to - blocksEnd - skip });
    }
    return extents;
  }

  *#mapChunks(inode: ErofsInode, from: number, to: number): Generator<ErofsExtent> {
    const { blockSize } = this.superblock;
    const indexes = (inode.chunkFormat & ChunkFormat.INDEXES) !== 0;
    const wide = (inode.chunkFormat & ChunkFormat.BITS_48) !== 0;
    const unit = indexes ? CHUNK_INDEX.size : 4;
    const chunkSize = blockSize * 2 ** (inode.chunkFormat & ChunkFormat.BITS_MASK);
    const table = Math.ceil((inode.xattrOffset + inode.xattrSize) / unit) * unit;
    this.#metadata.check("chunk table", table, Math.ceil(inode.size / chunkSize) * unit);
    for (let at = from; at < to; ) {
      const chunk = Math.floor(at / chunkSize);
      const begin = chunk * chunkSize;
      const length = Math.min(to, begin + chunkSize) - at;
      const position = this.#metadata.locate("chunk table", table + chunk * unit, unit);
      const { view } = this.#metadata;
      const needed = Math.min(chunkSize, inode.size - begin);
      let place: { readonly device: number; readonly offset: number } | undefined;
      if (indexes) {
        const { block, blockHigh, device } = CHUNK_INDEX.fields;
        const high = wide ? blockHigh.get(view, position + blockHigh.offset) : 0;
        const low = block.get(view, position + block.offset);
        const none = low === 0xffffffff && (!wide || high === 0xffff);
        const number = device.get(view, position + device.offset);
        if (!none) place = this.#onDevice(number, high * 2 ** 32 + low, needed, inode.nid);
      } else {
        const block = view.getUint32(position, true);
        if (block !== 0xffffffff) place = this.#unified(block, needed, inode.nid);
      }
      yield place
        ? { device: place.device, offset: place.offset + (at - begin), length }
        : { device: HOLE, offset: 0, length };
      at += length;
    }
  }

  /** The place of `length` bytes from a block of the unified space. */
  #unified(block: number, length: number, nid: number): { readonly device: number; readonly offset: number } {
    let low = 0;
    let high = this.#byBlock.length - 1;
    while (low <= high) {
      const middle = (low + high) >> 1;
      const slot = this.#byBlock[middle]!;
      if (block < slot.first) high = middle - 1;
      else if (block >= slot.end) low = middle + 1;
      else return this.#onDevice(slot.device + 1, block - slot.first, length, nid);
    }
    return this.#onDevice(0, block, length, nid);
  }

  /** `number` counts devices from 1; 0 is the image. */
  #onDevice(number: number, block: number, length: number, nid: number) {
    const { blockSize } = this.superblock;
    const offset = block * blockSize;
    if (number === 0) {
      this.#metadata.check(`content of inode ${nid}`, offset, length);
      return { device: PRIMARY, offset };
    }
    const slot = this.devices[number - 1];
    // mkfs.erofs 1.5 leaves the length of a device 0: its file's then decides, when it is read
    if (!slot || (slot.blocks > 0 && offset + length > slot.blocks * blockSize)) {
      throw fail("content", `inode ${nid}: blocks from ${block} are not on device ${number} of ${this.devices.length}`);
    }
    return { device: number - 1, offset };
  }

  #readExtent({ device, offset, length }: ErofsExtent): Uint8Array {
    if (device === PRIMARY) {
      return length <= SMALL_SIZE ? this.#metadata.bytes("content", offset, length) : this.#image.read(offset, length);
    }
    const slot = this.devices[device]!;
    if (!this.#openDevice) {
      const flat = slot.firstBlock * this.superblock.blockSize + offset;
      if (slot.firstBlock === 0 || flat + length > this.#image.size) {
        throw new ShaleError("FAILED_PRECONDITION", `Cannot read device ${slot.tag}: the image was opened without it`);
      }
      return this.#image.read(flat, length);
    }
    this.#opened[device] ??= this.#openDevice(slot.tag, device);
    const source = this.#opened[device]!;
    if (offset + length > source.size) {
      const problem = `bytes ${offset}..${offset + length} are needed, it has ${source.size}`;
      throw new ShaleError("DATA_LOSS", `Cannot read device ${slot.tag}: ${problem}`);
    }
    return source.read(offset, length);
  }

  #sharedXattr(id: number): Xattr {
    const offset = this.superblock.sharedXattrOffset + 4 * id;
    const head = this.#metadata.bytes("shared xattr", offset, 4);
    const length = 4 + head[0]! + head[2]! + head[3]! * 256;
    return decodeXattr(this.#metadata.bytes("shared xattr", offset, length), 0, this.#prefixes(), offset).xattr;
  }

  /** struct erofs_xattr_long_prefix, each after its u16 length: base index and infix. */
  #prefixes(): readonly LongPrefix[] {
    if (this.#longPrefixes) return this.#longPrefixes;
    const { xattrPrefixCount, featureIncompat, featureCompat } = this.superblock;
    const packed =
      (featureIncompat & FeatureIncompat.FRAGMENTS) !== 0 && (featureCompat & FeatureCompat.PLAIN_XATTR_PREFIXES) === 0;
    if (packed && xattrPrefixCount > 0) {
      throw new ShaleError("UNIMPLEMENTED", "Cannot read erofs image: its xattr prefixes are in the packed inode");
    }
    const list: LongPrefix[] = [];
    let at = this.superblock.xattrPrefixOffset;
    for (let i = 0; i < xattrPrefixCount; i++) {
      const head = this.#metadata.bytes("xattr prefix", at, 2);
      const length = head[0]! + head[1]! * 256;
      if (length < 1) throw fail("xattr prefix", "is empty", at);
      const body = this.#metadata.bytes("xattr prefix", at + 2, length);
      list.push({ base: body[0]!, infix: byteString(body.subarray(1)) });
      at = Math.ceil((at + 2 + length) / 4) * 4;
    }
    this.#longPrefixes = list;
    return list;
  }
}
