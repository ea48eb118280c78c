/**
 * How layers leave the store: as the plain tar, whose digest is the diffId, or compressed. The store keeps no compressed
 * blobs, so a layer is compressed each time that it is read; that its digest is known beforehand rests on an encoder which
 * gives the same bytes each time, and on remembering digest and size (`Store.findEncoding`).
 */

import { createHash } from "node:crypto";
import { cancelled } from "../async/index.ts";
import { ShaleError } from "../errors/index.ts";
import { compressZstd, zstdEncoderName } from "../formats/compression/index.ts";
import { type DiffId, type Digest, formatDigest, MediaType } from "../oci/index.ts";
import type { LayerRecord, Store, StoreOperation } from "../store/index.ts";
import { type ReadTarOptions, readLayerTar } from "./layer-tar.ts";

export type LayerEncoding = "none" | "zstd";

/** A layer as a manifest names it. */
export interface EncodedLayer {
  /** Of the tar inside: the layer's own, except where a form adds to the tar (eStargz). */
  readonly diffId: DiffId;
  readonly digest: Digest;
  readonly size: number;
  readonly mediaType: string;
  /** Of its descriptor. */
  readonly annotations?: Readonly<Record<string, string>>;
}

/** Layers compressed at a time only to learn their digests: each takes a thread of the pool and a share of the main one. */
const LANES = 2;

export class LayerEncoder implements AsyncDisposable {
  readonly #store: Store;
  readonly #kind: LayerEncoding;
  readonly #name = zstdEncoderName(process.versions.zstd ?? "unknown");
  readonly #running = new Map<DiffId, Promise<EncodedLayer>>();
  readonly #lanes: Promise<unknown>[] = Array.from({ length: LANES }, () => Promise.resolve());
  readonly #stop = new AbortController();
  #turn = 0;

  constructor(store: Store, kind: LayerEncoding) {
    this.#store = store;
    this.#kind = kind;
  }

  /** The layer as it will be read, as far as that is known without reading it. */
  find(layer: LayerRecord): EncodedLayer | undefined {
    const { diffId } = layer;
    if (this.#kind === "none") {
      return { diffId, digest: diffId as string as Digest, size: layer.tarSize, mediaType: MediaType.OCI_LAYER };
    }
    const known = this.#store.findEncoding(diffId, this.#name);
    return known && { diffId, digest: known.digest, size: known.size, mediaType: MediaType.OCI_LAYER_ZSTD };
  }

  /** The layer whose encoded form has this digest, if it is known. */
  findDiffId(digest: Digest): DiffId | undefined {
    if (this.#kind === "none") return digest as string as DiffId;
    const known = this.#store.findEncodingByDigest(digest);
    return known?.encoder === this.#name ? known.diffId : undefined;
  }

  /** The encoded bytes. DATA_LOSS, before the last piece, when the layer is damaged. */
  read(operation: StoreOperation, layer: LayerRecord, options: ReadTarOptions = {}): AsyncIterable<Uint8Array> {
    const tar = readLayerTar(operation, layer, options);
    return this.#kind === "none" ? tar : compressZstd(tar, layer.tarSize);
  }

  /** Remembers what reading a layer to its end gave. */
  record(
    operation: StoreOperation,
    layer: LayerRecord,
    blob: { readonly digest: Digest; readonly size: number },
  ): EncodedLayer {
    const { diffId } = layer;
    if (this.#kind === "zstd") operation.recordEncoding({ diffId, encoder: this.#name, ...blob });
    return {
      diffId,
      ...blob,
      mediaType: this.#kind === "zstd" ? MediaType.OCI_LAYER_ZSTD : MediaType.OCI_LAYER,
    };
  }

  /**
   * As `find`, but reads the layer when it has to. The work belongs to the encoder, not to the caller: callers for one
   * layer share it, and it goes on when they lose their patience, so that their next try succeeds.
   */
  async ensure(layer: LayerRecord): Promise<EncodedLayer> {
    const known = this.find(layer);
    if (known !== undefined) return known;
    let running = this.#running.get(layer.diffId);
    if (running === undefined) {
      const lane = this.#turn++ % LANES;
      running = this.#lanes[lane]!.then(() => this.#compute(layer.diffId)).finally(() =>
        this.#running.delete(layer.diffId),
      );
      this.#running.set(layer.diffId, running);
      this.#lanes[lane] = running.catch(() => undefined); // each caller of `ensure` gets the error
    }
    return running;
  }

  async #compute(diffId: DiffId): Promise<EncodedLayer> {
    if (this.#stop.signal.aborted) throw cancelled(this.#stop.signal);
    using operation = this.#store.begin(`encode ${diffId}`);
    const layer = operation.getLayer(diffId);
    const hash = createHash("sha256");
    let size = 0;
    for await (const piece of this.read(operation, layer, { signal: this.#stop.signal })) {
      hash.update(piece);
      size += piece.length;
    }
    return this.record(operation, layer, { digest: formatDigest("sha256", hash.digest()), size });
  }

  /** Ends what `ensure` has under way. The store may be closed afterwards. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort(new ShaleError("CANCELLED", "Stopped encoding layers"));
    await Promise.all(this.#lanes);
  }
}
