/**
 * Where a file is cut into chunks: at points that its content decides, so that equal runs of bytes in two files become
 * equal chunks. The cuts are those of containers/storage (pkg/chunked/compressor), since a chunk is found again only where
 * both writers cut alike.
 *
 * - A sum over a window of the last 64 bytes, two u32: s1 of the bytes (each 31 more than it is), s2 weighted by their age.
 *   A cut follows a byte after which the low 16 bits of s2 are all ones: one in 64 KiB of random bytes. After bup.
 * - A run of at least 1024 zeros is a hole: a chunk of its own, cut off on both sides. The window is all zeros behind it.
 * - The window begins as zeros with each file and goes on over cuts. There is no shortest and no longest chunk.
 */

const WINDOW = 64;
const CHAR_OFFSET = 31;
/** Where the sums begin, and where 64 zeros bring them back to. bup's s2 is more than the weights 1..64 would give. */
const ZERO_S1 = WINDOW * CHAR_OFFSET;
const ZERO_S2 = WINDOW * (WINDOW - 1) * CHAR_OFFSET;
const SPLIT_MASK = 0xffff;
export const HOLE_THRESHOLD = 1024;

export interface ChunkSink {
  /** The next bytes of the chunk at hand: a view, valid during the call. */
  data(bytes: Uint8Array): void;
  /** The next bytes of the chunk at hand are so many zeros. */
  zeros(length: number): void;
  /** The chunk at hand, which is not empty, ends. `hole`: it is one. */
  cut(hole: boolean): void;
}

/** Push: `write` a file's content in any pieces, then `end`; then the next file. The cuts do not depend on the pieces. */
export class RollingChunker {
  readonly #sink: ChunkSink;
  #s1 = ZERO_S1;
  #s2 = ZERO_S2;
  /** The last 64 bytes that were rolled in, of which `#at` is the oldest. */
  readonly #window = new Uint8Array(WINDOW);
  #at = 0;
  /** Zeros at the end of what was written that may be the beginning of a hole. */
  #zeros = 0;
  /** The chunk at hand has bytes. */
  #open = false;

  constructor(sink: ChunkSink) {
    this.#sink = sink;
  }

  write(bytes: Uint8Array): void {
    let at = 0;
    while (at < bytes.length) {
      if (bytes[at] === 0) {
        let end = at + 1;
        while (end < bytes.length && bytes[end] === 0) end++;
        this.#zeros += end - at;
        at = end;
        continue;
      }
      if (this.#zeros > 0) this.#settleZeros();
      at = this.#roll(bytes, at);
    }
  }

  /** The file is complete. */
  end(): void {
    if (this.#zeros > 0) this.#settleZeros();
    if (this.#open) this.#cut(false);
    this.#s1 = ZERO_S1;
    this.#s2 = ZERO_S2;
    this.#window.fill(0);
    this.#at = 0;
  }

  /** The run of zeros is over: it is a hole, or bytes like others. */
  #settleZeros(): void {
    const count = this.#zeros;
    this.#zeros = 0;
    if (count >= HOLE_THRESHOLD) {
      if (this.#open) this.#cut(false);
      this.#sink.zeros(count);
      this.#cut(true);
      this.#s1 = ZERO_S1;
      this.#s2 = ZERO_S2;
      this.#window.fill(0);
      return;
    }
    let from = 0;
    for (let i = 0; i < count; i++) {
      this.#rollOne(0);
      if ((this.#s2 & SPLIT_MASK) !== SPLIT_MASK) continue;
      this.#sink.zeros(i + 1 - from);
      this.#cut(false);
      from = i + 1;
    }
    if (from === count) return;
    this.#sink.zeros(count - from);
    this.#open = true;
  }

  /** Rolls bytes in from `start` on, up to a run of zeros that is a hole or may become one; where it stopped. */
  #roll(bytes: Uint8Array, start: number): number {
    const end = this.#holeAt(bytes, start);
    let from = start;
    for (let at = start; at < end; ) {
      at =
        at - start < WINDOW
          ? this.#rollFirst(bytes, at, Math.min(end, start + WINDOW))
          : this.#rollRest(bytes, at, end);
      if ((this.#s2 & SPLIT_MASK) !== SPLIT_MASK) continue;
      this.#sink.data(bytes.subarray(from, at));
      this.#cut(false);
      from = at;
    }
    this.#keepWindow(bytes, Math.max(start + WINDOW, end - WINDOW), end);
    if (end > from) {
      this.#sink.data(bytes.subarray(from, end));
      this.#open = true;
    }
    return end;
  }

  /** Where a run of zeros begins that is a hole, or goes up to the end of the bytes. */
  #holeAt(bytes: Uint8Array, start: number): number {
    // one byte in so many, and the last one: no hole lies between two of them
    const step = HOLE_THRESHOLD - 1;
    for (let probe = start; ; probe = Math.min(probe + step, bytes.length - 1)) {
      if (bytes[probe] === 0) {
        let begin = probe;
        while (begin > start && bytes[begin - 1] === 0) begin--;
        let end = probe + 1;
        while (end < bytes.length && bytes[end] === 0) end++;
        if (end === bytes.length || end - begin >= HOLE_THRESHOLD) return begin;
      }
      if (probe === bytes.length - 1) return bytes.length;
    }
  }

  /** Rolls in up to `end` or the first split, behind which it gives; what leaves the window came with earlier pieces. */
  #rollFirst(bytes: Uint8Array, start: number, end: number): number {
    for (let i = start; i < end; ) {
      this.#rollOne(bytes[i++]!);
      if ((this.#s2 & SPLIT_MASK) === SPLIT_MASK) return i;
    }
    return end;
  }

  /** The same where what leaves the window is in `bytes` too: twice as fast. */
  #rollRest(bytes: Uint8Array, start: number, end: number): number {
    let s1 = this.#s1;
    let s2 = this.#s2;
    let i = start;
    while (i < end) {
      const drop = bytes[i - WINDOW]!;
      s1 = (s1 + bytes[i]! - drop) | 0;
      s2 = (s2 + s1 - WINDOW * (drop + CHAR_OFFSET)) | 0;
      i++;
      if ((s2 & SPLIT_MASK) === SPLIT_MASK) break;
    }
    this.#s1 = s1;
    this.#s2 = s2;
    return i;
  }

  #rollOne(byte: number): void {
    const drop = this.#window[this.#at]!;
    this.#window[this.#at] = byte;
    this.#at = (this.#at + 1) & (WINDOW - 1);
    this.#s1 = (this.#s1 + byte - drop) | 0;
    this.#s2 = (this.#s2 + this.#s1 - WINDOW * (drop + CHAR_OFFSET)) | 0;
  }

  /** The bytes from `start` to `end` went by the window. */
  #keepWindow(bytes: Uint8Array, start: number, end: number): void {
    for (let i = start; i < end; i++) {
      this.#window[this.#at] = bytes[i]!;
      this.#at = (this.#at + 1) & (WINDOW - 1);
    }
  }

  #cut(hole: boolean): void {
    this.#open = false;
    this.#sink.cut(hole);
  }
}
