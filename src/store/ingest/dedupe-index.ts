/** The dedupe index as an ingest sees it: read-only, one connection a worker thread. */
import type { Database } from "../database.ts";

export interface DedupeIndex {
  /** Where the store has these bytes. The caller holds a lease since before it asks, so the answer stays good under it. */
  find(digest: Uint8Array, length: number): { readonly blob: string; readonly offset: number } | undefined;
  /** Bytes of payload area of a blob that `find` named. */
  blobSize(blob: string): number;
}

/** Finds nothing: for an ingest that must not refer to other blobs. */
export const NO_DEDUPE: DedupeIndex = {
  find: () => undefined,
  blobSize(blob) {
    throw new RangeError(`${blob} was not found by this index`);
  },
};

export function storeDedupeIndex(database: Database): DedupeIndex {
  // An empty index stays unasked: the first image of a store would pay 5 us a file for nothing.
  if (database.get("SELECT 1 FROM payloads LIMIT 1") === undefined) return NO_DEDUPE;
  const names = new Map<number, string>();
  const sizes = new Map<string, number>();
  return {
    find(digest, length) {
      const row = database.get("SELECT blob, offset, length FROM payloads WHERE digest = ?", digest);
      // Equal digests with unequal lengths can't be; a row that says so is not to be used.
      if (row === undefined || row.length !== length) return undefined;
      const key = Number(row.blob);
      let blob = names.get(key);
      if (blob === undefined) {
        const owner = database.get("SELECT id, size FROM blobs WHERE key = ?", key);
        if (owner === undefined) return undefined;
        blob = String(owner.id);
        names.set(key, blob);
        sizes.set(blob, Number(owner.size));
      }
      return { blob, offset: Number(row.offset) };
    },
    blobSize(blob) {
      const size = sizes.get(blob);
      if (size === undefined) throw new RangeError(`${blob} was not found by this index`);
      return size;
    },
  };
}
