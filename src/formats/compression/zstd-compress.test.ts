import assert from "node:assert/strict";
import { test } from "node:test";
import { zstdDecompressSync } from "node:zlib";
import fc from "fast-check";
import { compressZstd, parseZstdFrameHeader, zstdEncoderName } from "./index.ts";

async function* cut(bytes: Uint8Array, sizes: readonly number[]): AsyncGenerator<Uint8Array> {
  let at = 0;
  for (let i = 0; at < bytes.length; i++) {
    const size = sizes[i % sizes.length]!;
    yield bytes.subarray(at, at + size);
    at += size;
  }
}

async function collect(source: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  for await (const piece of source) parts.push(piece);
  return Buffer.concat(parts);
}

/** Half of it compresses well, half hardly. */
function sample(size: number): Buffer {
  const bytes = Buffer.alloc(size);
  let state = 12345;
  for (let i = 0; i < size; i++) {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    bytes[i] = Math.floor(i / 65536) % 2 === 0 ? state >>> 24 : i % 7;
  }
  return bytes;
}

for (const size of [0, 1, 512, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_000]) {
  test(`compressZstd() gives one frame of known size for ${size} bytes`, async () => {
    const bytes = sample(size);
    const compressed = await collect(compressZstd(cut(bytes, [100_000]), size));
    const frame = parseZstdFrameHeader(compressed, 0, 0);
    assert.ok(frame?.kind === "frame");
    assert.equal(frame.contentSize, size);
    assert.ok(zstdDecompressSync(compressed).equals(bytes));
  });
}

test("compressZstd() gives the same bytes however the source is cut", async () => {
  const bytes = sample(1_500_000);
  const expected = await collect(compressZstd(cut(bytes, [bytes.length]), bytes.length));
  const sizes = fc.array(fc.integer({ min: 1000, max: 2_000_000 }), { minLength: 1, maxLength: 5 });
  await fc.assert(
    fc.asyncProperty(sizes, async (cuts) => {
      assert.ok((await collect(compressZstd(cut(bytes, cuts), bytes.length))).equals(expected));
    }),
    { numRuns: 6 },
  );
});

for (const [name, size] of [
  ["fewer", 1_100_001],
  ["more", 1_099_999],
] as const) {
  test(`compressZstd() refuses a source of ${name} bytes than promised`, () =>
    assert.rejects(collect(compressZstd(cut(sample(1_100_000), [300_000]), size)), RangeError));
}

test("compressZstd() passes the source's error on, and ends the source when its reader leaves", async () => {
  let ended = 0;
  async function* failing(error?: Error): AsyncGenerator<Uint8Array> {
    try {
      yield sample(2_000_000);
      if (error !== undefined) throw error;
      yield sample(2_000_000);
    } finally {
      ended++;
    }
  }
  const error = new Error("of the source");
  await assert.rejects(collect(compressZstd(failing(error), 4_000_000)), error);
  for await (const piece of compressZstd(failing(), 4_000_000)) {
    assert.ok(piece.length > 0);
    break;
  }
  assert.equal(ended, 2);
});

test("zstdEncoderName() differs with the library's version", () => {
  assert.notEqual(zstdEncoderName("1.5.6"), zstdEncoderName("1.5.7"));
});
