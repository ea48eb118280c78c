import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { constants, zstdCompressSync } from "node:zlib";
import fc from "fast-check";
import { decompress, decompressZstdChunk, type FramesBackend } from "../formats/compression/index.ts";
import { chunked, collect, noise, text } from "../formats/compression/testing.ts";
import { ShaleError } from "../errors/index.ts";
import { loadZstdFrames } from "./zstd-frames.ts";

const RUNS = Number(process.env.SHALE_FUZZ_RUNS ?? 60);

function frame(content: Uint8Array, params: Record<number, number | boolean> = {}): Buffer {
  return zstdCompressSync(content, { params: { [constants.ZSTD_c_checksumFlag]: 1, ...params } });
}

/** The bytes, or all that an error says. */
async function outcome(stream: Uint8Array, frames: FramesBackend | undefined, size: number, maximumSize?: number) {
  try {
    const options = { frames, ...(maximumSize !== undefined && { maximumSize }) };
    return { bytes: (await collect(decompress(chunked(stream, size), "zstd", options))).toString("base64") };
  } catch (error) {
    assert.ok(ShaleError.is(error), String(error));
    return { code: error.code, message: error.message };
  }
}

async function assertSame(stream: Uint8Array, size = 1 << 20, maximumSize?: number) {
  const [own, node] = await Promise.all([
    outcome(stream, loadZstdFrames(), size, maximumSize),
    outcome(stream, undefined, size, maximumSize),
  ]);
  assert.deepEqual(own, node);
  return own;
}

/** A stream as zstd:chunked has it: a frame for each file or part of one. */
const contents = [40_000, 10, 0, 90_000, 5_000, 300_000, 70_000, 1, 64_000].map((size, i) =>
  i % 3 === 0 ? noise(size) : i % 3 === 1 ? text(size) : Buffer.alloc(size, i),
);
const stream = Buffer.concat(contents.map((content) => frame(content)));

describe("loadZstdFrames()", () => {
  test("finds libzstd in the pinned Node, and the same each time", () => {
    assert.equal(loadZstdFrames()?.name, "libzstd");
    assert.equal(loadZstdFrames(), loadZstdFrames());
  });

  test("takes many frames in one call, and writes nothing behind the room", async () => {
    const decoder = loadZstdFrames()!.open();
    const all = Buffer.concat(contents);
    for (const spare of [0, 100]) {
      const memory = Buffer.alloc(all.length + spare + 4096, 7);
      assert.equal(await decoder.decompress(stream, memory.subarray(0, all.length + spare)), all.length);
      assert.ok(memory.subarray(0, all.length).equals(all));
      assert.ok(memory.subarray(all.length + spare).every((byte) => byte === 7));
    }
    assert.equal(await decoder.decompress(stream, Buffer.alloc(all.length - 1)), undefined);
    assert.equal(decoder.decompressSync(stream.subarray(0, -1), Buffer.alloc(all.length)), undefined);
    assert.equal(decoder.decompressSync(frame(Buffer.from("shale")), Buffer.alloc(5)), 5);
    decoder.close();
    decoder.close();
  });
});

describe("a zstd stream with it and without it", () => {
  test("gives the same bytes, however it is cut", async () => {
    for (const size of [997, 20_000, 200_000, 1 << 20]) {
      const { bytes } = await assertSame(stream, size);
      assert.equal(bytes, Buffer.concat(contents).toString("base64"), `chunks of ${size}`);
    }
  });

  test("gives the same for frames that say no size, that are larger than a piece, and that are no data", async () => {
    const params = { [constants.ZSTD_c_contentSizeFlag]: 0 };
    const skippable = Buffer.from([0x5e, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
    const parts = [
      ...[noise(30_000), text(200_000), noise(20_000)].map((content) => frame(content, params)),
      skippable,
      frame(noise(1_200_000)),
      ...Array.from({ length: 40 }, (_, i) => frame(noise(30_000 + i))),
      skippable,
    ];
    assert.ok("bytes" in (await assertSame(Buffer.concat(parts))));
  });

  test("refuses the same byte of a stream, whichever frame is damaged, cut or foreign", async () => {
    let refused = 0;
    for (let at = 3; at < stream.length; at += 7_919) {
      const damaged = Buffer.from(stream);
      damaged[at]! ^= 0x10;
      if ("code" in (await assertSame(damaged))) refused++;
      assert.ok("code" in (await assertSame(stream.subarray(0, at))), `cut to ${at}`);
    }
    assert.ok(refused > 10, `${refused} refused`);
    assert.ok("code" in (await assertSame(Buffer.concat([stream, Buffer.from("garbage")]))));
  });

  test("is looked at once: what a backend does not take, or is too little for it, goes frame by frame", async () => {
    let calls = 0;
    const decompress = async () => {
      calls++;
      return undefined;
    };
    const refusing: FramesBackend = {
      name: "refusing",
      open: () => ({ decompress, decompressSync: () => undefined, close: () => undefined }),
    };
    const many = Buffer.concat(Array.from({ length: 60 }, (_, i) => frame(noise(1000 + i))));
    const { bytes } = await outcome(many, refusing, 1 << 20);
    assert.equal(bytes, (await outcome(many, undefined, 1 << 20)).bytes);
    assert.equal(calls, 1);
  });

  test("stops at the same limit", async () => {
    const size = Buffer.concat(contents).length;
    assert.ok("bytes" in (await assertSame(stream, 1 << 20, size)));
    assert.equal((await assertSame(stream, 1 << 20, size - 1)).code, "RESOURCE_EXHAUSTED");
  });

  test("is the same for random frames with random damage", async () => {
    const piece = fc.record({ size: fc.nat(60_000), kind: fc.nat(2), checksum: fc.boolean(), sized: fc.boolean() });
    const damage = fc.option(fc.record({ at: fc.double({ min: 0, max: 1, noNaN: true }), bit: fc.nat(7) }));
    await fc.assert(
      fc.asyncProperty(
        fc.array(piece, { minLength: 1, maxLength: 12 }),
        damage,
        fc.nat(2),
        async (pieces, hit, cut) => {
          const bytes = Buffer.concat(
            pieces.map(({ size, kind, checksum, sized }) =>
              frame([noise(size), text(size), Buffer.alloc(size)][kind]!, {
                [constants.ZSTD_c_checksumFlag]: checksum ? 1 : 0,
                [constants.ZSTD_c_contentSizeFlag]: sized ? 1 : 0,
              }),
            ),
          );
          if (hit !== null) bytes[Math.min(bytes.length - 1, Math.floor(hit.at * bytes.length))]! ^= 1 << hit.bit;
          await assertSame(bytes, [30_000, 100_000, 1 << 20][cut]!);
        },
      ),
      { numRuns: RUNS },
    );
  });

  test("is the same chunk, or the same refusal", () => {
    const decoder = loadZstdFrames()!.open();
    const content = text(50_000);
    const bytes = frame(content);
    const damaged = Buffer.from(bytes);
    damaged[bytes.length >> 1]! ^= 4;
    assert.ok(Buffer.from(decompressZstdChunk(bytes, content.length, decoder)).equals(content));
    for (const [given, size] of [
      [damaged, content.length],
      [bytes, content.length - 1],
      [bytes, content.length + 1],
      [bytes.subarray(0, -1), content.length],
      [frame(content, { [constants.ZSTD_c_contentSizeFlag]: 0 }), content.length - 1],
    ] as const) {
      const told = [decoder, undefined].map((one) => {
        try {
          decompressZstdChunk(given, size, one);
          return "taken";
        } catch (error) {
          return String(error);
        }
      });
      assert.equal(told[0], told[1]);
      assert.notEqual(told[0], "taken");
    }
    decoder.close();
  });
});
