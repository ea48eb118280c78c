/** Snapshots of containerd as rows: what they are, listing them, and what of the store they keep. Changes: snapshot-register.ts. */
import type { DiffId } from "../oci/index.ts";
import { diskUsage, findFile } from "../sys/index.ts";
import type { StoreContext } from "./context.ts";
import type { Row } from "./database.ts";

export type SnapshotKind = "active" | "view" | "committed";

export interface SnapshotRecord {
  /** Number of its directory; never used twice. */
  readonly id: number;
  /** Of a committed snapshot its name, of the others their key. */
  readonly name: string;
  readonly kind: SnapshotKind;
  readonly parentId: number | undefined;
  /** Its name; "" for none. */
  readonly parent: string;
  readonly labels: Readonly<Record<string, string>>;
  /** Nanoseconds since 1970. */
  readonly createdAt: bigint;
  readonly updatedAt: bigint;
  /** The layer that it is made of. */
  readonly diffId: DiffId | undefined;
  /** The layer is the image's own, not one that shale made of a directory. */
  readonly exact: boolean;
  /** Its directory has content of its own, above the layer if there is one; of an active one: may get some. */
  readonly directory: boolean;
  /** Of an active snapshot or a view: what its mount stands on, uppermost first, as `snapshotter/` spells it. */
  readonly bases: readonly string[];
  /** Of the same: further options of its mount. */
  readonly options: readonly string[];
  /** Of a committed one, once measured. */
  readonly usage: { readonly size: number; readonly inodes: number } | undefined;
  /**
   * Of a committed one, the boot in which its directory was committed, until `setSynced`: a power cut may have taken content from
   * it. Of a volatile active one, the boot in which it was last given out.
   */
  readonly unsyncedSince: string | undefined;
}

/** The label by which a client asks for a layer; containerd looks for it in `list`. */
export const REF_LABEL = "containerd.io/snapshot.ref";

/** Rows fetched at a time while listing: others may write between two such batches. */
const LIST_BATCH = 256;

export const SNAPSHOT_COLUMNS = `s.id, s.name, s.parent AS parent_id, coalesce(p.name, '') AS parent, s.kind, s.labels,
  CAST(s.created_at AS TEXT) AS created_at, CAST(s.updated_at AS TEXT) AS updated_at,
  s.diff_id, s.exact, s.directory, s.bases, s.options, s.size, s.inodes, s.boot`;
export const SELECT_SNAPSHOT = `SELECT ${SNAPSHOT_COLUMNS} FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent`;

export function snapshotFromRow(row: Row): SnapshotRecord {
  return {
    id: Number(row.id),
    name: String(row.name),
    kind: row.kind === "active" ? "active" : row.kind === "view" ? "view" : "committed",
    parentId: row.parent_id === null ? undefined : Number(row.parent_id),
    parent: String(row.parent),
    labels: JSON.parse(String(row.labels)) as Record<string, string>,
    createdAt: BigInt(String(row.created_at)),
    updatedAt: BigInt(String(row.updated_at)),
    diffId: row.diff_id === null ? undefined : (String(row.diff_id) as DiffId),
    exact: row.exact === 1,
    directory: row.directory === 1,
    bases: row.bases === null ? [] : (JSON.parse(String(row.bases)) as string[]),
    options: row.options === null ? [] : (JSON.parse(String(row.options)) as string[]),
    usage: row.size === null ? undefined : { size: Number(row.size), inodes: Number(row.inodes) },
    unsyncedSince: row.boot === null ? undefined : String(row.boot),
  };
}

export function findSnapshot({ database }: StoreContext, name: string): SnapshotRecord | undefined {
  const row = database.get(`${SELECT_SNAPSHOT} WHERE s.name = ?`, name);
  return row && snapshotFromRow(row);
}

export interface SnapshotSelection {
  readonly name?: string;
  /** Of the parent; "" for those without one. */
  readonly parent?: string;
  /** Value of REF_LABEL. */
  readonly ref?: string;
}

/** By rising id. What is added or removed while this is read may be in it or not; what stays is in it exactly once. */
export function* listSnapshots(
  { database }: StoreContext,
  { name, parent, ref }: SnapshotSelection = {},
): Generator<SnapshotRecord> {
  const conditions = ["s.id > ?"];
  const values: string[] = [];
  if (name !== undefined) {
    conditions.push("s.name = ?");
    values.push(name);
  }
  if (ref !== undefined) {
    conditions.push("s.ref = ?");
    values.push(ref);
  }
  // Few snapshots have one reference, many may have one parent: "+" keeps SQLite from taking the parent's index.
  const column = ref === undefined ? "s.parent" : "+s.parent";
  if (parent === "") conditions.push(`${column} IS NULL`);
  else if (parent !== undefined) {
    conditions.push(`${column} = (SELECT id FROM snapshots WHERE name = ?)`);
    values.push(parent);
  }
  const query = `${SELECT_SNAPSHOT} WHERE ${conditions.join(" AND ")} ORDER BY s.id LIMIT ${LIST_BATCH}`;
  for (let last = 0; ; ) {
    const rows = database.all(query, last, ...values);
    for (const row of rows) yield snapshotFromRow(row);
    if (rows.length < LIST_BATCH) return;
    last = Number(rows.at(-1)!.id);
  }
}

export function countSnapshots({ database }: StoreContext): Readonly<Record<SnapshotKind, number>> {
  const counts = { active: 0, view: 0, committed: 0 };
  for (const row of database.all("SELECT kind, count(*) AS n FROM snapshots GROUP BY kind")) {
    counts[String(row.kind) as SnapshotKind] = Number(row.n);
  }
  return counts;
}

export interface SnapshotsUsage extends Readonly<Record<SnapshotKind, number>> {
  /** On disk, of directories: what containers wrote, plain snapshots, and what the next cleanup deletes. */
  readonly bytes: number;
}

export function measureSnapshots(context: StoreContext): SnapshotsUsage {
  const { size } = diskUsage(context.layout.snapshots);
  const empty = findFile(context.layout.snapshots)?.allocated ?? 0;
  return { ...countSnapshots(context), bytes: size - empty };
}

/** Layers that snapshots or their mounts need, and chains whose merged image is mounted: roots of garbage collection. */
export function snapshotRoots({ database }: StoreContext): {
  readonly diffIds: readonly string[];
  readonly chainIds: readonly string[];
} {
  const diffIds = database
    .all(
      `SELECT diff_id FROM snapshots WHERE diff_id IS NOT NULL
       UNION SELECT value FROM host_mounts, json_each(host_mounts.diff_ids)`,
    )
    .map((row) => String(Object.values(row)[0]));
  const chainIds = database
    .all("SELECT chain_id FROM host_mounts WHERE chain_id IS NOT NULL")
    .map((row) => String(row.chain_id));
  return { diffIds, chainIds };
}
