import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { constants, zstdCompressSync } from "node:zlib";
import fc from "fast-check";
import { FormatError } from "../../errors/index.ts";
import { decompressZstdChunk } from "./index.ts";

const CHECKSUM = { params: { [constants.ZSTD_c_checksumFlag]: 1 } };
const data = Buffer.from("some bytes, ".repeat(9000));

describe("decompressZstdChunk()", () => {
  test("gives the content of the first frame, with or without a checksum, and ignores what follows", () => {
    for (const frame of [zstdCompressSync(data), zstdCompressSync(data, CHECKSUM)]) {
      assert.deepEqual(Buffer.from(decompressZstdChunk(frame, data.length)), data);
      const more = Buffer.concat([frame, zstdCompressSync("next"), Buffer.from("rest")]);
      assert.deepEqual(Buffer.from(decompressZstdChunk(more, data.length)), data);
    }
  });

  test("refuses a frame that gives more or less than it should, before it is decompressed", () => {
    const frame = zstdCompressSync(Buffer.alloc(1 << 24));
    for (const size of [1, (1 << 24) - 1, (1 << 24) + 1]) {
      assert.throws(() => decompressZstdChunk(frame, size), /content size|instead of|can't be decompressed/);
    }
  });

  test("returns or throws FormatError, nothing else", () => {
    const frame = zstdCompressSync(data, CHECKSUM);
    fc.assert(
      fc.property(fc.nat(frame.length - 1), fc.nat(255), fc.nat(frame.length), (at, byte, end) => {
        const broken = Buffer.from(frame.subarray(0, end));
        if (at < end) broken[at] = byte;
        try {
          assert.equal(decompressZstdChunk(broken, data.length).length, data.length);
        } catch (error) {
          assert.ok(error instanceof FormatError, String(error));
        }
      }),
      { numRuns: 500 },
    );
  });
});
