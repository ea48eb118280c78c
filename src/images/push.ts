/**
 * Push: an image of the store to a registry, each layer's tar as it was built, plain or compressed with zstd on its way.
 *
 * Guarantees
 * - Layers are verified against their diffIds while they are read; a damaged one is DATA_LOSS, and the name stays what it was:
 *   manifests come after all that they name, the tag last.
 * - What the registry has is not sent: a layer that was encoded before, and every document, is asked for by its digest first.
 * - A layer that was pulled in parts and is verified by its TOC alone is completed first (complete.ts), by the same client.
 * - The image id stays. The manifest is written anew where its layers were compressed in another way (rewrite.ts).
 */
import { mapConcurrent } from "../async/index.ts";
import { type Descriptor, type DiffId, type Digest, digestHex, type Reference } from "../oci/index.ts";
import type { RegistryClient } from "../registry/index.ts";
import type { Document, ManifestRecord, Store, StoreOperation } from "../store/index.ts";
import { completeManifests, type TocDifference } from "./complete.ts";
import { getImage, getManifest } from "./find.ts";
import { type EncodedLayer, LayerEncoder, type LayerEncoding } from "./layer-encoder.ts";
import { type Progress, silentProgress } from "./progress.ts";
import { exportIndex, exportManifest } from "./rewrite.ts";

export interface PushOptions {
  /** One platform only; else all that the store has of the image. */
  readonly platform?: string;
  /** How layers travel; "zstd" unless given. */
  readonly compression?: LayerEncoding;
  /** Another repository of the same registry, where layers may be already. */
  readonly mountFrom?: string;
  readonly signal?: AbortSignal;
  readonly progress?: Progress;
  /** As in CompleteOptions. */
  readonly onDifference?: (difference: TocDifference) => void;
}

export interface PushResult {
  /** In the store. */
  readonly name: string;
  /** Of what the reference leads to now. */
  readonly digest: Digest;
  readonly layers: readonly {
    readonly diffId: DiffId;
    readonly digest: Digest;
    readonly size: number;
    readonly how: "present" | "mounted" | "uploaded";
  }[];
}

/** Compression works on the thread pool; rebuilding tars on this thread. */
const LAYERS_AT_A_TIME = 2;

/** NOT_FOUND when the store has no such image; errors of the registry as RegistryClient has them. */
export async function pushImage(
  store: Store,
  name: string,
  client: RegistryClient,
  reference: Reference,
  options: PushOptions = {},
): Promise<PushResult> {
  const { platform, signal, compression = "zstd" } = options;
  const stop = signal ? { signal } : {};
  const image = getImage(store, name);
  const found = platform === undefined ? store.manifestsOf(image.name) : [getManifest(store, image, platform)];
  using operation = store.begin(`push ${image.name}`);
  const registry = () => Promise.resolve(client);
  const records = await completeManifests(store, operation, image.name, found, { ...options, registry });
  await using encoder = new LayerEncoder(store, compression);
  const layers = new Map<DiffId, PushedLayer>();
  const diffIds = [...new Set(records.flatMap((record) => record.layers.map(({ diffId }) => diffId)))];
  const push = { operation, encoder, client, reference, options };
  await mapConcurrent(
    diffIds,
    LAYERS_AT_A_TIME,
    async (diffId, _, each) => {
      layers.set(diffId, await pushLayer(push, diffId, each));
    },
    stop,
  );
  const encoded = (record: ManifestRecord) => record.layers.map(({ diffId }) => layers.get(diffId)!.encoded);
  const manifests = records.map((record) => exportManifest(store, record, encoded(record)));
  const single = manifests.length === 1 ? manifests[0] : undefined;
  for (const { config, manifest } of manifests) {
    await pushDocument(client, reference, config, stop);
    if (single === undefined) await pushManifest(client, untagged(reference, manifest.digest), manifest, stop);
  }
  const target = await pushManifest(client, reference, single?.manifest ?? exportIndex(store, image, manifests), stop);
  return {
    name: image.name,
    digest: target.digest,
    layers: diffIds.map((diffId) => {
      const { encoded, how } = layers.get(diffId)!;
      return { diffId, digest: encoded.digest, size: encoded.size, how };
    }),
  };
}

interface PushedLayer {
  readonly encoded: EncodedLayer;
  readonly how: PushResult["layers"][number]["how"];
}

interface Push {
  readonly operation: StoreOperation;
  readonly encoder: LayerEncoder;
  readonly client: RegistryClient;
  readonly reference: Reference;
  readonly options: PushOptions;
}

async function pushLayer(
  { operation, encoder, client, reference, options }: Push,
  diffId: DiffId,
  signal: AbortSignal,
): Promise<PushedLayer> {
  const { mountFrom, progress = silentProgress } = options;
  const layer = operation.getLayer(diffId);
  const known = encoder.find(layer);
  const task = progress.start(diffId, { label: digestHex(diffId).slice(0, 12), total: layer.tarSize });
  try {
    const onBytes = (count: number) => task.advance(count);
    const pushed = await client.pushBlob(reference, () => encoder.read(operation, layer, { signal, onBytes }), {
      signal,
      ...(known === undefined ? {} : { expected: { digest: known.digest, size: known.size } }),
      ...(mountFrom === undefined ? {} : { mountFrom }),
    });
    if (pushed.how === "uploaded") task.done();
    else task.done(pushed.how === "present" ? "already there" : "mounted");
    return { encoded: known ?? encoder.record(operation, layer, pushed), how: pushed.how };
  } catch (error) {
    task.fail();
    throw error;
  }
}

async function pushDocument(
  client: RegistryClient,
  reference: Reference,
  { digest, bytes }: Document,
  stop: { readonly signal?: AbortSignal },
): Promise<void> {
  await client.pushBlob(reference, [bytes], { ...stop, expected: { digest, size: bytes.length } });
}

async function pushManifest(
  client: RegistryClient,
  reference: Reference,
  { bytes, mediaType }: Document,
  stop: { readonly signal?: AbortSignal },
): Promise<Descriptor> {
  return await client.pushManifest(reference, { bytes, mediaType }, stop);
}

function untagged({ host, repository }: Reference, digest: Digest): Reference {
  return { host, repository, digest };
}
