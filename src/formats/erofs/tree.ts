import { ShaleError } from "../../errors/index.ts";
import { Content, FileType, type LayerIndex } from "../layer-index/index.ts";
import { indexFromTree, type LayerTree, type TreeNode } from "../layer-index/merge.ts";
import { DirectoryGuard } from "./directory-guard.ts";
import type { ErofsInode } from "./inode.ts";
import type { ErofsReader } from "./reader.ts";

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
    *entries(directory) {
      for (const { name, nid } of guard.open(reader.inode(directory))) yield { name, node: nid };
    },
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
  const node = {
    mode: inode.mode,
    uid: inode.uid,
    gid: inode.gid,
    mtimeSeconds: inode.mtimeSeconds,
    mtimeNanoseconds: inode.mtimeNanoseconds,
    size: 0,
    rdevMajor: inode.rdevMajor,
    rdevMinor: inode.rdevMinor,
    xattrs: reader.xattrs(inode),
    links: inode.links,
    contentKind: Content.EMPTY as number,
    contentDevice: 0,
    contentOffset: 0,
  };
  if (type === FileType.SYMLINK) {
    const symlinkTarget = reader.readlink(inode);
    return { ...node, symlinkTarget, size: symlinkTarget.length };
  }
  if (type !== FileType.REGULAR || inode.size === 0) return node;
  node.size = inode.size;
  const [first, ...more] = reader.extents(inode);
  if (first && first.device >= 0 && more.length === 0 && first.offset % EXTENT_ALIGNMENT === 0) {
    node.contentKind = Content.EXTENT;
    node.contentDevice = first.device;
    node.contentOffset = first.offset;
  } else {
    if (inode.size > MAX_INLINE) {
      const problem = `${inode.size} bytes of inode ${inode.nid} are not one run of a device, limit ${MAX_INLINE}`;
      throw new ShaleError("UNIMPLEMENTED", `Cannot merge erofs image: ${problem}`);
    }
    node.contentKind = Content.INLINE;
    node.contentOffset = inode.nid;
  }
  return node;
}
