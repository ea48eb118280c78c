import type { ChunkEnds } from "./entries.ts";
import type { TocElement } from "./entry.ts";

/**
 * Where the members of an eStargz blob begin. Its TOC does not say where one ends: that is where the next one begins, which
 * may be many entries later. So a first pass through the TOC collects the offsets, and the later ones look up.
 */
export class MemberOffsets implements ChunkEnds {
  #offsets = new Float64Array(1024);
  #count = 0;
  #isComplete = false;
  readonly #limit: number;

  /** `limit`: where the last member ends. */
  constructor(limit: number) {
    this.#limit = limit;
  }

  /** All elements went by. */
  complete(): void {
    this.#isComplete = true;
  }

  endOf({ offset }: TocElement): number | undefined {
    if (!this.#isComplete) {
      // in ascending order: the caller refuses others
      if (this.#count === 0 || this.#offsets[this.#count - 1]! < offset) this.#add(offset);
      return this.#limit;
    }
    let low = 0;
    let high = this.#count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#offsets[middle]! <= offset) low = middle + 1;
      else high = middle;
    }
    return low < this.#count ? this.#offsets[low]! : this.#limit;
  }

  #add(offset: number): void {
    if (this.#count === this.#offsets.length) {
      const grown = new Float64Array(this.#count * 2);
      grown.set(this.#offsets);
      this.#offsets = grown;
    }
    this.#offsets[this.#count++] = offset;
  }
}
