/**
 * A stream of frames on its way through a compressor: bytes go in, cuts are marked, compressed bytes come out in order, and
 * the marks then know where in them they are.
 */
import type { CompressedBatch, FrameCompressor } from "../compression/index.ts";

/** A place between two frames. */
export interface FrameMark {
  /** In the compressed stream; undefined until everything before it came out. */
  readonly offset: number | undefined;
}

/** A batch goes off when it has this much. Many small frames to a batch: a hop to another thread and back is 50 us. */
const BATCH_SIZE = 1024 * 1024;
/** Batches in flight beyond those that are being worked on. */
const AHEAD = 2;
const ZEROS = new Uint8Array(64 * 1024);

interface Batch {
  readonly result: Promise<CompressedBatch>;
  readonly marks: readonly (readonly [frames: number, mark: { offset: number | undefined }])[];
}

export class FrameStream {
  readonly #compressor: FrameCompressor;
  readonly #maxFrame: number;
  #buffer: Uint8Array;
  #fill = 0;
  #frameStart = 0;
  #lengths: number[] = [];
  #marks: (readonly [number, { offset: number | undefined }])[] = [];
  readonly #flying: Batch[] = [];
  /** Used again: a garbage collector that is left to free such buffers lets memory grow by hundreds of them. */
  readonly #spares: ArrayBufferLike[] = [];
  #offset = 0;

  /** Frames of more than `maxFrame` bytes are divided: decompressors take several in a row for one. */
  constructor(compressor: FrameCompressor, maxFrame: number) {
    this.#compressor = compressor;
    this.#maxFrame = maxFrame;
    this.#buffer = this.#newBuffer();
  }

  /** Compressed bytes that came out so far. */
  get offset(): number {
    return this.#offset;
  }

  /** The next bytes; they are copied. */
  append(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      const room = this.#maxFrame - (this.#fill - this.#frameStart);
      if (room === 0) {
        this.#endFrame();
        continue;
      }
      const count = Math.min(room, bytes.length - at);
      this.#buffer.set(count === bytes.length ? bytes : bytes.subarray(at, at + count), this.#fill);
      this.#fill += count;
      at += count;
    }
  }

  appendZeros(length: number): void {
    for (let left = length; left > 0; left -= ZEROS.length)
      this.append(ZEROS.subarray(0, Math.min(left, ZEROS.length)));
  }

  /** Ends the frame at hand, if it has bytes. */
  cut(): FrameMark {
    this.#endFrame();
    const mark: { offset: number | undefined } = { offset: undefined };
    this.#marks.push([this.#lengths.length, mark]);
    return mark;
  }

  /** Compressed bytes in order, until no more is under way than keeps the compressor busy. */
  async *drain(): AsyncGenerator<Uint8Array, void, undefined> {
    while (this.#flying.length > this.#compressor.lanes + AHEAD) yield await this.#land();
  }

  /** The rest. More may be appended afterwards. */
  async *finish(): AsyncGenerator<Uint8Array, void, undefined> {
    this.#endFrame();
    this.#send();
    while (this.#flying.length > 0) yield await this.#land();
    for (const [, mark] of this.#marks.splice(0)) mark.offset = this.#offset;
  }

  /** Waits until nothing of this stream is under way, and drops it. For a stream that is given up. */
  async abandon(): Promise<void> {
    const flying = this.#flying.splice(0);
    await Promise.allSettled(flying.map(({ result }) => result));
  }

  #endFrame(): void {
    const length = this.#fill - this.#frameStart;
    if (length === 0) return;
    this.#lengths.push(length);
    this.#frameStart = this.#fill;
    if (this.#fill >= BATCH_SIZE) this.#send();
  }

  #send(): void {
    if (this.#lengths.length === 0) return;
    const batch = { bytes: this.#buffer.subarray(0, this.#fill), lengths: this.#lengths };
    const result = this.#compressor.compress(batch);
    result.catch(() => undefined); // whoever lands it gets the error
    this.#flying.push({ result, marks: this.#marks });
    this.#buffer = this.#newBuffer();
    this.#fill = 0;
    this.#frameStart = 0;
    this.#lengths = [];
    this.#marks = [];
  }

  async #land(): Promise<Uint8Array> {
    const { bytes, lengths, spare } = await this.#flying[0]!.result;
    if (spare !== undefined) this.#spares.push(spare.buffer);
    const { marks } = this.#flying.shift()!;
    let frame = 0;
    let offset = this.#offset;
    for (const [frames, mark] of marks) {
      while (frame < lengths.length && frame < frames) offset += lengths[frame++]!;
      mark.offset = offset;
    }
    this.#offset += bytes.length;
    return bytes;
  }

  #newBuffer(): Uint8Array {
    // a frame begins before BATCH_SIZE and has at most maxFrame; unpooled, for it goes to another thread
    const spare = this.#spares.pop();
    return spare === undefined ? Buffer.allocUnsafeSlow(BATCH_SIZE + this.#maxFrame) : Buffer.from(spare);
  }
}
