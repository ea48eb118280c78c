import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { type ByteRange, RangeSet } from "./index.ts";

const SPACE = 120;
const operation = fc.tuple(fc.constantFrom("add", "remove"), fc.nat(SPACE - 1), fc.nat(30));

function bytesIn(ranges: Iterable<ByteRange>): number[] {
  const bytes: number[] = [];
  for (const { offset, end } of ranges) for (let at = offset; at < end; at++) bytes.push(at);
  return bytes;
}

describe("RangeSet", () => {
  test("is a set of bytes, for any order of additions and removals", () => {
    fc.assert(
      fc.property(fc.array(operation, { maxLength: 40 }), fc.nat(SPACE), fc.nat(40), (operations, from, length) => {
        const set = new RangeSet();
        const model = new Set<number>();
        for (const [kind, offset, size] of operations) {
          if (kind === "add") set.add(offset, offset + size);
          else set.remove(offset, offset + size);
          for (let at = offset; at < offset + size; at++) kind === "add" ? model.add(at) : model.delete(at);
        }
        const sorted = [...model].sort((a, b) => a - b);
        assert.deepEqual(bytesIn(set), sorted);
        assert.equal(set.size, model.size);
        assert.equal(set.isEmpty, model.size === 0);
        assert.equal(set.count, sorted.filter((at) => !model.has(at - 1)).length, "ranges touch");
        const window = Array.from({ length }, (_, i) => from + i);
        assert.deepEqual(
          bytesIn(set.gaps(from, from + length)),
          window.filter((at) => !model.has(at)),
        );
        assert.equal(
          set.has(from, from + length),
          window.every((at) => model.has(at)),
        );
        let end = from;
        while (model.has(end)) end++;
        assert.equal(set.endFrom(from), end);
      }),
      { numRuns: 500 },
    );
  });
});
