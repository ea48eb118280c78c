/**
 * What the demo's layers contain, and what an image of them has to look like when it is mounted. Pure.
 */
import type { ByteString } from "../bytes/index.ts";
import type { TarHeader } from "../formats/tar/index.ts";

/** One entry of a layer, whiteouts included. `path` is relative, without slashes at its ends; "." is the root. */
export interface PlannedEntry extends Omit<TarHeader, "size"> {
  /** The content of a regular file; asked for when the layer is built. */
  readonly content?: () => Uint8Array;
}

/** A planned entry as it went into the layer. */
export interface BuiltEntry extends TarHeader {
  /** Of a regular file: hexadecimal SHA-256 of its content. */
  readonly sha256?: string;
}

/** What a mounted image has to show at a path. Names of one hard-linked file share the same object. */
export interface TreeEntry {
  readonly type: Exclude<TarHeader["type"], "hardlink">;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Bytes of a regular file, else 0. */
  readonly size: number;
  readonly mtimeSeconds: number;
  readonly mtimeNanoseconds: number;
  /** Of a symlink; else "". */
  readonly linkTarget: ByteString;
  readonly rdevMajor: number;
  readonly rdevMinor: number;
  readonly xattrs: TarHeader["xattrs"];
  /** Of a regular file, hexadecimal. */
  readonly sha256?: string;
}

const WHITEOUT = ".wh.";
const OPAQUE = ".wh..wh..opq";

/**
 * The tree of a stack of layers, lowest first: path to entry, by the rules of the OCI image specification v1.1 layer.md. A
 * whiteout hides what the layers below have, not what its own layer has; a directory over a directory only replaces its
 * attributes. Written without the code that it is there to check.
 */
export function stackLayers(layers: readonly (readonly BuiltEntry[])[]): Map<ByteString, TreeEntry> {
  const tree = new Map<ByteString, TreeEntry>();
  for (const layer of layers) {
    for (const { path } of layer) {
      const name = baseName(path);
      if (name === OPAQUE) removeBelow(tree, parentPath(path));
      else if (name.startsWith(WHITEOUT)) {
        const hidden = joinPath(parentPath(path), name.slice(WHITEOUT.length));
        removeBelow(tree, hidden);
        tree.delete(hidden);
      }
    }
    for (const entry of layer) {
      if (baseName(entry.path).startsWith(WHITEOUT)) continue;
      const replaced = tree.get(entry.path);
      if (entry.type !== "directory" && replaced?.type === "directory") removeBelow(tree, entry.path);
      tree.set(entry.path, treeEntryOf(entry, tree));
    }
  }
  return tree;
}

/** The name of a whiteout that hides `path` of the layers below. */
export function whiteoutPath(path: ByteString): ByteString {
  return joinPath(parentPath(path), WHITEOUT + baseName(path));
}

/** The name of the marker that hides all that the layers below have in a directory. */
export function opaquePath(directory: ByteString): ByteString {
  return joinPath(directory, OPAQUE);
}

/** "." for a name in the root. */
export function parentPath(path: ByteString): ByteString {
  const slash = path.lastIndexOf("/");
  return slash < 0 ? "." : path.slice(0, slash);
}

function baseName(path: ByteString): ByteString {
  return path.slice(path.lastIndexOf("/") + 1);
}

function joinPath(directory: ByteString, name: ByteString): ByteString {
  return directory === "." ? name : `${directory}/${name}`;
}

function removeBelow(tree: Map<ByteString, TreeEntry>, directory: ByteString): void {
  const prefix = directory === "." ? "" : `${directory}/`;
  for (const path of tree.keys()) if (path !== "." && path.startsWith(prefix)) tree.delete(path);
}

function treeEntryOf(entry: BuiltEntry, tree: ReadonlyMap<ByteString, TreeEntry>): TreeEntry {
  const { path: _path, type, ...attributes } = entry;
  if (type !== "hardlink") return { type, ...attributes };
  const target = tree.get(entry.linkTarget);
  if (target === undefined) throw new RangeError(`hard link ${entry.path} to ${entry.linkTarget}, which is not there`);
  return target;
}
