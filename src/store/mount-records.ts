/**
 * What is mounted, as far as the store cares: each record keeps its layers from being collected. Mounting itself is not
 * here (images/mount.ts).
 */
import type { ChainId, DiffId, Digest } from "../oci/index.ts";
import type { StoreContext } from "./context.ts";
import type { Row } from "./database.ts";

export interface MountRecord {
  /** Absolute path. */
  readonly target: string;
  readonly image: string;
  readonly manifest: Digest;
  readonly chainId: ChainId | undefined;
  readonly diffIds: readonly DiffId[];
  readonly mode: "merged" | "stacked";
  /** Directory with `upper` and `work` of a writable mount. */
  readonly writable: string | undefined;
  /** Of the boot and the mount namespace in which it was made: outside of those it can't exist. */
  readonly bootId: string;
  readonly namespace: string;
  readonly createdAt: Date;
}

function fromRow(row: Row): MountRecord {
  return {
    target: String(row.target),
    image: String(row.image),
    manifest: String(row.manifest) as Digest,
    chainId: row.chain_id === "" ? undefined : (String(row.chain_id) as ChainId),
    diffIds: JSON.parse(String(row.diff_ids)) as DiffId[],
    mode: row.mode === "stacked" ? "stacked" : "merged",
    writable: row.writable === null ? undefined : String(row.writable),
    bootId: String(row.boot_id),
    namespace: String(row.namespace),
    createdAt: new Date(Number(row.created_at)),
  };
}

export function listMounts({ database }: StoreContext): MountRecord[] {
  return database.all("SELECT * FROM mounts ORDER BY target").map(fromRow);
}

export function findMountRecord({ database }: StoreContext, target: string): MountRecord | undefined {
  const row = database.get("SELECT * FROM mounts WHERE target = ?", target);
  return row && fromRow(row);
}

/** Recorded before the mount is made, so that no mount is ever unknown. */
export function recordMount({ database }: StoreContext, mount: MountRecord): void {
  database.run(
    `INSERT OR REPLACE INTO mounts
       (target, image, manifest, chain_id, diff_ids, mode, writable, boot_id, namespace, created_at)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
    mount.target,
    mount.image,
    mount.manifest,
    mount.chainId ?? "",
    JSON.stringify(mount.diffIds),
    mount.mode,
    mount.writable ?? null,
    mount.bootId,
    mount.namespace,
    mount.createdAt.getTime(),
  );
}

/** Forgotten after the mount is gone. */
export function forgetMount({ database }: StoreContext, target: string): void {
  database.run("DELETE FROM mounts WHERE target = ?", target);
}
