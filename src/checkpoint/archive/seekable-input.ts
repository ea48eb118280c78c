/** An archive compressed as zstd frames with an index: what is passed over is not decompressed. */

import { FormatError } from "../../errors/index.ts";
import { type SeekableFrame, SeekableFrameDecoder } from "../../formats/compression/index.ts";
import { readAt } from "../../sys/index.ts";
import { loadZstdFrames } from "../../sys/zstd-frames.ts";
import type { ArchiveInput } from "./input.ts";

/** Frames decompressed ahead of the reader, on the thread pool. */
const AHEAD = 2;
const NOTHING = new Uint8Array(0);
const NOTHING_TO_DO = () => undefined;

/** Memory for a compressed frame, and who decompresses it: they go round. */
interface Slot {
  readonly decoder: SeekableFrameDecoder;
  compressed: Buffer;
}

interface Decoded {
  readonly slot: Slot;
  readonly content: Promise<Uint8Array>;
  /** The same, once it is there. */
  ready?: Uint8Array;
}

export class SeekableInput implements ArchiveInput {
  readonly #fd: number;
  readonly #frames: readonly SeekableFrame[];
  readonly #size: number;
  #position = 0;
  /** The frame that `position` was last in. */
  #current = 0;
  readonly #decoded = new Map<number, Decoded>();
  /** The frame that was read last: those before it are gone, those behind it were begun. */
  #reading: number | undefined;
  readonly #free: Slot[] = [];
  /** Of frames that were passed over while they were decompressed. */
  readonly #leaving = new Set<Promise<void>>();

  /** `frames` are those of the file behind `fd`, which stays the caller's. */
  constructor(fd: number, frames: readonly SeekableFrame[]) {
    this.#fd = fd;
    this.#frames = frames;
    const last = frames.at(-1);
    this.#size = last === undefined ? 0 : last.offset + last.size;
  }

  read(length: number): Uint8Array | Promise<Uint8Array> {
    const first = this.piece(length);
    return first instanceof Uint8Array && first.length === length ? first : this.#gather(first, length);
  }

  piece(limit: number): Uint8Array | Promise<Uint8Array> {
    if (this.#position >= this.#size || limit === 0) return NOTHING;
    this.#seek();
    const index = this.#current;
    const ready = this.#decoded.get(index)?.ready;
    if (ready !== undefined && this.#reading === index) return this.#take(ready, limit);
    this.#reading = index;
    return this.#content(index).then((content) => this.#take(content, limit));
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
    await Promise.all(this.#leaving);
    const slots = [...this.#free.splice(0)];
    for (const { slot, content } of this.#decoded.values()) {
      await content.catch(() => undefined); // nobody got there
      slots.push(slot);
    }
    this.#decoded.clear();
    for (const { decoder } of slots) decoder.close();
  }

  #take(content: Uint8Array, limit: number): Uint8Array {
    const inside = this.#position - this.#frames[this.#current]!.offset;
    const bytes = content.subarray(inside, inside + limit);
    this.#position += bytes.length;
    return bytes;
  }

  async #gather(first: Uint8Array | Promise<Uint8Array>, length: number): Promise<Uint8Array> {
    const start = await first;
    if (start.length === length) return start;
    const parts = [Uint8Array.from(start)];
    for (let have = start.length; have < length; ) {
      const part = await this.piece(length - have);
      if (part.length === 0) break;
      parts.push(Uint8Array.from(part)); // the memory of a frame that was left is used again
      have += part.length;
    }
    return Buffer.concat(parts);
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
    for (const [at, { slot, content }] of this.#decoded) {
      if (at >= index) continue;
      this.#decoded.delete(at);
      // No view of it is good any more.
      const leaving: Promise<void> = content.then(NOTHING_TO_DO, NOTHING_TO_DO).then(() => {
        this.#free.push(slot);
        this.#leaving.delete(leaving);
      });
      this.#leaving.add(leaving);
    }
    const last = Math.min(sequential ? index + AHEAD : index, this.#frames.length - 1);
    for (let at = index; at <= last; at++) {
      if (this.#decoded.has(at)) continue;
      const slot = this.#free.pop() ?? newSlot();
      const content = this.#decode(this.#frames[at]!, slot);
      const decoded: Decoded = { slot, content };
      content.then(
        (bytes) => {
          decoded.ready = bytes;
        },
        () => undefined, // reported to the reader that gets there
      );
      this.#decoded.set(at, decoded);
    }
    return this.#decoded.get(index)!.content;
  }

  async #decode(frame: SeekableFrame, slot: Slot): Promise<Uint8Array> {
    if (frame.size === 0) return NOTHING;
    if (slot.compressed.length < frame.compressedSize) slot.compressed = Buffer.allocUnsafeSlow(frame.compressedSize);
    const bytes = slot.compressed.subarray(0, frame.compressedSize);
    if (readAt(this.#fd, bytes, frame.compressedOffset) !== bytes.length) {
      throw new FormatError("zstd stream", "frame", "is cut off", { offset: frame.compressedOffset });
    }
    return await slot.decoder.decompress(bytes, frame);
  }
}

function newSlot(): Slot {
  return { decoder: new SeekableFrameDecoder(loadZstdFrames()), compressed: Buffer.alloc(0) };
}

function isIn(frame: SeekableFrame, position: number): boolean {
  return position >= frame.offset && position < frame.offset + frame.size;
}
