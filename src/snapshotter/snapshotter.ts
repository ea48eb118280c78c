/** The snapshotter itself: containerd's semantics on the store's records. What each call promises is in `types.ts`. */
import { join } from "node:path";
import { throwIfAborted } from "../async/index.ts";
import { ShaleError } from "../errors/index.ts";
import { chainIdOf, type DiffId } from "../oci/index.ts";
import {
  alreadyExists,
  notFound,
  REF_LABEL,
  type SnapshotRecord,
  type SnapshotRegister,
  type Store,
  type StoreOperation,
} from "../store/index.ts";
import { bootId, findFile, list, makeDirectory, removeTree, setOwnership, wallClockNs } from "../sys/index.ts";
import { Anticipation } from "./anticipation.ts";
import { imageLayers, planBases } from "./bases.ts";
import { Cleaner } from "./cleaner.ts";
import { CommittedUsage } from "./committed-usage.ts";
import { Converter } from "./converter.ts";
import { compileFilters } from "./filters/index.ts";
import { HostMounts } from "./host-mounts.ts";
import { checkLabels, checkName, isUppermost, isVolatile, mappingOf, updatedLabels } from "./labels.ts";
import { checkRoot, equalMounts, mountList, UPPER, WORK, writtenDirectory } from "./mount-lists.ts";
import { rootOf } from "./root-attributes.ts";
import { Syncer } from "./syncer.ts";
import type {
  ActiveSnapshot,
  Cancellable,
  Labels,
  RemoteRequest,
  SnapshotCounts,
  SnapshotInfo,
  SnapshotMount,
  Snapshotter,
  SnapshotterEvent,
  SnapshotterOptions,
  SnapshotUsage,
} from "./types.ts";
import { UsageMeter } from "./usage.ts";
import { admitVolatile, VOLATILE } from "./volatile.ts";

/** containerd's name for what is unpacked into, behind the "<namespace>/<n>/" that its metadata layer adds. */
const UNPACK_KEY = /^(?:[^/]*\/\d+\/)?extract-/;

/**
 * Serves the snapshots of `store`'s root. FAILED_PRECONDITION, naming the process, while another one does. Takes up what a
 * killed process left: nothing of it is in the way of anything before that.
 */
export async function openSnapshotter(store: Store, options: SnapshotterOptions = {}): Promise<Snapshotter> {
  checkRoot(store.root);
  const began = performance.now();
  const register = store.openSnapshots();
  const snapshotter = new StoreSnapshotter(store, register, options);
  options.onEvent?.({
    kind: "recovered",
    directories: register.abandoned().length,
    durationMs: performance.now() - began,
  });
  return snapshotter;
}

class StoreSnapshotter implements Snapshotter {
  readonly #register: SnapshotRegister;
  readonly #options: SnapshotterOptions;
  readonly #mounts: HostMounts;
  readonly #converter: Converter;
  readonly #anticipation: Anticipation;
  readonly #syncer: Syncer;
  readonly #usage = new UsageMeter();
  readonly #committedUsage: CommittedUsage;
  readonly #cleaner: Cleaner;
  #closed = false;

  constructor(store: Store, register: SnapshotRegister, options: SnapshotterOptions) {
    this.#register = register;
    this.#options = options;
    const report = (event: SnapshotterEvent) => options.onEvent?.(event);
    this.#mounts = new HostMounts(store, register.hostMounts, (id) => register.directoryOf(id), report);
    this.#converter = new Converter(store, register, report);
    this.#anticipation = new Anticipation(register, this.#mounts, report);
    this.#syncer = new Syncer(store.root, register, report);
    this.#committedUsage = new CommittedUsage(register);
    this.#cleaner = new Cleaner(register, this.#mounts, report);
    if (register.unsynced().length > 0) this.#syncer.request();
    if (options.convertPlain) for (const { id } of register.plain()) this.#converter.add(id);
  }

  #now(): bigint {
    return this.#options.now?.() ?? wallClockNs();
  }

  // --- looking

  stat(key: string): SnapshotInfo {
    return infoOf(this.#get(key));
  }

  #get(key: string): SnapshotRecord {
    const found = this.#register.find(key);
    if (found === undefined) throw notFound(key);
    return found;
  }

  list(filters: readonly string[]): Iterable<SnapshotInfo> {
    const filter = compileFilters(filters, REF_LABEL);
    return this.#select(filter.alternatives, (snapshot) => filter.matches(snapshot));
  }

  *#select(
    alternatives: ReturnType<typeof compileFilters>["alternatives"],
    matches: (snapshot: SnapshotRecord) => boolean,
  ): Generator<SnapshotInfo> {
    const open = alternatives.some((each) => Object.keys(each).length === 0);
    const seen = new Set<number>();
    for (const selection of open ? [{}] : alternatives) {
      for (const snapshot of this.#register.list(selection)) {
        if (seen.has(snapshot.id) || !matches(snapshot)) continue;
        if (!open && alternatives.length > 1) seen.add(snapshot.id);
        yield infoOf(snapshot);
      }
    }
  }

  counts(): SnapshotCounts {
    return this.#register.counts();
  }

  layersOf(name: string): readonly DiffId[] | undefined {
    return imageLayers(this.#register.chainOf(this.#get(name).id));
  }

  // --- making

  async prepare(key: string, parent: string, labels: Labels, options: Cancellable = {}) {
    const below = this.#checkNew(key, parent, labels, options);
    using _ = this.#anticipation.build(below?.id);
    const ref = labels[REF_LABEL];
    if (ref !== undefined && (await this.#ensureRemote(ref, below, labels, options))) throw alreadyExists(key);
    return await this.#create("active", key, below, labels, options);
  }

  async view(key: string, parent: string, labels: Labels, options: Cancellable = {}) {
    return await this.#create("view", key, this.#checkNew(key, parent, labels, options), labels, options);
  }

  /** The parent, checked; asked again when the new one is recorded. */
  #checkNew(key: string, parent: string, labels: Labels, { signal }: Cancellable): SnapshotRecord | undefined {
    throwIfAborted(signal);
    this.#checkOpen();
    checkName(key);
    checkLabels(labels);
    if (this.#register.find(key) !== undefined) throw alreadyExists(key);
    if (parent === "") return undefined;
    const found = this.#register.find(parent);
    if (found === undefined) throw new ShaleError("NOT_FOUND", `parent snapshot ${parent}: not found`);
    if (found.kind === "committed") return found;
    throw new ShaleError(
      "INVALID_ARGUMENT",
      `parent ${parent} is not a committed snapshot but ${found.kind}: invalid argument`,
    );
  }

  #checkOpen(): void {
    if (this.#closed) throw new ShaleError("UNAVAILABLE", "snapshotter is closed: unavailable");
  }

  async #create(
    kind: "active" | "view",
    key: string,
    parent: SnapshotRecord | undefined,
    labels: Labels,
    { signal }: Cancellable,
  ): Promise<readonly SnapshotMount[]> {
    const mapping = mappingOf(labels);
    if (mapping !== undefined && !this.#options.remapIds) {
      throw new ShaleError("UNIMPLEMENTED", `snapshot ${key}: mapping user ids is not switched on: not implemented`);
    }
    const volatile = kind === "active" && isVolatile(labels, this.#options.volatile ?? false);
    const chain = parent === undefined ? [] : this.#register.chainOf(parent.id);
    for (const snapshot of chain) checkSound(snapshot);
    const mode = isUnpack(key, labels) ? "stacked" : (this.#options.mode ?? "merged");
    using bases = await this.#mounts.use(planBases(chain, mode, { bare: kind === "view" }), mapping);
    throwIfAborted(signal);
    this.#checkOpen();
    const paths = bases.recorded.map((base) => this.#mounts.pathOf(base));
    const directory = kind === "active" || paths.length === 0;
    const id = directory ? this.#makeDirectory(paths, labels) : this.#register.reserve();
    const snapshot = {
      ...{ id, name: key, kind, labels, directory, parent: parent?.name ?? "", createdAt: this.#now() },
      bases: bases.recorded,
      options: volatile && paths.length > 0 ? [VOLATILE] : [],
      unsyncedSince: volatile ? bootId() : undefined,
    };
    try {
      this.#register.insert(snapshot);
    } catch (error) {
      if (directory) this.#register.abandon(id);
      throw error;
    }
    return this.#mountsOf(snapshot);
  }

  /** snapshots/<id> with its root as the files below have it. */
  #makeDirectory(bases: readonly string[], labels: Labels): number {
    const { id, path } = this.#register.makeDirectory();
    try {
      this.#fillDirectory(path, bases, labels);
      return id;
    } catch (error) {
      this.#register.abandon(id);
      throw error;
    }
  }

  #fillDirectory(path: string, bases: readonly string[], labels: Labels): void {
    makeDirectory(join(path, UPPER), 0o755);
    setOwnership(join(path, UPPER), rootOf(bases, mappingOf(labels)));
    if (bases.length > 0) makeDirectory(join(path, WORK), 0o711);
  }

  /** True when the layer of `ref` is a committed snapshot on this parent now. */
  async #ensureRemote(
    ref: string,
    parent: SnapshotRecord | undefined,
    labels: Labels,
    { signal }: Cancellable,
  ): Promise<boolean> {
    const { remote } = this.#options;
    const isThere = () => {
      for (const { kind } of this.#register.list({ ref, parent: parent?.name ?? "" })) {
        if (kind === "committed") return true;
      }
      return false;
    };
    if (remote === undefined) return false;
    if (isThere()) return true;
    const parentDiffIds = parent === undefined ? [] : imageLayers(this.#register.chainOf(parent.id));
    const request: RemoteRequest = { chainId: ref, labels, parentDiffIds, parent: parent?.name ?? "", signal };
    const done = await remote.fetch(request, (_operation, diffId) => {
      if (isThere()) return true; // another call for the same layer was first
      this.#checkOpen();
      if (parentDiffIds !== undefined && (chainIdOf([...parentDiffIds, diffId]) as string) !== ref) {
        throw new ShaleError("DATA_LOSS", `Cannot make ${ref}: layer ${diffId} on its parent is another chain`);
      }
      const id = this.#register.reserve();
      const name = `shale/${id}/${ref}`;
      this.#register.insertCommitted({
        ...{ id, name, labels, diffId, parent: parent?.name ?? "", createdAt: this.#now() },
      });
      this.#expectContainer(id, labels);
      return true;
    });
    return done ?? false;
  }

  // --- mounts

  async mounts(key: string, { signal }: Cancellable = {}): Promise<readonly SnapshotMount[]> {
    throwIfAborted(signal);
    const snapshot = this.#get(key);
    if (snapshot.kind === "committed") {
      throw new ShaleError("FAILED_PRECONDITION", `snapshot ${key} is committed: failed precondition`);
    }
    for (const base of snapshot.bases) await this.#mounts.ensure(base);
    if (snapshot.directory) this.#restoreDirectory(snapshot);
    return this.#mountsOf(snapshot);
  }

  /**
   * A power cut may have taken the directory, which is not synced when it is made: then nothing in it was synced either, or the
   * file system would have kept it.
   */
  #restoreDirectory(snapshot: SnapshotRecord): void {
    const path = this.#register.directoryOf(snapshot.id);
    if (findFile(join(path, UPPER)) === undefined) {
      if (findFile(path) === undefined) makeDirectory(path, 0o711);
      const bases = snapshot.bases.map((base) => this.#mounts.pathOf(base));
      removeTree(join(path, WORK));
      this.#fillDirectory(path, bases, snapshot.labels);
    }
    if (!snapshot.options.includes(VOLATILE)) return;
    admitVolatile(snapshot.name, join(path, WORK), snapshot.unsyncedSince);
    if (snapshot.unsyncedSince !== bootId()) this.#register.setUnsynced(snapshot.id);
  }

  #mountsOf(snapshot: Pick<SnapshotRecord, "id" | "kind" | "directory" | "bases" | "options">) {
    return mountList({
      bases: snapshot.bases.map((base) => this.#mounts.pathOf(base)),
      directory: snapshot.directory ? this.#register.directoryOf(snapshot.id) : undefined,
      writable: snapshot.kind === "active",
      options: snapshot.options,
    });
  }

  // --- changing

  async commit(name: string, key: string, labels: Labels, { parent = "" }: { readonly parent?: string } = {}) {
    this.#checkOpen();
    checkName(name);
    checkLabels(labels);
    const active = this.#get(key);
    const path = join(this.#register.directoryOf(active.id), UPPER);
    // Of a layer that a differ attached, nothing else is expected here; if there is, it counts.
    const directory = active.kind === "active" && (active.diffId === undefined || list(path).length > 0);
    if (directory && findFile(path) === undefined) this.#restoreDirectory(active);
    const { id } = this.#register.commit(key, { name, labels, parent, directory, at: this.#now() });
    this.#usage.forget(id);
    if (!directory) return this.#expectContainer(id, labels);
    this.#syncer.request();
    this.#committedUsage.measure(id).catch((error: unknown) => {
      this.#options.onEvent?.({ kind: "trouble", what: `Cannot measure snapshot ${name}`, error });
    });
    if (this.#options.convertPlain) this.#converter.add(id);
  }

  #expectContainer(id: number, labels: Labels): void {
    if ((this.#options.mode ?? "merged") === "merged") this.#anticipation.expect(id, isUppermost(labels));
  }

  async remove(key: string): Promise<void> {
    this.#checkOpen();
    const { id } = this.#get(key);
    this.#register.remove(key);
    this.#usage.forget(id);
  }

  update({ name, labels }: Pick<SnapshotInfo, "name" | "labels">, paths: readonly string[]): SnapshotInfo {
    this.#checkOpen();
    const snapshot = this.#get(name);
    const updated = updatedLabels(snapshot.labels, labels, paths);
    checkLabels(updated);
    this.#register.update(name, updated, this.#now());
    return this.stat(name);
  }

  // --- usage

  async usage(key: string, { signal }: Cancellable = {}): Promise<SnapshotUsage> {
    throwIfAborted(signal);
    const snapshot = this.#get(key);
    if (snapshot.kind === "view") return { size: 0, inodes: 0 };
    if (snapshot.kind === "committed") return snapshot.usage ?? (await this.#committedUsage.measure(snapshot.id));
    const usage = await this.#usage.measure(snapshot.id, join(this.#register.directoryOf(snapshot.id), UPPER), signal);
    if (this.#register.findById(snapshot.id)?.kind !== "active") this.#usage.forget(snapshot.id);
    return usage;
  }

  // --- removing for good

  async cleanup({ signal }: Cancellable = {}): Promise<void> {
    throwIfAborted(signal);
    this.#checkOpen();
    await this.#cleaner.run(signal);
  }

  // --- for a differ

  findActive(mounts: readonly SnapshotMount[]): ActiveSnapshot | undefined {
    const id = writtenDirectory(mounts, join(this.#register.directoryOf(0), ".."));
    const snapshot = id === undefined ? undefined : this.#register.findById(id);
    if (snapshot?.kind !== "active" || !equalMounts(mounts, this.#mountsOf(snapshot))) return undefined;
    const { name: key, parent, labels } = snapshot;
    return { key, parent, labels, unpack: isUnpack(key, labels) };
  }

  attachLayer(key: string, _operation: StoreOperation, diffId: DiffId): void {
    this.#checkOpen();
    const snapshot = this.#get(key);
    const cannot = (why: string) =>
      new ShaleError("FAILED_PRECONDITION", `snapshot ${key} can't become a layer: ${why}: failed precondition`);
    if (snapshot.kind !== "active") throw cannot(`it is ${snapshot.kind}`);
    if (!isUnpack(key, snapshot.labels)) throw cannot("its mounts are in use");
    if (snapshot.diffId === diffId) return;
    if (snapshot.diffId !== undefined) throw cannot(`it is layer ${snapshot.diffId}`);
    if (list(join(this.#register.directoryOf(snapshot.id), UPPER)).length > 0) throw cannot("it has files");
    this.#register.attach(snapshot.id, diffId);
  }

  // --- the end

  async settled(): Promise<void> {
    await this.#anticipation.settled();
    await this.#converter.settled();
    await this.#syncer.settled();
    await this.#committedUsage.settled();
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#anticipation.close();
    await this.#converter.close();
    await this.#syncer.settled(); // so that the machine may go down now
    await this.#committedUsage.settled();
    await this.#cleaner.close();
    this.#register.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** DATA_LOSS for a directory that may lack what a power cut took before it was synced. */
function checkSound({ name, unsyncedSince }: SnapshotRecord): void {
  if (unsyncedSince === undefined || unsyncedSince === bootId()) return;
  throw new ShaleError("DATA_LOSS", `snapshot ${name} was committed just before the machine went down: data loss`, {
    hint: "Remove the image and pull it again",
  });
}

/** Prepared to be unpacked into and committed: nobody runs on it. */
function isUnpack(key: string, labels: Labels): boolean {
  return UNPACK_KEY.test(key) || labels[REF_LABEL] !== undefined;
}

function infoOf({ name, parent, kind, labels, createdAt, updatedAt }: SnapshotRecord): SnapshotInfo {
  return { name, parent, kind, labels, createdAt, updatedAt };
}
