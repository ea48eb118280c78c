/**
 * Checkpoints in the image store: an archive is kept as the one layer of an image, in parts that other archives and images of
 * the store have too. There is no second store: names, leases, garbage collection, `df`, `rm` and `check` are the store's own.
 *
 * `importCheckpoint`: the archive at `path` (plain, gzip or zstd) is staged, sealed and committed as any layer. Files of its
 * nested tars are kept once by their content, memory in parts of 64 KiB of its addresses, zeros as holes; the second checkpoint
 * of a container costs what changed. INVALID_ARGUMENT for what is no checkpoint, or a damaged one. Killed at any point, it
 * leaves what the next opener of the store removes.
 *
 * `exportCheckpoint`: the archive's tar, bit for bit, mode 0600; it gets its name when it was verified and is durable.
 */
export { type ExportOptions, exportCheckpoint, listCheckpoints, type StoredCheckpoint } from "./export.ts";
export { type ImportedCheckpoint, importCheckpoint, type ImportOptions } from "./import.ts";
