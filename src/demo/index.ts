/**
 * The image of `shale demo`: two versions of a real root file system, made out of the host's own files.
 *
 * Guarantees
 * - A program of the image runs in a chroot: its interpreter, libraries and the symlinks to them are in the image, as ELF
 *   headers name them; nothing of the host is executed to find out.
 * - Only files that every user of the host may read go in; accounts are made up. Needs no root, no compiler, no network.
 * - Owner, permissions, times to the nanosecond, xattrs, symlinks and hard links are the host's. What was left out is counted.
 * - `tree` tells for each path what a mount has to show, from what was read, not from the tar or the mount.
 * - The same host files and Node version give the same digests.
 *
 * Never follows a symlink out of what it lists, reads devices, or changes anything but the target directory.
 */
export { type BuildDemoOptions, buildDemoImage, type DemoImage, type DemoImages, type DemoLayer } from "./build.ts";
export type { DemoSize } from "./plan.ts";
export type { TreeEntry } from "./tree.ts";
export type { Comparison, Mismatch } from "./compare.ts";
export { type DemoOptions, type DemoStep, showHostImage, showImage } from "./show.ts";
