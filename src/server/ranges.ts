/**
 * The Range header of RFC 9110 section 14, for byte ranges. Pure.
 */

/** Bytes `start` up to, not including, `end`. */
export interface ByteRange {
  readonly start: number;
  readonly end: number;
}

/** More ranges than this in one header are refused: each costs a part header and a seek. */
export const MAX_RANGES = 64;

export type RangeChoice =
  /** Send everything: no header, another unit, a header that is malformed, or ranges that together exceed the content. */
  | { readonly kind: "whole" }
  /** At least one, in the order asked for, inside the content. */
  | { readonly kind: "ranges"; readonly ranges: readonly ByteRange[] }
  /** Nothing of it is inside the content (416), or there are more than MAX_RANGES. */
  | { readonly kind: "unsatisfiable"; readonly problem: string };

const WHOLE: RangeChoice = { kind: "whole" };
/** RFC 9110 14.1.1: `first-last`, `first-` or `-suffix`. 15 digits stay exact in a number. */
const RANGE_SPEC = /^(?:([0-9]{1,15})-([0-9]{0,15})|-([0-9]{1,15}))$/;

/**
 * Chooses what to send of `size` bytes for a Range header. A header that is not understood is ignored, as RFC 9110 14.2
 * asks. Ranges that overlap so much that they add up to more than the content are answered by the content itself, so
 * that a small request can't cause a transfer many times its size.
 */
export function chooseRanges(header: string | undefined, size: number): RangeChoice {
  const match = /^\s*bytes\s*=(.*)$/is.exec(header ?? "");
  if (match === null) return WHOLE;
  // RFC 9110 5.6.1: empty list elements are allowed and mean nothing.
  const specs = match[1]!
    .split(",")
    .map((spec) => spec.trim())
    .filter((spec) => spec !== "");
  if (specs.length === 0) return WHOLE;
  if (specs.length > MAX_RANGES) {
    return { kind: "unsatisfiable", problem: `more than ${MAX_RANGES} ranges in one request` };
  }
  const ranges: ByteRange[] = [];
  let total = 0;
  for (const spec of specs) {
    const parts = RANGE_SPEC.exec(spec);
    if (parts === null) return WHOLE;
    const [, first, last, suffix] = parts;
    let range: ByteRange;
    if (suffix !== undefined) {
      range = { start: Math.max(0, size - Number(suffix)), end: size };
    } else {
      const end = last === "" ? size : Number(last) + 1;
      if (last !== "" && end <= Number(first)) return WHOLE; // last before first is malformed, not unsatisfiable
      range = { start: Number(first), end: Math.min(end, size) };
    }
    if (range.start >= range.end) continue;
    ranges.push(range);
    total += range.end - range.start;
  }
  if (ranges.length === 0) return { kind: "unsatisfiable", problem: `no range is inside the ${size} bytes` };
  return total > size ? WHOLE : { kind: "ranges", ranges };
}

/** Content-Range of one part, RFC 9110 14.4. */
export function formatContentRange(range: ByteRange, size: number): string {
  return `bytes ${range.start}-${range.end - 1}/${size}`;
}
