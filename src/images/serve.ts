/**
 * The store as the content of a registry.
 *
 * - Names become repositories as repositories.ts says: short and full.
 * - A tag leads to a manifest or, where the image was pulled by an index, to an index of the platforms that are in the store.
 *   Digests are found as well; that of the manifest as it was pulled only where its layers were plain tars, since the
 *   store does not keep compressed blobs.
 * - Every layer is verified while it is sent from beginning to end, and the connection breaks before its last bytes if it
 *   is damaged. Parts can't be verified here: clients compare the digest of the whole.
 * - An image with layers that were pulled in parts and are verified by their TOCs alone is completed when its tag is asked for.
 * - Each layer that is being sent is under a lease: garbage collection leaves it alone. Nothing is held between requests.
 *
 * Sees images that are pulled, renamed or removed while it serves. Rebuilding a layer is work of this thread, done in turns
 * of 1 MiB, so that no request waits for another one's layer.
 */
import { createHash, type Hash } from "node:crypto";
import { mapConcurrent } from "../async/index.ts";
import { ShaleError } from "../errors/index.ts";
import { type DiffId, type Digest, formatDigest, isDigest, isIndexMediaType } from "../oci/index.ts";
import type { ContentProvider, ServedBlob, ServedManifest } from "../server/index.ts";
import type { Document, ImageRecord, LayerRecord, ManifestRecord, Store, StoreOperation } from "../store/index.ts";
import { type CompleteOptions, completeManifests, needsCompleting } from "./complete.ts";
import { type EncodedLayer, LayerEncoder, type LayerEncoding } from "./layer-encoder.ts";
import { readLayerTarRange, takeRange } from "./layer-tar.ts";
import { Repositories, type Repository } from "./repositories.ts";
import { type ExportedManifest, exportIndex, exportManifest } from "./rewrite.ts";

/** `registry`: where layers that are verified by their TOC are completed from. */
export interface ServeOptions extends Pick<CompleteOptions, "registry" | "onDifference"> {
  /** How layers travel; "none" unless given. "zstd" reads each layer once before its first manifest is sent. */
  readonly compression?: LayerEncoding;
}

/** A provider whose background work ends when it is disposed of, which comes before the store is closed. */
export type StoreProvider = ContentProvider & AsyncDisposable;

/** Layers of one manifest whose digests are computed at a time. */
const ENCODES = 2;

export function storeProvider(store: Store, options: ServeOptions = {}): StoreProvider {
  return new Provider(store, options);
}

class Provider implements StoreProvider {
  readonly #store: Store;
  readonly #compression: LayerEncoding;
  readonly #encoder: LayerEncoder;
  readonly #completion: Pick<CompleteOptions, "registry" | "onDifference">;
  /** Images that are being completed, by name: requests for one share the work, which goes on when they lose their patience. */
  readonly #completing = new Map<string, Promise<readonly ManifestRecord[]>>();
  readonly #stop = new AbortController();

  constructor(store: Store, { compression = "none", ...completion }: ServeOptions) {
    this.#store = store;
    this.#compression = compression;
    this.#encoder = new LayerEncoder(store, compression);
    this.#completion = completion;
  }

  listRepositories(): Iterable<string> {
    return this.#repositories().names();
  }

  listTags(repository: string): Iterable<string> | undefined {
    return this.#find(repository)?.tags.keys();
  }

  async resolve(repository: string, reference: string): Promise<ServedManifest | undefined> {
    const found = this.#find(repository);
    if (found === undefined) return undefined;
    try {
      if (isDigest(reference)) return this.#findByDigest(found.images, reference);
      const image = found.tags.get(reference);
      return image && servedOf(await this.#encode(image));
    } catch (error) {
      if (ShaleError.is(error, "NOT_FOUND")) return undefined; // the image was removed meanwhile
      throw error;
    }
  }

  openBlob(repository: string, digest: Digest): ServedBlob | undefined {
    if (this.#find(repository) === undefined) return undefined;
    const document = this.#store.findDocument(digest);
    if (document !== undefined) return documentBlob(document);
    const diffId = this.#encoder.findDiffId(digest);
    if (diffId === undefined) return undefined;
    const operation = this.#store.begin(`serve ${diffId}`);
    const close = () => operation[Symbol.dispose]();
    try {
      const layer = operation.getLayer(diffId);
      const blob = this.#encoder.find(layer);
      if (blob?.digest === digest) return { size: blob.size, read: this.#reader(operation, layer, blob), close };
    } catch (error) {
      close();
      if (ShaleError.is(error, "NOT_FOUND")) return undefined;
      throw error;
    }
    close();
    return undefined;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort(new ShaleError("CANCELLED", "Stopped completing layers"));
    await Promise.allSettled(this.#completing.values());
    await this.#encoder[Symbol.asyncDispose]();
  }

  #reader(operation: StoreOperation, layer: LayerRecord, blob: EncodedLayer): ServedBlob["read"] {
    return (start, end, options) => {
      if (start === 0 && end === blob.size) return verified(this.#encoder.read(operation, layer, options), blob);
      if (this.#compression === "none") return readLayerTarRange(operation, layer, start, end, options);
      // Where a byte of the compressed form comes from is only known after compressing all before it.
      return takeRange(this.#encoder.read(operation, layer, options), start, end);
    };
  }

  /** What an image's name leads to, its layers encoded as far as they are not yet. */
  async #encode(image: ImageRecord): Promise<Document> {
    const manifests: ExportedManifest[] = [];
    for (const record of await this.#complete(image)) {
      const layers = await mapConcurrent(record.layers, ENCODES, ({ diffId }) =>
        this.#encoder.ensure(this.#getLayer(image, diffId)),
      );
      manifests.push(exportManifest(this.#store, record, layers));
    }
    return this.#target(image, manifests);
  }

  /** The manifests of an image, with the tars of all layers in the store. */
  async #complete({ name }: ImageRecord): Promise<readonly ManifestRecord[]> {
    const records = this.#store.manifestsOf(name);
    if (!records.some(needsCompleting)) return records;
    let running = this.#completing.get(name);
    if (running === undefined) {
      running = this.#fetchTars(name, records).finally(() => this.#completing.delete(name));
      this.#completing.set(name, running);
    }
    return await running;
  }

  async #fetchTars(name: string, records: readonly ManifestRecord[]): Promise<readonly ManifestRecord[]> {
    using operation = this.#store.begin(`complete ${name} to serve it`);
    const { signal } = this.#stop;
    return await completeManifests(this.#store, operation, name, records, { ...this.#completion, signal });
  }

  /**
   * A manifest or index by the digest that it has here. Only what needs no encoding is looked at: who knows a digest has
   * it from a tag, or from the registry where plain tars came from.
   */
  #findByDigest(images: readonly ImageRecord[], digest: Digest): ServedManifest | undefined {
    for (const image of images) {
      const records = this.#store.manifestsOf(image.name);
      const manifests = records.flatMap((record) => this.#exportKnown(record) ?? []);
      const found = manifests.find(({ manifest }) => manifest.digest === digest)?.manifest;
      if (found !== undefined) return servedOf(found);
      if (manifests.length < records.length || manifests.length === 0) continue;
      const target = this.#target(image, manifests);
      if (target.digest === digest) return servedOf(target);
    }
    return undefined;
  }

  #exportKnown(record: ManifestRecord): ExportedManifest | undefined {
    const layers: EncodedLayer[] = [];
    if (needsCompleting(record)) return undefined; // by its tag first
    for (const { diffId } of record.layers) {
      const layer = this.#store.findLayer(diffId);
      const encoded = layer && this.#encoder.find(layer);
      if (encoded === undefined) return undefined;
      layers.push(encoded);
    }
    return exportManifest(this.#store, record, layers);
  }

  /** An index stays one for one platform too: a client of another one must not take this one for its own. */
  #target(image: ImageRecord, manifests: readonly ExportedManifest[]): Document {
    if (isIndexMediaType(image.mediaType)) return exportIndex(this.#store, image, manifests);
    const only = manifests[0];
    if (only === undefined) throw new ShaleError("NOT_FOUND", `Cannot serve ${image.name}: it was removed`);
    return only.manifest;
  }

  #getLayer(image: ImageRecord, diffId: DiffId): LayerRecord {
    const layer = this.#store.findLayer(diffId);
    if (layer !== undefined) return layer;
    throw new ShaleError("DATA_LOSS", `Cannot serve ${image.name}: layer ${diffId} is not in sight`, {
      hint: "Run shale check --repair, or pull the image again",
    });
  }

  #find(repository: string): Repository | undefined {
    return this.#repositories().find(repository);
  }

  /** As of now: the store may have changed since the last request. */
  #repositories(): Repositories {
    return new Repositories(this.#store.listImages());
  }
}

function servedOf({ digest, mediaType, bytes }: Document): ServedManifest {
  return { descriptor: { digest, mediaType, size: bytes.length, annotations: {}, urls: [] }, bytes };
}

function documentBlob({ bytes, mediaType }: Document): ServedBlob {
  return { size: bytes.length, mediaType, read: (start, end) => [bytes.subarray(start, end)] };
}

/** The same bytes; the last ones only when all of them are what `blob` says. */
async function* verified(source: AsyncIterable<Uint8Array>, blob: EncodedLayer): AsyncGenerator<Uint8Array> {
  const hash = createHash("sha256");
  let done = 0;
  for await (const piece of source) {
    hash.update(piece);
    done += piece.length;
    if (done >= blob.size) verifyEnd(hash, done, blob);
    yield piece;
  }
  // What is missing is noticed by the server, which has promised blob.size bytes.
}

function verifyEnd(hash: Hash, size: number, blob: EncodedLayer): void {
  const digest = formatDigest("sha256", hash.digest());
  if (size === blob.size && digest === blob.digest) return;
  throw new ShaleError(
    "DATA_LOSS",
    `Cannot serve ${blob.digest}: encoding layer ${blob.diffId} gave ${digest} this time`,
  );
}
