/**
 * Compression of a whole archive: pieces of it as zstd frames or gzip members of their own, made at the same time on the thread
 * pool and written in order. zstd gets an index of its frames, so that readers can pass over what they don't want.
 */
import { availableParallelism } from "node:os";
import { promisify } from "node:util";
import { gzip } from "node:zlib";
import { releaseBytes } from "../../bytes/index.ts";
import { encodeSeekableIndex, SeekableFrameEncoder } from "../../formats/compression/index.ts";
import { loadZstdFrames } from "../../sys/zstd-frames.ts";
import type { PieceSink } from "./output.ts";

export type OutputCompression = "none" | "gzip" | "zstd";

/** What one frame holds: a reader decompresses that much for one document. */
const FRAME = 1024 * 1024;
/** Half the time of level 3, for some tenth more bytes: who waits is the container. */
const ZSTD_LEVEL = 1;
/** Not the 6 of gzip(1): a third of the time for a tenth more bytes. */
const GZIP_LEVEL = 3;
const deflate = promisify(gzip);

/** As {@link FrameCompressor}, pulled: the compressed bytes of `source`, in pieces that the reader may keep. */
export async function* compressPieces(
  source: AsyncIterable<Uint8Array>,
  compression: "gzip" | "zstd",
): AsyncGenerator<Uint8Array, void, undefined> {
  const ready: Uint8Array[] = [];
  const compressor = new FrameCompressor(compression, async (bytes) => void ready.push(bytes), { release: false });
  try {
    let frame = compressor.take();
    let filled = 0;
    for await (const piece of source) {
      for (let at = 0; at < piece.length; ) {
        const step = Math.min(frame.length - filled, piece.length - at);
        frame.set(piece.subarray(at, at + step), filled);
        filled += step;
        at += step;
        if (filled < frame.length) continue;
        await compressor.write(frame);
        yield* ready.splice(0);
        frame = compressor.take();
        filled = 0;
      }
    }
    if (filled > 0) await compressor.write(frame.subarray(0, filled));
    await compressor.end();
    yield* ready.splice(0);
  } finally {
    await compressor.abandon();
  }
}

interface Running {
  readonly content: Uint8Array;
  readonly bytes: Promise<Uint8Array>;
  /** Whose memory the bytes are in. */
  readonly encoder: SeekableFrameEncoder | undefined;
}

/** A sink of frames; `sink` gets compressed bytes in order. Its buffers go round: a handful of them, whatever the size. */
export class FrameCompressor implements PieceSink {
  readonly #compression: "gzip" | "zstd";
  readonly #sink: (bytes: Uint8Array) => Promise<void>;
  readonly #parallel = Math.min(4, availableParallelism()); // 4: threads of the pool
  readonly #running: Running[] = [];
  readonly #release: boolean;
  /** Not at work. */
  readonly #encoders: SeekableFrameEncoder[] = [];
  readonly #free: Buffer[] = [];
  readonly #frames: { compressedSize: number; size: number }[] = [];

  /** With `release`, the sink keeps nothing of what it was given once it has settled. */
  constructor(
    compression: "gzip" | "zstd",
    sink: (bytes: Uint8Array) => Promise<void>,
    options: { readonly release: boolean },
  ) {
    this.#release = options.release;
    this.#compression = compression;
    this.#sink = sink;
  }

  take(): Buffer {
    return this.#free.pop() ?? Buffer.allocUnsafeSlow(FRAME);
  }

  async write(content: Uint8Array): Promise<void> {
    const encoder = this.#compression === "zstd" ? this.#takeEncoder() : undefined;
    const bytes: Promise<Uint8Array> =
      encoder?.compress(content) ?? deflate(content, { level: GZIP_LEVEL, chunkSize: content.length + 64 * 1024 });
    bytes.catch(() => undefined); // thrown where it is waited for
    this.#running.push({ content, bytes, encoder });
    if (this.#running.length > this.#parallel) await this.#finishFrame();
  }

  /** Everything has been given to the sink afterwards. */
  async end(): Promise<void> {
    while (this.#running.length > 0) await this.#finishFrame();
    if (this.#compression === "zstd") await this.#sink(encodeSeekableIndex(this.#frames));
  }

  /** Waits for what is on the pool, whose buffers are in use until then, and frees everything. To be called in the end, also after `end`. */
  async abandon(): Promise<void> {
    await Promise.allSettled(this.#running.map(({ bytes }) => bytes));
    for (const { encoder } of this.#running.splice(0)) encoder?.close();
    for (const encoder of this.#encoders.splice(0)) encoder.close();
  }

  #takeEncoder(): SeekableFrameEncoder {
    return this.#encoders.pop() ?? new SeekableFrameEncoder(ZSTD_LEVEL, loadZstdFrames());
  }

  async #finishFrame(): Promise<void> {
    const { content, bytes, encoder } = this.#running[0]!;
    const compressed = await bytes;
    this.#running.shift();
    if (content.length === FRAME) this.#free.push(Buffer.from(content.buffer, content.byteOffset, FRAME));
    this.#frames.push({ compressedSize: compressed.length, size: content.length });
    if (encoder === undefined) {
      await this.#sink(compressed);
      if (this.#release) releaseBytes(compressed);
      return;
    }
    try {
      await this.#sink(this.#release ? compressed : Buffer.from(compressed));
    } finally {
      this.#encoders.push(encoder);
    }
  }
}
