import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { chooseRanges, formatContentRange, MAX_RANGES } from "./ranges.ts";

const one = (start: number, end: number) => ({ kind: "ranges", ranges: [{ start, end }] });
const whole = { kind: "whole" };
const nothing = { kind: "unsatisfiable", problem: "no range is inside the 10 bytes" };

const cases: readonly (readonly [string | undefined, object])[] = [
  [undefined, whole],
  ["", whole],
  ["bytes=0-0", one(0, 1)],
  ["bytes=0-9", one(0, 10)],
  ["bytes=3-", one(3, 10)],
  ["bytes=3-99", one(3, 10)],
  ["bytes=-4", one(6, 10)],
  ["bytes=-40", one(0, 10)],
  ["BYTES = 1-2", one(1, 3)],
  ["bytes=,, 1-2 ,", one(1, 3)],
  ["bytes=10-", nothing],
  ["bytes=-0", nothing],
  ["bytes=20-30", nothing],
  ["bytes=20-30, 1-1", one(1, 2)],
  ["bytes=4-3", whole],
  ["bytes=a-b", whole],
  ["bytes=-", whole],
  ["bytes=1", whole],
  ["bytes=1-2-3", whole],
  ["bytes=99999999999999999999-", whole],
  ["lines=1-2", whole],
  ["bytes=0-9,0-9", whole], // would send 20 of 10 bytes
];

for (const [header, expected] of cases) {
  test(`chooseRanges() of 10 bytes answers ${JSON.stringify(header)}`, () => {
    assert.deepEqual(chooseRanges(header, 10), expected);
  });
}

test("chooseRanges() keeps several ranges in the order asked for", () => {
  assert.deepEqual(chooseRanges("bytes=8-,0-1,-3", 10), {
    kind: "ranges",
    ranges: [
      { start: 8, end: 10 },
      { start: 0, end: 2 },
      { start: 7, end: 10 },
    ],
  });
});

test(`chooseRanges() takes ${MAX_RANGES} ranges and refuses one more`, () => {
  const ranges = (n: number) => `bytes=${Array.from({ length: n }, (_, i) => `${2 * i}-${2 * i}`).join(",")}`;
  assert.equal(chooseRanges(ranges(MAX_RANGES), 1000).kind, "ranges");
  assert.deepEqual(chooseRanges(ranges(MAX_RANGES + 1), 1000), {
    kind: "unsatisfiable",
    problem: "more than 64 ranges in one request",
  });
});

test("chooseRanges() finds nothing in an empty content", () => {
  assert.equal(chooseRanges("bytes=0-", 0).kind, "unsatisfiable");
  assert.equal(chooseRanges("bytes=-1", 0).kind, "unsatisfiable");
});

test("chooseRanges() gives non-empty ranges inside the content, at most its size together, for any header", () => {
  const spec = fc.oneof(
    fc.tuple(fc.nat(3000), fc.nat(3000)).map(([a, b]) => `${a}-${b}`),
    fc.nat(3000).map((a) => `${a}-`),
    fc.nat(3000).map((a) => `-${a}`),
    fc.string({ maxLength: 5 }),
  );
  fc.assert(
    fc.property(fc.array(spec, { maxLength: 70 }), fc.nat(2000), (specs, size) => {
      const choice = chooseRanges(`bytes=${specs.join(",")}`, size);
      if (choice.kind !== "ranges") return;
      let total = 0;
      for (const { start, end } of choice.ranges) {
        assert.ok(start >= 0 && start < end && end <= size);
        total += end - start;
      }
      assert.ok(choice.ranges.length > 0 && total <= size);
    }),
  );
});

test("formatContentRange() counts the last byte in", () => {
  assert.equal(formatContentRange({ start: 2, end: 5 }, 9), "bytes 2-4/9");
});
