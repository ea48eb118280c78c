/**
 * Pull: from an origin to an image in the store, complete and durable, in any number of processes at once.
 *
 * Layers that the store has cost nothing. The others are fetched in parallel, each to a resumable file that an ingest
 * thread follows while it grows; every layer is committed as soon as it is sealed, so a killed pull loses at most what was
 * in flight. The image is recorded last.
 */
import { AsyncGroup, mapConcurrent } from "../async/index.ts";
import { ShaleError } from "../errors/index.ts";
import {
  choosePlatform,
  type DiffId,
  type Digest,
  decodeManifest,
  formatPlatform,
  listImages,
  type Platform,
  platformOfNode,
} from "../oci/index.ts";
import { type Document, type ManifestRecord, manifestRecord, type Store, type StoreOperation } from "../store/index.ts";
import { displayName } from "./find.ts";
import { LayerFetcher, type PulledLayer } from "./layer-fetcher.ts";
import { type Origin, type OriginLayer, type OriginManifest, synthesizeManifest } from "./origin.ts";
import { findTocIdentity } from "./partial/index.ts";
import { type Progress, silentProgress } from "./progress.ts";
import { explainMergeError } from "./write-error.ts";

/** Layers fetched at a time; ingests are bounded by cores, further downloads run ahead on disk. */
const FETCHES = 6;
/** Indexes inside of indexes. */
const MAX_INDEX_DEPTH = 4;
/** Rounds of fetching what was removed by others between its commit and the image's record. */
const MAX_ROUNDS = 3;

export interface PullOptions {
  /** This machine's unless given. */
  readonly platform?: Platform;
  readonly allPlatforms?: boolean;
  /** Name in the store, instead of the origin's. */
  readonly name?: string;
  /** Layers are not pulled in parts. */
  readonly whole?: boolean;
  /** Layers fetched at a time. */
  readonly jobs?: number;
  /** Has the merged images made too, for who mounts next (ADR 0030): the thread that made the last layer is quick with it. */
  readonly merge?: boolean;
  readonly signal?: AbortSignal;
  readonly progress?: Progress;
}

export interface PullResult {
  readonly name: string;
  readonly digest: Digest;
  readonly manifests: readonly ManifestRecord[];
  readonly layers: readonly PulledLayer[];
}

export async function pullImage(store: Store, origin: Origin, options: PullOptions = {}): Promise<PullResult> {
  const { signal, progress = silentProgress } = options;
  const name = options.name ?? origin.name;
  using operation = store.begin(`pull ${name}`);
  store.warm(2);
  const target = await origin.resolve(signal);
  const opened = await openManifests(origin, target, options);
  const layers = distinctLayers(opened);
  const pulled = new Map<string, PulledLayer>();
  for (let round = 1; ; round++) {
    const fetcher = new LayerFetcher(operation, progress, { whole: options.whole ?? false, byToc: true });
    const missing: OriginLayer[] = [];
    for (const [key, layer] of layers) {
      const present = fetcher.findPresent(layer);
      if (present === undefined) missing.push(layer);
      // what was pulled in an earlier round may be here in another way by now
      else pulled.set(key, { ...(pulled.get(key) ?? present), record: present.record });
    }
    // The largest first: with more layers than cores, a large one that begins last is what everybody waits for.
    missing.sort((a, b) => b.size - a.size);
    const fetched = await mapConcurrent(
      missing,
      options.jobs ?? FETCHES,
      (layer, _, stop) => fetcher.fetch(layer, stop),
      signal ? { signal } : {},
    );
    for (const [at, layer] of missing.entries()) pulled.set(keyOf(layer), fetched[at]!);
    const complete = opened.map((one) =>
      completeManifest(operation, one, (layer) => pulled.get(keyOf(layer))!.record.diffId),
    );
    const image = {
      name,
      target: target ?? complete[0]!.manifest,
      source: origin.location,
      manifests: complete,
    };
    try {
      operation.commitImage(image);
    } catch (error) {
      // A layer was removed since: only possible for one that was present before and had no image.
      if (!ShaleError.is(error, "ABORTED") || round === MAX_ROUNDS) throw error;
      continue;
    }
    const records = complete.map((one) => one.record);
    await using group = new AsyncGroup(signal ?? new AbortController().signal);
    await group.all([
      group.run(() => mergeChains(operation, name, options.merge ? records : [])),
      group.run(async () => operation.indexLayers()),
    ]);
    return {
      name,
      digest: image.target.digest,
      manifests: records,
      layers: [...layers.keys()].map((key) => pulled.get(key)!),
    };
  }
}

async function mergeChains(operation: StoreOperation, name: string, records: readonly ManifestRecord[]): Promise<void> {
  try {
    for (const { layers } of records) {
      if (layers.length > 0) await operation.ensureMerged(layers.map(({ diffId }) => diffId));
    }
  } catch (error) {
    throw explainMergeError(error, displayName(name));
  }
}

/** Each once, in the order of the manifests. */
export function distinctLayers(opened: readonly OriginManifest[]): ReadonlyMap<string, OriginLayer> {
  return new Map(opened.flatMap(({ layers }) => layers.map((layer) => [keyOf(layer), layer])));
}

/** Layers that claim one diffId are the same, unless they have TOCs that say otherwise. */
function keyOf(layer: OriginLayer): string {
  return `${layer.diffId} ${findTocIdentity(layer) ?? ""}`;
}

/** The manifests that are wanted of what the name leads to, through any indexes; their documents are verified. */
export async function openManifests(
  origin: Origin,
  target: Document | undefined,
  options: PullOptions,
): Promise<OriginManifest[]> {
  const { signal, platform = platformOfNode(process.arch), allPlatforms = false } = options;
  const wanted = target === undefined ? [undefined] : await resolveIndexes(origin, target, platform, options, 0);
  const opened = await mapConcurrent(wanted, FETCHES, (document) => origin.open(document, signal));
  if (!allPlatforms) {
    const { image } = opened[0]!;
    // Only where the user asked for one: builders often leave out or mistake the platform of a plain manifest.
    if (options.platform !== undefined && formatPlatform(image.platform) !== formatPlatform(platform)) {
      throw new ShaleError(
        "NOT_FOUND",
        `Cannot pull ${origin.name} for ${formatPlatform(platform)}: it is for ${formatPlatform(image.platform)}`,
      );
    }
  }
  return opened;
}

async function resolveIndexes(
  origin: Origin,
  document: Document,
  platform: Platform,
  options: PullOptions,
  depth: number,
): Promise<Document[]> {
  const decoded = decodeManifest(document.bytes, document.mediaType);
  if (decoded.kind === "manifest") return [document];
  if (depth === MAX_INDEX_DEPTH) {
    throw new ShaleError(
      "INVALID_ARGUMENT",
      `Cannot pull ${origin.name}: its indexes are nested more than ${depth} deep`,
    );
  }
  const chosen = options.allPlatforms ? listImages(decoded) : [choosePlatform(decoded, platform)];
  if (chosen.length === 0) throw new ShaleError("NOT_FOUND", `Cannot pull ${origin.name}: its index has no images`);
  const documents = await mapConcurrent(chosen, FETCHES, (descriptor) => origin.manifest(descriptor, options.signal));
  const nested: Document[] = [];
  for (const one of documents) nested.push(...(await resolveIndexes(origin, one, platform, options, depth + 1)));
  return nested;
}

function completeManifest(
  operation: StoreOperation,
  opened: OriginManifest,
  identityOf: (layer: OriginLayer) => DiffId,
) {
  const layers = opened.layers.map((layer) => ({
    diffId: identityOf(layer),
    digest: layer.digest ?? (layer.diffId as string as Digest),
    mediaType: layer.mediaType,
    size: layer.digest === undefined ? operation.getLayer(layer.diffId).tarSize : layer.size,
  }));
  const manifest = opened.manifest ?? synthesizeManifest(opened.config, layers);
  const record = manifestRecord(manifest.digest, opened.config.digest, formatPlatform(opened.image.platform), layers);
  return { manifest, config: opened.config, record };
}
