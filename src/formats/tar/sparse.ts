/** Sparse maps: the three places a tar keeps them end here. GNU tar manual, "Storing Sparse Files". */
import type { Segment } from "./entry.ts";
import { FIELDS, type HeaderField, numberField, SPARSE_NUMBER_LENGTH } from "./header.ts";
import type { TarLimits } from "./limits.ts";
import { addToMap, type Fail } from "./pax.ts";

/**
 * Checks a map (offset, length, offset, length...) against the size of the file and the number of bytes stored for it,
 * and gives its segments, empty ones left out; undefined when the data fills the file.
 */
export function segmentsOf(
  map: readonly number[],
  size: number,
  stored: number,
  fail: Fail,
): readonly Segment[] | undefined {
  if (map.length % 2 !== 0) throw fail("sparse map", "has an offset without a length");
  const segments: Segment[] = [];
  let end = 0;
  let sum = 0;
  for (let i = 0; i < map.length; i += 2) {
    const offset = map[i]!;
    const length = map[i + 1]!;
    if (offset < end)
      throw fail("sparse map", `segment at ${offset} begins before byte ${end}, the end of the last one`);
    end = offset + length;
    if (end > size) throw fail("sparse map", `segment at ${offset} ends after byte ${size}, the end of the file`);
    sum += length;
    if (length > 0) segments.push({ offset, length });
  }
  if (sum !== stored) throw fail("sparse map", `describes ${sum} bytes, but ${stored} are stored`);
  return sum === size ? undefined : segments;
}

/**
 * Reads the pairs of an old GNU header or extension block into `map`. True when more pairs follow in another block.
 * An entry that begins with NUL ends the map.
 */
export function decodeOldSparse(
  block: Buffer,
  at: number,
  pairs: HeaderField,
  extended: HeaderField,
  map: number[],
  limits: TarLimits,
  fail: Fail,
): boolean {
  const more = block[at + extended.offset] !== 0 && block[at + extended.offset] !== 0x30;
  for (let i = 0; i < pairs.length; i += SPARSE_NUMBER_LENGTH * 2) {
    const offset = { name: "sparse offset", offset: pairs.offset + i, length: SPARSE_NUMBER_LENGTH };
    const length = {
      name: "sparse length",
      offset: offset.offset + SPARSE_NUMBER_LENGTH,
      length: SPARSE_NUMBER_LENGTH,
    };
    if (block[at + offset.offset] === 0) {
      if (more) throw fail("sparse map", "ends before its last extension block");
      return false;
    }
    for (const field of [offset, length]) {
      const value = numberField(block, at, field);
      if (!(value >= 0)) throw fail(field.name, "is not a number below 2^53");
      addToMap(map, value, limits, fail);
    }
  }
  return more;
}

export const OLD_SPARSE_HEADER = [FIELDS.sparse, FIELDS.sparseExtended] as const;
export const OLD_SPARSE_EXTENSION = [FIELDS.extensionSparse, FIELDS.extensionExtended] as const;

/**
 * The map of sparse format 1.0, at the head of the payload: decimal numbers, one a line, first their pairs' count; the
 * last block is padded. Fed block by block.
 */
export class SparseMapReader {
  readonly map: number[] = [];
  readonly #limits: TarLimits;
  readonly #fail: Fail;
  #count = -1;
  #value = 0;
  #digits = 0;

  constructor(limits: TarLimits, fail: Fail) {
    this.#limits = limits;
    this.#fail = fail;
  }

  /** True when the map is complete. */
  addBlock(block: Buffer, start: number, end: number): boolean {
    for (let i = start; i < end; i++) {
      const digit = block[i]! - 0x30;
      if (digit >= 0 && digit <= 9 && this.#digits < 16) {
        this.#value = this.#value * 10 + digit;
        this.#digits++;
      } else if (block[i] === 0x0a && this.#digits > 0 && this.#value <= Number.MAX_SAFE_INTEGER) {
        if (this.#count < 0) this.#count = this.#value;
        else addToMap(this.map, this.#value, this.#limits, this.#fail);
        this.#value = 0;
        this.#digits = 0;
        if (this.map.length === this.#count * 2) return true;
      } else {
        throw this.#fail("sparse map", "is not a list of numbers below 2^53, one a line");
      }
    }
    return false;
  }
}
