/**
 * Layers on their way out of the store with a table of contents: zstd:chunked, which keeps the tar, or eStargz, which adds
 * two files to it. A layer that neither form can tell goes out compressed, without one.
 */
import { availableParallelism } from "node:os";
import { ShaleError } from "../errors/index.ts";
import { compressGzipMember, compressZstd } from "../formats/compression/index.ts";
import { EstargzWriter } from "../formats/estargz/index.ts";
import { NotConvertibleError } from "../formats/toc/writing.ts";
import { ZstdChunkedWriter } from "../formats/zstd-chunked/index.ts";
import type { BlobName } from "../archives/index.ts";
import { type DiffId, formatDigest, MediaType } from "../oci/index.ts";
import type { LayerRecord, Store, StoreOperation } from "../store/index.ts";
import { FrameThreads } from "./frame-threads.ts";
import type { EncodedLayer } from "./layer-encoder.ts";
import { type ReadTarOptions, readLayerTar } from "./layer-tar.ts";
import { SpoolFile } from "./spool-file.ts";

export type TocFormat = "zstd:chunked" | "estargz";

/** A layer in its new form. */
export interface TocEncoding extends EncodedLayer {
  /** Why it has no table of contents; undefined when it has one. */
  readonly reason: string | undefined;
}

/** What a blob turned out to be; digest and size are its reader's to count. */
type Form = Omit<TocEncoding, "digest" | "size">;

/** What is remembered of an encoding beside digest and size: see `decodeForm`. */
type Details = Pick<Form, "diffId" | "mediaType" | "annotations" | "reason">;

/**
 * zstd 7 makes blobs as small as containers/storage does unless told (3: a twentieth larger, in three quarters of the time);
 * gzip 6 is a half of a percent larger than the 9 of nerdctl, in half of the time.
 */
const DEFAULT_LEVELS: Readonly<Record<TocFormat, number>> = { "zstd:chunked": 7, estargz: 6 };

/** Raised when one of the writers gives other bytes than before. */
const FORM_VERSION = 1;

export class TocEncoder implements AsyncDisposable {
  readonly format: TocFormat;
  readonly #threads: FrameThreads;
  /** Of the encoder: equal names, equal bytes. */
  readonly #name: string;

  /** `level` of zstd 1 to 19, of gzip 1 to 9. */
  constructor(format: TocFormat, options: { readonly level?: number } = {}) {
    this.format = format;
    const level = options.level ?? DEFAULT_LEVELS[format];
    const kind = format === "estargz" ? "gzip" : "zstd";
    if (level > (kind === "gzip" ? 9 : 19)) {
      throw new ShaleError("INVALID_ARGUMENT", `Cannot compress with level ${level}: ${kind} has less`, {
        hint: "zstd:chunked has levels 1 to 19, estargz 1 to 9",
      });
    }
    this.#threads = new FrameThreads({ kind, level }, availableParallelism());
    const library = kind === "gzip" ? process.versions.zlib : (process.versions.zstd ?? "unknown");
    this.#name = `${format} ${FORM_VERSION}, ${kind} ${library} level ${level}`;
  }

  /** The layer in its new form, where it was encoded before and is still known. */
  find(store: Store, layer: LayerRecord): TocEncoding | undefined {
    const known = store.findEncoding(layer.diffId, this.#name);
    const form = known && decodeForm(known.details ?? "");
    return known && form && { ...form, digest: known.digest, size: known.size };
  }

  /**
   * Hands the bytes of a layer's blob to `consume`, which stores them, and resolves with what the blob is. With `known`, which
   * `find` gave, `consume` may leave them unread. When the layer has no form with a TOC, which may show after much of it was
   * consumed, `consume` has failed with our error and is called a second time, for the plain form. DATA_LOSS when the
   * layer is damaged.
   */
  async encode(
    operation: StoreOperation,
    layer: LayerRecord,
    consume: (bytes: AsyncIterable<Uint8Array>) => Promise<BlobName>,
    options: ReadTarOptions & { readonly known?: TocEncoding | undefined } = {},
  ): Promise<TocEncoding> {
    const { known } = options;
    if (known?.reason !== undefined) {
      await consume(this.#plain(operation, layer, options));
      return known;
    }
    try {
      return this.#record(operation, layer, await this.#withToc(operation, layer, consume, options));
    } catch (error) {
      if (!(error instanceof NotConvertibleError)) throw error;
      const { onBytes: _, ...rest } = options; // they were told already
      const { digest, size } = await consume(this.#plain(operation, layer, rest));
      const mediaType = this.format === "estargz" ? MediaType.OCI_LAYER_GZIP : MediaType.OCI_LAYER_ZSTD;
      const { diffId } = layer;
      return this.#record(operation, layer, { diffId, digest, size, mediaType, reason: error.reason });
    }
  }

  #record(operation: StoreOperation, { diffId }: LayerRecord, encoding: TocEncoding): TocEncoding {
    const { digest, size, ...form } = encoding;
    const details: Details = form;
    operation.recordEncoding({ diffId, encoder: this.#name, digest, size, details: JSON.stringify(details) });
    return encoding;
  }

  async #withToc(
    operation: StoreOperation,
    layer: LayerRecord,
    consume: (bytes: AsyncIterable<Uint8Array>) => Promise<BlobName>,
    options: ReadTarOptions & { readonly known?: TocEncoding | undefined },
  ): Promise<TocEncoding> {
    using spools = new DisposableStack();
    const openSpool = () => spools.use(new SpoolFile());
    const tar = readLayerTar(operation, layer, options);
    if (this.format === "zstd:chunked") {
      const writer = new ZstdChunkedWriter({ compressor: this.#threads, openSpool });
      const { digest, size } = await consume(writer.write(tar));
      if (options.known !== undefined) return options.known;
      const { annotations } = writer;
      return {
        diffId: layer.diffId,
        digest,
        size,
        mediaType: MediaType.OCI_LAYER_ZSTD,
        annotations,
        reason: undefined,
      };
    }
    const writer = new EstargzWriter({ compressor: this.#threads, openSpool });
    const { digest, size } = await consume(writer.write(tar));
    if (options.known !== undefined) return options.known;
    const { annotations, tarDigest } = writer.result;
    const diffId = formatDigest("sha256", tarDigest) as string as DiffId;
    return { diffId, digest, size, mediaType: MediaType.OCI_LAYER_GZIP, annotations, reason: undefined };
  }

  #plain(operation: StoreOperation, layer: LayerRecord, options: ReadTarOptions): AsyncIterable<Uint8Array> {
    const tar = readLayerTar(operation, layer, options);
    return this.format === "estargz"
      ? compressGzipMember(tar, this.#threads.settings.level)
      : compressZstd(tar, layer.tarSize);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#threads[Symbol.asyncDispose]();
  }
}

/** Written by us; undefined for what an encoder of another kind wrote, so that the layer is encoded anew. */
function decodeForm(details: string): Form | undefined {
  if (details === "") return undefined;
  const { diffId, mediaType, annotations, reason }: Details = JSON.parse(details);
  return { diffId, mediaType, ...(annotations === undefined ? {} : { annotations }), reason };
}
