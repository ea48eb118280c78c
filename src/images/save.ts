/**
 * Save: images of the store as an OCI layout or a docker archive, with every layer's tar bit for bit as it was built.
 *
 * Guarantees
 * - A layer is verified against its diffId while it is written. A damaged one is DATA_LOSS, and nothing is published: the
 *   layout's index stays as it was, no file gets the name of the archive. Written to stdout, the archive ends early.
 * - A layer that was pulled in parts and is verified by its TOC alone is completed first (complete.ts).
 * - What is published is complete and durable; a crash leaves it as it was before (OciLayoutWriter, PartialFile).
 * - The image id (the config's digest) stays. The manifest is written anew where its layers were compressed in another
 *   way, which changes its digest (rewrite.ts). Deterministic.
 *
 * Names: a layout's entry gets the full name as io.containerd.image.name and the tag as org.opencontainers.image.ref.name;
 * where the tag stands for another image already, the full name takes its place. An archive has RepoTags as docker writes
 * them. A name without a tag, or one that is no reference, is left out.
 */
import { join } from "node:path";
import {
  type ByteSink,
  CONTAINERD_NAME,
  type DockerArchiveContent,
  type DockerArchiveLayer,
  type ImageNames,
  OciLayoutWriter,
  openOciLayout,
  REF_NAME,
  writeDockerArchive,
} from "../archives/index.ts";
import { mapConcurrent } from "../async/index.ts";
import { ShaleError } from "../errors/index.ts";
import { type Descriptor, type DiffId, type Digest, digestHex, formatFamiliar, formatReference } from "../oci/index.ts";
import type { Document, ImageRecord, LayerRecord, ManifestRecord, Store, StoreOperation } from "../store/index.ts";
import { findFile, realPath } from "../sys/index.ts";
import { type CompleteOptions, completeManifests } from "./complete.ts";
import { getImage, getManifest } from "./find.ts";
import { type EncodedLayer, LayerEncoder, type LayerEncoding } from "./layer-encoder.ts";
import { readLayerTar } from "./layer-tar.ts";
import { findTagged } from "./names.ts";
import { PartialFile } from "./partial-file.ts";
import { type Progress, silentProgress } from "./progress.ts";
import { exportIndex, exportManifest } from "./rewrite.ts";
import { explainWriteError } from "./write-error.ts";

export type SaveFormat = "oci" | "docker";

export interface SaveOptions extends CompleteOptions {
  /** A directory for a layout, a file for an archive; or who takes the bytes of an archive. */
  readonly output: string | ByteSink;
  /** Else "oci" for a path that ends with a slash or is a directory, "docker" for any other. */
  readonly format?: SaveFormat;
  /** One platform only. Else a layout gets all that the store has of the image, an archive this machine's. */
  readonly platform?: string;
  /** How a layout's layers are compressed; "none" unless given. A docker archive has plain tars. */
  readonly compression?: LayerEncoding;
}

export interface SavedImage {
  readonly name: string;
  /** Of what the name leads to in the layout; undefined in a docker archive, which has no manifests. */
  readonly digest: Digest | undefined;
  /** One for each platform: the config's digest. */
  readonly configs: readonly Digest[];
}

export interface SaveResult {
  readonly format: SaveFormat;
  readonly images: readonly SavedImage[];
  /** Layers that were written; others were there already. */
  readonly layersWritten: number;
  readonly layersPresent: number;
  /** Bytes of the archive; of a layout the layers that were written. */
  readonly size: number;
}

/** zstd works on the thread pool; plain tars are rebuilt on this thread, where two at a time would gain nothing. */
const COMPRESSED_AT_A_TIME = 2;

/**
 * Saves images, each given as the user names it. NOT_FOUND, INVALID_ARGUMENT for options that contradict each other,
 * DATA_LOSS for a damaged layer, RESOURCE_EXHAUSTED when the disk is full.
 */
export async function saveImages(store: Store, refs: readonly string[], options: SaveOptions): Promise<SaveResult> {
  const { output } = options;
  const format = options.format ?? (typeof output === "string" ? formatOf(output) : "docker");
  const images = [...new Map(refs.map((ref) => getImage(store, ref)).map((image) => [image.name, image])).values()];
  using operation = store.begin(`save ${images.map((image) => image.name).join(" ")}`);
  if (format === "docker") {
    if (options.compression !== undefined && options.compression !== "none") {
      throw new ShaleError("INVALID_ARGUMENT", `Cannot save a docker archive with ${options.compression} layers`, {
        hint: "A docker archive has plain tars: write an OCI layout, or compress the whole archive",
      });
    }
    return await saveArchive(store, operation, images, options);
  }
  if (typeof output !== "string") {
    throw new ShaleError("INVALID_ARGUMENT", "Cannot write an OCI layout to stdout: it is a directory", {
      hint: "Leave --format out to write a docker archive",
    });
  }
  try {
    return await saveLayout(store, operation, images, output, options);
  } catch (error) {
    throw explainWriteError(error, `Cannot write the OCI layout ${output}`);
  }
}

function formatOf(output: string): SaveFormat {
  if (output.endsWith("/")) return "oci";
  const path = realPath(output);
  return path !== undefined && findFile(path)?.kind === "directory" ? "oci" : "docker";
}

async function saveLayout(
  store: Store,
  operation: StoreOperation,
  images: readonly ImageRecord[],
  directory: string,
  options: SaveOptions,
): Promise<SaveResult> {
  const { platform, signal, compression = "none" } = options;
  const chosen: { readonly image: ImageRecord; readonly records: readonly ManifestRecord[] }[] = [];
  for (const image of images) {
    const found = platform === undefined ? store.manifestsOf(image.name) : [getManifest(store, image, platform)];
    chosen.push({ image, records: await completeManifests(store, operation, image.name, found, options) });
  }
  await using encoder = new LayerEncoder(store, compression);
  using writer = await OciLayoutWriter.open(directory, signal ? { signal } : {});
  const layers = new LayoutLayers(operation, encoder, writer, options);
  const diffIds = diffIdsOf(chosen.flatMap(({ records }) => records));
  await mapConcurrent(
    diffIds,
    compression === "none" ? 1 : COMPRESSED_AT_A_TIME,
    (diffId, _, stop) => layers.write(diffId, stop),
    signal ? { signal } : {},
  );
  const names = new LayoutNames(directory);
  const saved: SavedImage[] = [];
  for (const { image, records } of chosen) {
    const manifests = records.map((record) => exportManifest(store, record, layers.of(record)));
    for (const { manifest, config } of manifests) {
      await writeDocument(writer, config);
      await writeDocument(writer, manifest);
    }
    const isSingle = manifests.length === 1;
    const target = isSingle ? manifests[0]!.manifest : exportIndex(store, image, manifests);
    if (!isSingle) await writeDocument(writer, target);
    const descriptor: Descriptor = {
      ...{ mediaType: target.mediaType, digest: target.digest, size: target.bytes.length },
      ...(isSingle ? { platform: manifests[0]!.platform } : {}),
      ...{ annotations: {}, urls: [] },
    };
    writer.addImage(descriptor, names.choose(image.name));
    saved.push({ name: image.name, digest: target.digest, configs: manifests.map(({ config }) => config.digest) });
  }
  writer.commit();
  return { format: "oci", images: saved, ...layers.counts };
}

/** Layers on their way into a layout. */
class LayoutLayers {
  readonly #operation: StoreOperation;
  readonly #encoder: LayerEncoder;
  readonly #writer: OciLayoutWriter;
  readonly #progress: Progress;
  readonly #encoded = new Map<DiffId, EncodedLayer>();
  #written = 0;
  #size = 0;

  constructor(
    operation: StoreOperation,
    encoder: LayerEncoder,
    writer: OciLayoutWriter,
    options: Pick<SaveOptions, "progress">,
  ) {
    this.#operation = operation;
    this.#encoder = encoder;
    this.#writer = writer;
    this.#progress = options.progress ?? silentProgress;
  }

  get counts(): { readonly layersWritten: number; readonly layersPresent: number; readonly size: number } {
    return {
      layersWritten: this.#written,
      layersPresent: this.#encoded.size - this.#written,
      size: this.#size,
    };
  }

  async write(diffId: DiffId, signal: AbortSignal): Promise<void> {
    const layer = this.#operation.getLayer(diffId);
    const known = this.#encoder.find(layer);
    const task = this.#progress.start(diffId, { label: labelOf(diffId), total: layer.tarSize });
    if (known !== undefined && this.#writer.hasBlob(known)) {
      this.#encoded.set(diffId, known);
      task.done("already there");
      return;
    }
    try {
      const onBytes = (count: number) => task.advance(count);
      const blob = await this.#writer.writeBlob(this.#encoder.read(this.#operation, layer, { signal, onBytes }), {
        signal,
        ...(known === undefined ? {} : { expected: { digest: known.digest, size: known.size } }),
      });
      this.#encoded.set(diffId, this.#encoder.record(this.#operation, layer, blob));
      this.#written++;
      this.#size += blob.size;
      task.done();
    } catch (error) {
      task.fail();
      throw error;
    }
  }

  of(record: ManifestRecord): EncodedLayer[] {
    return record.layers.map(({ diffId }) => this.#encoded.get(diffId)!);
  }
}

/** Gives entries their names, and no two images of one layout the same. */
class LayoutNames {
  /** Tag -> full name of the image that has it. */
  readonly #taken = new Map<string, string>();

  constructor(directory: string) {
    // A layout that was just made has no index.json yet.
    if (findFile(join(directory, "index.json")) === undefined) return;
    for (const { annotations } of openOciLayout(directory).entries) {
      const tag = annotations[REF_NAME];
      const fullName = annotations[CONTAINERD_NAME];
      if (tag !== undefined && fullName !== undefined) this.#taken.set(tag, fullName);
    }
  }

  choose(name: string): ImageNames {
    const reference = findTagged(name);
    if (reference === undefined) return {};
    const fullName = formatReference(reference);
    const owner = this.#taken.get(reference.tag);
    const tag = owner === undefined || owner === fullName ? reference.tag : fullName;
    this.#taken.set(tag, fullName);
    return { tag, fullName };
  }
}

async function writeDocument(writer: OciLayoutWriter, { digest, bytes }: Document): Promise<void> {
  await writer.writeBlob([bytes], { expected: { digest, size: bytes.length } });
}

async function saveArchive(
  store: Store,
  operation: StoreOperation,
  images: readonly ImageRecord[],
  options: SaveOptions,
): Promise<SaveResult> {
  const { output, signal } = options;
  const chosen: { readonly image: ImageRecord; readonly record: ManifestRecord }[] = [];
  for (const image of images) {
    const found = getManifest(store, image, options.platform);
    const [record] = await completeManifests(store, operation, image.name, [found], options);
    chosen.push({ image, record: record! });
  }
  const contents = archiveContents(store, operation, chosen, options);
  const sinkOptions = signal ? { signal } : {};
  let size: number;
  if (typeof output === "string") {
    using file = await PartialFile.open(output, sinkOptions);
    size = await writeDockerArchive((bytes) => file.write(bytes), contents, sinkOptions);
    file.publish();
  } else size = await writeDockerArchive(output, contents, sinkOptions);
  return {
    format: "docker",
    images: chosen.map(({ image, record }) => ({ name: image.name, digest: undefined, configs: [record.config] })),
    layersWritten: diffIdsOf(chosen.map(({ record }) => record)).length,
    layersPresent: 0,
    size,
  };
}

/** One entry for each config, as docker writes it: an image with several names is there once. */
function archiveContents(
  store: Store,
  operation: StoreOperation,
  chosen: readonly { readonly image: ImageRecord; readonly record: ManifestRecord }[],
  options: SaveOptions,
): DockerArchiveContent[] {
  const byConfig = Map.groupBy(chosen, ({ record }) => record.config);
  return [...byConfig].map(([config, named]) => ({
    repoTags: named.flatMap(({ image }) => {
      const reference = findTagged(image.name);
      return reference === undefined ? [] : [formatFamiliar(reference)];
    }),
    config: store.getDocument(config).bytes,
    layers: named[0]!.record.layers.map(({ diffId }) => archiveLayer(operation, operation.getLayer(diffId), options)),
  }));
}

function archiveLayer(
  operation: StoreOperation,
  layer: LayerRecord,
  { progress = silentProgress }: SaveOptions,
): DockerArchiveLayer {
  return {
    diffId: layer.diffId,
    size: layer.tarSize,
    async *read(readOptions) {
      const task = progress.start(layer.diffId, { label: labelOf(layer.diffId), total: layer.tarSize });
      let complete = false;
      try {
        yield* readLayerTar(operation, layer, { ...readOptions, onBytes: (count) => task.advance(count) });
        complete = true;
      } finally {
        if (complete) task.done();
        else task.fail();
      }
    },
  };
}

function diffIdsOf(records: readonly ManifestRecord[]): DiffId[] {
  return [...new Set(records.flatMap((record) => record.layers.map((layer) => layer.diffId)))];
}

/** Twelve digits tell layers apart on a screen. */
function labelOf(diffId: DiffId): string {
  return digestHex(diffId).slice(0, 12);
}
