import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { type ByteRange, RangeSet } from "../../bytes/index.ts";
import type { RangeAbility } from "../../registry/index.ts";
import {
  estimateFetch,
  isWorthwhile,
  LinkMeter,
  mergeableGap,
  mergeRanges,
  nextRequest,
  UNKNOWN_LINK,
} from "./requests.ts";

const MiB = 1 << 20;
const abilities = fc.constantFrom<RangeAbility>("unknown", "many", "one", "none");
const link = fc.record({
  latencyMs: fc.double({ min: 0.05, max: 500, noNaN: true }),
  bytesPerMs: fc.double({ min: 50, max: 5_000_000, noNaN: true }),
});
const ranges = fc
  .array(fc.tuple(fc.integer({ min: 1, max: 300_000 }), fc.integer({ min: 1, max: 20 * MiB })), {
    minLength: 1,
    maxLength: 60,
  })
  .map((list) => {
    let at = 0;
    return list.map(([gap, length]) => {
      const range = { offset: at + gap, end: at + gap + length };
      at = range.end;
      return range;
    });
  });

describe("nextRequest()", () => {
  test("asks for everything that is missing, from the front, in requests that make sense", () => {
    fc.assert(
      fc.property(ranges, link, abilities, (list, estimate, ability) => {
        const missing = new RangeSet(list);
        const asked = new RangeSet();
        const wanted = missing.size;
        const gap = mergeableGap(estimate, ability);
        for (let requests = 0; !missing.isEmpty; requests++) {
          assert.ok(requests < 20_000);
          const first = [...missing][0]!;
          const batch = nextRequest(missing, missing.size, estimate, ability);
          assert.ok(batch.length > 0);
          assert.equal(batch[0]!.offset, first.offset, "the front comes first");
          if (ability === "one") assert.equal(batch.length, 1);
          assert.ok(batch.length <= 200 || ability === "none");
          let end = -1;
          for (const range of batch) {
            assert.ok(range.offset > end && range.offset < range.end);
            end = range.end;
            missing.remove(range.offset, range.end);
            asked.add(range.offset, range.end);
          }
          const bytes = batch.reduce((sum, one) => sum + one.end - one.offset, 0);
          assert.ok(ability === "none" || bytes <= 17 * MiB + gap * batch.length, `${bytes} bytes in one request`);
        }
        for (const { offset, end } of list) assert.ok(asked.has(offset, end));
        assert.ok(asked.size - wanted <= gap * list.length, "bytes between parts only where that is cheaper");
      }),
    );
  });

  test("joins parts on a line with a high latency where each needs a request, and hardly any where one has many", () => {
    const slow = { latencyMs: 100, bytesPerMs: 12_500 };
    assert.ok(mergeableGap(slow, "one") > 200_000);
    assert.ok(mergeableGap(slow, "many") < 2000);
    assert.ok(mergeableGap({ latencyMs: 0.1, bytesPerMs: 12_500 }, "one") < 1000);
    assert.equal(mergeableGap(slow, "none"), Number.POSITIVE_INFINITY);
  });
});

describe("mergeRanges()", () => {
  const list: ByteRange[] = [
    { offset: 0, end: 10 },
    { offset: 12, end: 20 },
    { offset: 30, end: 31 },
  ];
  for (const [gap, expected] of [
    [0, list],
    [2, [{ offset: 0, end: 20 }, list[2]!]],
    [10, [{ offset: 0, end: 31 }]],
  ] as const) {
    test(`with a gap of ${gap}`, () => assert.deepEqual([...mergeRanges(list, gap)], expected));
  }
});

describe("isWorthwhile()", () => {
  const whole = estimateFetch([{ offset: 0, end: 100 * MiB }], UNKNOWN_LINK, "none");
  const work = { files: 1000, contentBytes: 300 * MiB, referredBytes: 0, copiedBytes: 0, missingBytes: 300 * MiB };
  const parts = (share: number, latencyMs = 30, bytesPerMs = 12_500) =>
    estimateFetch([{ offset: 0, end: share * 100 * MiB }], { latencyMs, bytesPerMs }, "many");
  const CASES: readonly (readonly [what: string, worthwhile: boolean])[] = [
    ["all of it", isWorthwhile(parts(1), whole, work) === false],
    ["3 % less", isWorthwhile(parts(0.97), whole, work) === false],
    ["a tenth less on a slow line", isWorthwhile(parts(0.9), whole, work) === true],
    [
      "a tenth less on a line that is faster than the work",
      isWorthwhile(
        parts(0.9, 1, 1e6),
        estimateFetch([{ offset: 0, end: 100 * MiB }], { latencyMs: 1, bytesPerMs: 1e6 }, "none"),
        work,
      ) === false,
    ],
    ["a tenth of it on any line", isWorthwhile(parts(0.1, 1, 1e6), whole, work) === true],
    ["nothing", isWorthwhile(parts(0), whole, work) === true],
  ];
  for (const [what, right] of CASES) test(`decides for ${what}`, () => assert.ok(right));
});

describe("LinkMeter", () => {
  test("knows a line from what came, and leaves out what is too short to tell", () => {
    const meter = new LinkMeter();
    assert.deepEqual(meter.estimate, UNKNOWN_LINK);
    meter.firstByte(12);
    meter.firstByte(10);
    meter.firstByte(90);
    meter.received(1000, 0);
    meter.received(1000, 1);
    assert.deepEqual(meter.estimate, { latencyMs: 10, bytesPerMs: UNKNOWN_LINK.bytesPerMs });
    for (let at = 2; at <= 400; at++) meter.received(50_000, at);
    assert.ok(Math.abs(meter.estimate.bytesPerMs - 50_000) < 2000, `${meter.estimate.bytesPerMs}`);
    meter.pause();
    meter.received(50_000, 10_000);
    meter.received(50_000, 10_001);
    assert.ok(meter.estimate.bytesPerMs > 40_000, "the pause is no part of it");
  });
});
