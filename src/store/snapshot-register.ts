/**
 * Snapshots of containerd, as far as the store cares: rows, the directories that belong to them, and what of the store they
 * keep. What they mean to containerd and how they are mounted is not here (snapshotter/).
 *
 * One process at a time has this open (a lock says so), so a directory in `snapshots/` without a row is garbage exactly when
 * that process is not making it: at opening, all such are. Order of steps, so that a crash leaves nothing else:
 *   made:     directory -> row                     (a row may outlive its empty directory in a power cut: nothing is synced)
 *   removed:  row -> directory, any time later
 * Every change of a snapshot is one transaction, together with the claim on the layer that it begins to refer to.
 */
import { ShaleError } from "../errors/index.ts";
import type { DiffId } from "../oci/index.ts";
import {
  bootId,
  crashPoint,
  ensureDirectory,
  findHolder,
  type Lock,
  list,
  makeDirectory,
  tryLock,
} from "../sys/index.ts";
import type { StoreContext } from "./context.ts";
import { HostMountRegister } from "./host-mounts.ts";
import { claimLayer, getLayer, type LayerRecord } from "./layers.ts";
import {
  countSnapshots,
  findSnapshot,
  listSnapshots,
  REF_LABEL,
  SELECT_SNAPSHOT,
  SNAPSHOT_COLUMNS,
  type SnapshotKind,
  type SnapshotRecord,
  type SnapshotSelection,
  snapshotFromRow,
} from "./snapshots.ts";

export interface NewSnapshot extends Pick<SnapshotRecord, "id" | "name" | "labels" | "createdAt"> {
  /** Name of a committed snapshot; "" for none. */
  readonly parent: string;
}

/** The one writer of snapshots. Ends with `close`. */
export class SnapshotRegister implements Disposable {
  readonly #context: StoreContext;
  readonly #lock: Lock;
  /** Mounts that snapshots stand on. */
  readonly hostMounts: HostMountRegister;
  #next: number;
  /** Directories that no snapshot needs. */
  readonly #abandoned: Set<number>;

  private constructor(context: StoreContext, lock: Lock, next: number, abandoned: Set<number>) {
    this.#context = context;
    this.#lock = lock;
    this.hostMounts = new HostMountRegister(context);
    this.#next = next;
    this.#abandoned = abandoned;
  }

  /** FAILED_PRECONDITION, naming the process, while another one has it open. */
  static open(context: StoreContext): SnapshotRegister {
    const { layout, database } = context;
    ensureDirectory(layout.snapshots);
    const lock = tryLock(layout.snapshotterLock);
    if (lock === undefined) {
      const holder = findHolder(layout.snapshotterLock);
      const who = holder === undefined ? "another process" : `process ${holder.pid} (${holder.command})`;
      throw new ShaleError("FAILED_PRECONDITION", `Cannot serve snapshots of ${layout.root}: ${who} does so`, {
        hint: "One daemon serves one root: end the other, or choose another --root",
      });
    }
    try {
      const known = new Set(
        database
          .all("SELECT id FROM snapshots WHERE kind <> 'committed' OR directory = 1")
          .map((row) => Number(row.id)),
      );
      const abandoned = new Set<number>();
      let last = Number(database.get("SELECT seq FROM sqlite_sequence WHERE name = 'snapshots'")?.seq ?? 0);
      for (const { name } of list(layout.snapshots)) {
        const id = Number(name);
        if (String(id) !== name) continue; // not ours: check names it
        last = Math.max(last, id);
        if (!known.has(id)) abandoned.add(id);
      }
      return new SnapshotRegister(context, lock, last + 1, abandoned);
    } catch (error) {
      lock.release();
      throw error;
    }
  }

  close(): void {
    this.#lock.release();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  // --- directories

  directoryOf(id: number): string {
    return this.#context.layout.snapshot(id);
  }

  /** A new directory. It is garbage until `insert` or, when that does not come, from `abandon` on. */
  makeDirectory(): { readonly id: number; readonly path: string } {
    const id = this.#next++;
    const path = this.#context.layout.snapshot(id);
    makeDirectory(path, 0o711);
    crashPoint("snapshot:directory");
    return { id, path };
  }

  /** An id without a directory. */
  reserve(): number {
    return this.#next++;
  }

  abandon(id: number): void {
    this.#abandoned.add(id);
  }

  /** Directories to delete; `deleted` takes one off the list. Those that a mount given out earlier stands on are not among them. */
  abandoned(): number[] {
    if (this.#abandoned.size === 0) return [];
    const bases = this.hostMounts.directoriesInUse();
    return [...this.#abandoned].filter((id) => !bases.has(id));
  }

  deleted(id: number): void {
    this.#abandoned.delete(id);
  }

  // --- snapshots

  find(name: string): SnapshotRecord | undefined {
    return findSnapshot(this.#context, name);
  }

  findById(id: number): SnapshotRecord | undefined {
    const row = this.#context.database.get(`${SELECT_SNAPSHOT} WHERE s.id = ?`, id);
    return row && snapshotFromRow(row);
  }

  list(selection: SnapshotSelection = {}): Generator<SnapshotRecord> {
    return listSnapshots(this.#context, selection);
  }

  counts(): Readonly<Record<SnapshotKind, number>> {
    return countSnapshots(this.#context);
  }

  /** A committed snapshot and all below it, lowest first. */
  chainOf(id: number): SnapshotRecord[] {
    return this.#context.database
      .all(
        `WITH RECURSIVE chain (id, depth) AS (
           SELECT ?, 0 UNION ALL SELECT parent, depth + 1 FROM snapshots JOIN chain USING (id) WHERE parent IS NOT NULL
         ) SELECT ${SNAPSHOT_COLUMNS} FROM chain JOIN snapshots s ON s.id = chain.id LEFT JOIN snapshots p ON p.id = s.parent
         ORDER BY chain.depth DESC`,
        id,
      )
      .map(snapshotFromRow);
  }

  hasChildren(id: number): boolean {
    return this.#context.database.get("SELECT 1 FROM snapshots WHERE parent = ? LIMIT 1", id) !== undefined;
  }

  /** Records a new active snapshot or view. ALREADY_EXISTS, NOT_FOUND, INVALID_ARGUMENT as for Prepare. */
  insert(
    snapshot: NewSnapshot & Pick<SnapshotRecord, "kind" | "bases" | "options" | "directory" | "unsyncedSince">,
  ): void {
    const { database } = this.#context;
    database.transaction(() => {
      const parent = this.#checkNew(snapshot.name, snapshot.parent);
      this.#insert(snapshot, parent, snapshot.kind, undefined, snapshot.directory);
      database.run(
        "UPDATE snapshots SET bases = ?, options = ?, boot = ? WHERE id = ?",
        JSON.stringify(snapshot.bases),
        snapshot.options.length === 0 ? null : JSON.stringify(snapshot.options),
        snapshot.unsyncedSince ?? null,
        snapshot.id,
      );
    });
    crashPoint("snapshot:recorded");
  }

  /** Records a committed snapshot of a layer. ABORTED when the layer is not in the store (any more). */
  insertCommitted(snapshot: NewSnapshot & { readonly diffId: DiffId }): void {
    this.#context.database.transaction(() => {
      const parent = this.#checkNew(snapshot.name, snapshot.parent);
      const usage = this.#claim(snapshot.name, snapshot.diffId);
      this.#insert(snapshot, parent, "committed", snapshot.diffId, false);
      this.setUsage(snapshot.id, usage);
    });
    crashPoint("snapshot:recorded");
  }

  #checkNew(name: string, parent: string): number | null {
    const { database } = this.#context;
    if (database.get("SELECT 1 FROM snapshots WHERE name = ?", name) !== undefined) throw alreadyExists(name);
    return parent === "" ? null : this.#committed(parent, "INVALID_ARGUMENT").id;
  }

  #committed(name: string, code: "INVALID_ARGUMENT" | "FAILED_PRECONDITION"): SnapshotRecord {
    const found = this.find(name);
    if (found === undefined) throw new ShaleError("NOT_FOUND", `parent snapshot ${name}: not found`);
    if (found.kind === "committed") return found;
    const end = code === "INVALID_ARGUMENT" ? "invalid argument" : "failed precondition";
    throw new ShaleError(code, `parent ${name} is not a committed snapshot but ${found.kind}: ${end}`);
  }

  #insert(
    { id, name, labels, createdAt }: NewSnapshot,
    parent: number | null,
    kind: SnapshotKind,
    diffId: DiffId | undefined,
    directory: boolean,
  ): void {
    this.#context.database.run(
      `INSERT INTO snapshots (id, name, parent, kind, labels, ref, created_at, updated_at, diff_id, exact, directory)
       VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, ?8, ?9, ?10)`,
      id,
      name,
      parent,
      kind,
      JSON.stringify(labels),
      labels[REF_LABEL] ?? null,
      createdAt,
      diffId ?? null,
      diffId === undefined ? 0 : 1,
      directory ? 1 : 0,
    );
  }

  /** The layer stays from here on: call inside the transaction that refers to it. Answers what it takes on disk. */
  #claim(name: string, diffId: DiffId): { readonly size: number; readonly inodes: number } {
    const layer = claimLayer(this.#context, diffId);
    if (layer === undefined) {
      throw new ShaleError("ABORTED", `snapshot ${name}: layer ${diffId} is not in the store`);
    }
    return usageOf(layer);
  }

  /** What a layer that a snapshot holds takes on disk. */
  layerUsage(diffId: DiffId): { readonly size: number; readonly inodes: number } {
    return usageOf(getLayer(this.#context, diffId));
  }

  /** Makes an active snapshot refer to a layer, below whatever gets into its directory. */
  attach(id: number, diffId: DiffId): void {
    const { database } = this.#context;
    database.transaction(() => {
      const record = this.findById(id);
      if (record?.kind !== "active") throw new ShaleError("NOT_FOUND", `snapshot ${id} is not active: not found`);
      this.#claim(record.name, diffId);
      database.run("UPDATE snapshots SET diff_id = ?, exact = 1 WHERE id = ?", diffId, id);
    });
    crashPoint("snapshot:attached");
  }

  /**
   * Turns an active snapshot into a committed one. `directory`: its directory has content. Errors as for Commit; after one
   * nothing has changed.
   */
  commit(
    key: string,
    committed: {
      readonly name: string;
      readonly labels: Readonly<Record<string, string>>;
      readonly at: bigint;
      /** Adopted by a snapshot without one. */
      readonly parent: string;
      readonly directory: boolean;
    },
  ): SnapshotRecord {
    const { database } = this.#context;
    const { name, labels, at } = committed;
    const record = database.transaction(() => {
      const active = this.find(key);
      if (active === undefined) throw notFound(key);
      if (active.kind !== "active") {
        throw new ShaleError(
          "FAILED_PRECONDITION",
          `snapshot ${key} is not active but ${active.kind}: failed precondition`,
        );
      }
      if (database.get("SELECT 1 FROM snapshots WHERE name = ?", name) !== undefined) throw alreadyExists(name);
      let parent: number | null = active.parentId ?? null;
      if (committed.parent !== "" && committed.parent !== active.parent) {
        if (active.parent !== "") {
          throw new ShaleError(
            "INVALID_ARGUMENT",
            `snapshot ${key} has the parent ${active.parent}, which can't become ${committed.parent}: invalid argument`,
          );
        }
        parent = this.#committed(committed.parent, "FAILED_PRECONDITION").id;
      }
      const usage = active.diffId === undefined ? undefined : this.#claim(name, active.diffId);
      database.run(
        `UPDATE snapshots SET name = ?, parent = ?, kind = 'committed', labels = ?, ref = ?, created_at = ?, updated_at = ?,
           directory = ?, bases = NULL, options = NULL, size = ?, inodes = ?, boot = ? WHERE id = ?`,
        name,
        parent,
        JSON.stringify(labels),
        labels[REF_LABEL] ?? null,
        at,
        at,
        committed.directory ? 1 : 0,
        committed.directory ? null : (usage?.size ?? 0),
        committed.directory ? null : (usage?.inodes ?? 0),
        committed.directory ? bootId() : null,
        active.id,
      );
      return this.findById(active.id)!;
    });
    crashPoint("snapshot:committed");
    if (!committed.directory) this.abandon(record.id);
    return record;
  }

  /** Replaces labels. */
  update(name: string, labels: Readonly<Record<string, string>>, at: bigint): void {
    this.#context.database.run(
      "UPDATE snapshots SET labels = ?, ref = ?, updated_at = ? WHERE name = ?",
      JSON.stringify(labels),
      labels[REF_LABEL] ?? null,
      at,
      name,
    );
  }

  setUsage(id: number, { size, inodes }: { readonly size: number; readonly inodes: number }): void {
    this.#context.database.run("UPDATE snapshots SET size = ?, inodes = ? WHERE id = ?", size, inodes, id);
  }

  /** Directories committed in this boot that a power cut may still take content from. */
  unsynced(): number[] {
    return this.#context.database
      .all("SELECT id FROM snapshots WHERE kind = 'committed' AND directory = 1 AND boot = ?", bootId())
      .map((row) => Number(row.id));
  }

  /** What is written to its directory in this boot, nothing syncs. */
  setUnsynced(id: number): void {
    this.#context.database.run("UPDATE snapshots SET boot = ? WHERE id = ?", bootId(), id);
  }

  /** Their file system was synced after they were committed. */
  setSynced(ids: readonly number[]): void {
    this.#context.database.run(
      "UPDATE snapshots SET boot = NULL WHERE id IN (SELECT value FROM json_each(?))",
      JSON.stringify(ids),
    );
  }

  /** Committed directories that no layer was made of yet. */
  plain(): SnapshotRecord[] {
    return this.#context.database
      .all(`${SELECT_SNAPSHOT} WHERE s.kind = 'committed' AND s.directory = 1 AND s.diff_id IS NULL ORDER BY s.id`)
      .map(snapshotFromRow);
  }

  /** From now on mounts show the layer instead of the directory, which goes when no mount given out stands on it. False: it is gone. */
  replaceDirectory(id: number, diffId: DiffId): boolean {
    const { database } = this.#context;
    const done = database.transaction(() => {
      const record = this.findById(id);
      if (record?.kind !== "committed" || !record.directory || record.diffId !== undefined) return false;
      const usage = this.#claim(record.name, diffId);
      database.run("UPDATE snapshots SET diff_id = ?, exact = 0, directory = 0, boot = NULL WHERE id = ?", diffId, id);
      this.setUsage(id, usage);
      return true;
    });
    crashPoint("snapshot:converted");
    if (done) this.abandon(id);
    return done;
  }

  /** Takes a snapshot out of sight; NOT_FOUND, or FAILED_PRECONDITION while it has children. */
  remove(name: string): void {
    const { database } = this.#context;
    const id = database.transaction(() => {
      const row = database.get("SELECT id FROM snapshots WHERE name = ?", name);
      if (row === undefined) throw notFound(name);
      const found = Number(row.id);
      if (this.hasChildren(found)) {
        throw new ShaleError(
          "FAILED_PRECONDITION",
          `cannot remove snapshot ${name}: it is the parent of others: failed precondition`,
        );
      }
      database.run("DELETE FROM snapshots WHERE id = ?", found);
      return found;
    });
    crashPoint("snapshot:removed");
    this.abandon(id);
  }
}

/** Its directory with two files, and the blob that it brought. */
function usageOf({ ownBytes, metadataBytes }: LayerRecord) {
  return { size: ownBytes + metadataBytes, inodes: ownBytes > 0 ? 4 : 3 };
}

export function notFound(name: string): ShaleError {
  return new ShaleError("NOT_FOUND", `snapshot ${name}: not found`);
}

export function alreadyExists(name: string): ShaleError {
  return new ShaleError("ALREADY_EXISTS", `snapshot ${name}: already exists`);
}
