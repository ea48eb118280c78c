/**
 * Repair: what `check` found is taken out of sight, and the damaged layers, no others, are fetched again from where they
 * came. What can't be fetched stays out of sight, so nobody reads damaged bytes, and every other image stays usable.
 */
import { mapConcurrent } from "../async/index.ts";
import { ShaleError } from "../errors/index.ts";
import type { DiffId } from "../oci/index.ts";
import type { RegistryClient } from "../registry/index.ts";
import { type CheckReport, isTocIdentity, type Store, type StoreOperation } from "../store/index.ts";
import { LayerFetcher } from "./layer-fetcher.ts";
import { openLayerSource } from "./layer-source.ts";
import { type Progress, silentProgress } from "./progress.ts";

export interface RepairedLayer {
  readonly diffId: DiffId;
  /** Where it came from, or undefined when it could not be fetched. */
  readonly from: string | undefined;
  /** Why each source failed. */
  readonly failures: readonly string[];
}

export interface RepairOptions {
  readonly registry: () => Promise<RegistryClient>;
  readonly progress?: Progress;
  readonly signal?: AbortSignal;
}

/** Layers fetched at a time. */
const FETCHES = 2;

export async function repairStore(store: Store, report: CheckReport, options: RepairOptions): Promise<RepairedLayer[]> {
  using operation = store.begin("check --repair");
  operation.quarantineDamage(report);
  const lost = store.listDamagedLayers();
  const repaired = await mapConcurrent(
    lost,
    FETCHES,
    (diffId, _, signal) => repairLayer(store, operation, diffId, { ...options, signal }),
    {
      ...(options.signal ? { signal: options.signal } : {}),
    },
  );
  operation.indexLayers();
  return repaired;
}

async function repairLayer(
  store: Store,
  operation: StoreOperation,
  diffId: DiffId,
  options: RepairOptions & { readonly signal: AbortSignal },
): Promise<RepairedLayer> {
  const failures: string[] = [];
  for (const source of store.sourcesOf(diffId)) {
    try {
      const layer = await openLayerSource(operation, diffId, source, options);
      const fetcher = new LayerFetcher(operation, options.progress ?? silentProgress);
      // what images and mounts refer to is the layer that its TOC makes, not the one that is verified as a whole
      if (isTocIdentity(diffId)) await fetcher.fetchByToc(layer, options.signal);
      else await fetcher.fetch(layer, options.signal);
      return { diffId, from: source.location, failures };
    } catch (error) {
      if (options.signal.aborted) throw error;
      // One source that is gone must not hide the next; the report has every reason.
      if (!ShaleError.is(error)) throw error;
      failures.push(`${source.location}: ${error.message}`);
    }
  }
  if (failures.length === 0) failures.push("no source of it is known");
  return { diffId, from: undefined, failures };
}
