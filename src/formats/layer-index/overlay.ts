/**
 * How a layer says in a file system what it hides of the layers below: the conventions of Linux overlayfs
 * (Documentation/filesystems/overlayfs.rst), and one of ours. `builder.ts` writes them, `merge.ts` and the reading side
 * give them their meaning; a merged image has none of them.
 */
import { FileType, type LayerIndex } from "./index.ts";

/** "y" on a directory: nothing of the same directory in lower layers shows. */
export const OPAQUE_XATTR = "trusted.overlay.opaque";
/** Empty, on a directory that holds whiteouts: without it overlayfs lists them when it need not merge the directory. */
export const ORIGIN_XATTR = "trusted.overlay.origin";
/**
 * Empty, on a directory that the layer's tar did not list but put entries below (the root, nearly always). Its
 * attributes are made up, so a merge takes those of the next lower layer that lists it. overlayfs ignores it and, as
 * everything below `trusted.overlay.`, never shows it.
 */
export const IMPLIED_XATTR = "trusted.overlay.shale.implied";

/** True for xattrs that mean something to overlayfs (both name spaces that it can be mounted with) or to the above. */
export function isOverlayXattr(name: string): boolean {
  return name.startsWith("trusted.overlay.") || name.startsWith("user.overlay.");
}

/** A whiteout is a character device with number 0:0. */
export function isWhiteout(index: LayerIndex, inode: number): boolean {
  return index.type(inode) === FileType.CHARACTER && index.rdevMajor(inode) === 0 && index.rdevMinor(inode) === 0;
}
