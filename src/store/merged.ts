/**
 * Merged images: one EROFS image over all blobs of a chain, derived from its layers and made at the first need. A single layer
 * that stands alone is its own merged image.
 *
 * Published as a layer is: written and synced in staging, renamed, directory synced, recorded in one transaction.
 */
import { join } from "node:path";
import { type ChainId, chainIdOf, type DiffId } from "../oci/index.ts";
import { crashPoint, findFile, rename, syncDirectory, unlink } from "../sys/index.ts";
import type { StoreContext } from "./context.ts";
import type { IngestPool } from "./ingest/pool.ts";
import { getLayer, requireTree } from "./layers.ts";
import type { Lease } from "./leases.ts";
import { type MergedImage, writeMerged } from "./merge-image.ts";

/** What is needed to write it; `path` is there when it has been written, or is a layer's own image. */
interface Chain {
  readonly chainId: ChainId;
  readonly diffIds: readonly DiffId[];
  /** Metadata images, lowest first. */
  readonly images: readonly string[];
  readonly path: string | undefined;
}

/** The chain's image, made now if it is not there. */
export function ensureMerged(context: StoreContext, lease: Lease, diffIds: readonly DiffId[]): string {
  const chain = findChain(context, diffIds);
  if (chain.path !== undefined) return chain.path;
  const { id, directory } = lease.stage();
  const staged = join(directory, "merged");
  return publish(context, chain, id, staged, writeMerged(chain.chainId, chain.images, staged));
}

/** As `ensureMerged`, written by a thread: merging 50,000 files takes half a second. */
export async function ensureMergedInThread(
  context: StoreContext,
  lease: Lease,
  pool: IngestPool,
  diffIds: readonly DiffId[],
): Promise<string> {
  const chain = findChain(context, diffIds);
  if (chain.path !== undefined) return chain.path;
  const { id, directory } = lease.stage();
  const target = join(directory, "merged");
  const { chainId, images } = chain;
  const written = await pool.merge({ id, database: context.layout.database, chainId, images, target });
  return publish(context, chain, id, target, written);
}

function findChain(context: StoreContext, diffIds: readonly DiffId[]): Chain {
  const { layout, database } = context;
  const layers = diffIds.map((diffId) => getLayer(context, diffId));
  for (const layer of layers) requireTree(layer);
  const images = layers.map((layer) => layout.layerImage(layer.id));
  const chainId = chainIdOf(diffIds);
  const found = (path: string | undefined) => ({ chainId, diffIds, images, path });
  if (layers.length === 1 && layers[0]!.standalone) return found(images[0]);
  const row = database.get("SELECT id FROM merged WHERE chain_id = ? AND condemned IS NULL", chainId);
  if (row === undefined) return found(undefined);
  const path = layout.mergedImage(String(row.id));
  if (findFile(path) !== undefined) return found(path);
  database.run("DELETE FROM merged WHERE id = ?", String(row.id)); // derived: made again
  return found(undefined);
}

/** Losing to another operation that made the same is success. */
function publish(
  { layout, database }: StoreContext,
  { chainId, diffIds }: Chain,
  id: string,
  staged: string,
  { size, sha256 }: MergedImage,
): string {
  const path = layout.mergedImage(id);
  rename(staged, path);
  crashPoint("merged:renamed");
  syncDirectory(layout.merged);
  const winner = database.transaction(() => {
    const other = database.get("SELECT id FROM merged WHERE chain_id = ? AND condemned IS NULL", chainId);
    if (other !== undefined) return String(other.id);
    database.run(
      "INSERT INTO merged (id, chain_id, diff_ids, size, image_sha256, created_at) VALUES (?, ?, ?, ?, ?, ?)",
      id,
      chainId,
      JSON.stringify(diffIds),
      size,
      sha256,
      Date.now(),
    );
    return id;
  });
  crashPoint("merged:recorded");
  if (winner !== id) unlink(path); // after a crash before this, recovery finds it by the staging directory
  return layout.mergedImage(winner);
}
