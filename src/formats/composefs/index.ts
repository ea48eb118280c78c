/**
 * composefs images: an EROFS image that has no content but very small files, and names the rest by fs-verity digests in overlayfs
 * xattrs, so that an overlay of it over a directory of objects is the tree.
 *
 * Guarantee: the bytes are those of `mkcomposefs` (libcomposefs 1.0.8, format version 0, which it writes for a tree without
 * whiteouts) for the same tree, hard links as in a composefs-dump. The digest of an image is therefore the one that others know
 * it by. Layout rules: libcomposefs/lcfs-writer-erofs.c; formats: composefs doc and Linux fs/erofs/erofs_fs.h. Pure.
 */
export { objectPath } from "./xattrs.ts";
export { INLINE_LIMIT, writeComposefs, type WriteComposefsOptions } from "./writer.ts";
