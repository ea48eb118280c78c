/**
 * Mounts below mounts/ that snapshots stand on: which there are, by number. What is mounted where never changes, since a
 * number is never used twice; mounting itself is not here (snapshotter/host-mounts.ts).
 */
import type { ChainId, DiffId } from "../oci/index.ts";
import { crashPoint } from "../sys/index.ts";
import type { StoreContext } from "./context.ts";
import { layerIds } from "./layers.ts";

export interface HostMount {
  /** Number of its mount point, mounts/<id>; never used twice. */
  readonly id: number;
  readonly what: string;
  readonly diffIds: readonly DiffId[];
}

/** A list of what active snapshots and views were given out has two kinds of items: `m<host mount>` and `s<snapshot>`. */
export class HostMountRegister {
  readonly #context: StoreContext;

  constructor(context: StoreContext) {
    this.#context = context;
  }

  pathOf(id: number): string {
    return this.#context.layout.hostMount(id);
  }

  find(id: number): HostMount | undefined {
    const row = this.#context.database.get("SELECT id, what, diff_ids FROM host_mounts WHERE id = ?", id);
    return row && { id, what: String(row.what), diffIds: JSON.parse(String(row.diff_ids)) as DiffId[] };
  }

  /** Ids of layers: a mount shows these files for good, so one of a layer that was fetched again is another mount. */
  layerIds(diffIds: readonly DiffId[]): readonly string[] {
    return layerIds(this.#context, diffIds);
  }

  /** The mount of `what`; recorded before it is made, so that no mount is ever unknown. */
  ensure(what: string, diffIds: readonly DiffId[], chainId: ChainId | undefined): number {
    const { database } = this.#context;
    const known = database.get("SELECT id FROM host_mounts WHERE what = ?", what);
    if (known !== undefined) return Number(known.id);
    database.run(
      "INSERT INTO host_mounts (what, diff_ids, chain_id) VALUES (?, ?, ?)",
      what,
      JSON.stringify(diffIds),
      chainId ?? null,
    );
    crashPoint("snapshot:host-mount");
    return Number(database.get("SELECT id FROM host_mounts WHERE what = ?", what)!.id);
  }

  /** Mounts that no snapshot stands on. */
  idle(): number[] {
    return this.#context.database
      .all(
        `SELECT id FROM host_mounts WHERE 'm' || id NOT IN
           (SELECT json_each.value FROM snapshots s, json_each(s.bases) WHERE s.bases IS NOT NULL) ORDER BY id`,
      )
      .map((row) => Number(row.id));
  }

  /** Mounts in the record. */
  list(): number[] {
    return this.#context.database.all("SELECT id FROM host_mounts ORDER BY id").map((row) => Number(row.id));
  }

  /** Forgotten after it is gone. */
  forget(id: number): void {
    this.#context.database.run("DELETE FROM host_mounts WHERE id = ?", id);
  }

  /** Snapshots whose directories are in a mount that was given out, or in one of ours. */
  directoriesInUse(): ReadonlySet<number> {
    const rows = this.#context.database.all(
      `SELECT DISTINCT substr(json_each.value, 2) AS id FROM snapshots s, json_each(s.bases)
         WHERE s.bases IS NOT NULL AND json_each.value LIKE 's%'
       UNION SELECT what ->> 'directory' AS id FROM host_mounts WHERE what ->> 'directory' IS NOT NULL`,
    );
    return new Set(rows.map((row) => Number(row.id)));
  }
}
