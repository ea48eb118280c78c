/**
 * Garbage collection: mark, condemn, free.
 *
 * 1. mark: the live set is what images, mounts and pins need. Nothing is counted.
 * 2. condemn: one transaction raises the epoch, takes dead layers and merged images out of sight, and their blobs out of
 *    the dedupe index. From here no operation that begins can find them.
 * 3. free: what was condemned before every living lease began. Layers first lose their row's claim (`condemned = 0`), then
 *    their files, then the row, so a kill leaves work for the next run and nothing else. A blob that no layer refers to is
 *    unlinked; in one whose own layer is gone, the ranges that nobody refers to are punched out.
 *
 * No lock that a pull needs is held, except for the transactions. Safe to kill at any point; a second collector waits for
 * nothing and says who runs.
 */
import { ShaleError } from "../errors/index.ts";
import { decodePayloads, PAYLOAD_ALIGNMENT } from "../formats/payload-table/index.ts";
import {
  closeFile,
  crashPoint,
  dataBytes,
  fileSource,
  findFile,
  findHolder,
  isOpenElsewhere,
  openFile,
  punchHole,
  removeTree,
  statFile,
  tryLock,
  unlink,
} from "../sys/index.ts";
import { freeClones } from "./clones.ts";
import type { StoreContext } from "./context.ts";
import { unlessDamaged } from "./damage.ts";
import { staleDownloads } from "./downloads.ts";
import { unindexChunks } from "./layers.ts";
import { indexPayload, unindexBlobs } from "./payload-index.ts";
import { currentEpoch, type Lease, livingLeases, recoverStaging } from "./leases.ts";
import { freeLinks } from "./links.ts";
import { type BlobUsers, deadRanges, findBlobUsers, forEachExtent } from "./liveness.ts";
import { snapshotRoots } from "./snapshots.ts";

export interface GarbageItem {
  readonly kind:
    | "layer"
    | "merged image"
    | "blob"
    | "blob ranges"
    | "download"
    | "staging"
    | "export"
    | "link sources"
    | "clones";
  readonly id: string;
  /** Of a layer: which of those with this diffId, as in its record; a damaged one may go while another stays. */
  readonly layerId?: string;
  /** Bytes on disk that go; for a layer its metadata (its blob is an item of its own). */
  readonly size: number;
  readonly why: string;
}

export interface GarbageReport {
  readonly items: readonly GarbageItem[];
  /** Sum over `items`, measured in blocks on disk. */
  readonly freed: number;
  /** Condemned, but operations under way may still use it: freed by a later run. */
  readonly postponed: readonly GarbageItem[];
}

/** Layers that must stay. */
function liveDiffIds(context: StoreContext): Set<string> {
  const { database } = context;
  const live = new Set(snapshotRoots(context).diffIds);
  const rows = database.all(
    "SELECT DISTINCT diff_id FROM manifest_layers WHERE manifest IN (SELECT manifest FROM image_manifests)",
  );
  for (const row of rows) live.add(String(row.diff_id));
  for (const row of database.all("SELECT diff_ids FROM mounts")) {
    for (const diffId of JSON.parse(String(row.diff_ids)) as string[]) live.add(diffId);
  }
  return live;
}

function liveChains(context: StoreContext): Set<string> {
  const { database } = context;
  const rows = database.all(
    `SELECT chain_id FROM manifests WHERE digest IN (SELECT manifest FROM image_manifests)
     UNION SELECT chain_id FROM mounts`,
  );
  return new Set([...rows.map((row) => String(row.chain_id)), ...snapshotRoots(context).chainIds]);
}

interface Dead {
  readonly layers: readonly { readonly id: string; readonly diffId: string; readonly why: string }[];
  readonly merged: readonly string[];
}

/** What is in sight (or damaged) and needed by nothing, and made by no operation that is still under way. */
function findDead(context: StoreContext, living: ReadonlySet<string>): Dead {
  const { database } = context;
  const live = liveDiffIds(context);
  const chains = liveChains(context);
  const underWay = (id: string) => living.has(id.slice(0, id.lastIndexOf("-")));
  const layers = database
    .all("SELECT id, diff_id, damage FROM layers WHERE condemned IS NULL")
    .map((row) => ({ id: String(row.id), diffId: String(row.diff_id), damage: row.damage }))
    // A damaged layer that has been fetched again is replaced; one that has not stays for the next repair.
    .filter(
      (layer) =>
        !underWay(layer.id) && (!live.has(layer.diffId) || (layer.damage !== null && isInSight(context, layer.diffId))),
    )
    .map(({ id, diffId, damage }) => ({
      id,
      diffId,
      why: damage === null ? "no image or snapshot has it" : "damaged and replaced",
    }));
  // An image whose layers go would outlive its blobs, also when the chain is live: its layers may have come again meanwhile.
  const dying = new Set(layers.map(({ id }) => id));
  const stands = (id: string) => !dying.has(id) && isLayerInSight(context, id);
  const merged = database
    .all("SELECT id, chain_id, layers FROM merged WHERE condemned IS NULL")
    .filter(
      (row) =>
        (!underWay(String(row.id)) && !chains.has(String(row.chain_id))) ||
        !(JSON.parse(String(row.layers)) as string[]).every(stands),
    )
    .map((row) => String(row.id));
  return { layers, merged };
}

function isLayerInSight({ database }: StoreContext, id: string): boolean {
  return database.get("SELECT 1 FROM layers WHERE id = ? AND condemned IS NULL AND damage IS NULL", id) !== undefined;
}

function isInSight({ database }: StoreContext, diffId: string): boolean {
  return (
    database.get("SELECT 1 FROM layers WHERE diff_id = ? AND condemned IS NULL AND damage IS NULL", diffId) !==
    undefined
  );
}

/**
 * Frees what nothing needs. With `dryRun` it changes nothing and reports what a run would free now. FAILED_PRECONDITION,
 * naming the process, when a collection is under way already.
 */
export function collectGarbage(
  context: StoreContext,
  lease: Lease,
  options: { readonly dryRun?: boolean; readonly now?: number; readonly signal?: AbortSignal } = {},
): GarbageReport {
  const { layout } = context;
  if (options.dryRun) return dryRun(context, lease, options.now ?? Date.now());
  const lock = tryLock(layout.garbageLock, { command: "gc" });
  if (lock === undefined) {
    const holder = findHolder(layout.garbageLock);
    throw new ShaleError(
      "FAILED_PRECONDITION",
      `Cannot collect garbage: ${holder === undefined ? "another process" : `process ${holder.pid}`} is doing so`,
    );
  }
  try {
    return collect(context, lease, options.now ?? Date.now(), options.signal);
  } finally {
    lock.release();
  }
}

function collect(context: StoreContext, lease: Lease, now: number, signal: AbortSignal | undefined): GarbageReport {
  const { layout, database } = context;
  const items: GarbageItem[] = [];
  const cleaned = recoverStaging(layout, database);
  if (cleaned > 0) items.push({ kind: "staging", id: `${cleaned} operations`, size: 0, why: "their processes died" });
  for (const { path, size, why } of staleDownloads(context, now, true)) {
    items.push({ kind: "download", id: path, size, why });
  }

  const epoch = condemn(context, livingLeases(layout, lease.id).ids);
  crashPoint("gc:condemned");

  // After the transaction: a lease that is not in this list can't know what was condemned in it.
  const { oldestEpoch } = livingLeases(layout, lease.id);
  const postponed: GarbageItem[] = [];
  const upTo = Math.min(epoch, oldestEpoch);
  for (const row of database.all("SELECT id, diff_id, metadata_bytes FROM layers WHERE condemned > ?", upTo)) {
    postponed.push({
      kind: "layer",
      id: String(row.diff_id),
      layerId: String(row.id),
      size: Number(row.metadata_bytes),
      why: "an operation under way may use it",
    });
  }
  freeLayers(context, upTo, items);
  freeMerged(context, upTo, items);
  // A blob may be referred to by an operation that found it before and has not committed: as for layers, but blobs
  // have no epoch of their own, so all of them wait while anything old is under way.
  if (oldestEpoch >= epoch) freeBlobs(context, items, postponed, signal);
  items.push(...freeForCheckouts(context, { dryRun: false, signal }));
  return { items, freed: items.reduce((sum, item) => sum + item.size, 0), postponed };
}

/** Step 2. Returns the new epoch: leases of this number or a higher one know nothing of what was condemned. */
function condemn(context: StoreContext, living: ReadonlySet<string>): number {
  const { database } = context;
  return database.transaction(() => {
    const dead = findDead(context, living);
    database.run("UPDATE state SET value = value + 1 WHERE key = 'epoch'");
    const epoch = currentEpoch(database);
    // Also of blobs that outlived their layer: whoever referred to them may be among the dead. Step 3 puts back what lives.
    const keys = orphanBlobs(context).map((blob) => blob.key);
    for (const { id } of dead.layers) {
      database.run("UPDATE layers SET condemned = ? WHERE id = ?", epoch, id);
      const blob = database.get("SELECT key FROM blobs WHERE id = ?", id);
      if (blob !== undefined) keys.push(Number(blob.key));
    }
    unindexBlobs(context, keys);
    unindexChunks(
      context,
      dead.layers.map(({ id }) => id),
    );
    for (const id of dead.merged) database.run("UPDATE merged SET condemned = ? WHERE id = ?", epoch, id);
    database.run(
      `DELETE FROM sources WHERE diff_id NOT IN (SELECT diff_id FROM manifest_layers)
         AND diff_id NOT IN (SELECT diff_id FROM layers WHERE condemned IS NULL)`,
    );
    database.run("DELETE FROM encodings WHERE diff_id NOT IN (SELECT diff_id FROM layers WHERE condemned IS NULL)");
    return epoch;
  });
}

function freeLayers(context: StoreContext, upTo: number, items: GarbageItem[]): void {
  const { layout, database } = context;
  // From here they can't be claimed back; 0 also finds those of a run that was killed.
  database.run("UPDATE layers SET condemned = 0 WHERE condemned > 0 AND condemned <= ?", upTo);
  for (const row of database.all("SELECT id, diff_id, damage FROM layers WHERE condemned = 0")) {
    const id = String(row.id);
    const size = allocatedBelow(layout.layerImage(id)) + allocatedBelow(layout.layerRecipe(id));
    removeTree(layout.layer(id));
    crashPoint("gc:layer-removed");
    database.run("DELETE FROM layers WHERE id = ?", id);
    items.push({
      kind: "layer",
      id: String(row.diff_id),
      layerId: String(row.id),
      size,
      why: row.damage === null ? "no image or snapshot has it" : "damaged and replaced",
    });
  }
}

function freeMerged(context: StoreContext, upTo: number, items: GarbageItem[]): void {
  const { layout, database } = context;
  database.run("UPDATE merged SET condemned = 0 WHERE condemned > 0 AND condemned <= ?", upTo);
  for (const row of database.all("SELECT id, chain_id FROM merged WHERE condemned = 0")) {
    const path = layout.mergedImage(String(row.id));
    if (inUse(path)) continue;
    const size = allocatedBelow(path);
    unlink(path);
    crashPoint("gc:merged-removed");
    database.run("DELETE FROM merged WHERE id = ?", String(row.id));
    items.push({ kind: "merged image", id: String(row.chain_id), size, why: "no image or snapshot has this chain" });
  }
}

/** Blobs whose own layer is gone: unlinked when no layer refers to them, else relieved of what no layer refers to. */
function freeBlobs(
  context: StoreContext,
  items: GarbageItem[],
  postponed: GarbageItem[],
  signal: AbortSignal | undefined,
): void {
  const { layout, database } = context;
  const orphans = orphanBlobs(context);
  if (orphans.length === 0) return;
  const users = findBlobUsers(context);
  for (const { id, key, size } of orphans) {
    if (signal?.aborted) return; // what is left is found by the next run
    const path = layout.blob(id);
    const why = obstacle(path, users);
    if (why !== undefined) {
      postponed.push({ kind: "blob", id, size: allocatedBelow(path), why });
      continue;
    }
    const layers = users.layers.get(id);
    if (layers === undefined) {
      const allocated = allocatedBelow(path);
      database.run("UPDATE blobs SET removed = 1 WHERE key = ?", key);
      unlink(path);
      crashPoint("gc:blob-removed");
      database.transaction(() => {
        unindexBlobs(context, [key]);
        database.run("DELETE FROM damaged_payloads WHERE blob = ?", key);
        database.run("DELETE FROM blobs WHERE key = ?", key);
      });
      items.push({ kind: "blob", id, size: allocated, why: "no layer refers to it" });
      continue;
    }
    const live = liveRangesOf(context, id, layers);
    if (live === undefined) {
      postponed.push({ kind: "blob", id, size: allocatedBelow(path), why: "a layer that refers to it is damaged" });
      continue;
    }
    const freed = punchDead(context, id, size, live);
    if (freed > 0) items.push({ kind: "blob ranges", id, size: freed, why: "no layer refers to them" });
    // A damaged table is no reason to stop: the rows are missing, and check says why.
    unlessDamaged(() => indexLiveRanges(context, id, key, layers, live));
  }
}

/** Why a blob without a layer of its own can't be touched now. */
function obstacle(path: string, users: BlobUsers): string | undefined {
  if (users.unreadable.length > 0)
    return `layer ${users.unreadable[0]} can't be read and may refer to it: run shale check`;
  // The kernel's own answer: a mount in any namespace, also one that shale does not know of, keeps the file open.
  return inUse(path) ? "it is mounted" : undefined;
}

function orphanBlobs({ database }: StoreContext): { id: string; key: number; size: number }[] {
  return database
    .all("SELECT key, id, size FROM blobs WHERE id NOT IN (SELECT id FROM layers)")
    .map((row) => ({ id: String(row.id), key: Number(row.key), size: Number(row.size) }));
}

/** Live ranges of a blob by offset; undefined when a layer that refers to it can't say which. */
function liveRangesOf(
  context: StoreContext,
  blob: string,
  layers: readonly string[],
): ReadonlyMap<number, number> | undefined {
  const live = new Map<number, number>();
  for (const layer of layers) {
    const read = unlessDamaged(() => {
      forEachExtent(context, layer, (of, offset, length) => {
        if (of === blob) live.set(offset, length);
      });
      return true;
    });
    if (read === undefined && !isOutOfSight(context, layer)) return undefined;
  }
  return live;
}

function isOutOfSight({ database }: StoreContext, layer: string): boolean {
  return database.get("SELECT 1 FROM layers WHERE id = ? AND damage IS NOT NULL", layer) !== undefined;
}

function deadRangesOf(live: ReadonlyMap<number, number>, size: number) {
  return deadRanges(
    [...live].map(([offset, length]) => ({ offset, length })),
    size,
    PAYLOAD_ALIGNMENT,
  );
}

function punchDead(context: StoreContext, blob: string, size: number, live: ReadonlyMap<number, number>): number {
  const file = openFile(context.layout.blob(blob), "read-write");
  try {
    const before = statFile(file).allocated;
    for (const { offset, length } of deadRangesOf(live, size)) {
      if (dataBytes(file, offset, offset + length) === 0) continue; // by an earlier run
      punchHole(file, offset, length);
      crashPoint("gc:range-punched");
    }
    return before - statFile(file).allocated;
  } finally {
    closeFile(file);
  }
}

/** What stays alive in a blob without a layer of its own may serve further ingests. */
function indexLiveRanges(
  context: StoreContext,
  blob: string,
  key: number,
  layers: readonly string[],
  live: ReadonlyMap<number, number>,
): void {
  const { layout, database } = context;
  using source = fileSource(layout.blob(blob));
  const payloads = [...decodePayloads(source)].filter((payload) => live.has(payload.offset));
  database.transaction(() => {
    // A referrer may have been condemned since: then its ranges are not surely live, and the next run sees to them.
    const sound = database.get(
      "SELECT count(*) AS n FROM layers WHERE condemned IS NULL AND id IN (SELECT value FROM json_each(?))",
      JSON.stringify(layers),
    );
    if (Number(sound?.n) !== layers.length) return;
    for (const payload of payloads) indexPayload(database, key, payload);
  });
}

/** Where the file system can't say (FUSE, NFS), the mounts that the database knows have kept their layers alive already. */
function inUse(path: string): boolean {
  return findFile(path) !== undefined && isOpenElsewhere(path) === true;
}

function allocatedBelow(path: string): number {
  return findFile(path)?.allocated ?? 0;
}

/** What checkouts left that shared it: files that no checkout has any more, and those made for images that are gone. */
function freeForCheckouts(
  context: StoreContext,
  options: {
    readonly dryRun: boolean;
    readonly dying?: ReadonlySet<string>;
    readonly signal?: AbortSignal | undefined;
  },
): GarbageItem[] {
  const links = freeLinks(context, options);
  const clones = freeClones(context, options);
  const items: GarbageItem[] = [];
  if (links.count > 0) {
    items.push({ kind: "link sources", id: `${links.count} files`, size: links.bytes, why: "no checkout has them" });
  }
  if (clones.count > 0) {
    items.push({ kind: "clones", id: `${clones.count} images`, size: clones.bytes, why: "their images are gone" });
  }
  return items;
}

/** What `collect` would do now, by the same rules, changing nothing. */
function dryRun(context: StoreContext, lease: Lease, now: number): GarbageReport {
  const { layout, database } = context;
  const items: GarbageItem[] = [];
  const postponed: GarbageItem[] = [];
  for (const { path, size, why } of staleDownloads(context, now, false)) {
    items.push({ kind: "download", id: path, size, why });
  }
  const { ids, oldestEpoch } = livingLeases(layout, lease.id);
  const dead = findDead(context, ids);
  const epoch = currentEpoch(database) + 1;
  const upTo = Math.min(epoch, oldestEpoch);
  const freed = new Set<string>();
  for (const row of database.all("SELECT id, diff_id, damage, condemned FROM layers")) {
    const id = String(row.id);
    const why = dead.layers.find((layer) => layer.id === id)?.why;
    if (row.condemned === null && why === undefined) continue;
    const size = allocatedBelow(layout.layerImage(id)) + allocatedBelow(layout.layerRecipe(id));
    const item = { kind: "layer", id: String(row.diff_id), layerId: id, size } as const;
    if ((row.condemned === null ? epoch : Number(row.condemned)) > upTo) {
      postponed.push({ ...item, why: "an operation under way may use it" });
      continue;
    }
    freed.add(id);
    items.push({ ...item, why: why ?? (row.damage === null ? "no image or snapshot has it" : "damaged and replaced") });
  }
  for (const row of database.all("SELECT id, chain_id, condemned FROM merged")) {
    const id = String(row.id);
    if (row.condemned === null && !dead.merged.includes(id)) continue;
    const path = layout.mergedImage(id);
    if ((row.condemned === null ? epoch : Number(row.condemned)) > upTo || inUse(path)) continue;
    const why = "no image or snapshot has this chain";
    items.push({ kind: "merged image", id: String(row.chain_id), size: allocatedBelow(path), why });
    freed.add(id);
  }
  if (oldestEpoch >= epoch) foreseeBlobs(context, freed, items, postponed);
  items.push(...freeForCheckouts(context, { dryRun: true, dying: freed }));
  return { items, freed: items.reduce((sum, item) => sum + item.size, 0), postponed };
}

/** As `freeBlobs` after the layers `freed` are gone. */
function foreseeBlobs(
  context: StoreContext,
  freed: ReadonlySet<string>,
  items: GarbageItem[],
  postponed: GarbageItem[],
): void {
  const { layout, database } = context;
  const users = findBlobUsers(context, freed);
  for (const row of database.all("SELECT id, size FROM blobs")) {
    const id = String(row.id);
    if (!freed.has(id) && database.get("SELECT 1 FROM layers WHERE id = ?", id) !== undefined) continue;
    const path = layout.blob(id);
    const allocated = allocatedBelow(path);
    const layers = users.layers.get(id);
    const live = layers && liveRangesOf(context, id, layers);
    const damaged = layers !== undefined && live === undefined;
    const why = obstacle(path, users) ?? (damaged ? "a layer that refers to it is damaged" : undefined);
    if (why !== undefined) {
      postponed.push({ kind: "blob", id, size: allocated, why });
    } else if (live === undefined) {
      items.push({ kind: "blob", id, size: allocated, why: "no layer refers to it" });
    } else {
      const size = deadBytes(path, live, Number(row.size));
      if (size > 0) items.push({ kind: "blob ranges", id, size, why: "no layer refers to them" });
    }
  }
}

/** Bytes on disk of the ranges that nothing refers to. */
function deadBytes(path: string, live: ReadonlyMap<number, number>, size: number): number {
  const file = openFile(path);
  try {
    return deadRangesOf(live, size).reduce(
      (sum, { offset, length }) => sum + dataBytes(file, offset, offset + length),
      0,
    );
  } finally {
    closeFile(file);
  }
}
