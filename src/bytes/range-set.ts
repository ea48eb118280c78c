/** Half-open. */
export interface ByteRange {
  readonly offset: number;
  readonly end: number;
}

/** A set of bytes by their offsets: ranges that rise and don't touch. Operations cost a binary search and a splice. */
export class RangeSet implements Iterable<ByteRange> {
  readonly #ranges: { offset: number; end: number }[] = [];
  #size = 0;

  constructor(ranges: Iterable<ByteRange> = []) {
    for (const { offset, end } of ranges) this.add(offset, end);
  }

  get isEmpty(): boolean {
    return this.#ranges.length === 0;
  }

  /** Bytes in the set. */
  get size(): number {
    return this.#size;
  }

  /** Ranges in the set. */
  get count(): number {
    return this.#ranges.length;
  }

  *[Symbol.iterator](): Generator<ByteRange, void, undefined> {
    for (const { offset, end } of this.#ranges) yield { offset, end };
  }

  add(offset: number, end: number): void {
    if (offset >= end) return;
    const at = this.#endingFrom(offset);
    const ranges = this.#ranges;
    let stop = at;
    let joinedOffset = offset;
    let joinedEnd = end;
    while (stop < ranges.length && ranges[stop]!.offset <= end) {
      const range = ranges[stop++]!;
      joinedOffset = Math.min(joinedOffset, range.offset);
      joinedEnd = Math.max(joinedEnd, range.end);
      this.#size -= range.end - range.offset;
    }
    if (stop === at + 1) {
      ranges[at]!.offset = joinedOffset;
      ranges[at]!.end = joinedEnd;
    } else ranges.splice(at, stop - at, { offset: joinedOffset, end: joinedEnd });
    this.#size += joinedEnd - joinedOffset;
  }

  remove(offset: number, end: number): void {
    if (offset >= end) return;
    const ranges = this.#ranges;
    let at = this.#endingFrom(offset + 1);
    while (at < ranges.length && ranges[at]!.offset < end) {
      const range = ranges[at]!;
      const from = Math.max(range.offset, offset);
      const to = Math.min(range.end, end);
      this.#size -= to - from;
      if (range.offset < from && to < range.end) {
        ranges.splice(at + 1, 0, { offset: to, end: range.end });
        range.end = from;
        return;
      }
      if (range.offset < from) range.end = from;
      else if (to < range.end) range.offset = to;
      else {
        ranges.splice(at, 1);
        continue;
      }
      at++;
    }
  }

  /** Whether every byte of the range is in the set. */
  has(offset: number, end: number): boolean {
    if (offset >= end) return true;
    const range = this.#ranges[this.#endingFrom(end)];
    return range !== undefined && range.offset <= offset;
  }

  /** Where the run of bytes that begins at `offset` ends; `offset` itself when that byte is not in the set. */
  endFrom(offset: number): number {
    const range = this.#ranges[this.#endingFrom(offset + 1)];
    return range !== undefined && range.offset <= offset ? range.end : offset;
  }

  /** What is between `offset` and `end` and not in the set, rising. */
  gaps(offset: number, end: number): ByteRange[] {
    const gaps: ByteRange[] = [];
    let free = offset;
    for (let at = this.#endingFrom(offset + 1); at < this.#ranges.length && free < end; at++) {
      const range = this.#ranges[at]!;
      if (range.offset > free) gaps.push({ offset: free, end: Math.min(range.offset, end) });
      free = Math.max(free, range.end);
    }
    if (free < end) gaps.push({ offset: free, end });
    return gaps;
  }

  clear(): void {
    this.#ranges.length = 0;
    this.#size = 0;
  }

  /** Index of the first range whose end is at or behind `offset`. */
  #endingFrom(offset: number): number {
    let low = 0;
    let high = this.#ranges.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#ranges[middle]!.end < offset) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
