/**
 * containerd's snapshotter on the store: snapshots are rows of the store's database, made of layers (EROFS mounts that this
 * module makes once per host) or of plain directories, in any mixture. The contract is in `types.ts`.
 */
export { isUppermost, VOLATILE_LABEL } from "./labels.ts";
export { openSnapshotter } from "./snapshotter.ts";
export type {
  ActiveSnapshot,
  Cancellable,
  Labels,
  MountMode,
  RemoteLayers,
  RemoteRequest,
  SnapshotCounts,
  SnapshotInfo,
  SnapshotKind,
  SnapshotMount,
  Snapshotter,
  SnapshotterEvent,
  SnapshotterOptions,
  SnapshotUsage,
} from "./types.ts";
