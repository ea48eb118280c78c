/**
 * Repair: what `check` found is taken out of sight, and the damaged layers, no others, are fetched again from where they
 * came. What can't be fetched stays out of sight, so nobody reads damaged bytes, and every other image stays usable.
 */
import { mapConcurrent } from "../async/index.ts";
import { ShaleError } from "../errors/index.ts";
import { type DiffId, parseReference } from "../oci/index.ts";
import type { RegistryClient } from "../registry/index.ts";
import type { CheckReport, LayerSource, Store, StoreOperation } from "../store/index.ts";
import { findContainerdBlob, parseContainerdLocation } from "./containerd-content.ts";
import { LayerFetcher } from "./layer-fetcher.ts";
import type { OriginLayer } from "./origin.ts";
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
      const layer = await sourceLayer(operation, diffId, source, options);
      await new LayerFetcher(operation, options.progress ?? silentProgress).fetch(layer, options.signal);
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

async function sourceLayer(
  operation: StoreOperation,
  diffId: DiffId,
  source: LayerSource,
  options: RepairOptions & { readonly signal: AbortSignal },
): Promise<OriginLayer> {
  const { location, digest, mediaType, size } = source;
  if (location.startsWith("docker://")) {
    const reference = parseReference(`${location.slice("docker://".length)}@${digest}`);
    const client = await options.registry();
    const descriptor = { mediaType, digest, size, annotations: {}, urls: [] };
    return {
      diffId,
      digest,
      mediaType,
      size,
      open: (offset, signal, end = size) => client.openBlob(reference, descriptor, { offset, end, signal }),
    };
  }
  if (location.startsWith("oci:")) {
    const { openOciLayout } = await import("../archives/index.ts");
    const layout = openOciLayout(location.slice("oci:".length));
    return { diffId, digest, mediaType, size, file: layout.getBlob({ digest, size }) };
  }
  const containerd = parseContainerdLocation(location);
  if (containerd !== undefined) {
    const file = findContainerdBlob(containerd, digest, size);
    if (file !== undefined) return { diffId, digest, mediaType, size, file };
    throw new ShaleError(
      "NOT_FOUND",
      `Cannot fetch ${digest}: containerd's content store in ${containerd} has it no more`,
    );
  }
  const archive = /^(?:docker|oci)-archive:(.+)$/s.exec(location)?.[1];
  if (archive === undefined)
    throw new ShaleError("UNIMPLEMENTED", `Cannot fetch from ${location}: the kind is unknown`);
  const { getArchivedLayer } = await import("./load.ts");
  return await getArchivedLayer(archive, diffId, digest, operation.temporaryDirectory(), options.signal);
}
