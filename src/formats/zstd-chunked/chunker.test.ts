import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { RollingChunker } from "./chunker.ts";

type Cut = readonly [size: number, hole: boolean];

function cutsOf(bytes: Uint8Array, sizes: readonly number[], chunker = collecting()): readonly Cut[] {
  for (let at = 0, i = 0; at < bytes.length; i++) {
    const size = sizes.length === 0 ? bytes.length : sizes[i % sizes.length]!;
    chunker.chunker.write(bytes.subarray(at, at + size));
    at += size;
  }
  chunker.chunker.end();
  assert.deepEqual(Buffer.concat(chunker.parts), Buffer.from(bytes));
  return chunker.cuts.splice(0);
}

function collecting() {
  const cuts: Cut[] = [];
  const parts: Buffer[] = [];
  let size = 0;
  const chunker = new RollingChunker({
    data(bytes) {
      parts.push(Buffer.from(bytes));
      size += bytes.length;
    },
    zeros(length) {
      parts.push(Buffer.alloc(length));
      size += length;
    },
    cut(hole) {
      assert.ok(size > 0);
      cuts.push([size, hole]);
      size = 0;
    },
  });
  return { chunker, cuts, parts };
}

/** The rule as chunker.ts tells it, byte by byte over the whole file. */
function slowCuts(bytes: Uint8Array): Cut[] {
  const cuts: Cut[] = [];
  let start = 0;
  const cut = (end: number, hole: boolean) => {
    if (end > start) cuts.push([end - start, hole]);
    start = end;
  };
  for (let i = 0; i < bytes.length; ) {
    let zeros = i;
    while (bytes[zeros] === 0) zeros++;
    if (zeros - i >= 1024) {
      cut(i, false);
      cut(zeros, true);
      i = zeros;
      continue;
    }
    for (const end = Math.max(zeros, i + 1); i < end; i++) {
      // the newest byte counts once, the oldest 64 times; the sums begin with more than a window of zeros would give
      let sum = BigInt(64 * 63 * 31 - 31 * 2080);
      for (let back = 0; back < 64; back++) sum += BigInt((back + 1) * ((i - back < 0 ? 0 : bytes[i - back]!) + 31));
      if ((sum & 0xffffn) === 0xffffn) cut(i + 1, false);
    }
  }
  cut(bytes.length, false);
  return cuts;
}

const piece = fc.oneof(
  fc.uint8Array({ maxLength: 3000 }),
  fc.integer({ min: 0, max: 1100 }).map((n) => new Uint8Array(n)),
  fc.constantFrom(1020, 1023, 1024, 1025, 4096).map((n) => new Uint8Array(n)),
  fc.tuple(fc.nat(255), fc.nat(500)).map(([value, n]) => new Uint8Array(n).fill(value)),
);

describe("RollingChunker", () => {
  test("cuts where the rule says, whatever the pieces", () => {
    fc.assert(
      fc.property(
        fc.array(piece, { maxLength: 6 }),
        fc.array(fc.integer({ min: 1, max: 900 }), { maxLength: 4 }),
        (parts, sizes) => {
          const bytes = Buffer.concat(parts);
          assert.deepEqual(cutsOf(bytes, sizes), slowCuts(bytes));
        },
      ),
      { numRuns: 100 },
    );
  });

  test("cuts random bytes about every 64 KiB, and the same ones after an insertion", () => {
    const bytes = pseudoRandom(2 ** 20);
    const cuts = cutsOf(bytes, [65536]);
    assert.deepEqual(cuts, slowCuts(bytes));
    assert.ok(cuts.length > 10 && cuts.length < 40, `${cuts.length} chunks`);
    const shifted = cutsOf(Buffer.concat([Buffer.from("inserted"), bytes]), []);
    assert.deepEqual(shifted.slice(2), cuts.slice(2));
  });

  test("begins each file anew", () => {
    const bytes = pseudoRandom(300_000);
    const one = collecting();
    const first = cutsOf(bytes, [1000], one);
    one.parts.length = 0;
    assert.deepEqual(cutsOf(bytes, [777], one), first);
  });

  test("makes no chunk of an empty file", () => assert.deepEqual(cutsOf(Buffer.alloc(0), []), []));
});

/** Of a generator with a known seed: xorshift32. */
function pseudoRandom(length: number): Buffer {
  const bytes = Buffer.alloc(length);
  let state = 0x12345678;
  for (let i = 0; i < length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    bytes[i] = state >>> 11;
  }
  return bytes;
}
