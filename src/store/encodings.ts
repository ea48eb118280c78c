/**
 * Encodings: digest and size of what a layer's tar becomes under a deterministic encoder, never its bytes. So a manifest
 * that names compressed layers can be written without compressing them again. A cache: rows go with their layer.
 */
import type { DiffId, Digest } from "../oci/index.ts";
import type { StoreContext } from "./context.ts";
import type { Row } from "./database.ts";

export interface Encoding {
  readonly diffId: DiffId;
  /** Names the algorithm, its settings and the library's version: everything that the bytes depend on. */
  readonly encoder: string;
  readonly digest: Digest;
  readonly size: number;
  /** What else the encoder wants to remember; "" unless it said something. */
  readonly details?: string;
}

function encodingFromRow(row: Row): Encoding {
  return {
    diffId: String(row.diff_id) as DiffId,
    encoder: String(row.encoder),
    digest: String(row.digest) as Digest,
    size: Number(row.size),
    details: String(row.details),
  };
}

export function findEncoding({ database }: StoreContext, diffId: DiffId, encoder: string): Encoding | undefined {
  const row = database.get("SELECT * FROM encodings WHERE diff_id = ? AND encoder = ?", diffId, encoder);
  return row && encodingFromRow(row);
}

export function findEncodingByDigest({ database }: StoreContext, digest: Digest): Encoding | undefined {
  const row = database.get("SELECT * FROM encodings WHERE digest = ?", digest);
  return row && encodingFromRow(row);
}

export function recordEncoding({ database }: StoreContext, encoding: Encoding): void {
  const { diffId, encoder, digest, size, details = "" } = encoding;
  database.run(
    "INSERT OR REPLACE INTO encodings (diff_id, encoder, digest, size, details) VALUES (?, ?, ?, ?, ?)",
    diffId,
    encoder,
    digest,
    size,
    details,
  );
}
