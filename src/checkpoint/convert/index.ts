/**
 * Checkpoint archives from one dialect to another: podman's (rootfs-diff.tar and deleted.files), CRI-O's (the same, with
 * bind.mounts), containerd's (a gzip layer with whiteouts, status.dump) and the inline one (changes as members).
 *
 * Guarantees: memory, CRIU's images, volumes and files pass unchanged, inside the kernel where both are plain files; deletions
 * and directories that hide those of the image keep their meaning. What the target has no place for, what its engine will not
 * use, and what had to be made up is in `notices`, or refused (`strict`): nothing is lost in silence. The output gets its name
 * when it is complete and durable. Compressed parts are unpacked once, into files without a name beside the output.
 */
export { convertCheckpoint, type ConvertOptions, type ConvertResult, type ConvertTarget } from "./convert.ts";
