/**
 * Merged images: one EROFS image over all blobs of a chain, derived from its layers and made at the first need. A single layer
 * that stands alone is its own merged image.
 *
 * Published as a layer is: written and synced in staging, renamed, directory synced, recorded in one transaction.
 */
import { join } from "node:path";
import { ShaleError } from "../errors/index.ts";
import { type ChainId, chainIdOf, type DiffId } from "../oci/index.ts";
import { crashPoint, findFile, rename, syncDirectory, unlink } from "../sys/index.ts";
import type { StoreContext } from "./context.ts";
import type { Database } from "./database.ts";
import type { IngestPool } from "./ingest/pool.ts";
import { getLayer, requireTree } from "./layers.ts";
import { currentEpoch, type Lease } from "./leases.ts";
import { type MergedImage, type MergeSource, writeMerged } from "./merge-image.ts";

/** Rounds of merging layers that others removed and brought again meanwhile. */
const MAX_ROUNDS = 3;

/** What is needed to write it; `path` is there when it has been written, or is a layer's own image. */
interface Chain {
  readonly chainId: ChainId;
  /** JSON of the layers' ids, lowest first. The same chain may come back with other ids, and then with other blobs. */
  readonly layers: string;
  /** Lowest first. */
  readonly sources: readonly MergeSource[];
  readonly path: string | undefined;
}

/** The chain's image, made now if it is not there. NOT_FOUND when one of its layers is not in the store (any more). */
export function ensureMerged(context: StoreContext, lease: Lease, diffIds: readonly DiffId[]): string {
  for (let round = 1; ; round++) {
    const chain = findChain(context, diffIds);
    if (chain.path !== undefined) return chain.path;
    const { id, directory } = lease.stage();
    const staged = join(directory, "merged");
    const published = publish(context, chain, id, staged, writeMerged(chain.chainId, chain.sources, staged));
    if (published !== undefined) return published;
    if (round === MAX_ROUNDS) throw changing(chain);
  }
}

/** As `ensureMerged`, written by a thread: merging 50,000 files takes half a second. */
export async function ensureMergedInThread(
  context: StoreContext,
  lease: Lease,
  pool: IngestPool,
  diffIds: readonly DiffId[],
): Promise<string> {
  for (let round = 1; ; round++) {
    const chain = findChain(context, diffIds);
    if (chain.path !== undefined) return chain.path;
    const { id, directory } = lease.stage();
    const target = join(directory, "merged");
    const { chainId, sources } = chain;
    const written = await pool.merge({ id, database: context.layout.database, chainId, layers: sources, target });
    const published = publish(context, chain, id, target, written);
    if (published !== undefined) return published;
    if (round === MAX_ROUNDS) throw changing(chain);
  }
}

function changing({ chainId }: Chain): ShaleError {
  return new ShaleError("ABORTED", `Cannot merge the layers of ${chainId}: they were removed and brought again`, {
    hint: "Try again",
  });
}

function findChain(context: StoreContext, diffIds: readonly DiffId[]): Chain {
  const { layout, database } = context;
  const layers = diffIds.map((diffId) => getLayer(context, diffId));
  for (const layer of layers) requireTree(layer);
  const sources = layers.map(({ id }) => ({ id, image: layout.layerImage(id) }));
  const chainId = chainIdOf(diffIds);
  const ids = JSON.stringify(layers.map((layer) => layer.id));
  const found = (path: string | undefined) => ({ chainId, layers: ids, sources, path });
  if (layers.length === 1 && layers[0]!.standalone) return found(sources[0]!.image);
  const row = findInSight(database, chainId);
  if (row === undefined || row.layers !== ids) return found(undefined);
  const path = layout.mergedImage(String(row.id));
  if (findFile(path) !== undefined) return found(path);
  database.run("DELETE FROM merged WHERE id = ?", String(row.id)); // derived: made again
  return found(undefined);
}

/**
 * Losing to another operation that made the same is success. Undefined when its layers are not all in sight any more: the
 * image would outlive the blobs that it refers to, since what is condemned goes with the leases that are older than that.
 */
function publish(
  { layout, database }: StoreContext,
  { chainId, layers }: Chain,
  id: string,
  staged: string,
  { size, sha256 }: MergedImage,
): string | undefined {
  const path = layout.mergedImage(id);
  rename(staged, path);
  crashPoint("merged:renamed");
  syncDirectory(layout.merged);
  const winner = database.transaction(() => {
    const hidden = database.get(
      `SELECT 1 FROM json_each(?) AS wanted WHERE NOT EXISTS
         (SELECT 1 FROM layers WHERE id = wanted.value AND condemned IS NULL AND damage IS NULL)`,
      layers,
    );
    if (hidden !== undefined) return undefined;
    const other = findInSight(database, chainId);
    if (other?.layers === layers) return other.id;
    // Of layers that are gone: it was not seen since.
    if (other !== undefined)
      database.run("UPDATE merged SET condemned = ? WHERE id = ?", currentEpoch(database), other.id);
    database.run(
      "INSERT INTO merged (id, chain_id, layers, size, image_sha256, created_at) VALUES (?, ?, ?, ?, ?, ?)",
      id,
      chainId,
      layers,
      size,
      sha256,
      Date.now(),
    );
    return id;
  });
  crashPoint("merged:recorded");
  if (winner !== id) unlink(path); // after a crash before this, recovery finds it by the staging directory
  return winner === undefined ? undefined : layout.mergedImage(winner);
}

function findInSight(
  database: Database,
  chainId: ChainId,
): { readonly id: string; readonly layers: string } | undefined {
  const row = database.get("SELECT id, layers FROM merged WHERE chain_id = ? AND condemned IS NULL", chainId);
  return row && { id: String(row.id), layers: String(row.layers) };
}
