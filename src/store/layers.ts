/**
 * Layers: looking them up and committing them.
 *
 * A layer is in sight (found by diffId) exactly when it is complete and durable. Commit order, each step with a crash
 * point: files synced (by the ingest) -> renamed into place -> `blobs/` and `layers/` synced -> one transaction, which is
 * the commit point. What a crash leaves before that point is found by its lease directory and removed (leases.ts).
 */
import { join } from "node:path";
import { ShaleError } from "../errors/index.ts";
import type { LayerNotice } from "../formats/layer-index/builder.ts";
import type { DiffId } from "../oci/index.ts";
import { crashPoint, removeTree, rename, syncDirectory } from "../sys/index.ts";
import type { StoreContext } from "./context.ts";
import type { Row } from "./database.ts";
import type { IngestResult, LayerForm } from "./ingest/protocol.ts";
import { formatTocLocation } from "./ingest/toc-location.ts";

export interface LayerRecord {
  readonly id: string;
  /** Only a "tree" can be opened and mounted; the tar comes back from both. */
  readonly form: LayerForm;
  /** Digest of its tar, computed by us; of a layer that is verified by its TOC another identity (toc-identity.ts). */
  readonly diffId: DiffId;
  /** 0 for a layer that is verified by its TOC, which does not know it. */
  readonly tarSize: number;
  readonly entries: number;
  /** Sum of file sizes. contentBytes = ownBytes + sharedBytes + inlineBytes. */
  readonly contentBytes: number;
  /** In the layer's own blob. */
  readonly ownBytes: number;
  /** Found elsewhere in the store, or earlier in the same layer. */
  readonly sharedBytes: number;
  /** Inside its metadata image. */
  readonly inlineBytes: number;
  /** Metadata image and tar headers. */
  readonly metadataBytes: number;
  readonly imageSha256: string;
  readonly recipeSha256: string;
  readonly standalone: boolean;
  readonly notices: readonly LayerNotice[];
  readonly committedAt: Date;
  /** Why `check` took it out of sight; such a layer is never found, only listed. */
  readonly damage: string | undefined;
}

export function layerFromRow(row: Row): LayerRecord {
  return {
    id: String(row.id),
    form: row.form === "archive" ? "archive" : "tree",
    diffId: String(row.diff_id) as DiffId,
    tarSize: Number(row.tar_size),
    entries: Number(row.entries),
    contentBytes: Number(row.content_bytes),
    ownBytes: Number(row.own_bytes),
    sharedBytes: Number(row.shared_bytes),
    inlineBytes: Number(row.inline_bytes),
    metadataBytes: Number(row.metadata_bytes),
    imageSha256: String(row.image_sha256),
    recipeSha256: String(row.recipe_sha256),
    standalone: row.standalone === 1,
    notices: JSON.parse(String(row.notices)) as readonly LayerNotice[],
    committedAt: new Date(Number(row.committed_at)),
    damage: row.damage === null ? undefined : String(row.damage),
  };
}

/**
 * The layer with this diffId, complete and durable; undefined when there is none in sight. As a tree where there is one,
 * and, unless `form` says "tree", else as an archive: for those who want no more than the tar.
 */
export function findLayer(
  { database }: StoreContext,
  diffId: DiffId,
  form: LayerForm | "any" = "any",
): LayerRecord | undefined {
  const row = database.get(
    `SELECT * FROM layers WHERE diff_id = ?1 AND condemned IS NULL AND damage IS NULL AND ?2 IN (form, 'any')
       ORDER BY form DESC LIMIT 1`,
    diffId,
    form,
  );
  return row && layerFromRow(row);
}

/** As `findLayer`; NOT_FOUND when it is absent, DATA_LOSS when `check` took it out of sight. */
export function getLayer(context: StoreContext, diffId: DiffId): LayerRecord {
  const layer = findLayer(context, diffId);
  if (layer !== undefined) return layer;
  const damaged = context.database.get("SELECT damage FROM layers WHERE diff_id = ? AND damage IS NOT NULL", diffId);
  if (damaged !== undefined) {
    throw new ShaleError("DATA_LOSS", `Cannot read layer ${diffId}: ${damaged.damage}`, {
      hint: "Run shale check --repair, or pull the image again",
    });
  }
  throw new ShaleError("NOT_FOUND", `Cannot read layer ${diffId}: it is not in the store`);
}

/** FAILED_PRECONDITION for a checkpoint that is kept as an archive: its image has made-up names. */
export function requireTree({ diffId, form }: LayerRecord): void {
  if (form === "tree") return;
  throw new ShaleError("FAILED_PRECONDITION", `Cannot open layer ${diffId}: it is the archive of a checkpoint`, {
    hint: "shale checkpoint export gives the archive back",
  });
}

/**
 * As `findLayer`, and brings a layer back into sight that garbage collection has condemned but not begun to remove. Call
 * inside the transaction that starts to refer to it.
 */
export function claimLayer(
  context: StoreContext,
  diffId: DiffId,
  form: LayerForm | "any" = "tree",
): LayerRecord | undefined {
  const { database } = context;
  return database.transaction(() => {
    const found = findLayer(context, diffId, form);
    if (found !== undefined) return found;
    // Its index rows are gone; `indexed = 0` has them made again. One row only: diffIds in sight are unique for a form.
    database.run(
      `UPDATE layers SET condemned = NULL, indexed = 0, chunked = 0 WHERE id =
         (SELECT id FROM layers WHERE diff_id = ?1 AND condemned > 0 AND damage IS NULL AND ?2 IN (form, 'any')
            ORDER BY form DESC LIMIT 1)`,
      diffId,
      form,
    );
    return findLayer(context, diffId, form);
  });
}

export function hasLayers({ database }: StoreContext): boolean {
  return database.get("SELECT 1 FROM layers WHERE condemned IS NULL AND damage IS NULL LIMIT 1") !== undefined;
}

/** Ids of the layers in sight, in the order of `diffIds`; errors as for `getLayer`. A layer that was fetched again has another one. */
export function layerIds(context: StoreContext, diffIds: readonly DiffId[]): string[] {
  return diffIds.map((diffId) => {
    const row = context.database.get(
      "SELECT id FROM layers WHERE diff_id = ? AND condemned IS NULL AND damage IS NULL",
      diffId,
    );
    return row === undefined ? getLayer(context, diffId).id : String(row.id);
  });
}

export function listLayers({ database }: StoreContext): LayerRecord[] {
  return database.all("SELECT * FROM layers WHERE condemned IS NULL ORDER BY committed_at, id").map(layerFromRow);
}

/** DiffIds of layers that are damaged and have no sound copy in sight. */
export function listDamagedLayers({ database }: StoreContext): DiffId[] {
  return database
    .all(
      `SELECT DISTINCT diff_id FROM layers WHERE damage IS NOT NULL AND condemned IS NULL AND diff_id NOT IN
         (SELECT diff_id FROM layers WHERE condemned IS NULL AND damage IS NULL) ORDER BY diff_id`,
    )
    .map((row) => String(row.diff_id) as DiffId);
}

/**
 * Commits ingested layers in one batch: after it returned, no power cut can make one of them partial or missing. Losing
 * to another process that committed the same layer is success. The cost does not depend on entries, nor on the store.
 */
export function commitLayers(context: StoreContext, ingested: readonly IngestResult[]): void {
  const { layout, database } = context;
  if (ingested.length === 0) return;
  for (const one of ingested) {
    if (one.blobSize > 0) rename(join(one.directory, "blob"), layout.blob(one.id));
    crashPoint("commit:blob-renamed");
    rename(join(one.directory, "layer"), layout.layer(one.id));
    crashPoint("commit:layer-renamed");
  }
  syncDirectory(layout.blobs);
  syncDirectory(layout.layers);
  crashPoint("commit:directories-synced");
  const lost = database.transaction(() => ingested.filter((one) => !insertLayer(context, one)));
  crashPoint("commit:recorded");
  for (const one of lost) {
    removeTree(layout.layer(one.id));
    removeTree(layout.blob(one.id));
  }
  for (const one of ingested) removeTree(one.directory);
}

/** False when the layer is there already. */
function insertLayer(context: StoreContext, one: IngestResult): boolean {
  const { database } = context;
  if (claimLayer(context, one.diffId as DiffId, one.form) !== undefined) return false;
  if (one.blobSize > 0) database.run("INSERT INTO blobs (id, size) VALUES (?, ?)", one.id, one.blobSize);
  database.run(
    `INSERT INTO layers (id, form, diff_id, tar_size, entries, content_bytes, own_bytes, shared_bytes, inline_bytes,
       metadata_bytes, image_sha256, recipe_sha256, notices, committed_at, indexed, standalone, toc)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
    one.id,
    one.form,
    one.diffId,
    one.tarSize,
    one.entries,
    one.contentBytes,
    one.ownBytes,
    one.sharedBytes,
    one.inlineBytes,
    one.metadataBytes,
    one.imageSha256,
    one.recipeSha256,
    JSON.stringify(one.notices),
    Date.now(),
    one.blobSize > 0 ? 0 : 1,
    one.standalone ? 1 : 0,
    one.toc === undefined ? null : formatTocLocation(one.toc),
  );
  // Fetched again in place of one that was damaged: what is its own may differ.
  database.run(
    "UPDATE manifest_layers SET content_bytes = ?, stored_bytes = ? WHERE diff_id = ?",
    one.contentBytes,
    one.ownBytes + one.metadataBytes,
    one.diffId,
  );
  return true;
}

/** Takes every row of the chunk index for bytes of these layers out. Call inside a transaction. */
export function unindexChunks({ database }: StoreContext, layers: readonly string[]): void {
  if (layers.length === 0) return;
  database.run("DELETE FROM chunks WHERE layer IN (SELECT value FROM json_each(?))", JSON.stringify(layers));
}
