/**
 * What is in the cache of exports, and what of it nothing needs. Reads sidecars only, so that `rm` and `df` can ask too.
 *
 * An entry is a directory below `exports/` with a disk and its sidecar; with less it is what a killed export left, unless its lock
 * says that one is being made. An entry belongs to the images that have its manifest, or, made of a chain of layers, to these
 * layers. It is derived: a damaged one is as good as none, and never an error of whoever looks.
 */
import { join } from "node:path";
import { type DiffId, parseDiffId } from "../oci/index.ts";
import type { Store } from "../store/index.ts";
import { findFile, isHeld, list, removeTree, statFile, syncDirectory, tryLock } from "../sys/index.ts";
import { isOfChain } from "./chain.ts";
import { lockPath } from "./publish.ts";
import { findExported, type Sidecar } from "./sidecar.ts";

export interface CachedExport {
  /** Names the entry; equal for equal requests. */
  readonly id: string;
  readonly manifest: string;
  readonly layer: number | undefined;
  /** Layers, of an entry that belongs to no image but to a chain. */
  readonly chain: readonly DiffId[] | undefined;
  readonly path: string;
  /** Bytes on disk. Blocks shared with the store count. */
  readonly allocated: number;
}

/** What `collectExports` removes. */
export interface UnusedExport {
  readonly id: string;
  readonly allocated: number;
  readonly why: string;
}

/** Name of the disk in an entry. */
export const DISK = "disk";

export function cacheDirectory(store: Store): string {
  return join(store.root, "exports");
}

/** Complete entries. */
export function listExports(store: Store): CachedExport[] {
  return entryNames(store).flatMap((id) => {
    const path = join(cacheDirectory(store), id, DISK);
    const sidecar = findExported(path);
    return sidecar === undefined ? [] : [cachedExport(id, path, sidecar)];
  });
}

/** Whether an image, or all layers of its chain, are still there. `dying`: ids of layers that count as gone. */
export function isNeeded(
  store: Store,
  { manifest, chain }: Pick<CachedExport, "manifest" | "chain">,
  dying: ReadonlySet<string> = new Set(),
): boolean {
  if (chain !== undefined) {
    return chain.every((diffId) => {
      const layer = store.findLayer(diffId);
      return layer !== undefined && !dying.has(layer.id);
    });
  }
  return store.findImagesByDigest(manifest).length > 0;
}

/**
 * Removes entries that nothing needs, and what killed exports left. Answers what went or, with `dryRun`, what would go once the
 * layers with the ids `dying` are gone.
 */
export function collectExports(
  store: Store,
  options: { readonly dryRun?: boolean; readonly dying?: ReadonlySet<string> } = {},
): UnusedExport[] {
  const directory = cacheDirectory(store);
  const removed = entryNames(store).flatMap((id): UnusedExport[] => {
    const lock = lockPath(join(directory, id, DISK));
    if (options.dryRun === true) return isHeld(lock) ? [] : findUnused(store, id, options.dying);
    if (findUnused(store, id).length === 0) return [];
    using held = tryLock(lock, { command: "collect garbage of exports" });
    if (held === undefined) return []; // it is being made
    const unused = findUnused(store, id);
    if (unused.length === 0) held.release({ unlink: true });
    else removeTree(join(directory, id));
    return unused;
  });
  if (removed.length > 0 && options.dryRun !== true) syncDirectory(directory);
  return removed;
}

function findUnused(store: Store, id: string, dying?: ReadonlySet<string>): UnusedExport[] {
  const place = join(cacheDirectory(store), id);
  const path = join(place, DISK);
  const sidecar = findExported(path);
  if (sidecar === undefined) {
    const allocated = list(place).reduce((sum, { name }) => sum + (findFile(join(place, name))?.allocated ?? 0), 0);
    return [{ id, allocated, why: "an export that did not end left it" }];
  }
  const entry = cachedExport(id, path, sidecar);
  if (isNeeded(store, entry, dying)) return [];
  const why = entry.chain === undefined ? "no image has its manifest any more" : "a layer of it is gone";
  return [{ id, allocated: entry.allocated, why }];
}

function cachedExport(id: string, path: string, { image, layer }: Sidecar): CachedExport {
  const chain = isOfChain(image) ? image.layers.map(({ diffId }) => parseDiffId(diffId)) : undefined;
  return { id, manifest: image.manifest, layer, chain, path, allocated: statFile(path).allocated };
}

function entryNames(store: Store): string[] {
  const directory = cacheDirectory(store);
  if (findFile(directory) === undefined) return [];
  return list(directory).flatMap(({ name, kind }) => (kind === "directory" ? [name] : []));
}
