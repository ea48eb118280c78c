/**
 * Stacking layers: the tree that overlayfs would show for a chain of layers, as one index.
 *
 * Per name the highest layer decides. A directory over a directory merges and takes all its metadata from the higher
 * one; anything else replaces what was below. A whiteout (character device 0:0) removes what lower layers have under
 * its name; an opaque directory (trusted.overlay.opaque = "y") hides what lower layers have in it; neither, nor any
 * other xattr by which overlayfs keeps its books, is in the result. Hard links hold within one layer, as the kernel has
 * it; a name that a higher layer replaced no longer counts as a link. One rule is not overlayfs's: a directory that a
 * layer's tar only implies (`overlay.ts`) has no metadata of its own and takes the lower layer's, as unpacking would.
 * Rules: Linux Documentation/filesystems/overlayfs.rst. OCI's own markers (".wh.") are turned into these by the tar builder.
 */
import type { ByteString } from "../../bytes/index.ts";
import { Content, FileType, type InodeAttributes, LayerIndex, NONE, ROOT, type Xattr } from "./index.ts";
import { IMPLIED_XATTR, OPAQUE_XATTR } from "./overlay.ts";

/** A device of an image, as `contentDevice` counts them. */
export interface TreeDevice {
  readonly tag: string;
  readonly blocks: number;
}

/** One inode of a {@link LayerTree}. */
export interface TreeNode extends InodeAttributes {
  readonly links: number;
  /** Of symlinks. */
  readonly symlinkTarget: ByteString | undefined;
  /** As in {@link Content}; `contentDevice` counts the tree's own devices. */
  readonly contentKind: number;
  readonly contentDevice: number;
  readonly contentOffset: number;
}

/** A layer as `merge` reads it, without building an index of it first. A nid is a number of the tree's choice for one inode. */
export interface LayerTree {
  readonly root: number;
  readonly devices: readonly TreeDevice[];
  /** Names of a directory, each once. Called once per directory. */
  entries(directory: number): Iterable<{ readonly name: ByteString; readonly nid: number }>;
  node(nid: number): TreeNode;
  readInline(nid: number): Uint8Array;
}

/** What `MergeBuilder.finish` gives. For INLINE inodes, `contentDevice` and `contentOffset` are private to `readInline`. */
export interface MergedTree {
  readonly index: LayerIndex;
  /** In order of first use from the lowest layer on, each once; those that nothing refers to any more are left out. */
  readonly devices: readonly TreeDevice[];
  readInline(inode: number): Uint8Array;
}

const OVERLAY = "trusted.overlay.";
/** An escaped xattr belongs to an overlay within the layer: mounting takes one level off. */
const ESCAPED = "trusted.overlay.overlay.";

export class MergeBuilder {
  readonly #index: LayerIndex;
  readonly #layers: LayerTree[] = [];
  readonly #devices: TreeDevice[] = [];
  readonly #deviceByTag = new Map<string, number>();

  /** `seed` is for {@link LayerIndex}. */
  constructor(seed = 0) {
    this.#index = new LayerIndex(seed);
  }

  /** Puts a layer on top of those added before; the lowest comes first. Keeps the tree for `readInline`. */
  addLayer(tree: LayerTree): void {
    const index = this.#index;
    const layer = this.#layers.push(tree) - 1;
    const devices = tree.devices.map((device) => this.#device(device));
    const add = (node: TreeNode) => addNode(index, node, this.#visibleXattrs(node.xattrs), devices, layer);
    /** Inodes of this layer with several names. */
    const linked = new Map<number, number>();
    const root = tree.node(tree.root);
    const pending = [{ nid: tree.root, inode: ROOT, fresh: layer === 0 || isOpaque(root) }];
    if (layer === 0) add(root);
    else this.#raise(ROOT, root);

    for (let here = pending.pop(); here !== undefined; here = pending.pop()) {
      const { inode: parent, fresh } = here;
      const firstChild = pending.length;
      for (const { name, nid } of tree.entries(here.nid)) {
        const upper = tree.node(nid);
        const below = fresh ? NONE : index.find(parent, name);
        const isDirectory = (upper.mode & FileType.MASK) === FileType.DIRECTORY;
        if (isWhiteout(upper)) {
          if (below !== NONE) index.remove(below);
        } else if (isDirectory && below !== NONE && index.isDirectory(index.direntInode(below))) {
          const inode = index.direntInode(below);
          this.#raise(inode, upper);
          pending.push({ nid, inode, fresh: isOpaque(upper) });
        } else {
          let inode = linked.get(nid) ?? NONE;
          if (inode === NONE) {
            inode = add(upper);
            if (isDirectory) pending.push({ nid, inode, fresh: true });
            else if (upper.links > 1) linked.set(nid, inode);
          }
          if (below !== NONE && !isDirectory && !index.isDirectory(index.direntInode(below))) {
            index.retarget(below, inode);
          } else {
            if (below !== NONE) index.remove(below);
            index.addDirent(parent, name, inode);
          }
        }
      }
      reverseFrom(pending, firstChild); // in the order of the names: what is read together lies together
    }
  }

  /** The merged tree. The builder is used up. */
  finish(): MergedTree {
    const index = this.#index;
    const layers = this.#layers;
    if (layers.length === 0) throw new RangeError("a merge of no layers");
    const used = new Uint8Array(this.#devices.length);
    const isUsed = (inode: number) => index.links(inode) > 0 && index.contentKind(inode) === Content.EXTENT;
    for (let inode = 0; inode < index.inodeCount; inode++) if (isUsed(inode)) used[index.contentDevice(inode)] = 1;
    let next = 0;
    const places = Array.from(used, (one) => (one ? next++ : NONE));
    for (let inode = 0; inode < index.inodeCount; inode++) {
      if (index.contentKind(inode) !== Content.EXTENT) continue;
      if (isUsed(inode)) {
        const device = places[index.contentDevice(inode)]!;
        index.setContent(inode, Content.EXTENT, device, index.contentOffset(inode));
      } else index.setContent(inode, Content.EMPTY, 0, 0);
    }
    return {
      index,
      devices: this.#devices.filter((_, device) => used[device] === 1),
      readInline(inode) {
        if (index.contentKind(inode) !== Content.INLINE) throw new RangeError(`inode ${inode} is not inline`);
        return layers[index.contentDevice(inode)]!.readInline(index.contentOffset(inode));
      },
    };
  }

  /** A directory gets the metadata of the higher layer's, if that one has any. */
  #raise(inode: number, upper: TreeNode): void {
    if (isOpaque(upper)) this.#index.clear(inode);
    if (upper.xattrs.some(({ name }) => name === IMPLIED_XATTR)) return;
    this.#index.setAttributes(inode, { ...upper, size: 0, xattrs: this.#visibleXattrs(upper.xattrs) });
  }

  #device(device: TreeDevice): number {
    let at = this.#deviceByTag.get(device.tag);
    if (at === undefined) {
      at = this.#devices.push(device) - 1;
      this.#deviceByTag.set(device.tag, at);
    } else if (device.blocks > this.#devices[at]!.blocks) this.#devices[at] = device;
    return at;
  }

  #visibleXattrs(xattrs: readonly Xattr[]): readonly Xattr[] {
    if (!xattrs.some(({ name }) => isBookkeeping(name))) return xattrs;
    return xattrs.filter(({ name }) => !isBookkeeping(name));
  }
}

/**
 * An index as `MergeBuilder` reads it: the same tree as that of an image which is written from it. Valid while the index
 * does not change. Nids are inode ids.
 */
export function treeFromIndex(
  index: LayerIndex,
  devices: readonly TreeDevice[],
  readInline: (inode: number) => Uint8Array,
): LayerTree {
  return {
    root: ROOT,
    devices,
    *entries(directory) {
      for (const dirent of index.sortedDirents(directory)) {
        yield { name: index.direntName(dirent), nid: index.direntInode(dirent) };
      }
    },
    node(inode) {
      const type = index.type(inode);
      const isLink = type === FileType.SYMLINK;
      const isDevice = type === FileType.CHARACTER || type === FileType.BLOCK;
      const size = isLink || type === FileType.REGULAR ? index.size(inode) : 0;
      const kind = size === 0 || isLink ? Content.EMPTY : index.contentKind(inode);
      const isExtent = kind === Content.EXTENT;
      return {
        mode: index.mode(inode),
        uid: index.uid(inode),
        gid: index.gid(inode),
        mtimeSeconds: index.mtimeSeconds(inode),
        mtimeNanoseconds: index.mtimeNanoseconds(inode),
        size,
        rdevMajor: isDevice ? index.rdevMajor(inode) : 0,
        rdevMinor: isDevice ? index.rdevMinor(inode) : 0,
        xattrs: index.xattrs(inode),
        links: index.links(inode),
        symlinkTarget: isLink ? index.symlinkTarget(inode) : undefined,
        contentKind: kind,
        contentDevice: isExtent ? index.contentDevice(inode) : 0,
        contentOffset: isExtent ? index.contentOffset(inode) : inode,
      };
    },
    readInline,
  };
}

/** The whole tree as an index, with whiteouts and xattrs as they are. INLINE inodes keep the nid as `contentOffset`. */
export function indexFromTree(tree: LayerTree, seed = 0): LayerIndex {
  const index = new LayerIndex(seed);
  const devices = tree.devices.map((_, device) => device);
  const add = (node: TreeNode) => addNode(index, node, node.xattrs, devices, 0);
  const linked = new Map<number, number>();
  const pending = [{ nid: tree.root, inode: add(tree.node(tree.root)) }];
  for (let here = pending.pop(); here !== undefined; here = pending.pop()) {
    const firstChild = pending.length;
    for (const { name, nid } of tree.entries(here.nid)) {
      let inode = linked.get(nid) ?? NONE;
      if (inode === NONE) {
        const attributes = tree.node(nid);
        inode = add(attributes);
        if ((attributes.mode & FileType.MASK) === FileType.DIRECTORY) pending.push({ nid, inode });
        else if (attributes.links > 1) linked.set(nid, inode);
      }
      index.addDirent(here.inode, name, inode);
    }
    reverseFrom(pending, firstChild);
  }
  return index;
}

function addNode(
  index: LayerIndex,
  node: TreeNode,
  xattrs: readonly Xattr[],
  devices: readonly number[],
  inlineDevice: number,
): number {
  const inode = index.addInode(xattrs === node.xattrs ? node : { ...node, xattrs }, node.symlinkTarget);
  if (node.contentKind === Content.INLINE) {
    index.setContent(inode, Content.INLINE, inlineDevice, node.contentOffset);
  } else if (node.contentKind === Content.EXTENT) {
    index.setContent(inode, Content.EXTENT, devices[node.contentDevice]!, node.contentOffset);
  }
  return inode;
}

function isWhiteout(node: TreeNode): boolean {
  return (node.mode & FileType.MASK) === FileType.CHARACTER && node.rdevMajor === 0 && node.rdevMinor === 0;
}

function isOpaque(node: TreeNode): boolean {
  return node.xattrs.some(({ name, value }) => name === OPAQUE_XATTR && value === "y");
}

function isBookkeeping(name: ByteString): boolean {
  return name.startsWith(OVERLAY) && !name.startsWith(ESCAPED);
}

function reverseFrom<T>(list: T[], from: number): void {
  for (let a = from, b = list.length - 1; a < b; a++, b--) {
    const one = list[a]!;
    list[a] = list[b]!;
    list[b] = one;
  }
}
