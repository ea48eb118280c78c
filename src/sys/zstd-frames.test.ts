import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { describe, test } from "node:test";
import { constants, zstdCompressSync, zstdDecompressSync } from "node:zlib";
import fc from "fast-check";
import {
  decompress,
  decompressZstdChunk,
  type FramesBackend,
  parseZstdFrameHeader,
  SeekableFrameDecoder,
  SeekableFrameEncoder,
} from "../formats/compression/index.ts";
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
      openEncoder: () => assert.fail("nothing is compressed"),
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

describe("loadZstdFrames().openEncoder()", () => {
  const contents: readonly (readonly [string, Buffer])[] = [
    ["nothing", Buffer.alloc(0)],
    ["a byte", Buffer.from("x")],
    ["zeros", Buffer.alloc(1_000_000)],
    ["noise", randomBytes(1_048_576)],
    ["text of several blocks", Buffer.from(Array.from({ length: 100_000 }, (_, i) => `${i * 7919}\n`).join(""))],
    ["noise in text", Buffer.concat([Buffer.from("text ".repeat(40_000)), randomBytes(200_000), Buffer.alloc(70_000)])],
  ];

  for (const [what, content] of contents) {
    for (const level of [1, 3]) {
      test(`makes a frame of ${what} that all can read, at level ${level}, and the same one again`, async () => {
        const [own, node] = [new SeekableFrameEncoder(level, loadZstdFrames()), new SeekableFrameEncoder(level)];
        const bytes = Buffer.from(await own.compress(content));
        assert.ok(Buffer.from(await own.compress(content)).equals(bytes));
        assert.ok(zstdDecompressSync(bytes).equals(content));
        const theirs = Buffer.from(await node.compress(content));
        assert.ok(Math.abs(bytes.length - theirs.length) <= 8 + content.length / 1000, `${bytes.length} bytes`);
        const facts = [bytes, theirs].map((given) => {
          const header = parseZstdFrameHeader(given, 0);
          return header?.kind === "frame" ? [header.contentSize, header.hasChecksum] : header;
        });
        assert.deepEqual(facts, [
          [content.length, true],
          [content.length, true],
        ]);
        const decoder = new SeekableFrameDecoder(loadZstdFrames());
        for (const given of [bytes, theirs]) {
          const frame = { compressedOffset: 0, compressedSize: given.length, offset: 0, size: content.length };
          if (content.length > 0) assert.ok(Buffer.from(await decoder.decompress(given, frame)).equals(content));
        }
        for (const codec of [own, node, decoder]) codec.close();
      });
    }
  }

  test("a decoder says of damage, and of another size, what it says without the library", async () => {
    const content = randomBytes(5000);
    const bytes = Buffer.from(await new SeekableFrameEncoder(1).compress(content));
    const damaged = Buffer.from(bytes);
    damaged[100]! ^= 1;
    for (const [given, size] of [
      [damaged, 5000],
      [bytes, 4999],
      [bytes, 5001],
      [bytes.subarray(0, -3), 5000],
    ] as const) {
      const frame = { compressedOffset: 7, compressedSize: given.length, offset: 0, size };
      const said = await Promise.all(
        [loadZstdFrames(), undefined].map(async (backend) => {
          const decoder = new SeekableFrameDecoder(backend);
          try {
            await decoder.decompress(given, frame);
            return assert.fail("damage was not noticed");
          } catch (error) {
            assert.ok(ShaleError.is(error));
            return [error.code, error.message];
          } finally {
            decoder.close();
          }
        }),
      );
      assert.deepEqual(said[0], said[1]);
    }
  });
});
