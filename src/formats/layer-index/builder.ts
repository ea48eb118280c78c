/**
 * Gives tar entries their meaning for an OCI layer and puts them into a `LayerIndex`. OCI image specification, layer.md;
 * where it is silent, what containerd and podman do when they unpack, if that is safe.
 *
 * Nothing can land outside the tree, since the tree is all there is; the rules below say where things land inside.
 *
 * | in the tar | meaning |
 * |---|---|
 * | `./a`, `/a`, `a//b`, `a/` | relative to the root, as if written plainly; `.` sets the attributes of the root |
 * | `a/../b` | `b`, by text; a `..` that would leave the root is refused |
 * | no entry for a directory | made with 0755, owner 0:0, mtime 0 and marked as implied (see overlay.ts), until its own entry comes |
 * | a path through a symlink of this layer | goes where the symlink points, never above the root, at most 40 symlinks; what is missing there is made |
 * | a path through any other file | refused |
 * | a name again | the last entry counts; a directory over a directory keeps what is in it, anything else replaces the whole tree |
 * | hard link | another name of the inode that its target names at that point; else of the one that it names at the end; its own attributes do not count |
 * | hard link to nothing in this layer, to a directory, in a circle | refused |
 * | `.wh.NAME` | whiteout: hides NAME of lower layers. With an entry NAME in this layer, before or after, the entry shows; if that is a directory it becomes opaque |
 * | `.wh..wh..opq` | the directory is opaque: hides what lower layers have in it |
 * | other `.wh..wh.*` | AUFS leftovers: left out with a notice; hard links into `.wh..wh.plnk` work |
 * | a path below `.wh.NAME`, a whiteout of `.`, `..` or nothing | refused |
 * | character device 0:0 | left out with a notice: overlayfs would take it for a whiteout |
 * | xattrs `trusted.overlay.*`, `user.overlay.*` | left out with a notice: they would steer overlayfs |
 * | xattrs that EROFS can't store, PAX records that say what a layer can't | left out with a notice |
 *
 * An inode that lost its name to a later entry stays in the index with no links: its payload is part of the tar.
 */
import type { ByteString } from "../../bytes/index.ts";
import { displayBytes } from "../../bytes/index.ts";
import type { ErrorCode, FormatError } from "../../errors/index.ts";
import { type TarEntry, tarError } from "../tar/index.ts";
import { u8Column } from "./column.ts";
import { HardLinks } from "./hard-links.ts";
import { FileType, type InodeAttributes, LayerIndex, NAME_MAX, NONE, ROOT } from "./index.ts";
import { type LayerNotice, type NoticeKind, Notices } from "./notices.ts";
import { IMPLIED_XATTR, isWhiteout, OPAQUE_XATTR, ORIGIN_XATTR } from "./overlay.ts";
import { attributesOf } from "./tar-attributes.ts";
import { cleanPath, type PathError, TreeWalker } from "./tree-walker.ts";

export type { LayerNotice, NoticeKind } from "./notices.ts";

export interface LayerIndexLimits {
  /** Inodes of one layer, implied directories included. Bounds memory at about 120 bytes each. */
  readonly entries: number;
  /** Bytes of all names and symlink targets. */
  readonly nameBytes: number;
  /** Bytes of all distinct sets of xattrs, and 256 for each set. */
  readonly xattrBytes: number;
  /** Bytes of the paths of hard links that come before their targets. */
  readonly forwardLinkBytes: number;
  /** Notices that are kept; the rest is counted. */
  readonly notices: number;
}

export const DEFAULT_LAYER_INDEX_LIMITS: LayerIndexLimits = {
  entries: 4_000_000,
  nameBytes: 256 * 1024 ** 2,
  xattrBytes: 128 * 1024 ** 2,
  forwardLinkBytes: 64 * 1024 ** 2,
  notices: 1000,
};

/** What an ingest does with the payload of an entry. */
export interface AddedEntry {
  /**
   * The inode of the entry; every file with content has one, also when no name shows it. NONE for an entry that has no
   * inode of its own (a hard link, a whiteout) and therefore no payload.
   */
  readonly inode: number;
}

export interface BuiltLayer {
  readonly index: LayerIndex;
  /** What was left out or could not be kept, in the order of the tar. */
  readonly notices: readonly LayerNotice[];
}

const WHITEOUT_PREFIX = ".wh.";
const AUFS_PREFIX = ".wh..wh.";
const OPAQUE_NAME = ".wh..wh..opq";
const AUFS_LINKS = ".wh..wh.plnk";

/** About what the objects of one set take. */
const XATTR_SET_BYTES = 256;

/** Flags of a directory. */
const IMPLIED = 1;
const OPAQUE = 2;
const HOLDS_WHITEOUTS = 4;

const IMPLIED_DIRECTORY: InodeAttributes = {
  mode: FileType.DIRECTORY | 0o755,
  uid: 0,
  gid: 0,
  mtimeSeconds: 0,
  mtimeNanoseconds: 0,
  size: 0,
  rdevMajor: 0,
  rdevMinor: 0,
  xattrs: [],
};
const WHITEOUT: InodeAttributes = { ...IMPLIED_DIRECTORY, mode: FileType.CHARACTER };

export class LayerIndexBuilder {
  /** The tree so far; sound at any time. An ingest sets the content of the inodes that `add` gave it. */
  readonly index: LayerIndex;
  readonly #limits: LayerIndexLimits;
  readonly #notices: Notices;
  readonly #walker: TreeWalker;
  readonly #links: HardLinks;
  /** By inode. */
  readonly #flags = u8Column();
  /** Files of `.wh..wh.plnk`, by name: AUFS kept hard-linked files there. */
  readonly #aufsLinks = new Map<ByteString, number>();
  /** Text of the last entry's parent path and its inode: most entries share it with the entry before. */
  #parentText: ByteString | undefined;
  #parentInode = NONE;
  #nameBytes = 0;
  #xattrBytes = 0;
  #xattrSets = 0;
  #entry: TarEntry | undefined;
  #finished = false;

  /** `seed` keys the name table against chosen collisions (see LayerIndex); no output depends on it. */
  constructor(options: { readonly seed?: number; readonly limits?: Partial<LayerIndexLimits> } = {}) {
    this.#limits = { ...DEFAULT_LAYER_INDEX_LIMITS, ...options.limits };
    this.#notices = new Notices(this.#limits.notices);
    this.index = new LayerIndex(options.seed);
    this.index.addInode(IMPLIED_DIRECTORY);
    this.#flags.set(ROOT, IMPLIED);
    this.#walker = new TreeWalker(this.index, (parent, name, replaced) => this.#addImplied(parent, name, replaced));
    this.#links = new HardLinks(this.index, this.#limits.forwardLinkBytes, (target, fail) =>
      this.#target(target, fail),
    );
  }

  /** FormatError, naming the entry and its offset, for what has no safe meaning; the builder is not used after one. */
  add(entry: TarEntry): AddedEntry {
    if (this.#finished) throw new RangeError("add() to a layer index that is finished");
    this.#entry = entry;
    for (const key of entry.ignoredRecords ?? []) {
      this.#report("unsupported-record", entry, `record ${key} left out: a layer can't keep what it says`);
    }
    if (entry.path.includes(WHITEOUT_PREFIX)) {
      const marked = this.#addMarked(entry);
      if (marked !== undefined) return { inode: marked };
    }
    const place = this.#place(entry);
    if (place === undefined) return { inode: this.#setRoot(entry) };
    return { inode: this.#addEntry(entry, place.parent, place.name) };
  }

  /** Resolves hard links, marks directories for overlayfs and gives the index. */
  finish(): BuiltLayer {
    if (this.#finished) throw new RangeError("finish() of a layer index that is finished");
    this.#finished = true;
    this.#links.resolve();
    this.#markDirectories();
    return { index: this.index, notices: this.#notices.finish() };
  }

  // places

  /** The directory and the name of an entry; undefined for the root. */
  #place(entry: TarEntry): { parent: number; name: ByteString } | undefined {
    let end = entry.path.length;
    while (end > 0 && entry.path.charCodeAt(end - 1) === 0x2f) end--;
    const slash = entry.path.lastIndexOf("/", end - 1);
    const name = end === 0 ? "" : entry.path.slice(slash + 1, end);
    if (name !== "" && name !== "." && name !== "..") {
      return { parent: this.#parent(end === 0 ? "" : entry.path.slice(0, slash + 1)), name };
    }
    const components = this.#clean(entry.path, "name");
    const last = components.pop();
    if (last === undefined) return undefined;
    return { parent: this.#walkOrFail(components), name: last };
  }

  #parent(text: ByteString): number {
    if (text !== this.#parentText) {
      const inode = this.#walkOrFail(this.#clean(text, "name"));
      this.#parentText = text;
      this.#parentInode = inode;
    }
    return this.#parentInode;
  }

  #walkOrFail(components: ByteString[]): number {
    return this.#walker.ensureDirectory(components, this.#pathError);
  }

  readonly #pathError: PathError = (problem, code) => this.#fail("name", problem, code);

  #clean(path: ByteString, field: string): ByteString[] {
    const components = cleanPath(path);
    if (components === undefined) throw this.#fail(field, `"${displayBytes(path.slice(0, 200))}" leaves the root`);
    return components;
  }

  #addImplied(parent: number, name: ByteString, replaced: number): number {
    if (name.startsWith(WHITEOUT_PREFIX)) throw this.#fail("name", `is below ${displayBytes(name)}, a whiteout`);
    const inode = this.#newInode(IMPLIED_DIRECTORY);
    this.#flags.set(inode, replaced === NONE ? IMPLIED : IMPLIED | OPAQUE);
    this.#setName(parent, name, inode);
    return inode;
  }

  // entries

  #setRoot(entry: TarEntry): number {
    if (entry.type !== "directory") throw this.#fail("type", `the root can't be a ${entry.type}`);
    this.index.setAttributes(ROOT, attributesOf(entry, this.#report));
    this.#countXattrs(ROOT);
    this.#flags.values[ROOT]! &= ~IMPLIED;
    return ROOT;
  }

  #addEntry(entry: TarEntry, parent: number, name: ByteString): number {
    if (entry.type === "hardlink") {
      this.#addHardLink(entry, parent, name);
      return NONE;
    }
    if (entry.type === "character" && entry.rdevMajor === 0 && entry.rdevMinor === 0) {
      this.#report("whiteout-device", entry, "character device 0:0 left out: overlayfs would take it for a whiteout");
      return NONE;
    }
    const attributes = attributesOf(entry, this.#report);
    if (entry.type !== "directory") {
      const inode = this.#newInode(attributes, entry.type === "symlink" ? entry.linkTarget : undefined);
      this.#setName(parent, name, inode);
      return inode;
    }
    const existing = this.index.findInode(parent, name);
    if (existing !== NONE && this.index.isDirectory(existing)) {
      this.index.setAttributes(existing, attributes);
      this.#countXattrs(existing);
      this.#flags.values[existing]! &= ~IMPLIED;
      return existing;
    }
    const inode = this.#newInode(attributes);
    // the whiteout hid what lower layers have in a directory of this name
    if (existing !== NONE && isWhiteout(this.index, existing)) this.#flags.set(inode, OPAQUE);
    this.#setName(parent, name, inode);
    return inode;
  }

  #addHardLink(entry: TarEntry, parent: number, name: ByteString): void {
    const fail = this.#pathErrorOf("link name");
    const target = this.#links.find(entry.linkTarget, fail);
    if (target === NONE) {
      const placeholder = this.#newInode({ ...IMPLIED_DIRECTORY, mode: FileType.REGULAR });
      const dirent = this.#setName(parent, name, placeholder);
      this.#links.defer(dirent, placeholder, entry);
      return;
    }
    if (this.index.isDirectory(target)) throw fail("is a directory");
    const differs =
      (this.index.mode(target) & 0o7777) !== entry.mode ||
      this.index.uid(target) !== entry.uid ||
      this.index.gid(target) !== entry.gid;
    if (differs && this.index.type(target) !== FileType.SYMLINK) {
      this.#report("hardlink-attributes", entry, "mode or owner of the hard link differs from its file's, which count");
    }
    if (this.index.findInode(parent, name) !== target) this.#setName(parent, name, target);
  }

  /** The inode that a hard link's target names now, its last component not followed; NONE when there is none. */
  #target(target: ByteString, fail: PathError): number {
    const components = cleanPath(target);
    if (components === undefined) throw fail("leaves the root");
    const name = components.pop();
    if (name === undefined) return ROOT;
    if (components.length === 1 && components[0] === AUFS_LINKS) return this.#aufsLinks.get(name) ?? NONE;
    const parent = this.#walker.findDirectory(components, fail);
    const inode = parent === NONE ? NONE : this.index.findInode(parent, name);
    return inode !== NONE && isWhiteout(this.index, inode) ? NONE : inode;
  }

  /** Entries with a `.wh.` name in their path; undefined when it is only part of a name. */
  #addMarked(entry: TarEntry): number | undefined {
    const components = this.#clean(entry.path, "name");
    const name = components.at(-1);
    if (name === undefined || !components.some((one) => one.startsWith(WHITEOUT_PREFIX))) return undefined;
    if (components.some((one) => one.startsWith(AUFS_PREFIX) && (one !== OPAQUE_NAME || one !== name))) {
      this.#report("aufs-metadata", entry, "bookkeeping of AUFS left out");
      const kept = this.#shadow(entry);
      if (components.length === 2 && components[0] === AUFS_LINKS && kept !== NONE) this.#aufsLinks.set(name, kept);
      return kept;
    }
    components.pop();
    if (!name.startsWith(WHITEOUT_PREFIX)) {
      throw this.#fail("name", "is below a whiteout");
    }
    const hidden = name.slice(WHITEOUT_PREFIX.length);
    if (hidden === "" || hidden === "." || hidden === "..") throw this.#fail("name", "is a whiteout of nothing");
    const parent = this.#walkOrFail(components);
    if (name === OPAQUE_NAME) {
      this.#flags.set(parent, this.#flagsOf(parent) | OPAQUE);
      return this.#shadow(entry);
    }
    const existing = this.index.findInode(parent, hidden);
    if (existing === NONE) {
      this.#setName(parent, hidden, this.#newInode(WHITEOUT));
    } else if (this.index.isDirectory(existing)) {
      this.#flags.set(existing, this.#flagsOf(existing) | OPAQUE);
    }
    return this.#shadow(entry);
  }

  /** An inode without a name for a payload that means nothing, since the tar is rebuilt with it. */
  #shadow(entry: TarEntry): number {
    return entry.type === "file" ? this.#newInode(attributesOf(entry, this.#report)) : NONE;
  }

  // the index

  #newInode(attributes: InodeAttributes, symlinkTarget?: ByteString): number {
    if (this.index.inodeCount >= this.#limits.entries) {
      throw this.#fail("layer", `has more than ${this.#limits.entries} entries`, "RESOURCE_EXHAUSTED");
    }
    if (symlinkTarget !== undefined) this.#countName(symlinkTarget);
    const inode = this.index.addInode(attributes, symlinkTarget);
    this.#flags.set(inode, 0);
    this.#countXattrs(inode);
    return inode;
  }

  /** Gives `name` to an inode, whatever had it before. Returns the dirent. */
  #setName(parent: number, name: ByteString, inode: number): number {
    const dirent = this.index.find(parent, name);
    if (dirent === NONE) {
      if (name.length > NAME_MAX) throw this.#fail("name", `has a component of more than ${NAME_MAX} bytes`);
      this.#countName(name);
      return this.index.addDirent(parent, name, inode);
    }
    const replaced = this.index.direntInode(dirent);
    if (this.index.isDirectory(replaced)) this.index.clear(replaced);
    if (this.index.isDirectory(replaced) || this.index.type(replaced) === FileType.SYMLINK)
      this.#parentText = undefined;
    this.index.retarget(dirent, inode);
    return dirent;
  }

  #countName(name: ByteString): void {
    this.#nameBytes += name.length;
    if (this.#nameBytes > this.#limits.nameBytes) {
      throw this.#fail("layer", `has more than ${this.#limits.nameBytes} bytes of names`, "RESOURCE_EXHAUSTED");
    }
  }

  /** Counts the xattrs of an inode if no inode before had the same set. */
  #countXattrs(inode: number): void {
    const id = this.index.xattrSetId(inode);
    if (id <= this.#xattrSets) return;
    this.#xattrSets = id;
    this.#xattrBytes += XATTR_SET_BYTES;
    for (const { name, value } of this.index.xattrs(inode)) this.#xattrBytes += name.length + value.length;
    if (this.#xattrBytes > this.#limits.xattrBytes) {
      throw this.#fail("layer", `has more than ${this.#limits.xattrBytes} bytes of xattrs`, "RESOURCE_EXHAUSTED");
    }
  }

  #flagsOf(inode: number): number {
    return this.#flags.values[inode]!;
  }

  #markDirectories(): void {
    const index = this.index;
    const flags = this.#flags.values;
    for (let dirent = 0; dirent < index.direntCount; dirent++) {
      const inode = index.direntInode(dirent);
      if (inode !== NONE && isWhiteout(index, inode)) flags[index.direntParent(dirent)]! |= HOLDS_WHITEOUTS;
    }
    for (let inode = 0; inode < index.inodeCount; inode++) {
      const flag = flags[inode]!;
      if (flag === 0) continue;
      const xattrs = [...index.xattrs(inode)];
      if (flag & IMPLIED) xattrs.push({ name: IMPLIED_XATTR, value: "" });
      if (flag & OPAQUE) xattrs.push({ name: OPAQUE_XATTR, value: "y" });
      if (flag & HOLDS_WHITEOUTS) xattrs.push({ name: ORIGIN_XATTR, value: "" });
      index.setXattrs(inode, xattrs);
    }
  }

  // messages

  readonly #report = (kind: NoticeKind, entry: TarEntry, message: string): void => {
    this.#notices.add({ kind, path: entry.path, offset: entry.headerOffset, message });
  };

  #fail(field: string, problem: string, code?: ErrorCode): FormatError {
    return tarError(field, problem, this.#entry?.headerOffset ?? 0, { path: this.#entry?.path, code });
  }

  #pathErrorOf(field: string): PathError {
    return (problem, code) => this.#fail(field, problem, code);
  }
}
