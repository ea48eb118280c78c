/**
 * Compression of a whole archive: pieces of it as zstd frames or gzip members of their own, made at the same time on the thread
 * pool and written in order. zstd gets an index of its frames, so that readers can pass over what they don't want.
 */
import { availableParallelism } from "node:os";
import { promisify } from "node:util";
import { gzip } from "node:zlib";
import { compressSeekableFrame, encodeSeekableIndex } from "../../formats/compression/index.ts";

export type OutputCompression = "none" | "gzip" | "zstd";

/** What one frame holds: as much as level 3 of zstd looks back. A multiple of what comes in at a time. */
const FRAME = 2 * 1024 * 1024;
const ZSTD_LEVEL = 3;
/** Not the 6 of gzip(1): a third of the time for a tenth more bytes. */
const GZIP_LEVEL = 3;
const deflate = promisify(gzip);

/** As {@link FrameCompressor}, pulled: the compressed bytes of `source`, whose pieces stay as they are. */
export async function* compressPieces(
  source: AsyncIterable<Uint8Array>,
  compression: "gzip" | "zstd",
): AsyncGenerator<Uint8Array, void, undefined> {
  const ready: Uint8Array[] = [];
  const compressor = new FrameCompressor(compression, async (bytes) => void ready.push(bytes));
  try {
    for await (const piece of source) {
      await compressor.write(piece);
      yield* ready.splice(0);
    }
    await compressor.end();
    yield* ready.splice(0);
  } finally {
    await compressor.abandon();
  }
}

/** Takes pieces that stay as they are; `sink` gets compressed bytes in order. */
export class FrameCompressor {
  readonly #compression: "gzip" | "zstd";
  readonly #sink: (bytes: Uint8Array) => Promise<void>;
  readonly #parallel = Math.min(4, availableParallelism()); // 4: threads of the pool
  readonly #running: { readonly size: number; readonly bytes: Promise<Uint8Array> }[] = [];
  readonly #frames: { compressedSize: number; size: number }[] = [];
  #parts: Uint8Array[] = [];
  #length = 0;

  constructor(compression: "gzip" | "zstd", sink: (bytes: Uint8Array) => Promise<void>) {
    this.#compression = compression;
    this.#sink = sink;
  }

  async write(bytes: Uint8Array): Promise<void> {
    this.#parts.push(bytes);
    this.#length += bytes.length;
    if (this.#length >= FRAME) await this.#startFrame();
  }

  /** Everything has been given to the sink afterwards. */
  async end(): Promise<void> {
    if (this.#length > 0) await this.#startFrame();
    while (this.#running.length > 0) await this.#finishFrame();
    if (this.#compression === "zstd") await this.#sink(encodeSeekableIndex(this.#frames));
  }

  /** Waits for what is on the pool: its buffers are in use until then. */
  async abandon(): Promise<void> {
    await Promise.allSettled(this.#running.map(({ bytes }) => bytes));
  }

  async #startFrame(): Promise<void> {
    const content = this.#parts.length === 1 ? this.#parts[0]! : Buffer.concat(this.#parts);
    this.#parts = [];
    this.#length = 0;
    const bytes: Promise<Uint8Array> =
      this.#compression === "zstd"
        ? compressSeekableFrame(content, ZSTD_LEVEL)
        : deflate(content, { level: GZIP_LEVEL });
    bytes.catch(() => undefined); // thrown where it is waited for
    this.#running.push({ size: content.length, bytes });
    if (this.#running.length > this.#parallel) await this.#finishFrame();
  }

  async #finishFrame(): Promise<void> {
    const { size, bytes } = this.#running[0]!;
    const compressed = await bytes;
    this.#running.shift();
    this.#frames.push({ compressedSize: compressed.length, size });
    await this.#sink(compressed);
  }
}
