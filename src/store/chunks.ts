/**
 * The chunk index: where the store has parts of payloads, and files inside of metadata images, by digest. Sources for pulls
 * of parts. A cache like the dedupe index: it may lack rows, and never has one for bytes of a layer that is out of sight,
 * because what takes a layer out of sight takes its rows in the same transaction.
 *
 * Rows are made when a pull of parts first asks for them, layer by layer, the newest first: a pull that needs none pays
 * nothing. A layer that came without a TOC gives its small files, one that came with a TOC all of its chunks.
 */
import { createHash } from "node:crypto";
import { decodePayloads } from "../formats/payload-table/index.ts";
import type { DiffId } from "../oci/index.ts";
import { crashPoint, fileSource } from "../sys/index.ts";
import { type CheckReport, type Finding, quarantineDamage } from "./check-report.ts";
import type { StoreContext } from "./context.ts";
import { isDamage, unlessDamaged } from "./damage.ts";
import type { Database } from "./database.ts";
import type { IngestPool } from "./ingest/pool.ts";
import type { BadSource, ChunkRows } from "./ingest/protocol.ts";
import { parseTocLocation } from "./ingest/toc-location.ts";
import { blobsOfLayer, forEachExtent } from "./liveness.ts";

/** Index rows per transaction: bounds how long others wait for the database. */
const INDEX_BATCH = 4096;
/** Entries of layers that one pull makes rows for, about 3 us each; the next pull goes on. */
const ENTRIES_PER_CALL = 300_000;
const PIECE = 1024 * 1024;

/** Makes the rows of layers that have none. Call under a lease. CANCELLED. */
export async function indexChunks(
  context: StoreContext,
  pool: IngestPool,
  options: { readonly signal?: AbortSignal } = {},
): Promise<void> {
  const { layout, database } = context;
  const pending = database.all(
    `SELECT id, entries, toc FROM layers WHERE chunked = 0 AND condemned IS NULL AND damage IS NULL
       ORDER BY committed_at DESC, id DESC`,
  );
  let entries = 0;
  for (const row of pending) {
    if (entries > 0 && entries + Number(row.entries) > ENTRIES_PER_CALL) return;
    entries += Number(row.entries);
    const id = String(row.id);
    const toc = row.toc === null ? undefined : parseTocLocation(String(row.toc));
    let rows: ChunkRows | undefined;
    try {
      rows = await pool.scanChunks({ database: layout.database, root: layout.root, id, toc }, options);
    } catch (error) {
      // A damaged layer must not fail every pull to come (G10); check says what is wrong.
      if (!isDamage(error)) throw error;
    }
    addRows(database, id, rows);
  }
}

function addRows(database: Database, id: string, rows: ChunkRows | undefined): void {
  const count = rows?.lengths.length ?? 0;
  for (let start = 0; start === 0 || start < count; start += INDEX_BATCH) {
    const end = Math.min(count, start + INDEX_BATCH);
    const live = database.transaction(() => {
      if (!isInSight(database, id)) return false;
      for (let at = start; at < end; at++) addRow(database, rows!, at);
      if (end === count) database.run("UPDATE layers SET chunked = 1 WHERE id = ?", id);
      return true;
    });
    crashPoint("chunks:batch");
    if (!live) return;
  }
}

/** Unless equal bytes are indexed already, or the layer that brought them is out of sight. */
function addRow(database: Database, rows: ChunkRows, at: number): void {
  database.run(
    `INSERT OR IGNORE INTO chunks (digest, layer, inline, offset, length) SELECT ?1, ?2, ?3, ?4, ?5
       WHERE EXISTS (SELECT 1 FROM layers WHERE id = ?2 AND condemned IS NULL AND damage IS NULL)`,
    rows.digests.subarray(at * 32, at * 32 + 32),
    rows.owners[rows.ownerNumbers[at]!]!,
    rows.inline[at] ? 1 : 0,
    rows.offsets[at]!,
    rows.lengths[at]!,
  );
}

function isInSight(database: Database, id: string): boolean {
  return database.get("SELECT 1 FROM layers WHERE id = ? AND condemned IS NULL AND damage IS NULL", id) !== undefined;
}

/**
 * Bytes that did not have the digest under which they were found. What is damaged is taken out of sight, as `check` would
 * have done (G9); a row that was merely wrong goes. Returns the diffIds of layers that are damaged.
 */
export function reportBadSources(context: StoreContext, bad: readonly BadSource[]): DiffId[] {
  const { database } = context;
  const findings: Finding[] = [];
  for (const source of bad) {
    database.run("DELETE FROM chunks WHERE digest = ? AND layer = ?", source.digest, source.id);
    if (source.inline) {
      const finding = imageDamage(context, source.id);
      if (finding !== undefined) findings.push(finding);
    } else findings.push(...payloadDamage(context, source));
  }
  if (findings.length === 0) return [];
  const report: CheckReport = { findings, layers: 0, layersByToc: 0, payloads: 0, bytes: 0 };
  return quarantineDamage(context, report);
}

/** Whether a layer's metadata image is still what was written. */
function imageDamage({ layout, database }: StoreContext, id: string): Finding | undefined {
  const row = database.get("SELECT diff_id, image_sha256 FROM layers WHERE id = ? AND damage IS NULL", id);
  if (row === undefined) return undefined;
  const found = unlessDamaged(() => sha256(layout.layerImage(id)).toString("hex"));
  if (found === row.image_sha256) return undefined;
  const problem = "meta.erofs is not what was written";
  return { kind: "layer", diffId: String(row.diff_id) as DiffId, id, problem };
}

/** The payload that has these bytes, if it is damaged, and the layers that refer to it. */
function payloadDamage(context: StoreContext, source: BadSource): Finding[] {
  const { layout, database } = context;
  const known = database.get("SELECT key FROM blobs WHERE id = ? AND removed = 0", source.id);
  if (known === undefined) return [];
  let damaged: { readonly offset: number; readonly problem: string } | undefined;
  try {
    using blob = fileSource(layout.blob(source.id));
    for (const { offset, length, digest } of decodePayloads(blob)) {
      if (source.offset < offset || source.offset >= offset + length) continue;
      const hasher = createHash("sha256");
      for (let at = 0; at < length; at += PIECE) hasher.update(blob.read(offset + at, Math.min(PIECE, length - at)));
      const found = hasher.digest();
      if (found.equals(digest)) return [];
      damaged = { offset, problem: `its content is ${found.toString("hex")}` };
    }
  } catch (error) {
    if (!isDamage(error)) throw error;
    damaged = { offset: source.offset, problem: (error as Error).message };
  }
  if (damaged === undefined) return [];
  const { offset, problem } = damaged;
  return [{ kind: "payload", blob: source.id, offset, problem }, ...layersWith(context, source.id, offset, problem)];
}

function layersWith(context: StoreContext, blob: string, offset: number, problem: string): Finding[] {
  const findings: Finding[] = [];
  for (const row of context.database.all("SELECT id, diff_id FROM layers WHERE condemned IS NULL AND damage IS NULL")) {
    const id = String(row.id);
    unlessDamaged(() => {
      if (!blobsOfLayer(context, id).includes(blob)) return;
      let uses = false;
      forEachExtent(context, id, (of, at) => {
        uses ||= of === blob && at === offset;
      });
      const diffId = String(row.diff_id) as DiffId;
      if (uses)
        findings.push({ kind: "layer", diffId, id, problem: `a payload of blob ${blob} at ${offset}: ${problem}` });
    });
  }
  return findings;
}

function sha256(path: string): Buffer {
  using source = fileSource(path);
  const hasher = createHash("sha256");
  for (let at = 0; at < source.size; at += PIECE) hasher.update(source.read(at, Math.min(PIECE, source.size - at)));
  return hasher.digest();
}
