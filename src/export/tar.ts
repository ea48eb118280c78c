/** The flattened tar of an image: what its root file system holds, as one deterministic archive. */
import { setImmediate } from "node:timers/promises";
import { throwIfAborted } from "../async/index.ts";
import { alignUp, type ByteString, displayBytes } from "../bytes/index.ts";
import { ShaleError } from "../errors/index.ts";
import type { ErofsInode, ErofsReader } from "../formats/erofs/index.ts";
import { FileType } from "../formats/layer-index/index.ts";
import { encodeTarHeader, TAR_END, type TarEntryType, tarPadding } from "../formats/tar/index.ts";
import type { OpenTree, StoreOperation } from "../store/index.ts";
import { writeAt } from "../sys/index.ts";
import { checkSpace, publishFile } from "./publish.ts";
import { checkSource, type ExportSource } from "./source.ts";

const PIECE_SIZE = 1024 * 1024;
/** Of a tar: content is padded to it. */
const HEADER_SIZE = 512;
/** Small pieces are gathered: most entries are a header and little more. */
const GATHER_SIZE = 256 * 1024;
/** Written between two turns of the event loop. */
const TURN_SIZE = 16 * 1024 * 1024;

const TYPES: ReadonlyMap<number, TarEntryType> = new Map([
  [FileType.REGULAR, "file"],
  [FileType.DIRECTORY, "directory"],
  [FileType.SYMLINK, "symlink"],
  [FileType.CHARACTER, "character"],
  [FileType.BLOCK, "block"],
  [FileType.FIFO, "fifo"],
]);

/**
 * The tar of an image, or the very tar of one of its layers, in pieces of up to 1 MiB. The operation's lease must last as long as
 * they are read.
 */
export function* exportTar(operation: StoreOperation, source: ExportSource): Generator<Uint8Array> {
  checkSource(source);
  const { manifest, layer } = source;
  if (layer === undefined) {
    using tree = operation.openChain(manifest.layers.map(({ diffId }) => diffId));
    yield* flattenedTar(tree);
  } else {
    using tar = operation.openTar(operation.getLayer(manifest.layers[layer]!.diffId));
    yield* tar.read();
  }
}

/** So many bytes the tar has, or some more: names and attributes that a header has no place for are not counted. */
export function leastTarSize(operation: StoreOperation, source: ExportSource): number {
  checkSource(source);
  const { manifest, layer } = source;
  if (layer !== undefined) {
    using tar = operation.openTar(operation.getLayer(manifest.layers[layer]!.diffId));
    return tar.size;
  }
  using tree = operation.openChain(manifest.layers.map(({ diffId }) => diffId));
  const seen = new Set<number>();
  let size = TAR_END.length;
  for (const { inode } of tree.reader.walk()) {
    size += HEADER_SIZE;
    if ((inode.mode & FileType.MASK) !== FileType.REGULAR || seen.has(inode.nid)) continue;
    if (inode.links > 1) seen.add(inode.nid);
    size += alignUp(inode.size, HEADER_SIZE);
  }
  return size;
}

/**
 * Writes a tar to `target`, complete and durable or not at all. Answers its size. RESOURCE_EXHAUSTED beforehand when `atLeast` bytes
 * do not fit.
 */
export function publishTar(
  target: string,
  pieces: Iterable<Uint8Array>,
  { signal, atLeast = 0 }: { readonly signal?: AbortSignal | undefined; readonly atLeast?: number } = {},
): Promise<number> {
  return publishFile(
    target,
    async (file) => {
      throwIfAborted(signal);
      if (atLeast > 0) checkSpace(target, atLeast);
      let size = 0;
      let sinceTurn = 0;
      for (const piece of pieces) {
        writeAt(file, piece, size);
        size += piece.length;
        sinceTurn += piece.length;
        if (sinceTurn < TURN_SIZE) continue;
        sinceTurn = 0;
        await takeTurn(signal);
      }
      await takeTurn(signal); // most tars are less than that
      return size;
    },
    { signal },
  );
}

/** Lets signals arrive, and ends with CANCELLED if one did. */
async function takeTurn(signal: AbortSignal | undefined): Promise<void> {
  await setImmediate();
  throwIfAborted(signal);
}

/**
 * The tar in pieces of up to 1 MiB: the root first, a directory before its entries, those in byte order; the second and later
 * names of a file as hard links. Names begin with "./". UNIMPLEMENTED for a socket, which tar has no type for.
 */
function* flattenedTar({ reader }: Pick<OpenTree, "reader">): Generator<Uint8Array> {
  const pending: Uint8Array[] = [];
  let size = 0;
  for (const piece of pieces(reader)) {
    if (size > 0 && size + piece.length > GATHER_SIZE) {
      yield Buffer.concat(pending.splice(0));
      size = 0;
    }
    if (piece.length >= GATHER_SIZE) yield piece;
    else {
      pending.push(piece);
      size += piece.length;
    }
  }
  yield Buffer.concat(pending);
}

function* pieces(reader: ErofsReader): Generator<Uint8Array> {
  const names = new Map<number, ByteString>();
  for (const { path, inode } of reader.walk()) {
    const name = `./${path}`;
    const type = TYPES.get(inode.mode & FileType.MASK);
    if (type === undefined) {
      throw new ShaleError(
        "UNIMPLEMENTED",
        `Cannot write a tar: ${displayBytes(path)} is a socket, which tar has no type for`,
      );
    }
    const first = names.get(inode.nid);
    if (first !== undefined) {
      yield encodeTarHeader({ ...headerOf(reader, inode, name, "hardlink"), linkTarget: first, xattrs: [] });
      continue;
    }
    if (type !== "directory" && inode.links > 1) names.set(inode.nid, name);
    const header = headerOf(reader, inode, name, type);
    yield encodeTarHeader(header);
    if (type !== "file") continue;
    for (let at = 0; at < inode.size; at += PIECE_SIZE) yield reader.read(inode, at, PIECE_SIZE);
    if (inode.size > 0) yield tarPadding(inode.size);
  }
  yield TAR_END;
}

function headerOf(reader: ErofsReader, inode: ErofsInode, path: ByteString, type: TarEntryType) {
  return {
    type,
    path,
    linkTarget: type === "symlink" ? reader.readlink(inode) : "",
    mode: inode.mode & 0o7777,
    uid: inode.uid,
    gid: inode.gid,
    size: type === "file" ? inode.size : 0,
    mtimeSeconds: inode.mtimeSeconds,
    mtimeNanoseconds: inode.mtimeNanoseconds,
    rdevMajor: inode.rdevMajor,
    rdevMinor: inode.rdevMinor,
    xattrs: reader.xattrs(inode),
  };
}
