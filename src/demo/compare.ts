/** Compares what an image shows with what it should be: every entry, every attribute, every byte. */
import { createHash, hash } from "node:crypto";
import { delay, throwIfAborted } from "../async/index.ts";
import { type ByteString, toHex } from "../bytes/index.ts";
import { FileType } from "../formats/layer-index/index.ts";
import type { ImageTree } from "../images/files.ts";
import { walkFiles } from "../sys/index.ts";
import type { TreeEntry } from "./tree.ts";

/** What two views of one file have to agree on. */
export interface FileFacts {
  /** Type and permission bits. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Bytes of a regular file, else 0. */
  readonly size: number;
  readonly mtimeNs: bigint;
  readonly links: number;
  readonly rdevMajor: number;
  readonly rdevMinor: number;
  readonly target: ByteString;
  readonly xattrs: readonly { readonly name: ByteString; readonly value: ByteString }[];
  /** Of a regular file, hexadecimal SHA-256; else "". */
  readonly sha256: string;
}

/** A file as it is found; its content is read and hashed by {@link compareFiles}. */
export interface ActualFile extends Omit<FileFacts, "sha256"> {
  /** Relative; "." is the root. */
  readonly path: ByteString;
  /** Of a regular file. A piece is only valid until the next one is asked for. */
  content(): Iterable<Uint8Array>;
}

export interface Mismatch {
  readonly path: ByteString;
  /** "missing", "unexpected", or names of {@link FileFacts} that differ ("mode" includes the type). */
  readonly what: readonly string[];
}

export interface Comparison {
  readonly entries: number;
  readonly files: number;
  /** Content that was read and hashed. */
  readonly bytes: number;
  readonly different: number;
  /** The first of them, MAX_SHOWN at most. */
  readonly differences: readonly Mismatch[];
}

const MAX_SHOWN = 10;
/** Signals reach a process only between two turns of its event loop; hashing a large tree takes many seconds. */
const TURN_MS = 50;
const PIECE = 1 << 20;

const ATTRIBUTES = [
  ...(["mode", "uid", "gid", "size", "mtimeNs", "links", "rdevMajor", "rdevMinor", "target"] as const),
  "sha256",
] as const satisfies readonly (keyof FileFacts)[];

/** Reads all of `actual` and holds it against `expected`. CANCELLED between two pieces of content. */
export async function compareFiles(
  expected: ReadonlyMap<ByteString, FileFacts>,
  actual: Iterable<ActualFile>,
  options: { readonly signal?: AbortSignal } = {},
): Promise<Comparison> {
  const { signal } = options;
  const differences: Mismatch[] = [];
  const seen = new Set<ByteString>();
  let [entries, files, bytes, different] = [0, 0, 0, 0];
  let turn = performance.now();
  const note = (path: ByteString, what: readonly string[]) => {
    different++;
    if (differences.length < MAX_SHOWN) differences.push({ path, what });
  };
  const breathe = async () => {
    if (performance.now() - turn < TURN_MS) return;
    await delay(0, signal ? { signal } : {});
    turn = performance.now();
  };
  throwIfAborted(signal);
  for (const file of actual) {
    await breathe();
    entries++;
    seen.add(file.path);
    let sha256 = "";
    if (isRegular(file.mode)) {
      files++;
      const hasher = createHash("sha256");
      for (const piece of file.content()) {
        hasher.update(piece);
        bytes += piece.length;
        await breathe();
      }
      sha256 = hasher.digest("hex");
    }
    const wanted = expected.get(file.path);
    if (wanted === undefined) note(file.path, ["unexpected"]);
    else {
      const found: FileFacts = { ...file, sha256 };
      const what: string[] = ATTRIBUTES.filter((name) => wanted[name] !== found[name]);
      if (xattrKey(wanted) !== xattrKey(found)) what.push("xattrs");
      if (what.length > 0) note(file.path, what);
    }
  }
  for (const path of expected.keys()) if (!seen.has(path)) note(path, ["missing"]);
  return { entries, files, bytes, different, differences };
}

const TYPES: Readonly<Record<TreeEntry["type"], number>> = {
  file: FileType.REGULAR,
  directory: FileType.DIRECTORY,
  symlink: FileType.SYMLINK,
  character: FileType.CHARACTER,
  block: FileType.BLOCK,
  fifo: FileType.FIFO,
};

/** What a built image has to show. Links are counted here: names of one object; of a directory "." and each "..". */
export function builtFacts(tree: ReadonlyMap<ByteString, TreeEntry>): Map<ByteString, FileFacts> {
  const names = new Map<TreeEntry, number>();
  const directories = new Map<ByteString, number>();
  for (const [path, entry] of tree) {
    names.set(entry, (names.get(entry) ?? 0) + 1);
    if (entry.type !== "directory" || path === ".") continue;
    const parent = path.includes("/") ? path.slice(0, path.lastIndexOf("/")) : ".";
    directories.set(parent, (directories.get(parent) ?? 0) + 1);
  }
  const facts = new Map<ByteString, FileFacts>();
  for (const [path, entry] of tree) {
    facts.set(path, {
      mode: TYPES[entry.type] | entry.mode,
      uid: entry.uid,
      gid: entry.gid,
      size: entry.size,
      mtimeNs: nanoseconds(entry),
      links: entry.type === "directory" ? 2 + (directories.get(path) ?? 0) : names.get(entry)!,
      rdevMajor: entry.rdevMajor,
      rdevMinor: entry.rdevMinor,
      target: entry.linkTarget,
      xattrs: entry.xattrs,
      sha256: entry.sha256 ?? "",
    });
  }
  return facts;
}

/**
 * What the store says an image is, with the digests under which contents were stored. Those of small files that are kept
 * in the metadata image have none of their own and are computed from it.
 */
export function storedFacts({ tree, list }: Walkable): Map<ByteString, FileFacts> {
  const facts = new Map<ByteString, FileFacts>();
  for (const file of storedFiles({ tree, list })) {
    let sha256 = "";
    if (isRegular(file.mode)) {
      const payload = file.size === 0 ? "inline" : tree.payload(file.inode);
      if (payload === "inline") sha256 = hash("sha256", tree.reader.read(file.inode, 0, file.size));
      else sha256 = toHex(payload.digest);
    }
    facts.set(file.path, { ...file, sha256 });
  }
  return facts;
}

type Inode = ReturnType<ImageTree["get"]>["inode"];
interface Walkable {
  readonly tree: ImageTree["tree"];
  readonly list: () => Iterable<Pick<ReturnType<ImageTree["get"]>, "path" | "inode" | "target">>;
}

/** The root of an image and all that is below it. */
export function walkable(image: ImageTree): Walkable {
  return {
    tree: image.tree,
    *list() {
      yield image.get("/");
      yield* image.list("/", { recursive: true });
    },
  };
}

/** An image through our own EROFS reader: needs no root. */
export function* storedFiles({ tree, list }: Walkable): Generator<ActualFile & { readonly inode: Inode }> {
  const { reader } = tree;
  for (const { path, inode, target } of list()) {
    const { size } = inode;
    yield {
      path: path === "/" ? "." : path.slice(1),
      inode,
      mode: inode.mode,
      uid: inode.uid,
      gid: inode.gid,
      size: isRegular(inode.mode) ? size : 0,
      mtimeNs: nanoseconds(inode),
      links: inode.links,
      rdevMajor: inode.rdevMajor,
      rdevMinor: inode.rdevMinor,
      target: target ?? "",
      xattrs: reader.xattrs(inode),
      *content() {
        for (let at = 0; at < size; at += PIECE) yield reader.read(inode, at, Math.min(PIECE, size - at));
      },
    };
  }
}

/** An image through the kernel. */
export function* mountedFiles(directory: string): Generator<ActualFile> {
  for (const file of walkFiles(directory)) {
    yield { ...file, size: isRegular(file.mode) ? file.size : 0, content: () => file.content() };
  }
}

function isRegular(mode: number): boolean {
  return (mode & FileType.MASK) === FileType.REGULAR;
}

function nanoseconds(time: { readonly mtimeSeconds: number; readonly mtimeNanoseconds: number }): bigint {
  return BigInt(time.mtimeSeconds) * 1_000_000_000n + BigInt(time.mtimeNanoseconds);
}

function xattrKey({ xattrs }: Pick<FileFacts, "xattrs">): string {
  if (xattrs.length === 0) return "";
  return JSON.stringify(xattrs.map(({ name, value }) => [name, value]).sort((a, b) => (a[0]! < b[0]! ? -1 : 1)));
}
