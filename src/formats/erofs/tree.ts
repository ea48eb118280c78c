import { ShaleError } from "../../errors/index.ts";
import { Content, FileType, type LayerIndex } from "../layer-index/index.ts";
import { indexFromTree, type LayerTree, type TreeNode } from "../layer-index/merge.ts";
import { DirectoryGuard } from "./directory-guard.ts";
import type { ErofsInode } from "./inode.ts";
import type { ErofsExtent, ErofsReader } from "./reader.ts";

/** Content that is in the image goes through memory in one piece; our images have less than a block. */
const MAX_INLINE = 1 << 20;
/** An extent of an index begins at a multiple of this. */
const EXTENT_ALIGNMENT = 4096;

/** An image as `MergeBuilder` reads it. Nodes are nids; for INLINE content, `contentOffset` is the nid. */
export function erofsTree(reader: ErofsReader): LayerTree {
  const guard = new DirectoryGuard(reader);
  return {
    root: reader.root.nid,
    devices: reader.devices,
    entries: (directory) => guard.open(reader.inode(directory)),
    node: (nid) => treeNode(reader, reader.inode(nid)),
    readInline(nid) {
      const inode = reader.inode(nid);
      return reader.read(inode, 0, inode.size);
    },
  };
}

/**
 * The tree of an image as an index, whiteouts and all. Content on a device is EXTENT, content in the image is INLINE
 * with the nid as `contentOffset`: `reader.content(reader.inode(nid))` reads it. Unlinked inodes are not in it.
 * UNIMPLEMENTED for content over 1 MiB that is neither one run of a device nor empty.
 */
export function indexFromErofs(reader: ErofsReader, seed = 0): LayerIndex {
  return indexFromTree(erofsTree(reader), seed);
}

function treeNode(reader: ErofsReader, inode: ErofsInode): TreeNode {
  const type = inode.mode & FileType.MASK;
  const isLink = type === FileType.SYMLINK;
  const symlinkTarget = isLink ? reader.readlink(inode) : undefined;
  const place = type === FileType.REGULAR && inode.size > 0 ? placeOf(reader, inode) : NOWHERE;
  return {
    mode: inode.mode,
    uid: inode.uid,
    gid: inode.gid,
    mtimeSeconds: inode.mtimeSeconds,
    mtimeNanoseconds: inode.mtimeNanoseconds,
    size: isLink || type === FileType.REGULAR ? inode.size : 0,
    rdevMajor: inode.rdevMajor,
    rdevMinor: inode.rdevMinor,
    xattrs: reader.xattrs(inode),
    links: inode.links,
    symlinkTarget,
    contentKind: place.kind,
    contentDevice: place.device,
    contentOffset: place.offset,
  };
}

interface Place {
  readonly kind: number;
  readonly device: number;
  readonly offset: number;
}

const NOWHERE: Place = { kind: Content.EMPTY, device: 0, offset: 0 };

function placeOf(reader: ErofsReader, inode: ErofsInode): Place {
  let only: ErofsExtent | undefined;
  let count = 0;
  for (const extent of reader.extents(inode)) {
    only = extent;
    if (++count > 1) break;
  }
  if (only !== undefined && only.device >= 0 && count === 1 && only.offset % EXTENT_ALIGNMENT === 0) {
    return { kind: Content.EXTENT, device: only.device, offset: only.offset };
  }
  if (inode.size > MAX_INLINE) {
    const problem = `${inode.size} bytes of inode ${inode.nid} are not one run of a device, limit ${MAX_INLINE}`;
    throw new ShaleError("UNIMPLEMENTED", `Cannot merge erofs image: ${problem}`);
  }
  return { kind: Content.INLINE, device: 0, offset: inode.nid };
}
