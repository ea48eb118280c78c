/** An archive compressed as zstd frames with an index: what is passed over is not decompressed. */

import { releaseBytes } from "../../bytes/index.ts";
import { FormatError } from "../../errors/index.ts";
import { decompressSeekableFrame, type SeekableFrame } from "../../formats/compression/index.ts";
import { readAt } from "../../sys/index.ts";
import type { ArchiveInput } from "./input.ts";

/** Frames decompressed ahead of the reader, on the thread pool. */
const AHEAD = 2;
const NOTHING = new Uint8Array(0);

export class SeekableInput implements ArchiveInput {
  readonly #fd: number;
  readonly #frames: readonly SeekableFrame[];
  readonly #size: number;
  #position = 0;
  /** The frame that `position` was last in. */
  #current = 0;
  readonly #decoded = new Map<number, Promise<Uint8Array>>();

  /** `frames` are those of the file behind `fd`, which stays the caller's. */
  constructor(fd: number, frames: readonly SeekableFrame[]) {
    this.#fd = fd;
    this.#frames = frames;
    const last = frames.at(-1);
    this.#size = last === undefined ? 0 : last.offset + last.size;
  }

  async read(length: number): Promise<Uint8Array> {
    const first = await this.piece(length);
    if (first.length === length) return first;
    const parts = [first];
    for (let have = first.length; have < length; ) {
      const part = await this.piece(length - have);
      if (part.length === 0) break;
      parts.push(part);
      have += part.length;
    }
    return Buffer.concat(parts);
  }

  async piece(limit: number): Promise<Uint8Array> {
    if (this.#position >= this.#size || limit === 0) return NOTHING;
    this.#seek();
    const frame = this.#frames[this.#current]!;
    const content = await this.#content(this.#current);
    const inside = this.#position - frame.offset;
    const bytes = content.subarray(inside, inside + limit);
    this.#position += bytes.length;
    return bytes;
  }

  skip(length: number): number {
    const skipped = Math.min(length, this.#size - this.#position);
    this.#position += skipped;
    return skipped;
  }

  place(): undefined {
    return undefined;
  }

  async close(): Promise<void> {
    await Promise.allSettled(this.#decoded.values());
    this.#decoded.clear();
  }

  #seek(): void {
    const frames = this.#frames;
    if (isIn(frames[this.#current]!, this.#position)) return;
    let low = this.#current;
    let high = frames.length - 1;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (frames[middle]!.offset <= this.#position) low = middle;
      else high = middle - 1;
    }
    this.#current = low;
  }

  /** Starts the next frames too when the last one was read through: then the reader goes on in order. */
  #content(index: number): Promise<Uint8Array> {
    const sequential = this.#decoded.has(index - 1);
    for (const [at, content] of this.#decoded) {
      if (at >= index) continue;
      this.#decoded.delete(at);
      content.then(releaseBytes, () => undefined); // no view of it is good any more
    }
    const last = Math.min(sequential ? index + AHEAD : index, this.#frames.length - 1);
    for (let at = index; at <= last; at++) {
      if (this.#decoded.has(at)) continue;
      const decoding = this.#decode(this.#frames[at]!);
      decoding.catch(() => undefined); // reported to the reader that gets there
      this.#decoded.set(at, decoding);
    }
    return this.#decoded.get(index)!;
  }

  async #decode(frame: SeekableFrame): Promise<Uint8Array> {
    if (frame.size === 0) return NOTHING;
    const bytes = Buffer.allocUnsafe(frame.compressedSize);
    if (readAt(this.#fd, bytes, frame.compressedOffset) !== bytes.length) {
      throw new FormatError("zstd stream", "frame", "is cut off", { offset: frame.compressedOffset });
    }
    return decompressSeekableFrame(bytes, frame);
  }
}

function isIn(frame: SeekableFrame, position: number): boolean {
  return position >= frame.offset && position < frame.offset + frame.size;
}
