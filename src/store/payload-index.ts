/**
 * The dedupe index: where the store has the payload of a digest. A cache of what the blobs' own tables say, so a row may be late
 * or missing; there never is one for a range that is not live.
 */
import { decodePayloads, type Payload } from "../formats/payload-table/index.ts";
import { crashPoint, fileSource } from "../sys/index.ts";
import type { StoreContext } from "./context.ts";
import { isDamage } from "./damage.ts";
import type { Database } from "./database.ts";

/** Rows per transaction: bounds how long others wait for the database. */
const INDEX_BATCH = 4096;

/**
 * Puts the payloads of committed layers into the dedupe index: of all that are not there yet. Each step is one short
 * transaction, which makes sure that the layer is still in sight, so a row never outlives its range. Who leaves out the
 * rest leaves it to the next call, by whichever process. Call under a lease.
 */
export function* indexLayers(context: StoreContext): Generator<void> {
  const pending = context.database.all(
    "SELECT id FROM layers WHERE indexed = 0 AND condemned IS NULL AND damage IS NULL",
  );
  for (const row of pending) {
    try {
      yield* indexLayer(context, String(row.id));
    } catch (error) {
      // A damaged blob must not fail every pull to come (G10): its rows are missing, and check says why.
      if (!isDamage(error)) throw error;
    }
  }
}

function* indexLayer({ layout, database }: StoreContext, id: string): Generator<void> {
  const blob = database.get("SELECT key FROM blobs WHERE id = ?", id);
  if (blob === undefined) return;
  const key = Number(blob.key);
  using source = fileSource(layout.blob(id));
  const payloads = decodePayloads(source);
  for (let done = false; !done; ) {
    const live = database.transaction(() => {
      const layer = database.get(
        "SELECT 1 FROM layers WHERE id = ? AND indexed = 0 AND condemned IS NULL AND damage IS NULL",
        id,
      );
      if (layer === undefined) return false; // condemned meanwhile, or another process has done it
      for (let count = 0; count < INDEX_BATCH; count++) {
        const next = payloads.next();
        if (next.done === true) {
          database.run("UPDATE layers SET indexed = 1 WHERE id = ?", id);
          done = true;
          break;
        }
        indexPayload(database, key, next.value);
      }
      return true;
    });
    crashPoint("index:batch");
    if (!live) return;
    yield;
  }
}

/**
 * Lets ingests find one payload of the blob `key`, unless `check` found it damaged or equal bytes are indexed already. Call
 * inside a transaction that made sure that the payload is live.
 */
export function indexPayload(database: Database, key: number, { digest, offset, length }: Payload): void {
  database.run(
    `INSERT OR IGNORE INTO payloads (digest, blob, offset, length) SELECT ?1, ?2, ?3, ?4
       WHERE NOT EXISTS (SELECT 1 FROM damaged_payloads WHERE blob = ?2 AND offset = ?3)`,
    digest,
    key,
    offset,
    length,
  );
}

/** Takes every index row of these blobs out: one scan, however many they are. Call inside a transaction. */
export function unindexBlobs({ database }: StoreContext, keys: readonly number[]): void {
  if (keys.length === 0) return;
  database.run("DELETE FROM payloads WHERE blob IN (SELECT value FROM json_each(?))", JSON.stringify(keys));
}
