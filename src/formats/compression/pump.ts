/**
 * A node:zlib stream as a pull interface: give it input, take its pieces one by one. While the caller is at work on one
 * piece the pool decompresses one more, which waits in the stream.
 */
import type { Transform } from "node:stream";
import { PIECE_SIZE } from "./pieces.ts";

/** The high water mark of 1 byte lets one piece wait in the stream, and no more. */
export const STREAM_OPTIONS = { chunkSize: PIECE_SIZE, readableHighWaterMark: 1 };

type Decompressor = Transform & { readonly bytesWritten: number };

export class StreamPump {
  readonly #stream: Decompressor;
  #piece: Uint8Array | undefined;
  #writing = false;
  /** Bytes of all writes. */
  #given = 0;
  #ended = false;
  #failure: { readonly error: unknown } | undefined;
  #wake: (() => void) | undefined;

  constructor(stream: Decompressor) {
    this.#stream = stream;
    const wake = () => this.#wake?.();
    // flowing mode and not read(), which would join the pieces that wait by copying them
    stream.on("data", (piece: Uint8Array) => {
      this.#piece = piece;
      stream.pause();
      wake();
    });
    stream.on("end", () => {
      this.#ended = true;
      wake();
    });
    stream.on("error", (error: unknown) => {
      this.#failure = { error };
      wake();
    });
  }

  /** Compressed bytes that were used so far; exact at "ended". */
  get consumed(): number {
    return this.#stream.bytesWritten;
  }

  /** Gives input, which must stay as it is until `next` says "drained" or "ended". */
  write(input: Uint8Array): void {
    this.#writing = true;
    this.#given += input.length;
    this.#stream.write(input, () => {
      this.#writing = false;
      this.#wake?.();
    });
  }

  /** Says that no more input comes; the stream then ends, or fails when it is cut short. */
  end(): void {
    this.#writing = true;
    this.#stream.end();
  }

  /** The next piece; "drained" when the input is used up; "ended" when the compressed stream is over. Throws its error. */
  async next(): Promise<Uint8Array | "drained" | "ended"> {
    for (;;) {
      if (this.#piece !== undefined) {
        const piece = this.#piece;
        this.#piece = undefined;
        this.#stream.resume();
        return piece;
      }
      if (this.#failure !== undefined) throw this.#failure.error;
      if (this.#ended) return "ended";
      // a stream that leaves input alone has found its end, and tells so by "end" a little later
      if (!this.#writing && this.#stream.readableLength === 0 && this.consumed === this.#given) return "drained";
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      this.#wake = undefined;
    }
  }

  /** Frees the stream; node:zlib itself waits for the pool before it frees the memory that the pool uses. */
  close(): void {
    this.#stream.removeAllListeners("data");
    this.#stream.destroy();
  }
}
