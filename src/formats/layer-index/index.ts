/**
 * The layer index: the one in-memory shape of a file tree. Every source produces it (a tar stream, an EROFS image, a
 * TOC, a directory) and every sink consumes it (EROFS image, merged image, checkout, export): N sources + M sinks.
 *
 * A tree is inodes plus directory entries (dirents); a hard link is a second dirent of the same inode. Storage is
 * columnar (typed arrays, one arena for names), about 120 bytes an entry, so that 1,000,000 entries stay well below the
 * memory budget. Inode ids and dirent ids are dense and in order of creation; the root directory is inode 0.
 *
 * This class keeps the tree sound (parents exist, names are unique in a directory, link counts are right). It gives no
 * meaning to tar or overlay conventions: `builder.ts` does for tar, `merge.ts` for stacking layers.
 * Pure: no files, network, clock or randomness.
 */
import type { ByteString } from "../../bytes/index.ts";
import { Arena, f64Column, u8Column, u16Column, u32Column } from "./column.ts";

/** File type bits of st_mode, stat(2). */
export const FileType = {
  FIFO: 0o010000,
  CHARACTER: 0o020000,
  DIRECTORY: 0o040000,
  BLOCK: 0o060000,
  REGULAR: 0o100000,
  SYMLINK: 0o120000,
  SOCKET: 0o140000,
  MASK: 0o170000,
} as const;

/** No such inode or dirent. */
export const NONE = 0xffffffff;
export const ROOT = 0;
/** linux/limits.h NAME_MAX, bytes. */
export const NAME_MAX = 255;

/** Where the content of a regular file is. */
export const Content = {
  /** Size 0, or not a regular file. */
  EMPTY: 0,
  /** In the metadata image; `contentOffset` says where the producer of this index keeps it (spool offset, source nid). */
  INLINE: 1,
  /** One contiguous run on a device: `contentDevice` (0-based) from byte `contentOffset`, a multiple of 4096. */
  EXTENT: 2,
} as const;

export interface Xattr {
  /** Full name with its prefix, e.g. "security.capability". */
  readonly name: ByteString;
  readonly value: ByteString;
}

/** What stat(2) tells of one inode, names and content left out. `mode` has type and permission bits. */
export interface InodeAttributes {
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Whole seconds since the epoch, may be negative. */
  readonly mtimeSeconds: number;
  readonly mtimeNanoseconds: number;
  /** Content length of a regular file, target length of a symlink, else 0. */
  readonly size: number;
  readonly rdevMajor: number;
  readonly rdevMinor: number;
  readonly xattrs: readonly Xattr[];
}

const NO_XATTRS: readonly Xattr[] = [];

export class LayerIndex {
  // inode columns
  readonly #mode = u16Column();
  readonly #uid = u32Column();
  readonly #gid = u32Column();
  readonly #seconds = f64Column();
  readonly #nanoseconds = u32Column();
  readonly #size = f64Column();
  readonly #major = u32Column();
  readonly #minor = u32Column();
  readonly #links = u32Column();
  readonly #xattrSet = u32Column();
  readonly #contentKind = u8Column();
  readonly #contentDevice = u32Column();
  /** Byte offset of content; for a symlink the arena offset of its target; for a directory its first dirent. */
  readonly #place = f64Column();
  // dirent columns
  readonly #parent = u32Column();
  readonly #nameOffset = u32Column();
  readonly #nameLength = u8Column();
  readonly #target = u32Column();
  readonly #next = u32Column();

  /** Grown together, so that writing an entry needs one look at the room there is. */
  readonly #inodeColumns = [
    this.#mode,
    this.#uid,
    this.#gid,
    this.#seconds,
    this.#nanoseconds,
    this.#size,
    this.#major,
    this.#minor,
    this.#links,
    this.#xattrSet,
    this.#contentKind,
    this.#contentDevice,
    this.#place,
  ] as const;
  readonly #direntColumns = [this.#parent, this.#nameOffset, this.#nameLength, this.#target, this.#next] as const;

  readonly #names = new Arena();
  readonly #xattrSets: (readonly Xattr[])[] = [NO_XATTRS];
  readonly #xattrIds = new Map<string, number>();
  #inodes = 0;
  #dirents = 0;
  #live = 0;
  /** Open addressing over (parent, name) -> dirent + 1; 0 is free. Entries are never removed, a removed dirent's target is NONE. */
  #table = new Uint32Array(256);
  readonly #seed: number;

  /** `seed` keys the name table, so that a hostile layer can't choose colliding names; no output depends on it. */
  constructor(seed = 0) {
    this.#seed = seed;
  }

  /** Number of inodes ever added; ids are 0..inodeCount-1. Some may have no link left. */
  get inodeCount(): number {
    return this.#inodes;
  }

  /** Number of dirent ids; a removed one has `direntInode` NONE. */
  get direntCount(): number {
    return this.#dirents;
  }

  /** Dirents that are not removed (the root has none). */
  get liveDirentCount(): number {
    return this.#live;
  }

  /** Adds an inode that no dirent names yet. The first one must be the root directory. A directory's links start at 2. */
  addInode(attributes: InodeAttributes, symlinkTarget?: ByteString): number {
    const inode = this.#inodes++;
    if (inode >= this.#mode.values.length) for (const column of this.#inodeColumns) column.reserve(inode + 1);
    this.#contentKind.values[inode] = Content.EMPTY;
    this.#contentDevice.values[inode] = 0;
    this.#links.values[inode] = (attributes.mode & FileType.MASK) === FileType.DIRECTORY ? 2 : 0;
    this.#place.values[inode] = symlinkTarget === undefined ? NONE : this.#names.append(symlinkTarget);
    this.setAttributes(inode, attributes);
    return inode;
  }

  /** Replaces the attributes of an inode; its file type must stay. */
  setAttributes(inode: number, attributes: InodeAttributes): void {
    this.#mode.values[inode] = attributes.mode;
    this.#uid.values[inode] = attributes.uid;
    this.#gid.values[inode] = attributes.gid;
    this.#seconds.values[inode] = attributes.mtimeSeconds;
    this.#nanoseconds.values[inode] = attributes.mtimeNanoseconds;
    this.#size.values[inode] = attributes.size;
    this.#major.values[inode] = attributes.rdevMajor;
    this.#minor.values[inode] = attributes.rdevMinor;
    this.#xattrSet.values[inode] = this.#internXattrs(attributes.xattrs);
  }

  setXattrs(inode: number, xattrs: readonly Xattr[]): void {
    this.#xattrSet.values[inode] = this.#internXattrs(xattrs);
  }

  setContent(inode: number, kind: number, device: number, offset: number): void {
    this.#contentKind.values[inode] = kind;
    this.#contentDevice.values[inode] = device;
    this.#place.values[inode] = offset;
  }

  /** Names `inode` as `name` in `parent`. The name must be free there (`find` gives NONE). Returns the dirent. */
  addDirent(parent: number, name: ByteString, inode: number): number {
    if (name.length === 0 || name.length > NAME_MAX) throw new RangeError(`a name of ${name.length} bytes`);
    const dirent = this.#dirents++;
    if (dirent >= this.#parent.values.length) for (const column of this.#direntColumns) column.reserve(dirent + 1);
    this.#parent.values[dirent] = parent;
    this.#nameOffset.values[dirent] = this.#names.append(name);
    this.#nameLength.values[dirent] = name.length;
    this.#target.values[dirent] = inode;
    this.#next.values[dirent] = this.#place.values[parent]!;
    this.#place.values[parent] = dirent;
    this.#countLink(parent, inode, 1);
    this.#insert(dirent);
    this.#live++;
    return dirent;
  }

  /** Makes an existing dirent name another inode; the old one loses a link. */
  retarget(dirent: number, inode: number): void {
    const parent = this.#parent.values[dirent]!;
    this.#countLink(parent, this.#target.values[dirent]!, -1);
    this.#target.values[dirent] = inode;
    this.#countLink(parent, inode, 1);
  }

  /** Removes a dirent and, when it names a directory, everything below. Inodes stay, with their links counted down. */
  remove(dirent: number): void {
    const pending = [dirent];
    for (let one = pending.pop(); one !== undefined; one = pending.pop()) {
      const inode = this.#target.values[one]!;
      if (inode === NONE) continue;
      if (this.isDirectory(inode)) for (const child of this.dirents(inode)) pending.push(child);
      this.#countLink(this.#parent.values[one]!, inode, -1);
      this.#target.values[one] = NONE;
      this.#live--;
    }
  }

  /** Removes everything in a directory, not the directory. */
  clear(directory: number): void {
    for (const child of [...this.dirents(directory)]) this.remove(child);
  }

  /** The dirent called `name` in `parent`, or NONE. */
  find(parent: number, name: ByteString): number {
    const table = this.#table;
    const mask = table.length - 1;
    for (let slot = hashName(this.#seed, parent, name) & mask; ; slot = (slot + 1) & mask) {
      const dirent = table[slot]! - 1;
      if (dirent < 0) return NONE;
      if (this.#isNamed(dirent, parent, name) && this.#target.values[dirent] !== NONE) return dirent;
    }
  }

  /** The inode called `name` in `parent`, or NONE. */
  findInode(parent: number, name: ByteString): number {
    const dirent = this.find(parent, name);
    return dirent === NONE ? NONE : this.#target.values[dirent]!;
  }

  /** Dirents of a directory, newest first. */
  *dirents(directory: number): Generator<number> {
    for (let one = this.#place.values[directory]!; one !== NONE; one = this.#next.values[one]!) {
      if (this.#target.values[one] !== NONE) yield one;
    }
  }

  /** Dirents of a directory in byte order of their names. */
  sortedDirents(directory: number): Uint32Array {
    let count = 0;
    for (let one = this.#place.values[directory]!; one !== NONE; one = this.#next.values[one]!) {
      if (this.#target.values[one] !== NONE) count++;
    }
    const list = new Uint32Array(count);
    this.sortDirents(directory, list, 0);
    return list;
  }

  /** As `sortedDirents`, into `list` from `start` on, which has the room. Returns how many. */
  sortDirents(directory: number, list: Uint32Array, start: number): number {
    const names = this.#names;
    const offset = this.#nameOffset.values;
    const length = this.#nameLength.values;
    let end = start;
    for (let one = this.#place.values[directory]!; one !== NONE; one = this.#next.values[one]!) {
      if (this.#target.values[one] !== NONE) list[end++] = one;
    }
    // Newest first; most sources come in order of names.
    for (let a = start, b = end - 1; a < b; a++, b--) {
      const one = list[a]!;
      list[a] = list[b]!;
      list[b] = one;
    }
    const compare = (a: number, b: number) => names.compare(offset[a]!, length[a]!, offset[b]!, length[b]!);
    for (let at = start + 1; at < end; at++) {
      if (compare(list[at - 1]!, list[at]!) < 0) continue;
      list.subarray(start, end).sort(compare);
      break;
    }
    return end - start;
  }

  direntParent(dirent: number): number {
    return this.#parent.values[dirent]!;
  }
  direntInode(dirent: number): number {
    return this.#target.values[dirent]!;
  }
  direntName(dirent: number): ByteString {
    return this.#names.text(this.#nameOffset.values[dirent]!, this.#nameLength.values[dirent]!);
  }
  direntNameLength(dirent: number): number {
    return this.#nameLength.values[dirent]!;
  }
  /** Byte `at` of a name, below its length. */
  direntNameByte(dirent: number, at: number): number {
    return this.#names.bytes[this.#nameOffset.values[dirent]! + at]!;
  }
  /** Writes the name's bytes to `target` from `at` on. */
  copyDirentName(dirent: number, target: Uint8Array, at: number): void {
    this.#names.copy(this.#nameOffset.values[dirent]!, this.#nameLength.values[dirent]!, target, at);
  }

  mode(inode: number): number {
    return this.#mode.values[inode]!;
  }
  type(inode: number): number {
    return this.#mode.values[inode]! & FileType.MASK;
  }
  isDirectory(inode: number): boolean {
    return (this.#mode.values[inode]! & FileType.MASK) === FileType.DIRECTORY;
  }
  uid(inode: number): number {
    return this.#uid.values[inode]!;
  }
  gid(inode: number): number {
    return this.#gid.values[inode]!;
  }
  mtimeSeconds(inode: number): number {
    return this.#seconds.values[inode]!;
  }
  mtimeNanoseconds(inode: number): number {
    return this.#nanoseconds.values[inode]!;
  }
  size(inode: number): number {
    return this.#size.values[inode]!;
  }
  rdevMajor(inode: number): number {
    return this.#major.values[inode]!;
  }
  rdevMinor(inode: number): number {
    return this.#minor.values[inode]!;
  }
  /** Hard links of a file; 2 + subdirectories for a directory; 0 for an inode that nothing names any more. */
  links(inode: number): number {
    return this.#links.values[inode]!;
  }
  contentKind(inode: number): number {
    return this.#contentKind.values[inode]!;
  }
  contentDevice(inode: number): number {
    return this.#contentDevice.values[inode]!;
  }
  contentOffset(inode: number): number {
    return this.#place.values[inode]!;
  }
  symlinkTarget(inode: number): ByteString {
    return this.#names.text(this.#place.values[inode]!, this.#size.values[inode]!);
  }
  /** Sorted by name; the same array object for equal sets, so that `xattrSetId` can be compared. */
  xattrs(inode: number): readonly Xattr[] {
    return this.#xattrSets[this.#xattrSet.values[inode]!]!;
  }
  xattrSetId(inode: number): number {
    return this.#xattrSet.values[inode]!;
  }
  attributes(inode: number): InodeAttributes {
    return {
      mode: this.mode(inode),
      uid: this.uid(inode),
      gid: this.gid(inode),
      mtimeSeconds: this.mtimeSeconds(inode),
      mtimeNanoseconds: this.mtimeNanoseconds(inode),
      size: this.size(inode),
      rdevMajor: this.rdevMajor(inode),
      rdevMinor: this.rdevMinor(inode),
      xattrs: this.xattrs(inode),
    };
  }

  #countLink(parent: number, inode: number, by: 1 | -1): void {
    const links = this.#links.values;
    if (this.isDirectory(inode))
      links[parent]! += by; // the child's ".."; its own 2 stay
    else links[inode]! += by;
  }

  #internXattrs(xattrs: readonly Xattr[]): number {
    if (xattrs.length === 0) return 0;
    const sorted = [...xattrs].sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
    const key = sorted.map((x) => `${x.name.length}:${x.name}${x.value.length}:${x.value}`).join("");
    let id = this.#xattrIds.get(key);
    if (id === undefined) {
      id = this.#xattrSets.push(sorted) - 1;
      this.#xattrIds.set(key, id);
    }
    return id;
  }

  #isNamed(dirent: number, parent: number, name: ByteString): boolean {
    return (
      this.#parent.values[dirent] === parent &&
      this.#nameLength.values[dirent] === name.length &&
      this.#names.equals(this.#nameOffset.values[dirent]!, name)
    );
  }

  #insert(dirent: number): void {
    if (this.#dirents * 2 > this.#table.length) {
      this.#table = new Uint32Array(this.#table.length * 2);
      for (let one = 0; one < dirent; one++) this.#fill(one);
    }
    this.#fill(dirent);
  }

  #fill(dirent: number): void {
    const table = this.#table;
    const mask = table.length - 1;
    const offset = this.#nameOffset.values[dirent]!;
    const hash = hashBytes(
      this.#seed,
      this.#parent.values[dirent]!,
      this.#names.bytes,
      offset,
      offset + this.#nameLength.values[dirent]!,
    );
    let slot = hash & mask;
    while (table[slot] !== 0) slot = (slot + 1) & mask;
    table[slot] = dirent + 1;
  }
}

/** Murmur-like mixing over the seed, the parent id and the name. */
function hashName(seed: number, parent: number, name: ByteString): number {
  let h = startHash(seed, parent);
  for (let i = 0; i < name.length; i++) h = mix(seed, h, name.charCodeAt(i));
  return finishHash(h);
}

/** The same of a name that lies in `bytes`. */
function hashBytes(seed: number, parent: number, bytes: Uint8Array, from: number, end: number): number {
  let h = startHash(seed, parent);
  for (let i = from; i < end; i++) h = mix(seed, h, bytes[i]!);
  return finishHash(h);
}

function startHash(seed: number, parent: number): number {
  return Math.imul(seed ^ Math.imul(parent, 0x9e3779b1), 0x85ebca6b);
}

function mix(seed: number, hash: number, byte: number): number {
  const h = Math.imul(hash ^ byte, 0xcc9e2d51);
  return ((h << 13) | (h >>> 19)) ^ seed;
}

function finishHash(hash: number): number {
  let h = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}
