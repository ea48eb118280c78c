/**
 * What a directory looks like that a layer's tar does not list, though it has entries below it: as in the nearest lower layer
 * that lists it, since that is what unpacking one layer over another gives, and what the merged tree has.
 */
import type { ByteString } from "../bytes/index.ts";
import type { ErofsInode, ErofsReader } from "../formats/erofs/index.ts";
import { FileType, type Xattr } from "../formats/layer-index/index.ts";
import { IMPLIED_XATTR, OPAQUE_XATTR } from "../formats/layer-index/overlay.ts";

export interface ListedDirectory {
  readonly inode: ErofsInode;
  readonly xattrs: readonly Xattr[];
}

/**
 * Where the directory `path` of layer `layer` has its looks from; undefined when from itself. `reader` gives the layers, 0 being
 * the lowest; `xattrs` are the directory's own.
 */
export function impliedBy(
  reader: (layer: number) => ErofsReader,
  layer: number,
  path: ByteString,
  xattrs: readonly Xattr[],
): ListedDirectory | undefined {
  if (!isImplied(xattrs)) return undefined;
  if (hidesLower(reader(layer), path)) return undefined;
  for (let lower = layer - 1; lower >= 0; lower--) {
    const found = findDirectory(reader(lower), path);
    if (found === "hidden") return undefined;
    if (found !== undefined && !isImplied(found.xattrs)) return found;
    if (hidesLower(reader(lower), path)) return undefined;
  }
  return undefined;
}

function isImplied(xattrs: readonly Xattr[]): boolean {
  return xattrs.some(({ name }) => name === IMPLIED_XATTR);
}

function isOpaque(xattrs: readonly Xattr[]): boolean {
  return xattrs.some(({ name, value }) => name === OPAQUE_XATTR && value === "y");
}

/** Whether the directory or one above it is opaque. */
function hidesLower(reader: ErofsReader, path: ByteString): boolean {
  let here = reader.root;
  if (isOpaque(reader.xattrs(here))) return true;
  for (const name of path === "" ? [] : path.split("/")) {
    const entry = reader.lookup(here, name);
    if (entry === undefined) return false;
    here = reader.inode(entry.nid);
    if ((here.mode & FileType.MASK) !== FileType.DIRECTORY) return false;
    if (isOpaque(reader.xattrs(here))) return true;
  }
  return false;
}

/** "hidden" when the layer has something else in the way, a whiteout for one, which ends the search. */
function findDirectory(reader: ErofsReader, path: ByteString): ListedDirectory | "hidden" | undefined {
  let here = reader.root;
  for (const name of path === "" ? [] : path.split("/")) {
    const entry = reader.lookup(here, name);
    if (entry === undefined) return undefined;
    here = reader.inode(entry.nid);
    if ((here.mode & FileType.MASK) !== FileType.DIRECTORY) return "hidden";
  }
  return { inode: here, xattrs: reader.xattrs(here) };
}
