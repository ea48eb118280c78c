/**
 * The only door to the machine: files, durability, locks, mounts, xattrs, child processes; and the place where tests
 * produce faults, crashes and power cuts (`effects.ts`). Knows nothing of layers.
 *
 * Guarantees: errors of the system keep Node's shape and `code`, whether Node or koffi made the call. Importing this loads
 * no native code. Every operation that the store's durability rests on is an effect.
 */
export * from "./clock.ts";
export * from "./byte-stream.ts";
export * from "./beneath.ts";
export * from "./copy.ts";
export * from "./data-ranges.ts";
export * from "./detach.ts";
export * from "./disk-usage.ts";
export {
  crashPoint,
  type EffectKind,
  effect,
  type Fault,
  injectFault,
  observed,
  type ReadKind,
  recordDatabaseCommit,
  recordEffects,
} from "./effects.ts";
export * from "./file-source.ts";
export * from "./files.ts";
export * from "./filter.ts";
export * from "./host-files.ts";
export * from "./in-use.ts";
export * from "./locks.ts";
export * from "./loop.ts";
export * from "./mount-info.ts";
export * from "./mounts.ts";
export * from "./new-file.ts";
export * from "./null-device.ts";
export * from "./process.ts";
export * from "./remove-tree.ts";
export * from "./rights.ts";
export * from "./service-manager.ts";
export * from "./signals.ts";
export * from "./sync-file-system.ts";
export { type SystemError, systemError } from "./system-error.ts";
export * from "./unix-socket.ts";
export * from "./user-namespace.ts";
export * from "./walk.ts";
export * from "./writeback.ts";
export { giveThreadsTheirYoungGeneration } from "./young-generation.ts";
