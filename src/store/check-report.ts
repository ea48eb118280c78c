/**
 * What a check of the store finds, and what is done about it. Apart from check.ts, which loads every format: commands that check
 * nothing do not wait for that.
 */
import { join } from "node:path";
import type { DiffId, Digest } from "../oci/index.ts";
import { rename, unlink } from "../sys/index.ts";
import type { StoreContext } from "./context.ts";
import { currentEpoch } from "./leases.ts";
import { SQL_IS_TOC_IDENTITY } from "./toc-identity.ts";

export type Finding =
  | { readonly kind: "layer"; readonly diffId: DiffId; readonly id: string; readonly problem: string }
  | { readonly kind: "payload"; readonly blob: string; readonly offset: number; readonly problem: string }
  | { readonly kind: "merged image"; readonly id: string; readonly problem: string }
  | { readonly kind: "index row"; readonly digest: string; readonly problem: string }
  | { readonly kind: "document"; readonly digest: Digest; readonly problem: string }
  | { readonly kind: "image"; readonly name: string; readonly problem: string }
  | { readonly kind: "snapshot"; readonly name: string; readonly problem: string }
  | { readonly kind: "link source"; readonly path: string; readonly problem: string }
  | { readonly kind: "stray file"; readonly path: string; readonly problem: string };

export interface CheckReport {
  readonly findings: readonly Finding[];
  readonly layers: number;
  /** Those of `layers` that are verified by their table of contents, because their tars are not here. */
  readonly layersByToc: number;
  readonly payloads: number;
  /** Payload and tar bytes that were hashed. */
  readonly bytes: number;
}

export interface CheckOptions {
  /** Structure and metadata only, no payload is read. */
  readonly quick?: boolean;
  readonly signal?: AbortSignal;
  /** Told as bytes are hashed. */
  readonly onBytes?: (count: number) => void;
}

/** Bytes that a full check will hash, for progress. */
export function checkSize({ database }: StoreContext): number {
  const tars = database.get(
    `SELECT total(iif(${SQL_IS_TOC_IDENTITY}, content_bytes, tar_size)) AS n FROM layers WHERE condemned IS NULL`,
  );
  const blobs = database.get("SELECT total(size) AS n FROM blobs WHERE removed = 0");
  return Number(tars!.n) + Number(blobs!.n);
}

/**
 * Takes what `report` found out of sight: damaged layers and merged images, index rows, damaged payloads. Stray files move
 * to `quarantine/`. Returns the diffIds that have to be fetched again.
 */
export function quarantineDamage(context: StoreContext, report: CheckReport): DiffId[] {
  const { layout, database } = context;
  const lost: DiffId[] = [];
  // As garbage collection does: out of sight now, the file goes when no operation of an earlier epoch is left.
  const condemnMerged = (where: string, value: string) =>
    database.run(`UPDATE merged SET condemned = ? WHERE condemned IS NULL AND ${where}`, currentEpoch(database), value);
  database.transaction(() => {
    database.run("UPDATE state SET value = value + 1 WHERE key = 'epoch'");
    for (const finding of report.findings) {
      switch (finding.kind) {
        case "payload": {
          const key = Number(database.get("SELECT key FROM blobs WHERE id = ?", finding.blob)?.key ?? -1);
          database.run(
            "INSERT OR REPLACE INTO damaged_payloads (blob, offset, reason) VALUES (?, ?, ?)",
            key,
            finding.offset,
            finding.problem,
          );
          database.run("DELETE FROM payloads WHERE blob = ? AND offset = ?", key, finding.offset);
          database.run("DELETE FROM chunks WHERE layer = ?", finding.blob);
          break;
        }
        case "layer":
          lost.push(finding.diffId);
          database.run("UPDATE layers SET damage = ? WHERE id = ?", finding.problem, finding.id);
          database.run("DELETE FROM chunks WHERE layer = ?", finding.id);
          // Images derived from it name its blobs; those of an intact chain are made again at no cost but time.
          condemnMerged("layers LIKE ?", `%"${finding.id}"%`);
          break;
        case "merged image":
          condemnMerged("id = ?", finding.id);
          break;
        case "index row":
          database.run("DELETE FROM payloads WHERE digest = ?", Buffer.from(finding.digest, "hex"));
          database.run("DELETE FROM chunks WHERE digest = ?", Buffer.from(finding.digest, "hex"));
          break;
        case "document":
        case "image":
        case "snapshot":
        case "stray file":
        case "link source":
          break;
      }
    }
    // A blob whose table is unreadable can serve nobody.
    for (const diffId of lost) {
      database.run(
        `DELETE FROM payloads WHERE blob IN (SELECT blobs.key FROM blobs JOIN layers ON layers.id = blobs.id
           WHERE layers.diff_id = ? AND layers.damage LIKE 'blob %')`,
        diffId,
      );
    }
  });
  for (const finding of report.findings) {
    if (finding.kind === "link source") unlink(finding.path); // checkouts keep their names of it
    if (finding.kind !== "stray file") continue;
    rename(finding.path, join(layout.quarantine, finding.path.slice(layout.root.length + 1).replace("/", "-")));
  }
  return lost;
}
