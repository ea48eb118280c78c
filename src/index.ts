/**
 * shale as a library: the same operations as the commands.
 *
 * ```ts
 * await using store = Store.open("/var/lib/shale", { create: true });
 * const origin = await openOrigin(parseImageSource("docker.io/library/debian:12"), {
 *   registry: async () => new RegistryClient(),
 * });
 * await pullImage(store, origin);
 * await mountImage(store, findImage(store, "debian:12"), "/mnt/debian");
 * ```
 *
 * Failures are `ShaleError`s: branch on `code`. Everything that takes long takes a `signal`.
 */

export { type CheckoutOptions, type CheckoutResult, checkoutImage } from "./checkout/index.ts";
export { type CheckpointArchive, openArchive } from "./checkpoint/archive/index.ts";
export { type RestoreResult, type RestoreTargets, restoreCheckpoint } from "./checkpoint/restore.ts";
export { type CheckpointSources, type WriteResult, writeCheckpoint } from "./checkpoint/write.ts";
export { type ErrorCode, FormatError, ShaleError } from "./errors/index.ts";
export { type DiskOptions, type ExportedDisk, exportDisk } from "./export/index.ts";
export { type ConvertOptions, type ConvertOutput, type ConvertResult, convertImage } from "./images/convert.ts";
export { type Difference, diffTrees } from "./images/diff.ts";
export { openImageTree } from "./images/files.ts";
export { type FoundImage, findImage } from "./images/find.ts";
export { loadImages } from "./images/load.ts";
export { listMounts, mountImage, unmountImage } from "./images/mount.ts";
export { type Origin, openOrigin } from "./images/origin.ts";
export type { Progress, ProgressTask } from "./images/progress.ts";
export { type PullOptions, type PullResult, pullImage } from "./images/pull.ts";
export { repairStore } from "./images/repair.ts";
export { saveImages } from "./images/save.ts";
export { storeProvider } from "./images/serve.ts";
export { parseImageSource } from "./oci/index.ts";
export { RegistryClient, type RegistryOptions } from "./registry/index.ts";
export { startRegistry } from "./server/index.ts";
export { Store, StoreOperation } from "./store/index.ts";
