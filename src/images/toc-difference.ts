/**
 * Whether a layer that was shown by its table of contents is what its tar is. For honest images they say the same, so that
 * completing one changes nothing that anybody sees (docs/adr/0031); where they do not, whoever completes it should know.
 */
import { hash } from "node:crypto";
import { throwIfAborted } from "../async/index.ts";
import { type ByteString, displayBytes, toHex } from "../bytes/index.ts";
import type { ErofsInode } from "../formats/erofs/index.ts";
import { FileType } from "../formats/layer-index/index.ts";
import type { DiffId } from "../oci/index.ts";
import type { OpenTree } from "../store/index.ts";
import { displayName } from "./find.ts";

/** The first entry, in the order of the tree, that the two tell differently. */
export interface TreeDifference {
  /** "" for the root. */
  readonly path: ByteString;
  /** For people: "has mode 100644 by its table of contents, 104755 by its tar". */
  readonly what: string;
}

/** Of a layer that was completed. Without a path where the two could not be compared; then `what` says why. */
export interface TocDifference {
  readonly image: string;
  readonly diffId: DiffId;
  readonly path: ByteString | undefined;
  readonly what: string;
}

/** "Layer sha256:… of app:1 is not what its table of contents said: etc/passwd has ..." */
export function formatTocDifference({ image, diffId, path, what }: TocDifference): string {
  const layer = `Layer ${diffId} of ${displayName(image)}`;
  const outcome = "Until now the image was shown by that; from now on its tar counts, which is verified by its diffId";
  if (path === undefined)
    return `${layer} can't be compared with what was there by its table of contents: ${what}. ${outcome}`;
  const file = path === "" ? "its root" : displayBytes(path);
  return `${layer} is not what its table of contents said: ${file} ${what}. ${outcome}`;
}

/** Entries between two looks at whether to stop; others get their turn there. */
const TURN = 1000;

/** Undefined when all is the same, but for fractions of seconds that the table of contents leaves out. */
export async function findTreeDifference(
  byToc: OpenTree,
  byTar: OpenTree,
  signal?: AbortSignal,
): Promise<TreeDifference | undefined> {
  const [left, right] = [new Side(byToc), new Side(byTar)];
  for (let count = 1; ; count++) {
    const [toc, tar] = [left.next(), right.next()];
    if (toc === undefined && tar === undefined) return undefined;
    if (tar === undefined || (toc !== undefined && orderOf(toc.path) < orderOf(tar.path))) {
      return { path: toc!.path, what: "is in its table of contents, and not in its tar" };
    }
    if (toc === undefined || toc.path !== tar.path) {
      return { path: tar.path, what: "is in its tar, and not in its table of contents" };
    }
    const what = differenceOf(toc, tar);
    if (what !== undefined) return { path: tar.path, what };
    if (count % TURN !== 0) continue;
    await new Promise((resolve) => setImmediate(resolve));
    throwIfAborted(signal);
  }
}

/** In the order of a walk what is below a directory comes before names that the directory's is the beginning of. */
function orderOf(path: ByteString): ByteString {
  return path.replaceAll("/", "\0");
}

interface Entry {
  readonly path: ByteString;
  readonly inode: ErofsInode;
  readonly tree: OpenTree;
  /** Of a file with several names: the first one. */
  readonly first: ByteString;
}

class Side {
  readonly #tree: OpenTree;
  readonly #entries: Iterator<{ readonly path: ByteString; readonly inode: ErofsInode }>;
  readonly #names = new Map<number, ByteString>();

  constructor(tree: OpenTree) {
    this.#tree = tree;
    this.#entries = tree.reader.walk();
  }

  next(): Entry | undefined {
    const next = this.#entries.next();
    if (next.done) return undefined;
    const { path, inode } = next.value;
    const isLinked = inode.links > 1 && typeOf(inode) !== FileType.DIRECTORY;
    const first = isLinked ? (this.#names.get(inode.nid) ?? path) : path;
    if (isLinked && first === path) this.#names.set(inode.nid, path);
    return { path, inode, tree: this.#tree, first };
  }
}

const typeOf = ({ mode }: ErofsInode) => mode & FileType.MASK;

function differenceOf(toc: Entry, tar: Entry): string | undefined {
  const told = (name: string, of: (entry: Entry) => string) => {
    const [left, right] = [of(toc), of(tar)];
    return left === right ? undefined : `has ${name} ${left} by its table of contents, ${right} by its tar`;
  };
  const type = typeOf(tar.inode);
  return (
    told("mode", ({ inode }) => inode.mode.toString(8)) ??
    told("owner", ({ inode }) => `${inode.uid}:${inode.gid}`) ??
    told("first name", ({ first }) => displayBytes(first)) ??
    (type === FileType.DIRECTORY ? undefined : told("link count", ({ inode }) => String(inode.links))) ??
    (type === FileType.REGULAR ? told("size", ({ inode }) => String(inode.size)) : undefined) ??
    told("device", ({ inode }) => `${inode.rdevMajor}:${inode.rdevMinor}`) ??
    (type === FileType.SYMLINK
      ? told("target", ({ tree, inode }) => displayBytes(tree.reader.readlink(inode)))
      : undefined) ??
    (isSameTime(toc.inode, tar.inode) ? undefined : told("time", ({ inode }) => `${timeOf(inode)}`)) ??
    (xattrsOf(toc) === xattrsOf(tar) ? undefined : "has other xattrs by its table of contents than by its tar") ??
    (type !== FileType.REGULAR || contentOf(toc) === contentOf(tar)
      ? undefined
      : "has other content by its table of contents than by its tar")
  );
}

/** Writers but shale's round to seconds. */
function isSameTime(toc: ErofsInode, tar: ErofsInode): boolean {
  if (toc.mtimeNanoseconds === tar.mtimeNanoseconds) return toc.mtimeSeconds === tar.mtimeSeconds;
  return toc.mtimeNanoseconds === 0 && [0, 1].includes(toc.mtimeSeconds - tar.mtimeSeconds);
}

function timeOf({ mtimeSeconds, mtimeNanoseconds }: ErofsInode): string {
  return `${mtimeSeconds}.${String(mtimeNanoseconds).padStart(9, "0")}`;
}

function xattrsOf({ tree, inode }: Entry): string {
  return JSON.stringify(
    tree.reader
      .xattrs(inode)
      .map(({ name, value }) => [name, value])
      .sort(([one], [other]) => (one! < other! ? -1 : 1)),
  );
}

function contentOf({ tree, inode }: Entry): string {
  if (inode.size === 0) return "";
  const payload = tree.payload(inode);
  return payload === "inline" ? hash("sha256", tree.reader.read(inode, 0, inode.size), "hex") : toHex(payload.digest);
}
