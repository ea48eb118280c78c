/**
 * What differs between two images: by metadata and by payload digest, in one walk of both trees. Equal payloads are mostly
 * the same place in the store, so hardly a byte of content is read.
 */
import { hash } from "node:crypto";
import type { ByteString } from "../bytes/index.ts";
import type { ErofsInode } from "../formats/erofs/index.ts";
import { FileType } from "../formats/layer-index/index.ts";
import type { OpenTree } from "../store/index.ts";

export interface Difference {
  /** Absolute inside the images. */
  readonly path: ByteString;
  readonly kind: "added" | "removed" | "changed";
  /** Of "changed": "content", "mode", "owner", "mtime", "type", "target", "device", "xattrs". */
  readonly what: readonly string[];
  /** File sizes, 0 for what is not a regular file. */
  readonly sizeBefore: number;
  readonly sizeAfter: number;
}

export interface DiffOptions {
  readonly ignoreTimes?: boolean;
}

/** Differences in the order of a walk: a directory before what is in it, names by byte. */
export function* diffTrees(before: OpenTree, after: OpenTree, options: DiffOptions = {}): Generator<Difference> {
  const what = compare(before, before.reader.root, after, after.reader.root, options);
  if (what.length > 0) yield { path: "/", kind: "changed", what, sizeBefore: 0, sizeAfter: 0 };
  yield* diffDirectories(before, before.reader.root, after, after.reader.root, "/", options);
}

function* diffDirectories(
  before: OpenTree,
  one: ErofsInode,
  after: OpenTree,
  other: ErofsInode,
  prefix: ByteString,
  options: DiffOptions,
): Generator<Difference> {
  const left = before.reader.directory(one);
  const right = after.reader.directory(other);
  let a = left.next();
  let b = right.next();
  while (a.done !== true || b.done !== true) {
    if (b.done === true || (a.done !== true && a.value.name < b.value.name)) {
      yield* all(before, a.value!.nid, prefix + a.value!.name, "removed");
      a = left.next();
    } else if (a.done === true || b.value.name < a.value.name) {
      yield* all(after, b.value.nid, prefix + b.value.name, "added");
      b = right.next();
    } else {
      const path = prefix + a.value.name;
      const x = before.reader.inode(a.value.nid);
      const y = after.reader.inode(b.value.nid);
      const what = compare(before, x, after, y, options);
      if (what.length > 0) yield { path, kind: "changed", what, sizeBefore: sizeOf(x), sizeAfter: sizeOf(y) };
      if (isDirectory(x) && isDirectory(y)) yield* diffDirectories(before, x, after, y, `${path}/`, options);
      else {
        if (isDirectory(x)) yield* below(before, x, `${path}/`, "removed");
        if (isDirectory(y)) yield* below(after, y, `${path}/`, "added");
      }
      a = left.next();
      b = right.next();
    }
  }
}

function* all(tree: OpenTree, nid: number, path: ByteString, kind: "added" | "removed"): Generator<Difference> {
  const inode = tree.reader.inode(nid);
  const size = sizeOf(inode);
  yield { path, kind, what: [], sizeBefore: kind === "removed" ? size : 0, sizeAfter: kind === "added" ? size : 0 };
  if (isDirectory(inode)) yield* below(tree, inode, `${path}/`, kind);
}

function* below(
  tree: OpenTree,
  directory: ErofsInode,
  prefix: ByteString,
  kind: "added" | "removed",
): Generator<Difference> {
  for (const entry of tree.reader.directory(directory)) yield* all(tree, entry.nid, prefix + entry.name, kind);
}

function compare(before: OpenTree, x: ErofsInode, after: OpenTree, y: ErofsInode, options: DiffOptions): string[] {
  const what: string[] = [];
  const type = x.mode & FileType.MASK;
  if (type !== (y.mode & FileType.MASK)) what.push("type");
  else if (type === FileType.REGULAR && !sameContent(before, x, after, y)) what.push("content");
  else if (type === FileType.SYMLINK && before.reader.readlink(x) !== after.reader.readlink(y)) what.push("target");
  if ((x.mode & ~FileType.MASK) !== (y.mode & ~FileType.MASK)) what.push("mode");
  if (x.uid !== y.uid || x.gid !== y.gid) what.push("owner");
  if (x.rdevMajor !== y.rdevMajor || x.rdevMinor !== y.rdevMinor) what.push("device");
  const sameTime = x.mtimeSeconds === y.mtimeSeconds && x.mtimeNanoseconds === y.mtimeNanoseconds;
  if (options.ignoreTimes !== true && !sameTime) what.push("mtime");
  if (!sameXattrs(before, x, after, y)) what.push("xattrs");
  return what;
}

function sameContent(before: OpenTree, x: ErofsInode, after: OpenTree, y: ErofsInode): boolean {
  if (x.size !== y.size) return false;
  if (x.size === 0) return true;
  const a = before.payload(x);
  const b = after.payload(y);
  if (a !== "inline" && b !== "inline") {
    return (a.blob === b.blob && a.offset === b.offset) || Buffer.compare(a.digest, b.digest) === 0;
  }
  return Buffer.compare(digestOf(before, x, a), digestOf(after, y, b)) === 0;
}

function digestOf(tree: OpenTree, inode: ErofsInode, payload: ReturnType<OpenTree["payload"]>): Uint8Array {
  return payload === "inline" ? hash("sha256", tree.reader.read(inode, 0, inode.size), "buffer") : payload.digest;
}

function sameXattrs(before: OpenTree, x: ErofsInode, after: OpenTree, y: ErofsInode): boolean {
  if (x.xattrSize === 0 && y.xattrSize === 0) return true;
  const key = (tree: OpenTree, inode: ErofsInode) =>
    JSON.stringify(
      tree.reader
        .xattrs(inode)
        .map(({ name, value }) => [name, value])
        .sort(),
    );
  return key(before, x) === key(after, y);
}

function isDirectory(inode: ErofsInode): boolean {
  return (inode.mode & FileType.MASK) === FileType.DIRECTORY;
}

function sizeOf(inode: ErofsInode): number {
  return (inode.mode & FileType.MASK) === FileType.REGULAR ? inode.size : 0;
}
