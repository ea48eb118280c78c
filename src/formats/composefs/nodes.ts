import type { ByteString } from "../../bytes/index.ts";
import { FileType, type LayerIndex, ROOT, type Xattr } from "../layer-index/index.ts";
import { escapeXattrs, OPAQUE_ROOT, overlayXattrs, sortXattrs } from "./xattrs.ts";

/** One inode of the image: of the tree, or one of the whiteouts that composefs adds to the root. */
export interface Node {
  /** In the index; ADDED_WHITEOUT for one of those that composefs adds. */
  readonly inode: number;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtimeSeconds: number;
  readonly mtimeNanoseconds: number;
  readonly links: number;
  /** Content, or length of a link's target; 0 for directories. */
  readonly size: number;
  readonly xattrs: readonly Xattr[];
  /** Of a directory: names in byte order, "." and ".." among them. */
  readonly entries: readonly Entry[];
  /** Bytes that are in the image: a target, or small content; undefined for content that is an object. */
  readonly bytes: Uint8Array | undefined;
}

export interface Entry {
  readonly name: ByteString;
  /** Position in the list of nodes. */
  node: number;
}

export interface Content {
  /** Bytes of a regular file that belongs into the image, or the digest of the object that has them. */
  readonly bytes?: Uint8Array;
  readonly digest?: Uint8Array;
}

/** Two hexadecimal digits: the directories of objects, which an overlay would show at the root. */
const OBJECT_DIRECTORIES = Array.from({ length: 256 }, (_, i) => i.toString(16).padStart(2, "0"));

/**
 * All inodes of the image, breadth first: the order in which libcomposefs numbers and writes them. Of a file with several names,
 * the first one depth first decides where that is, as in a dump of the tree.
 */
export function listNodes(index: LayerIndex, contentOf: (inode: number) => Content): Node[] {
  const firstNames = findFirstNames(index);
  const nodes: Node[] = [];
  const numbers = new Map<number, number>([[ROOT, 0]]);
  const queue: { readonly inode: number; readonly parent: number }[] = [{ inode: ROOT, parent: 0 }];
  const links: { readonly entry: Entry; readonly inode: number }[] = [];
  for (let at = 0; at < queue.length; at++) {
    const { inode, parent } = queue[at]!;
    if (inode === ADDED_WHITEOUT) {
      nodes.push(whiteout(index));
      continue;
    }
    const entries: Entry[] = [];
    if (index.isDirectory(inode)) {
      entries.push({ name: ".", node: at }, { name: "..", node: parent });
      for (const { name, target, isLink } of namesOf(index, inode, firstNames)) {
        const entry = { name, node: queue.length };
        entries.push(entry);
        if (isLink) links.push({ entry, inode: target });
        else {
          if (target !== ADDED_WHITEOUT) numbers.set(target, queue.length);
          queue.push({ inode: target, parent: at });
        }
      }
      entries.sort((a, b) => (a.name < b.name ? -1 : 1));
    }
    nodes.push(nodeOf(index, inode, entries, contentOf));
  }
  for (const { entry, inode } of links) entry.node = numbers.get(inode)!;
  return nodes;
}

const ADDED_WHITEOUT = -1;

interface NamedInode {
  readonly name: ByteString;
  readonly target: number;
  /** A further name of a file that is written for another one. */
  readonly isLink: boolean;
}

/** In byte order. */
function namesOf(index: LayerIndex, directory: number, firstNames: ReadonlyMap<number, number>): NamedInode[] {
  const names: NamedInode[] = [];
  for (const dirent of index.sortedDirents(directory)) {
    const target = index.direntInode(dirent);
    const isLink = firstNames.has(target) && firstNames.get(target) !== dirent;
    names.push({ name: index.direntName(dirent), target, isLink });
  }
  if (directory !== ROOT) return names;
  const taken = new Set(names.map(({ name }) => name));
  for (const name of OBJECT_DIRECTORIES) {
    if (!taken.has(name)) names.push({ name, target: ADDED_WHITEOUT, isLink: false });
  }
  return names.sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** The first dirent, depth first, of each file that has several. */
function findFirstNames(index: LayerIndex): Map<number, number> {
  const first = new Map<number, number>();
  const pending = [...index.sortedDirents(ROOT).reverse()];
  for (let dirent = pending.pop(); dirent !== undefined; dirent = pending.pop()) {
    const inode = index.direntInode(dirent);
    if (index.isDirectory(inode)) for (const child of index.sortedDirents(inode).reverse()) pending.push(child);
    else if (index.links(inode) > 1 && !first.has(inode)) first.set(inode, dirent);
  }
  return first;
}

function nodeOf(
  index: LayerIndex,
  inode: number,
  entries: readonly Entry[],
  contentOf: (inode: number) => Content,
): Node {
  const type = index.type(inode);
  let xattrs = escapeXattrs(index.xattrs(inode));
  let bytes: Uint8Array | undefined = new Uint8Array(0);
  let size = 0;
  if (type === FileType.SYMLINK) {
    bytes = Buffer.from(index.symlinkTarget(inode), "latin1");
    size = bytes.length;
  } else if (type === FileType.REGULAR && index.size(inode) > 0) {
    size = index.size(inode);
    const content = contentOf(inode);
    bytes = content.bytes;
    if (content.digest !== undefined) xattrs = [...xattrs, ...overlayXattrs(content.digest)];
  }
  if (inode === ROOT) xattrs = [...xattrs, OPAQUE_ROOT];
  return {
    inode,
    mode: index.mode(inode),
    uid: index.uid(inode),
    gid: index.gid(inode),
    mtimeSeconds: index.mtimeSeconds(inode),
    mtimeNanoseconds: index.mtimeNanoseconds(inode),
    links: index.links(inode),
    size,
    xattrs: sortXattrs(xattrs),
    entries,
    bytes,
  };
}

/** Owner, time and SELinux label are the root's. */
function whiteout(index: LayerIndex): Node {
  return {
    inode: ADDED_WHITEOUT,
    mode: FileType.CHARACTER | 0o644,
    uid: index.uid(ROOT),
    gid: index.gid(ROOT),
    mtimeSeconds: index.mtimeSeconds(ROOT),
    mtimeNanoseconds: index.mtimeNanoseconds(ROOT),
    links: 1,
    size: 0,
    xattrs: index.xattrs(ROOT).filter(({ name }) => name === "security.selinux"),
    entries: [],
    bytes: new Uint8Array(0),
  };
}
