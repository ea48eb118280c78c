import { createHash } from "node:crypto";
import type { FrameCompressor } from "../compression/index.ts";
import { FrameStream } from "./frame-stream.ts";
import type { Spool } from "./spool.ts";

/** A frame of a document that is compressed while it is written. */
const FRAME_SIZE = 1024 * 1024;
/** Text is turned into bytes in pieces of this. */
const TEXT_SIZE = 64 * 1024;

/** A text of any length on its way through a compressor into a spool. */
export class DocumentWriter {
  readonly #spool: Spool;
  readonly #frames: FrameStream;
  readonly #hash = createHash("sha256");
  #text: string[] = [];
  #length = 0;
  #size = 0;

  constructor(compressor: FrameCompressor, spool: Spool) {
    this.#spool = spool;
    this.#frames = new FrameStream(compressor, FRAME_SIZE);
  }

  /** Bytes of the text. */
  get size(): number {
    return this.#size;
  }

  write(text: string): void {
    this.#text.push(text);
    this.#length += text.length;
    if (this.#length >= TEXT_SIZE) this.#flush();
  }

  /** Lets what is compressed into the spool, as far as memory demands it. */
  async settle(): Promise<void> {
    for await (const bytes of this.#frames.drain()) this.#keep(bytes);
  }

  /** Digest of the compressed bytes, all of which are in the spool then. */
  async finish(): Promise<Uint8Array> {
    this.#flush();
    for await (const bytes of this.#frames.finish()) this.#keep(bytes);
    return this.#hash.digest();
  }

  abandon(): Promise<void> {
    return this.#frames.abandon();
  }

  #flush(): void {
    const bytes = Buffer.from(this.#text.join(""));
    this.#text = [];
    this.#length = 0;
    this.#size += bytes.length;
    this.#frames.append(bytes);
  }

  #keep(bytes: Uint8Array): void {
    this.#hash.update(bytes);
    this.#spool.append(bytes);
  }
}
