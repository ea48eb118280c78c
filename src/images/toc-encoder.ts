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
import { type DiffId, formatDigest, MediaType } from "../oci/index.ts";
import type { LayerRecord, StoreOperation } from "../store/index.ts";
import { FrameThreads } from "./frame-threads.ts";
import type { EncodedLayer } from "./layer-encoder.ts";
import { type ReadTarOptions, readLayerTar } from "./layer-tar.ts";
import { SpoolFile } from "./spool-file.ts";

export type TocFormat = "zstd:chunked" | "estargz";

/** What a blob turned out to be; `digest` and `size` are its reader's to count. */
export type TocEncoding = Omit<EncodedLayer, "digest" | "size">;

/**
 * zstd 7 makes blobs as small as containers/storage does unless told (3: a twentieth larger, in three quarters of the time);
 * gzip 6 is a half of a percent larger than the 9 of nerdctl, in half of the time.
 */
const DEFAULT_LEVELS: Readonly<Record<TocFormat, number>> = { "zstd:chunked": 7, estargz: 6 };

export class TocEncoder implements AsyncDisposable {
  readonly format: TocFormat;
  readonly #threads: FrameThreads;

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
  }

  /**
   * Hands the bytes of a layer's blob to `consume` and resolves with what it returned and what the blob is. When the layer has no
   * form with a TOC, which may show after much of it was consumed, `consume` has failed with our error and is called a second
   * time, for the plain form; `reason` then says why. DATA_LOSS when the layer is damaged.
   */
  async encode<T>(
    operation: StoreOperation,
    layer: LayerRecord,
    consume: (bytes: AsyncIterable<Uint8Array>) => Promise<T>,
    options: ReadTarOptions = {},
  ): Promise<{ readonly consumed: T; readonly encoding: TocEncoding; readonly reason: string | undefined }> {
    try {
      return { ...(await this.#withToc(operation, layer, consume, options)), reason: undefined };
    } catch (error) {
      if (!(error instanceof NotConvertibleError)) throw error;
      const { onBytes: _, ...rest } = options; // they were told already
      const consumed = await consume(this.#plain(operation, layer, rest));
      const mediaType = this.format === "estargz" ? MediaType.OCI_LAYER_GZIP : MediaType.OCI_LAYER_ZSTD;
      return { consumed, encoding: { diffId: layer.diffId, mediaType }, reason: error.reason };
    }
  }

  async #withToc<T>(
    operation: StoreOperation,
    layer: LayerRecord,
    consume: (bytes: AsyncIterable<Uint8Array>) => Promise<T>,
    options: ReadTarOptions,
  ): Promise<{ readonly consumed: T; readonly encoding: TocEncoding }> {
    using spools = new DisposableStack();
    const openSpool = () => spools.use(new SpoolFile());
    const tar = readLayerTar(operation, layer, options);
    if (this.format === "zstd:chunked") {
      const writer = new ZstdChunkedWriter({ compressor: this.#threads, openSpool });
      const consumed = await consume(writer.write(tar));
      const { annotations } = writer;
      return { consumed, encoding: { diffId: layer.diffId, mediaType: MediaType.OCI_LAYER_ZSTD, annotations } };
    }
    const writer = new EstargzWriter({ compressor: this.#threads, openSpool });
    const consumed = await consume(writer.write(tar));
    const { annotations, tarDigest } = writer.result;
    const diffId = formatDigest("sha256", tarDigest) as string as DiffId;
    return { consumed, encoding: { diffId, mediaType: MediaType.OCI_LAYER_GZIP, annotations } };
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
