/** What a pull would fetch, layer by layer: `pull --dry-run`. Of each layer with a table of contents, that is fetched. */
import { mapConcurrent } from "../async/index.ts";
import type { DiffId, Digest } from "../oci/index.ts";
import type { Store, StoreOperation } from "../store/index.ts";
import type { Origin, OriginLayer } from "./origin.ts";
import { findTocIdentity, type LayerForecast, pullInParts } from "./partial/index.ts";
import { distinctLayers, openManifests, type PullOptions } from "./pull.ts";

export interface LayerOutlook {
  readonly diffId: DiffId;
  /** Absent where only the tar's own digest is known. */
  readonly digest: Digest | undefined;
  /** As the origin has it. */
  readonly size: number;
  readonly how: "present" | "parts" | "whole";
  /** Why a layer of a registry comes whole. */
  readonly why: string | undefined;
  /** Bytes that are fetched, what an interrupted pull has left not counted; 0 for a file of this machine. */
  readonly fetchBytes: number;
  readonly requests: number;
  /** About, by what was measured on the connection. */
  readonly timeMs: number;
  /** Where the layer has a table of contents. */
  readonly parts: LayerForecast | undefined;
}

export interface PullOutlook {
  readonly name: string;
  readonly layers: readonly LayerOutlook[];
}

/** Layers looked at at a time. */
const LOOKS = 4;

/** Changes nothing in the store, but that the chunk index may be there afterwards. As `pullImage` fails. */
export async function forecastPull(store: Store, origin: Origin, options: PullOptions = {}): Promise<PullOutlook> {
  const { signal } = options;
  const name = options.name ?? origin.name;
  using operation = store.begin(`pull --dry-run ${name}`);
  const opened = await openManifests(origin, await origin.resolve(signal), options);
  const layers = distinctLayers(opened);
  const outlooks = await mapConcurrent(
    layers.values(),
    LOOKS,
    (layer, _, stop) => forecastLayer(store, operation, options.whole ? { ...layer, parts: undefined } : layer, stop),
    signal ? { signal } : {},
  );
  return { name, layers: outlooks };
}

async function forecastLayer(
  store: Store,
  operation: StoreOperation,
  layer: OriginLayer,
  signal: AbortSignal,
): Promise<LayerOutlook> {
  const { diffId, digest, mediaType, size, parts } = layer;
  const nothing = { fetchBytes: 0, requests: 0, timeMs: 0, parts: undefined, why: undefined };
  const identity = findTocIdentity(layer); // not where the whole is asked for
  if ([diffId, ...(identity === undefined ? [] : [identity])].some((id) => store.findLayer(id) !== undefined))
    return { diffId, digest, size, how: "present", ...nothing };
  if (parts === undefined || digest === undefined) return { diffId, digest, size, how: "whole", ...nothing };
  using download = await operation.download(digest, size, { signal });
  const before = download.bytes;
  try {
    const outcome = await pullInParts(operation, { diffId, digest, mediaType, size, parts }, download, {
      signal,
      forecastOnly: true,
      byToc: true,
    });
    const forecast = outcome.forecast;
    const inParts = forecast?.worthwhile === true;
    const { latencyMs, bytesPerMs } = parts.meter.estimate;
    const whole = { requests: 1, bytes: size - before, timeMs: latencyMs + (size - before) / bytesPerMs };
    const fetch = inParts ? forecast.fetch : whole;
    return {
      diffId,
      digest,
      size,
      how: inParts ? "parts" : "whole",
      why: inParts || outcome.kind !== "whole" ? undefined : outcome.why,
      fetchBytes: fetch.bytes + (inParts ? forecast.tocBytes : 0),
      requests: fetch.requests + (inParts ? 1 : 0),
      timeMs: fetch.timeMs,
      parts: forecast,
    };
  } finally {
    // What a look has fetched is not worth keeping; what a pull has left is.
    if (before === 0) download.remove();
  }
}
