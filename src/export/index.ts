/**
 * Exports: from an image in the store to files that a VM, a sandbox or another tool mounts.
 *
 * Guarantees
 * - Deterministic: the same image and the same options give the same bytes on any machine, so that a root hash can be published
 *   and signed. Identifiers that nobody gives are derived from the image's digest.
 * - A name is absent, or what was there before, or complete and durable; also after a power cut or with a full disk.
 * - The same export asked for twice at the same time is made once.
 * - An operation's lease protects what is read; the store is not changed.
 *
 * Design and use: docs/export.md.
 */
export { ExportCache, type ExportPolicy, type PlaceMethod } from "./cache.ts";
export { chainManifest } from "./chain.ts";
export { type ComposefsExport, type ComposefsOptions, exportComposefs } from "./composefs.ts";
export { deriveUuid, formatUuid, parseRootHash, parseSalt, parseUuid } from "./derive.ts";
export { type DiskOptions, type ExportedDisk, exportDisk, type VerityOptions } from "./disk.ts";
export {
  type CachedExport,
  collectExports,
  isNeeded,
  listExports,
  type UnusedExport,
} from "./entries.ts";
export { exportExt4 } from "./ext4.ts";
export { collectAll } from "./garbage.ts";
export {
  diskInstructions,
  type Instruction,
  kernelCommandLine,
  tarfsInstructions,
  veritysetupOpen,
} from "./instructions.ts";
export { encodeKataOption, KATA_VOLUME_OPTION, type KataVolume, type KataVolumeType, kataVolume } from "./kata.ts";
export type { ExportProgress } from "./progress.ts";
export { readSidecar, type Sidecar, sidecarPath } from "./sidecar.ts";
export { exportTar, leastTarSize, publishTar } from "./tar.ts";
export type { ExportSource } from "./source.ts";
export {
  exportTarfs,
  TARFS_LABELS,
  type TarfsDisk,
  type TarfsDisks,
  type TarfsExport,
  type TarfsLayer,
  type TarfsOptions,
} from "./tarfs.ts";
export { HASH_BLOCK_SIZE, type VerityInfo, type VerityParameters, verifyImage, writeVerity } from "./verity-image.ts";
export { verifyFile, type VerifyRequest, verityOfFile, type VerityRunning } from "./verity-file.ts";
