/**
 * Convert: an image of the store in a form with a table of contents for each layer, so that those who have a part of it fetch
 * the rest alone: zstd:chunked for podman, CRI-O, buildah and shale, eStargz for containerd's stargz-snapshotter.
 *
 * Guarantees
 * - zstd:chunked keeps every layer's tar, and so the image id (the config's digest); manifests change. eStargz adds two files
 *   to each tar, so diffIDs, config and image id change too; everything else of the config stays.
 * - A layer that was pulled in parts and is verified by its TOC alone is completed first (complete.ts).
 * - A layer that the form can't tell goes out plainly compressed, and the result says which and why.
 * - Every layer is verified against its diffId while it is converted. Nothing is published unless all of it was written: a
 *   layout's index and a tag stay as they were, no file gets the name of the archive. A crash leaves it so.
 * - Deterministic: the same image in the same form gives the same bytes, whatever machine (of one zlib and zstd).
 * - What was converted before is remembered by its digest: a layer that is already at its new place is not compressed again.
 * - Bounded memory, and temporary files of the size of a layer's table of contents.
 */
import { type Descriptor, type DiffId, type Digest, digestHex } from "../oci/index.ts";
import type { Document, ManifestRecord, Store, StoreOperation } from "../store/index.ts";
import { type ConvertOutput, type ConvertTarget, openTarget } from "./convert-target.ts";
import { type CompleteOptions, completeManifests } from "./complete.ts";
import { getImage, getManifest } from "./find.ts";
import type { EncodedLayer } from "./layer-encoder.ts";
import { silentProgress } from "./progress.ts";
import { exportIndex, exportManifest } from "./rewrite.ts";
import { TocEncoder, type TocFormat } from "./toc-encoder.ts";
import { explainWriteError } from "./write-error.ts";

export type { ConvertOutput } from "./convert-target.ts";
export type { TocFormat } from "./toc-encoder.ts";

export interface ConvertOptions extends CompleteOptions {
  readonly to: TocFormat;
  readonly output: ConvertOutput;
  /** One platform only; else all that the store has of the image. */
  readonly platform?: string;
  /** Of compression, instead of 7 (zstd) or 6 (gzip). */
  readonly level?: number;
}

export interface ConvertedLayer {
  /** In the store. */
  readonly diffId: DiffId;
  /** In the converted image. */
  readonly newDiffId: DiffId;
  readonly digest: Digest;
  readonly size: number;
  readonly tarSize: number;
  /** Why it has no table of contents; undefined when it has one. */
  readonly reason: string | undefined;
}

export interface ConvertResult {
  readonly name: string;
  /** Of what the name leads to in its new place. */
  readonly digest: Digest;
  /** One for each platform: the config's digest. */
  readonly configs: readonly Digest[];
  /** Each once, in the order of the manifests. */
  readonly layers: readonly ConvertedLayer[];
}

/**
 * Converts one image, given as the user names it. NOT_FOUND, DATA_LOSS for a damaged layer, RESOURCE_EXHAUSTED when the disk
 * is full, and what a registry answers.
 */
export async function convertImage(store: Store, ref: string, options: ConvertOptions): Promise<ConvertResult> {
  const { output, to, platform, level, signal } = options;
  const image = getImage(store, ref);
  const found = platform === undefined ? store.manifestsOf(image.name) : [getManifest(store, image, platform)];
  const stop = signal ? { signal } : {};
  using operation = store.begin(`convert ${image.name}`);
  const records = await completeManifests(store, operation, image.name, found, options);
  await using encoder = new TocEncoder(to, level === undefined ? {} : { level });
  try {
    using target = await openTarget(output, image.name, stop);
    const layers = await convertLayers(store, operation, encoder, target, records, options);
    const manifests = records.map((record) =>
      exportManifest(
        store,
        record,
        record.layers.map(({ diffId }) => layers.get(diffId)!.encoded),
      ),
    );
    for (const { config } of manifests) await target.writeDocument(config, stop);
    const only = manifests.length === 1 ? manifests[0] : undefined;
    if (only === undefined) for (const { manifest } of manifests) await target.writeDocument(manifest, stop);
    const document = only?.manifest ?? exportIndex(store, image, manifests);
    if (output.kind !== "registry") await target.writeDocument(document, stop);
    await target.publish(descriptorOf(document, only?.platform), document, stop);
    return {
      name: image.name,
      digest: document.digest,
      configs: manifests.map(({ config }) => config.digest),
      layers: [...layers.values()].map(({ converted }) => converted),
    };
  } catch (error) {
    throw output.kind === "registry" ? error : explainWriteError(error, `Cannot write ${placeOf(output)}`);
  }
}

interface Layer {
  readonly encoded: EncodedLayer;
  readonly converted: ConvertedLayer;
}

/** One after the other: the threads that compress are what there is to wait for, and one layer keeps them busy. */
async function convertLayers(
  store: Store,
  operation: StoreOperation,
  encoder: TocEncoder,
  target: ConvertTarget,
  records: readonly ManifestRecord[],
  { signal, progress = silentProgress }: ConvertOptions,
): Promise<Map<DiffId, Layer>> {
  const layers = new Map<DiffId, Layer>();
  for (const { diffId } of records.flatMap((record) => record.layers)) {
    if (layers.has(diffId)) continue;
    const layer = operation.getLayer(diffId);
    const task = progress.start(diffId, { label: digestHex(diffId).slice(0, 12), total: layer.tarSize });
    const stop = signal ? { signal } : {};
    try {
      const known = encoder.find(store, layer);
      let isRead = false;
      const onBytes = (count: number) => {
        isRead = true;
        task.advance(count);
      };
      const expected = known && { expected: { digest: known.digest, size: known.size } };
      const encoded = await encoder.encode(
        operation,
        layer,
        (bytes) => target.writeBlob(bytes, { ...stop, ...expected }),
        { ...stop, onBytes, known },
      );
      const { digest, size, reason } = encoded;
      const { tarSize } = layer;
      layers.set(diffId, {
        encoded,
        converted: { diffId, newDiffId: encoded.diffId, digest, size, tarSize, reason },
      });
      task.done(!isRead ? "already there" : reason === undefined ? undefined : "without a table of contents");
    } catch (error) {
      task.fail();
      throw error;
    }
  }
  return layers;
}

function descriptorOf({ mediaType, digest, bytes }: Document, platform: Descriptor["platform"]): Descriptor {
  const own = { mediaType, digest, size: bytes.length, annotations: {}, urls: [] };
  return platform === undefined ? own : { ...own, platform };
}

function placeOf(output: Exclude<ConvertOutput, { readonly kind: "registry" }>): string {
  return output.kind === "layout" ? `the OCI layout ${output.directory}` : output.path;
}
