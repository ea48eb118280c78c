/**
 * Mounting images. Each chain is mounted once in a mount namespace, below the store; what users get are binds of that
 * mount or overlays on it, so equal images share one page cache. The kernel serves the files: no process of shale is needed
 * afterwards.
 *
 * A mount is recorded before it is made and forgotten after it is gone. The record keeps its layers in the store.
 */
import { randomBytes } from "node:crypto";
import { join, resolve } from "node:path";
import { ShaleError } from "../errors/index.ts";
import { type ChainId, chainIdOf, type DiffId, digestHex } from "../oci/index.ts";
import { type ImageFiles, isTocIdentity, type MountRecord, type Store, type StoreOperation } from "../store/index.ts";
import {
  acquireLock,
  bindMount,
  bootId,
  ensureDirectory,
  findFile,
  findMount,
  livingMountNamespaces,
  type MountEntry,
  makeDirectory,
  mountErofs,
  mountInfo,
  mountNamespaceId,
  mountOverlay,
  removeTree,
  unmount,
} from "../sys/index.ts";
import { displayName, type FoundImage } from "./find.ts";
import { explainMergeError } from "./write-error.ts";

/** Digits of a chain or layer in a directory name: enough to tell them apart, short for the kernel's limits. */
const NAME_DIGITS = 24;

export interface MountOptions {
  readonly writable?: boolean;
  /** One mount per layer and an overlay of them. */
  readonly stacked?: boolean;
  readonly signal?: AbortSignal;
}

export interface MountResult {
  readonly record: MountRecord;
  /** It was mounted there before. */
  readonly already: boolean;
}

/**
 * Mounts an image at `directory`. What is mounted there from the same image in the same way is success;
 * FAILED_PRECONDITION when something else is, NOT_FOUND when there is no such directory.
 */
export async function mountImage(
  store: Store,
  { image, manifest }: FoundImage,
  directory: string,
  options: MountOptions = {},
): Promise<MountResult> {
  const target = resolve(directory);
  const diffIds = manifest.layers.map((layer) => layer.diffId);
  const act = `Cannot mount ${displayName(image.name)} at ${target}`;
  if (diffIds.length === 0) throw new ShaleError("FAILED_PRECONDITION", `${act}: the image has no layers`);
  requireMountPoint(image.name, target);
  using operation = store.begin(`mount ${image.name}`);
  using _ = await lockMounts(operation, options.signal);
  pruneRecords(store, operation);
  const mode = options.stacked ? "stacked" : "merged";
  const there = store.findMount(target);
  const mounted = findMount(target);
  if (mounted !== undefined) {
    const same =
      there !== undefined &&
      there.manifest === manifest.digest &&
      there.mode === mode &&
      (there.writable !== undefined) === (options.writable === true);
    if (same) return { record: there, already: true };
    const what = there === undefined ? `a ${mounted.type} file system` : displayName(there.image);
    throw new ShaleError("FAILED_PRECONDITION", `${act}: ${what} is mounted there`, {
      hint: `Run shale umount ${target} first`,
    });
  }
  const writable = options.writable
    ? join(operation.mountsDirectory, `rw-${randomBytes(6).toString("hex")}`)
    : undefined;
  const record: MountRecord = {
    target,
    image: image.name,
    manifest: manifest.digest,
    chainId: manifest.chainId,
    diffIds,
    mode,
    writable,
    bootId: bootId(),
    namespace: mountNamespaceId(),
    createdAt: new Date(),
  };
  operation.recordMount(record);
  try {
    const bases = ensureBases(operation, record);
    if (writable !== undefined) {
      for (const path of [writable, join(writable, "upper"), join(writable, "work")])
        makeDirectory(path, path === writable ? 0o700 : 0o755);
      mountOverlay({
        lower: bases,
        upper: join(writable, "upper"),
        work: join(writable, "work"),
        target,
        name: "shale",
      });
    } else if (bases.length === 1) bindMount(bases[0]!, target, { readOnly: true });
    else mountOverlay({ lower: bases, target, name: "shale" });
    return { record, already: false };
  } catch (error) {
    store.forgetMount(target);
    if (writable !== undefined) removeTree(writable);
    releaseBases(store, operation);
    throw error;
  }
}

/** NOT_FOUND when there is no such directory: for who has a lot to do before `mountImage` would say it. */
export function requireMountPoint(image: string, directory: string): void {
  const target = resolve(directory);
  if (findFile(target)?.kind === "directory") return;
  throw new ShaleError("NOT_FOUND", `Cannot mount ${displayName(image)} at ${target}: there is no such directory`);
}

export interface UnmountOptions {
  readonly lazy?: boolean;
  /** Keep the changes of a writable mount. */
  readonly keepUpper?: boolean;
  readonly signal?: AbortSignal;
}

export interface UnmountResult {
  /** False when nothing of shale was mounted there. */
  readonly unmounted: boolean;
  /** Directory with the changes, when they were kept. */
  readonly upper: string | undefined;
}

/** Undoes `mountImage`. FAILED_PRECONDITION when it is in use (unless lazy), or when the mount there is not of shale. */
export async function unmountImage(
  store: Store,
  directory: string,
  options: UnmountOptions = {},
): Promise<UnmountResult> {
  const target = resolve(directory);
  using operation = store.begin(`umount ${target}`);
  using _ = await lockMounts(operation, options.signal);
  const record = store.findMount(target);
  if (record === undefined) {
    if (findFile(target) !== undefined && findMount(target) !== undefined) {
      throw new ShaleError("FAILED_PRECONDITION", `Cannot unmount ${target}: shale has not mounted it`, {
        hint: `Run umount ${target}`,
      });
    }
    return { unmounted: false, upper: undefined };
  }
  unmount(target, { lazy: options.lazy ?? false });
  store.forgetMount(target);
  releaseBases(store, operation);
  const { writable } = record;
  if (writable === undefined) return { unmounted: true, upper: undefined };
  if (options.keepUpper) return { unmounted: true, upper: join(writable, "upper") };
  removeTree(writable);
  return { unmounted: true, upper: undefined };
}

export interface MountStatus extends MountRecord {
  /** "mounted" here; "elsewhere" in another mount namespace. */
  readonly state: "mounted" | "elsewhere";
}

/** What is mounted. Records of mounts that can't exist any more (after a reboot, say) are dropped on the way. */
export async function listMounts(
  store: Store,
  options: { readonly signal?: AbortSignal } = {},
): Promise<MountStatus[]> {
  if (store.listMounts().length === 0) return [];
  using operation = store.begin("list mounts");
  using _ = await lockMounts(operation, options.signal);
  pruneRecords(store, operation);
  const namespace = mountNamespaceId();
  return store
    .listMounts()
    .map((record) => ({ ...record, state: record.namespace === namespace ? "mounted" : "elsewhere" }));
}

/** Drops what only records hold in the store: call before garbage collection. */
export async function pruneMounts(store: Store, operation: StoreOperation, signal?: AbortSignal): Promise<void> {
  if (store.listMounts().length === 0) return;
  using _ = await lockMounts(operation, signal);
  pruneRecords(store, operation);
}

function lockMounts(operation: StoreOperation, signal: AbortSignal | undefined) {
  const path = `${operation.mountsDirectory}.lock`;
  return acquireLock(path, { what: "the mounts of the store", timeoutMs: 30_000, ...(signal ? { signal } : {}) });
}

/**
 * Forgets records whose mount is gone, by facts only: another boot, a mount namespace that no process is in any more, or
 * not in this namespace's list though it was made here.
 */
function pruneRecords(store: Store, operation: StoreOperation): void {
  const boot = bootId();
  const namespace = mountNamespaceId();
  let here: readonly MountEntry[] | undefined;
  let living: { readonly namespaces: ReadonlySet<string> | undefined } | undefined;
  let pruned = false;
  for (const record of store.listMounts()) {
    if (record.bootId === boot) {
      if (record.namespace === namespace) {
        here ??= mountInfo();
        if (here.some((entry) => entry.mountPoint === record.target)) continue;
      } else {
        living ??= { namespaces: livingMountNamespaces() };
        if (living.namespaces === undefined || living.namespaces.has(record.namespace)) continue;
      }
    }
    store.forgetMount(record.target);
    pruned = true;
  }
  if (pruned) releaseBases(store, operation);
}

/** The mounts below the store that a record's mount stands on, uppermost first; made where they are not there. */
function ensureBases(operation: StoreOperation, record: MountRecord): string[] {
  const directory = operation.mountsDirectory;
  if (record.mode === "merged") {
    const files = () => mergedFiles(operation, record);
    return [ensureBase(join(directory, baseNames(record)[0]!), files)];
  }
  const names = baseNames(record);
  return record.diffIds
    .map((diffId, position) =>
      ensureBase(join(directory, names[position]!), () => operation.layerFiles(operation.getLayer(diffId))),
    )
    .reverse();
}

function mergedFiles(operation: StoreOperation, { image, diffIds }: MountRecord): ImageFiles {
  try {
    return operation.mergedFiles(diffIds);
  } catch (error) {
    throw explainMergeError(error, displayName(image));
  }
}

/** What `baseNames` makes; mounts that snapshots stand on have numbers. */
const BASE_NAME = /^t?[ml]-/;

function baseNames(record: Pick<MountRecord, "mode" | "diffIds">): string[] {
  if (record.mode === "merged") return [baseName("m", chainIdOf(record.diffIds))];
  return record.diffIds.map((diffId) => baseName("l", diffId));
}

/** "t": of a layer that is verified by its TOC, whose digits could be those of a diffId. */
function baseName(kind: "m" | "l", id: ChainId | DiffId): string {
  return `${isTocIdentity(id) ? "t" : ""}${kind}-${digestHex(id).slice(0, NAME_DIGITS)}`;
}

function ensureBase(path: string, files: () => ImageFiles): string {
  ensureDirectory(path);
  if (findMount(path) === undefined) {
    const { image, devices } = files();
    mountErofs({ source: image, devices, target: path });
  }
  return path;
}

/** Unmounts the bases of this namespace that no record needs. */
function releaseBases(store: Store, operation: StoreOperation): void {
  const directory = operation.mountsDirectory;
  const namespace = mountNamespaceId();
  const needed = new Set<string>();
  for (const record of store.listMounts()) {
    if (record.namespace === namespace) for (const name of baseNames(record)) needed.add(join(directory, name));
  }
  for (const { mountPoint } of mountInfo()) {
    if (!mountPoint.startsWith(`${directory}/`) || needed.has(mountPoint)) continue;
    if (!BASE_NAME.test(mountPoint.slice(directory.length + 1))) continue; // of a snapshot (snapshotter/)
    // Lazily: a bind or overlay that was detached lazily may still stand on it.
    // The directory stays: removing it would also detach what another mount namespace has mounted there.
    unmount(mountPoint, { lazy: true });
  }
}
