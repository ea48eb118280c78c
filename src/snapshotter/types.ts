/**
 * What a snapshotter promises to containerd, without the wire: the words of containerd's snapshots service (v1) as plain data.
 * Nothing here knows gRPC; `daemon/` translates, and a `ShaleError` code is the gRPC code of the same name.
 */
import type { DiffId } from "../oci/index.ts";
import type { StoreOperation } from "../store/index.ts";

export type Labels = Readonly<Record<string, string>>;

export type SnapshotKind = "active" | "view" | "committed";

export interface SnapshotInfo {
  /** Of a committed snapshot its name, of the others their key. One space for all kinds. */
  readonly name: string;
  /** Name of a committed snapshot, or "". */
  readonly parent: string;
  readonly kind: SnapshotKind;
  readonly labels: Labels;
  /** Nanoseconds since 1970. */
  readonly createdAt: bigint;
  readonly updatedAt: bigint;
}

/** containerd.types.Mount: performed by the client, in order, on one target. */
export interface SnapshotMount {
  readonly type: string;
  readonly source: string;
  /** Below the mount point; "" and absent mean the same. */
  readonly target?: string;
  readonly options: readonly string[];
}

export interface SnapshotUsage {
  /** Bytes on disk of this snapshot alone. */
  readonly size: number;
  readonly inodes: number;
}

export interface SnapshotCounts {
  readonly active: number;
  readonly view: number;
  readonly committed: number;
}

/** An active snapshot that a list of mounts belongs to. */
export interface ActiveSnapshot {
  readonly key: string;
  /** "" when it has none. */
  readonly parent: string;
  readonly labels: Labels;
  /**
   * It was prepared to be unpacked into and committed (containerd's key "extract-..." or a label `containerd.io/snapshot.ref`),
   * so nobody looks at its mounts between Apply and Commit. Only such a one can become a layer: into any other (a
   * container that is restored, say) the bytes have to be written.
   */
  readonly unpack: boolean;
}

export interface RemoteRequest {
  /** The label `containerd.io/snapshot.ref`. */
  readonly chainId: string;
  /** All labels of the call: untrusted. */
  readonly labels: Labels;
  /**
   * Layers below, lowest first; undefined when a snapshot below is a plain directory, so that they are not known. Where they are
   * known, `use` itself refuses a layer that does not make `chainId` with them.
   */
  readonly parentDiffIds: readonly DiffId[] | undefined;
  /** Backing name of the parent, "" for none. */
  readonly parent: string;
  readonly signal: AbortSignal | undefined;
}

/** Where layers come from that containerd has not fetched (`remote/`). */
export interface RemoteLayers {
  /**
   * Has the layer that makes `chainId` out of its parent in the store, and calls `use` while `operation`'s lease keeps it.
   * Answers what `use` answered; undefined when this layer is not ours to fetch (no image reference in the labels, a media
   * type that shale can't read) or could not be had (docs/adr/0017): then containerd fetches it. Rejects with what `use`
   * throws, with RESOURCE_EXHAUSTED for a full disk, and with CANCELLED by the signal.
   */
  fetch<T>(request: RemoteRequest, use: (operation: StoreOperation, diffId: DiffId) => T): Promise<T | undefined>;
}

/** How the layers of a chain are put together for a mount. */
export type MountMode = "merged" | "stacked";

/** What happened inside, for logs and metrics. Never thrown from; `key` is the snapshot's key or name. */
export type SnapshotterEvent =
  | { readonly kind: "recovered"; readonly directories: number; readonly durationMs: number }
  /** A mount below ROOT/mounts was made; `again` when it had been made before and was gone. */
  | { readonly kind: "mounted"; readonly path: string; readonly again: boolean; readonly durationMs: number }
  | { readonly kind: "unmounted"; readonly path: string }
  | { readonly kind: "merged"; readonly layers: number; readonly durationMs: number }
  | { readonly kind: "converted"; readonly key: string; readonly diffId: DiffId; readonly durationMs: number }
  /** A plain snapshot stays a directory, and why. */
  | { readonly kind: "not-converted"; readonly key: string; readonly why: string }
  | { readonly kind: "removed"; readonly directories: number; readonly bytes: number; readonly durationMs: number }
  /** Something that only this record or file suffers from; the rest goes on. */
  | { readonly kind: "trouble"; readonly what: string; readonly error: unknown };

export interface SnapshotterOptions {
  readonly remote?: RemoteLayers;
  /** "merged" unless given: one image for all layers of a chain. Recorded with each snapshot when it is prepared. */
  readonly mode?: MountMode;
  /** Overlays of active snapshots with `volatile`: no syncs, and unusable after a power cut. A label overrides it. */
  readonly volatile?: boolean;
  /** Honour `containerd.io/snapshot/uidmapping` and `gidmapping` by idmapped mounts; else such a Prepare is UNIMPLEMENTED. */
  readonly remapIds?: boolean;
  /** Make layers of the directories that other differs filled, in the background after Commit. */
  readonly convertPlain?: boolean;
  /** Nanoseconds since 1970, never going back; the machine's clock unless given. */
  readonly now?: () => bigint;
  readonly onEvent?: (event: SnapshotterEvent) => void;
}

export interface Cancellable {
  readonly signal?: AbortSignal;
}

/**
 * The snapshotter. Every method rejects with a `ShaleError` whose code is the one that containerd expects, and whose message
 * ends as containerd's own do (": not found", ": already exists").
 *
 * - After a method has resolved, its effect survives `kill -9` and a power cut; a killed or cancelled call has happened
 *   wholly or not at all.
 * - `mounts` answers the same list for the life of a key, restarts and reboots included.
 * - Nothing waits for the network, for a deletion or for a walk but `prepare` with a remote label, `usage` and `cleanup`.
 */
export interface Snapshotter extends AsyncDisposable {
  /** ALREADY_EXISTS when the key is taken, and for a remote snapshot that is there now; NOT_FOUND or INVALID_ARGUMENT for the parent. */
  prepare(key: string, parent: string, labels: Labels, options?: Cancellable): Promise<readonly SnapshotMount[]>;
  view(key: string, parent: string, labels: Labels, options?: Cancellable): Promise<readonly SnapshotMount[]>;
  /** Of an active snapshot or a view; FAILED_PRECONDITION for a committed one. Makes mounts that are gone again. */
  mounts(key: string, options?: Cancellable): Promise<readonly SnapshotMount[]>;
  /** `labels` replace those of Prepare. `parent` is that of containerd 2.2's parallel unpack. */
  commit(name: string, key: string, labels: Labels, options?: { readonly parent?: string }): Promise<void>;
  /** Takes it out of sight; its files go in `cleanup`. FAILED_PRECONDITION while it has children. */
  remove(key: string): Promise<void>;
  stat(key: string): SnapshotInfo;
  /** `paths` is the field mask: "labels", "labels.<key>"; empty means all that can change. */
  update(info: Pick<SnapshotInfo, "name" | "labels">, paths: readonly string[]): SnapshotInfo;
  /** INVALID_ARGUMENT at once for a filter that can't be parsed. Other calls may come between two elements. */
  list(filters: readonly string[]): Iterable<SnapshotInfo>;
  usage(key: string, options?: Cancellable): Promise<SnapshotUsage>;
  /** Deletes what Remove took out of sight and unmounts what no snapshot needs. */
  cleanup(options?: Cancellable): Promise<void>;
  counts(): SnapshotCounts;
  /** DiffIds of a committed snapshot and of those below it, lowest first; undefined when one of them is no layer. */
  layersOf(name: string): readonly DiffId[] | undefined;

  /** For a differ: whose mounts these are; undefined when they are not exactly those of an active snapshot of this root. */
  findActive(mounts: readonly SnapshotMount[]): ActiveSnapshot | undefined;
  /**
   * For a differ: `key`, an active snapshot with `unpack` and nothing written into it, is made of exactly this layer from now
   * on, also after a crash. Call while `operation`'s lease keeps the layer. FAILED_PRECONDITION when it can't be: then the
   * layer has to be written into its mounts. A second call with the same layer is success.
   */
  attachLayer(key: string, operation: StoreOperation, diffId: DiffId): void;

  /** Resolves when no work of its own is left in the background; for tests and for an orderly end. */
  settled(): Promise<void>;
  /** Ends background work and gives up the lock on the root. Mounts stay: containers run on them. */
  close(): Promise<void>;
}
