import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { constants, zstdCompressSync } from "node:zlib";
import fc from "fast-check";
import { ShaleError } from "../../errors/index.ts";
import { decompress, detectCompression, parseZstdFrameHeader, scanZstdFrames, ZSTD_WINDOW_MAX } from "./index.ts";
import { chunked, collect, failure, noise, pieces, text } from "./testing.ts";

const FUZZ_RUNS = Number(process.env.SHALE_FUZZ_RUNS ?? 100);
const HELLO = Buffer.from("hello, layer");

const unzstd = (source: AsyncIterable<Uint8Array>, options: { signal?: AbortSignal; maximumSize?: number } = {}) =>
  decompress(source, "zstd", options);
const all = (bytes: Uint8Array, size = 1 << 20) => collect(unzstd(chunked(bytes, size)));
const error = (bytes: Uint8Array, size = 1 << 20) => failure(all(bytes, size));

function frame(content: Uint8Array, params: Record<number, number | boolean> = {}): Buffer {
  return zstdCompressSync(content, { params: { [constants.ZSTD_c_checksumFlag]: 1, ...params } });
}

function skippable(data: Uint8Array, variant = 0): Buffer {
  const header = Buffer.alloc(8);
  header.writeUInt32LE(0x184d2a50 + variant, 0);
  header.writeUInt32LE(data.length, 4);
  return Buffer.concat([header, data]);
}

/** A frame of RLE blocks: 128 KiB from each 4 bytes. RFC 8878, 3.1.1.2. */
function rleFrame(blocks: number, descriptor = [0x00, 0x70]): Buffer {
  const parts = [Uint8Array.of(0x28, 0xb5, 0x2f, 0xfd, ...descriptor)];
  for (let i = 0; i < blocks; i++) {
    const header = ((128 * 1024) << 3) | (1 << 1) | (i === blocks - 1 ? 1 : 0);
    parts.push(Uint8Array.of(header & 0xff, (header >> 8) & 0xff, header >> 16, 0x61));
  }
  return Buffer.concat(parts);
}

describe("decompress() of zstd", () => {
  it("gives the content of frames, skippable ones between and around them", async () => {
    const large = text(2_500_000);
    const stream = Buffer.concat([
      skippable(noise(10), 15),
      frame(HELLO),
      skippable(Buffer.alloc(0)),
      frame(Buffer.alloc(0)),
      frame(large, { [constants.ZSTD_c_checksumFlag]: 0 }),
      frame(noise(200_000)),
      skippable(noise(70_000)),
    ]);
    const expected = Buffer.concat([HELLO, large, noise(200_000)]);
    for (const size of [997, 65_536, 1 << 20])
      assert.ok((await all(stream, size)).equals(expected), `chunks of ${size}`);
  });

  it("does not depend on where the stream is cut in two", async () => {
    const content = [HELLO, noise(40), text(400), Buffer.alloc(300_000)];
    const stream = Buffer.concat([skippable(noise(3)), ...content.map((c) => frame(c))]);
    for (let cut = 0; cut <= stream.length; cut++) {
      const result = await collect(unzstd(pieces(stream.subarray(0, cut), stream.subarray(cut))));
      assert.ok(result.equals(Buffer.concat(content)), `cut at ${cut}`);
    }
  });

  it("refuses a stream that ends at any byte but the end of a frame", async () => {
    const parts = [frame(HELLO), skippable(noise(9)), frame(text(100))];
    const stream = Buffer.concat(parts);
    const ends = [parts[0]!.length, parts[0]!.length + parts[1]!.length];
    for (let size = 0; size < stream.length; size++) {
      if (ends.includes(size)) continue;
      assert.equal((await error(stream.subarray(0, size))).offset, size, `cut to ${size}`);
    }
  });

  it("refuses bytes after the last frame at their offset, wherever they are cut", async () => {
    const stream = frame(HELLO);
    for (const garbage of [Buffer.from("garbage"), Uint8Array.of(0), Uint8Array.of(0x28, 0xb5, 1), Buffer.alloc(100)]) {
      for (const size of [1, stream.length, 1 << 20]) {
        const { field, offset } = await error(Buffer.concat([stream, garbage]), size);
        assert.equal(field, "magic");
        assert.equal(offset, stream.length);
      }
    }
  });

  it("names the frame that can't be decompressed by its offset", async () => {
    for (const content of [text(500), text(500_000)]) {
      const good = frame(HELLO);
      const bad = frame(content);
      bad[bad.length - 1]! ^= 1; // the checksum
      const found = await error(Buffer.concat([good, bad, good]));
      assert.equal(found.field, "frame");
      assert.equal(found.offset, good.length);
    }
  });

  it("refuses reserved blocks, oversized blocks, dictionaries and the reserved header bit", async () => {
    const cases: readonly [string, readonly number[], number][] = [
      ["block type", [0x00, 0x70, 0x07, 0, 0], 6],
      ["block size", [0x00, 0x70, 0xfd, 0xff, 0xff], 6],
      ["dictionary id", [0x01, 0x70, 5, 1, 0, 0], 0],
      ["frame header descriptor", [0x08, 0x70, 1, 0, 0], 4],
    ];
    for (const [field, rest, offset] of cases) {
      const found = await error(Buffer.from([0x28, 0xb5, 0x2f, 0xfd, ...rest]));
      assert.equal(found.field, field);
      assert.equal(found.offset, offset);
    }
  });

  it("accepts a window of 128 MiB and refuses a larger one before it is allocated", async () => {
    const windowLog = (log: number) => [0x00, (log - 10) << 3];
    assert.equal((await all(rleFrame(2, windowLog(27)))).length, 256 * 1024);
    for (const descriptor of [windowLog(28), windowLog(41), [0x00, ((27 - 10) << 3) | 1]]) {
      const { code, field } = await error(rleFrame(2, descriptor));
      assert.equal(field, "window size");
      assert.equal(code, "RESOURCE_EXHAUSTED");
    }
  });

  it("stops a bomb at the limit", async () => {
    const bomb = rleFrame(1000);
    assert.ok(bomb.length < 5000);
    const found = await failure(collect(unzstd(chunked(bomb, 1 << 20), { maximumSize: 10 << 20 })));
    assert.equal(found.code, "RESOURCE_EXHAUSTED");
    let size = 0;
    for await (const piece of unzstd(chunked(bomb, 1 << 20), { maximumSize: 125 << 20 })) size += piece.length;
    assert.equal(size, 125 << 20);
  });

  it("gives 20,000 small frames in few pieces", async () => {
    const one = frame(HELLO);
    let count = 0;
    let size = 0;
    for await (const piece of unzstd(chunked(Buffer.concat(Array(20_000).fill(one)), 1 << 20))) {
      count++;
      size += piece.length;
    }
    assert.equal(size, 20_000 * HELLO.length);
    assert.ok(count <= 2, `${count} pieces`);
  });

  it("an aborted call settles as CANCELLED after its source was let go", async () => {
    const abort = new AbortController();
    let closed = false;
    const source = async function* () {
      try {
        yield* chunked(frame(noise(5 << 20)), 1 << 18);
      } finally {
        closed = true;
      }
    };
    const run = async () => {
      for await (const _ of unzstd(source(), { signal: abort.signal })) abort.abort();
    };
    await assert.rejects(run(), (e) => ShaleError.is(e, "CANCELLED"));
    assert.ok(closed);
  });

  it("returns or throws FormatError for any bytes", async () => {
    const sound = Buffer.concat([frame(text(300)), skippable(noise(4)), frame(noise(50)), frame(HELLO)]);
    const change = fc.tuple(fc.nat(sound.length - 1), fc.nat(255));
    await fc.assert(
      fc.asyncProperty(
        fc.array(change, { minLength: 1, maxLength: 3 }),
        fc.integer({ min: 1, max: 600 }),
        async (changes, size) => {
          const stream = Buffer.from(sound);
          for (const [at, value] of changes) stream[at] = value;
          const options = { maximumSize: 1 << 20 };
          await collect(unzstd(chunked(stream, size), options)).catch((e: unknown) => {
            if (!(e instanceof ShaleError) || e.name !== "FormatError") throw e;
          });
        },
      ),
      { numRuns: FUZZ_RUNS },
    );
  });
});

describe("scanZstdFrames()", () => {
  it("gives where each frame is without decompressing, for any chunks", async () => {
    const parts = [skippable(noise(9), 3), frame(HELLO), frame(text(500_000)), frame(noise(300_000))];
    for (const size of [11, 4096, 1 << 20]) {
      const found = [];
      for await (const one of scanZstdFrames(chunked(Buffer.concat(parts), size))) found.push(one);
      let offset = 0;
      assert.equal(found.length, parts.length);
      for (const [i, one] of found.entries()) {
        assert.deepEqual([one.offset, one.size], [offset, parts[i]!.length]);
        offset += one.size;
      }
      const [first, second] = found;
      assert.deepEqual(first!.header, { kind: "skippable", size: 8, variant: 3, dataSize: 9 });
      assert.equal(second!.header.kind === "frame" && second!.header.contentSize, HELLO.length);
    }
  });
});

describe("parseZstdFrameHeader()", () => {
  it("reads every width of content size, window and dictionary id", () => {
    const magic = [0x28, 0xb5, 0x2f, 0xfd];
    const cases: readonly [readonly number[], object][] = [
      [[0x20, 200], { size: 6, windowSize: 200, contentSize: 200, dictionaryId: 0, hasChecksum: false }],
      [[0x60, 1, 1], { size: 7, windowSize: 513, contentSize: 513, dictionaryId: 0, hasChecksum: false }],
      [
        [0x84, 0x09, 0, 0, 0, 0x80],
        { size: 10, windowSize: 2304, contentSize: 2 ** 31, dictionaryId: 0, hasChecksum: true },
      ],
      [
        [0xc3, 0x00, 4, 3, 2, 1, 0, 0, 0, 0, 1, 0, 0, 0],
        { size: 18, windowSize: 1024, contentSize: 2 ** 32, dictionaryId: 0x01020304, hasChecksum: false },
      ],
      [
        [0x02, 0x07, 1, 2],
        { size: 8, windowSize: 1920, contentSize: undefined, dictionaryId: 513, hasChecksum: false },
      ],
    ];
    for (const [rest, expected] of cases) {
      const bytes = Uint8Array.from([9, ...magic, ...rest]);
      assert.deepEqual(parseZstdFrameHeader(bytes, 1), { kind: "frame", ...expected });
      for (let cut = 1; cut < bytes.length; cut++)
        assert.equal(parseZstdFrameHeader(bytes.subarray(0, cut), 1), undefined);
    }
    assert.equal(ZSTD_WINDOW_MAX, 2 ** 27);
  });

  it("refuses a content size over 2^53", async () => {
    const bytes = Uint8Array.from([0x28, 0xb5, 0x2f, 0xfd, 0xe0, 255, 255, 255, 255, 255, 255, 255, 255]);
    assert.equal((await failure((async () => parseZstdFrameHeader(bytes, 0))())).code, "RESOURCE_EXHAUSTED");
  });
});

describe("detectCompression()", () => {
  for (const [name, head, expected] of [
    ["gzip", [0x1f, 0x8b, 8, 0], "gzip"],
    ["a zstd frame", [0x28, 0xb5, 0x2f, 0xfd], "zstd"],
    ["the first skippable frame", [0x50, 0x2a, 0x4d, 0x18], "zstd"],
    ["the last skippable frame", [0x5f, 0x2a, 0x4d, 0x18], "zstd"],
    ["a file name", [0x75, 0x73, 0x72, 0x2f], "none"],
    ["the end of a tar", [0, 0, 0, 0], "none"],
    ["nothing", [], "none"],
    ["one byte of gzip", [0x1f], "none"],
  ] as const) {
    it(`tells ${expected} for ${name}`, () => assert.equal(detectCompression(Uint8Array.from(head)), expected));
  }
});

describe("decompress() of none", () => {
  it("hands the chunks through and keeps the limit", async () => {
    const content = noise(100_000);
    assert.ok((await collect(decompress(chunked(content, 999), "none"))).equals(content));
    const found = await failure(collect(decompress(chunked(content, 999), "none", { maximumSize: 99_999 })));
    assert.equal(found.code, "RESOURCE_EXHAUSTED");
  });
});
