import { NID_UNIT } from "./format.ts";

/** How many blocks stay open for smaller records. Records move at most this far (1 MiB of blocks of 4096) from their order. */
const WINDOW = 256;
/** No record is smaller than an extended inode. */
const MIN_UNITS = 2;

/**
 * Places records (an inode, its xattrs and its inline tail) so that none crosses a block edge, since the kernel refuses
 * a tail that does. Best fit over the last 256 blocks: a file of 3 KiB leaves a gap of 1 KiB, which the next inodes
 * without content fill. Within one block, records are in the order of their placement.
 */
export class BlockPacker {
  /** First block not yet begun. */
  #next: number;
  /** Bytes placed, for the measure of waste. */
  #used = 0;
  readonly #start: number;
  /** Open blocks by free units; blocks that left the window are dropped when met. Heads index the oldest. */
  readonly #open: number[][];
  readonly #heads: Uint32Array;
  /** One bit for each list of `#open` that is not empty. */
  readonly #filled: Uint32Array;
  readonly #blockSize: number;
  readonly #units: number;

  /** `start`: the image offset where the first record may be. */
  constructor(start: number, blockSize: number) {
    this.#blockSize = blockSize;
    this.#units = blockSize / NID_UNIT;
    this.#open = Array.from({ length: this.#units + 1 }, () => []);
    this.#heads = new Uint32Array(this.#units + 1);
    this.#filled = new Uint32Array((this.#units >> 5) + 1);
    const first = Math.ceil(start / NID_UNIT) * NID_UNIT;
    this.#start = first;
    this.#next = Math.ceil(first / blockSize);
    this.#close(this.#next - 1, (this.#next * blockSize - first) / NID_UNIT);
  }

  /** Image offset of a record of `size` bytes. A record larger than a block gets whole blocks of its own. */
  place(size: number): number {
    this.#used += size;
    const units = Math.ceil(size / NID_UNIT);
    for (let free = this.#nextFilled(units); free < this.#units; free = this.#nextFilled(free + 1)) {
      const block = this.#take(free);
      if (block >= 0) {
        this.#close(block, free - units);
        return (block + 1) * this.#blockSize - free * NID_UNIT;
      }
    }
    const block = this.#next;
    this.#next += Math.ceil(units / this.#units);
    this.#close(this.#next - 1, (this.#units - (units % this.#units)) % this.#units);
    return block * this.#blockSize;
  }

  /** The first block after all records. */
  get blocks(): number {
    return this.#next;
  }

  /** Bytes between `start` and the last block's end that hold no record. */
  get waste(): number {
    return this.#next * this.#blockSize - this.#start - this.#used;
  }

  /** The first list from `free` on that is not empty; `#units` when there is none below it. */
  #nextFilled(free: number): number {
    if (free >= this.#units) return this.#units;
    let word = free >> 5;
    let bits = this.#filled[word]! & (-1 << (free & 31));
    while (bits === 0) {
      if (++word === this.#filled.length) return this.#units;
      bits = this.#filled[word]!;
    }
    return Math.min(this.#units, (word << 5) + (31 - Math.clz32(bits & -bits)));
  }

  #close(block: number, freeUnits: number): void {
    if (freeUnits < MIN_UNITS) return;
    this.#open[freeUnits]!.push(block);
    this.#filled[freeUnits >> 5]! |= 1 << (freeUnits & 31);
  }

  #take(free: number): number {
    const list = this.#open[free]!;
    if (list.length === 0) return -1;
    for (let head = this.#heads[free]!; head < list.length; head++) {
      const block = list[head]!;
      if (block + WINDOW >= this.#next) {
        this.#heads[free] = head + 1;
        if (head + 1 === list.length) this.#clear(free);
        return block;
      }
    }
    this.#clear(free);
    return -1;
  }

  #clear(free: number): void {
    this.#open[free]!.length = 0;
    this.#filled[free >> 5]! &= ~(1 << (free & 31));
    this.#heads[free] = 0;
  }
}
