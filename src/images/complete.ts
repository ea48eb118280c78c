/**
 * Completing: an image whose layers are verified by their tables of contents gets the same layers verified by their diffIds,
 * with their tars. For what gives tars away: save, serve, push, convert, tarfs.
 *
 * Each such layer is pulled whole from where it came, by the ordinary path, which stores what is not here: headers mostly.
 * Then, in one transaction, the manifest refers to that layer. Nothing is changed in place, the other one is left to garbage
 * collection; a kill in between leaves a layer that the next try finds.
 */
import { mapConcurrent } from "../async/index.ts";
import { type ErrorCode, ShaleError } from "../errors/index.ts";
import type { DiffId } from "../oci/index.ts";
import type { RegistryClient } from "../registry/index.ts";
import {
  isTocIdentity,
  type ManifestLayer,
  type ManifestRecord,
  manifestRecord,
  type Store,
  type StoreOperation,
} from "../store/index.ts";
import { displayName } from "./find.ts";
import { LayerFetcher } from "./layer-fetcher.ts";
import { openLayerSource } from "./layer-source.ts";
import { type Progress, silentProgress } from "./progress.ts";
import { findTreeDifference, type TocDifference } from "./toc-difference.ts";

export { formatTocDifference, type TocDifference } from "./toc-difference.ts";

export interface CompleteOptions {
  /** Where layers are completed from. Without it, an image that has to be completed is FAILED_PRECONDITION. */
  readonly registry?: () => Promise<RegistryClient>;
  readonly signal?: AbortSignal;
  readonly progress?: Progress;
  /** Told of each layer that its table of contents showed as another tree than its tar is: the image has that one from then on. */
  readonly onDifference?: (difference: TocDifference) => void;
}

/** Layers fetched at a time. */
const FETCHES = 2;

/** Whether a layer of it is verified by its TOC, so that its tar is not here. */
export function needsCompleting({ layers }: ManifestRecord): boolean {
  return layers.some(({ diffId }) => isTocIdentity(diffId));
}

/** Registries that these manifests have to be completed from, "host:port". */
export function hostsToComplete(store: Store, records: readonly ManifestRecord[]): string[] {
  const incomplete = records.flatMap(({ layers }) => layers.filter(({ diffId }) => isTocIdentity(diffId)));
  const locations = incomplete.flatMap(({ diffId }) => store.sourcesOf(diffId));
  return [...new Set(locations.flatMap(({ location }) => /^docker:\/\/([^/]+)/.exec(location)?.[1] ?? []))];
}

/**
 * The manifests of an image with all layers verified by their diffIds; those that are so already are given back as they are.
 * `image` is its name, for messages. The store refers to the complete ones afterwards. UNAVAILABLE, UNAUTHENTICATED and the
 * like where a layer can't be fetched, DATA_LOSS where its tar is not what the image's config says.
 */
export async function completeManifests(
  store: Store,
  operation: StoreOperation,
  image: string,
  records: readonly ManifestRecord[],
  options: CompleteOptions,
): Promise<ManifestRecord[]> {
  const complete: ManifestRecord[] = [];
  for (const record of records) {
    complete.push(needsCompleting(record) ? await completeManifest(store, operation, image, record, options) : record);
  }
  return complete;
}

async function completeManifest(
  store: Store,
  operation: StoreOperation,
  image: string,
  record: ManifestRecord,
  options: CompleteOptions,
): Promise<ManifestRecord> {
  const { signal } = options;
  const { diffIds } = store.getConfig(record);
  const layers = await mapConcurrent(
    record.layers,
    FETCHES,
    async (layer, position, stop): Promise<ManifestLayer> => {
      if (!isTocIdentity(layer.diffId)) return layer;
      const diffId = diffIds[position]!;
      await fetchWhole(store, operation, image, diffId, layer, { ...options, signal: stop });
      return { ...layer, diffId };
    },
    signal ? { signal } : {},
  );
  for (const [position, { diffId }] of layers.entries()) {
    await compare(operation, image, record.layers[position]!.diffId, diffId, options);
  }
  const completed = manifestRecord(record.digest, record.config, record.platform, layers);
  operation.replaceLayers(completed);
  operation.indexLayers();
  return completed;
}

/**
 * Looks whether the layer `identity`, which the image has referred to, is as `diffId`, and tells. No reason not to complete it: a
 * whole pull gives the same, and what the publisher said twice and differently only he can make one.
 */
async function compare(
  operation: StoreOperation,
  image: string,
  identity: DiffId,
  diffId: DiffId,
  { onDifference, signal }: CompleteOptions,
): Promise<void> {
  if (onDifference === undefined || identity === diffId) return;
  const record = operation.claimLayer(identity);
  if (record === undefined) return; // found damaged: it showed nothing
  try {
    using byToc = operation.openLayer(record);
    using byTar = operation.openLayer(operation.getLayer(diffId));
    const difference = await findTreeDifference(byToc, byTar, signal);
    if (difference !== undefined) onDifference({ image, diffId, ...difference });
  } catch (error) {
    if (signal?.aborted || !ShaleError.is(error)) throw error;
    // Damage of what is about to be replaced does not stand in the way of that.
    onDifference({ image, diffId, path: undefined, what: error.message });
  }
}

/** Resolves when the layer with this diffId is in the store. */
async function fetchWhole(
  store: Store,
  operation: StoreOperation,
  image: string,
  diffId: DiffId,
  layer: ManifestLayer,
  { registry, progress = silentProgress, signal }: CompleteOptions & { readonly signal: AbortSignal },
): Promise<void> {
  if (operation.claimLayer(diffId) !== undefined) return;
  const act = `Cannot complete layer ${diffId} of ${displayName(image)}`;
  if (registry === undefined) {
    throw incomplete("FAILED_PRECONDITION", act, "it was pulled in parts, and its tar is not in the store", undefined);
  }
  // Of the same TOC, other images may have other blobs; what is wanted is that of this one, in any place that had one.
  const { digest, mediaType, size } = layer;
  const sources = store.sourcesOf(layer.diffId).map(({ location }) => ({ location, digest, mediaType, size }));
  const fetcher = new LayerFetcher(operation, progress, { whole: true });
  const failures: ShaleError[] = [];
  for (const source of sources) {
    try {
      const origin = await openLayerSource(operation, diffId, source, { registry, signal });
      await fetcher.fetch(origin, signal);
      operation.recordSource(diffId, source);
      return;
    } catch (error) {
      if (signal.aborted || !ShaleError.is(error)) throw error;
      failures.push(error);
    }
  }
  const why = failures.map(({ message }) => message).join("; ") || "no source of it is known";
  const code = failures[0]?.code ?? "UNAVAILABLE";
  throw incomplete(code, act, `its tar is not in the store, and can't be fetched: ${why}`, failures[0]);
}

function incomplete(code: ErrorCode, act: string, state: string, cause: ShaleError | undefined): ShaleError {
  return new ShaleError(code, `${act}: ${state}`, {
    hint: "Run shale pull --whole for the image where its registry can be reached",
    ...(cause === undefined ? {} : { cause }),
  });
}
