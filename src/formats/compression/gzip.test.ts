/** The contract of gzip decompression, held by each backend that this machine has. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { ShaleError } from "../../errors/index.ts";
import { loadIsal } from "../../sys/isal.ts";
import {
  decompress,
  type InflateBackend,
  LOOKAHEAD,
  PIECE_SIZE,
  parseGzipHeader,
  scanGzipMembers,
  zlibInflate,
} from "./index.ts";
import { chunked, collect, failure, member, noise, pieces, text } from "./testing.ts";

const FUZZ_RUNS = Number(process.env.SHALE_FUZZ_RUNS ?? 100);
const isal = loadIsal();
const BACKENDS: readonly InflateBackend[] = isal === undefined ? [zlibInflate] : [zlibInflate, isal];

const HELLO = Buffer.from("hello, layer");

for (const inflate of BACKENDS) {
  const gunzip = (source: AsyncIterable<Uint8Array>, options: { signal?: AbortSignal; maximumSize?: number } = {}) =>
    decompress(source, "gzip", { inflate, ...options });
  const all = (bytes: Uint8Array, size = 1 << 20) => collect(gunzip(chunked(bytes, size)));
  const error = (bytes: Uint8Array, size = 1 << 20) => failure(all(bytes, size));

  describe(`decompress() of gzip by ${inflate.name}`, () => {
    it("gives the content of members made by zlib at each level", async () => {
      const content = text(1_500_000);
      for (const level of [0, 1, 6, 9])
        assert.ok((await all(gzipSync(content, { level }))).equals(content), `${level}`);
    });

    it("accepts every header field, and members without content", async () => {
      const stream = Buffer.concat([
        member(HELLO, { extra: noise(300), name: "a name", comment: "a comment", headerCrc: true }),
        member(Buffer.alloc(0)),
        member(HELLO, { extra: Buffer.alloc(0) }),
        member(Buffer.alloc(0), { name: "" }),
        member(HELLO, { comment: "x", headerCrc: true }),
      ]);
      assert.equal((await all(stream)).toString(), HELLO.toString().repeat(3));
    });

    it("does not depend on where the stream is cut in two", async () => {
      const content = [HELLO, noise(40), text(400), Buffer.alloc(300)];
      const stream = Buffer.concat([
        member(content[0]!, { name: "n", extra: noise(5), headerCrc: true }),
        member(content[1]!, { level: 0 }),
        member(content[2]!),
        member(content[3]!),
        Buffer.alloc(5),
      ]);
      const expected = Buffer.concat(content);
      for (let cut = 0; cut <= stream.length; cut++) {
        const result = await collect(gunzip(pieces(stream.subarray(0, cut), stream.subarray(cut))));
        assert.ok(result.equals(expected), `cut at ${cut}`);
      }
    });

    it("does not depend on the chunk size", async () => {
      const content = [text(200_000), noise(70_000), Buffer.alloc(300_000), text(10)];
      const stream = Buffer.concat(content.map((one, i) => member(one, { level: [6, 1, 9, 0][i]! })));
      const expected = Buffer.concat(content);
      for (const size of [997, 4096, 65_537])
        assert.ok((await all(stream, size)).equals(expected), `chunks of ${size}`);
      const small = member(text(900), { name: "byte by byte" });
      assert.ok((await all(small, 1)).equals(text(900)));
    });

    it("gives any members, cut anywhere", async () => {
      const one = fc.record({
        size: fc.nat(100_000),
        kind: fc.nat(2),
        level: fc.constantFrom(0, 1, 6, 9),
        seed: fc.nat(1000),
      });
      await fc.assert(
        fc.asyncProperty(
          fc.array(one, { minLength: 1, maxLength: 5 }),
          fc.integer({ min: 50, max: 200_000 }),
          async (list, size) => {
            const content = list.map((m) =>
              m.kind === 0 ? text(m.size, m.seed) : m.kind === 1 ? noise(m.size, m.seed) : Buffer.alloc(m.size),
            );
            const stream = Buffer.concat(content.map((c, i) => member(c, { level: list[i]!.level })));
            assert.ok((await all(stream, size)).equals(Buffer.concat(content)));
          },
        ),
        { numRuns: 12 },
      );
    });

    it("refuses a stream that ends at any byte but the last", async () => {
      const stream = Buffer.concat([member(HELLO), member(text(100), { name: "n", extra: noise(3), headerCrc: true })]);
      const boundary = member(HELLO).length;
      for (let size = 0; size < stream.length; size++) {
        if (size === boundary) continue;
        const { field, offset, code } = await error(stream.subarray(0, size));
        assert.match(field, /header|deflate stream|trailer/, `cut to ${size}`);
        assert.equal(offset, size);
        assert.equal(code, "INVALID_ARGUMENT");
      }
      assert.ok((await all(stream.subarray(0, boundary))).equals(HELLO));
    });

    it("refuses bytes after the last member at their offset, wherever they are cut", async () => {
      const stream = member(HELLO);
      for (const [garbage, at] of [
        [Buffer.from("garbage"), 0],
        [Uint8Array.of(1), 0],
        [Uint8Array.of(0, 0, 0, 7), 3],
        [Buffer.concat([Buffer.alloc(3), member(HELLO)]), 3],
        [Uint8Array.of(0x1f, 0x00), 0],
      ] as const) {
        for (const size of [1, stream.length, 1 << 20]) {
          const { offset } = await error(Buffer.concat([stream, garbage]), size);
          assert.equal(offset, stream.length + at, `chunks of ${size}`);
        }
      }
    });

    it("accepts zero padding after the last member", async () => {
      for (const size of [1, 2, 511, 5000]) {
        for (const chunk of [7, member(HELLO).length, 1 << 20]) {
          assert.ok((await all(Buffer.concat([member(HELLO), Buffer.alloc(size)]), chunk)).equals(HELLO));
        }
      }
    });

    it("refuses a wrong CRC-32 and a wrong ISIZE", async () => {
      for (const [at, field, offset] of [
        [8, "CRC-32", 8],
        [5, "CRC-32", 8],
        [4, "ISIZE", 4],
        [1, "ISIZE", 4],
      ] as const) {
        const stream = member(text(5000));
        stream[stream.length - at]! ^= 0x10;
        const found = await error(stream);
        assert.equal(found.field, field);
        assert.equal(found.offset, stream.length - offset);
      }
    });

    it("refuses headers that are none", async () => {
      for (const [at, value, field] of [
        [0, 0x1e, "magic"],
        [1, 0, "magic"],
        [2, 7, "compression method"],
        [3, 0x20, "flags"],
        [3, 0x80, "flags"],
      ] as const) {
        const stream = member(HELLO);
        stream[at] = value;
        assert.equal((await error(stream)).field, field);
      }
      const stream = member(HELLO, { name: "x", headerCrc: true });
      stream[10] = 0x79;
      assert.equal((await error(stream)).field, "header CRC");
    });

    it("names the member that can't be inflated by its offset", async () => {
      for (const before of [Buffer.alloc(0), member(HELLO), member(text(300_000))]) {
        // block type 3 is reserved; a distance before the start; a stored block whose lengths disagree
        for (const deflate of [[0x07], [0x63, 0x01, 0x12], [0x01, 1, 0, 1, 0]]) {
          const bad = Buffer.concat([member(HELLO).subarray(0, 10), Uint8Array.from(deflate), Buffer.alloc(40, 0xff)]);
          const { field, offset } = await error(Buffer.concat([before, bad]));
          assert.equal(field, "deflate stream");
          assert.equal(offset, before.length);
        }
      }
    });

    it("gives 20,000 small members in few pieces", async () => {
      const contents = Array.from({ length: 20_000 }, (_, i) => HELLO.subarray(0, i % 13));
      const members = new Map(contents.slice(0, 13).map((c) => [c.length, member(c)]));
      const stream = Buffer.concat(contents.map((c) => members.get(c.length)!));
      let count = 0;
      let size = 0;
      for await (const piece of gunzip(chunked(stream, 1 << 20))) {
        count++;
        size += piece.length;
      }
      assert.equal(
        size,
        contents.reduce((sum, c) => sum + c.length, 0),
      );
      assert.ok(count <= 2, `${count} pieces`);
    });

    it("gives large members among small ones", async () => {
      const contents = Array.from({ length: 60 }, (_, i) => (i % 7 === 3 ? text(150_000 + i, i) : text(i * 10, i)));
      const stream = Buffer.concat(contents.map((c) => member(c)));
      for (const size of [5000, 1 << 20]) assert.ok((await all(stream, size)).equals(Buffer.concat(contents)));
    });

    it("stops a bomb at the limit", async () => {
      const bomb = gzipSync(Buffer.alloc(32 << 20));
      const whole = await failure(collect(gunzip(chunked(bomb, 1 << 20), { maximumSize: 10 << 20 })));
      assert.equal(whole.code, "RESOURCE_EXHAUSTED");
      assert.equal((await collect(gunzip(chunked(bomb, 1 << 20), { maximumSize: 32 << 20 }))).length, 32 << 20);
    });

    it("runs ahead of its consumer by a few pieces, and no more", async () => {
      const stream = gzipSync(noise(16 << 20), { level: 0 });
      let read = 0;
      const source = async function* () {
        for (let at = 0; at < stream.length; at += PIECE_SIZE) {
          read++;
          yield stream.subarray(at, at + PIECE_SIZE);
        }
      };
      const iterator = gunzip(source());
      await iterator.next();
      // far more turns than the pieces need; what is read after them would be read without end
      let turns = 0;
      for (let last = -1; turns < 50; turns = read === last ? turns + 1 : 0) {
        last = read;
        await new Promise((resolve) => setTimeout(resolve, 2));
      }
      assert.ok(read > LOOKAHEAD, `${read} chunks were read`);
      assert.ok(read <= LOOKAHEAD + 4, `${read} chunks were read`);
      let rest = 0;
      for await (const piece of iterator) rest += piece.length;
      assert.ok(rest >= 15 << 20);
    });

    it("reads every byte of the source and lets it go, also when it fails or is left", async () => {
      let closed = 0;
      let read = 0;
      const source = async function* (bytes: Uint8Array) {
        try {
          for await (const chunk of chunked(bytes, 1000)) {
            read += chunk.length;
            yield chunk;
          }
        } finally {
          closed++;
        }
      };
      const stream = Buffer.concat([gzipSync(noise(3_000_000), { level: 0 }), Buffer.alloc(3000)]);
      await collect(gunzip(source(stream)));
      assert.equal(read, stream.length);
      assert.equal(closed, 1);
      await failure(collect(gunzip(source(Buffer.concat([HELLO, stream])))));
      assert.equal(closed, 2);
      for await (const _ of gunzip(source(stream))) break;
      assert.equal(closed, 3);
      const iterator = gunzip(source(stream));
      await iterator.next();
      await iterator.return?.();
      await iterator.return?.();
      assert.equal(closed, 4);
    });

    it("passes an error of the source on untouched", async () => {
      const own = new ShaleError("UNAVAILABLE", "Cannot go on");
      const source = async function* () {
        yield gzipSync(noise(100_000)).subarray(0, 50_000);
        throw own;
      };
      await assert.rejects(collect(gunzip(source())), (e) => e === own);
    });

    it("an aborted call settles as CANCELLED after its source was let go", async () => {
      const stream = gzipSync(noise(6 << 20), { level: 0 });
      for (const after of [0, 1, 3]) {
        const abort = new AbortController();
        let closed = false;
        const source = async function* () {
          try {
            yield* chunked(stream, 1 << 18);
          } finally {
            closed = true;
          }
        };
        let count = 0;
        const run = async () => {
          if (after === 0) abort.abort();
          for await (const _ of gunzip(source(), { signal: abort.signal })) if (++count === after) abort.abort();
        };
        await assert.rejects(run(), (e) => ShaleError.is(e, "CANCELLED"));
        assert.equal(count, after);
        assert.ok(closed || after === 0);
      }
    });

    it("scanGzipMembers() gives where each member and its content is", async () => {
      const contents = [HELLO, Buffer.alloc(0), text(1_500_000), text(9)];
      const members = contents.map((c, i) => member(c, { name: `${i}` }));
      const found = [];
      for await (const one of scanGzipMembers(chunked(Buffer.concat(members), 1000), { inflate })) found.push(one);
      let offset = 0;
      let contentOffset = 0;
      assert.equal(found.length, members.length);
      for (const [i, one] of found.entries()) {
        assert.equal(one.header.name, `${i}`);
        assert.deepEqual(
          [one.offset, one.size, one.contentOffset, one.contentSize],
          [offset, members[i]!.length, contentOffset, contents[i]!.length],
        );
        offset += one.size;
        contentOffset += one.contentSize;
      }
    });

    it("returns or throws FormatError for any bytes", async () => {
      const sound = Buffer.concat([
        member(text(300), { name: "n", extra: noise(4) }),
        member(noise(50)),
        member(HELLO),
      ]);
      const change = fc.tuple(fc.nat(sound.length - 1), fc.nat(255));
      await fc.assert(
        fc.asyncProperty(
          fc.array(change, { minLength: 1, maxLength: 3 }),
          fc.integer({ min: 1, max: 600 }),
          async (changes, size) => {
            const stream = Buffer.from(sound);
            for (const [at, value] of changes) stream[at] = value;
            await all(stream, size).catch((e: unknown) => {
              if (!(e instanceof ShaleError) || e.name !== "FormatError") throw e;
            });
          },
        ),
        { numRuns: FUZZ_RUNS },
      );
    });
  });
}

describe("decompress() of gzip", () => {
  it("gives the same bytes and the same errors whatever the backend and the chunks", async () => {
    const sound = Buffer.concat([member(text(200)), member(noise(60), { level: 0 }), member(HELLO, { name: "x" })]);
    const outcome = async (stream: Uint8Array, inflate: InflateBackend, size: number) => {
      try {
        return (await collect(decompress(chunked(stream, size), "gzip", { inflate }))).toString("latin1");
      } catch (error) {
        if (!(error instanceof ShaleError)) throw error;
        return error.message;
      }
    };
    for (let at = 0; at < sound.length; at += 3) {
      const stream = Buffer.from(sound);
      stream[at]! ^= 0x55;
      const expected = await outcome(stream, zlibInflate, 1 << 20);
      for (const inflate of BACKENDS) {
        for (const size of [13, 1 << 20])
          assert.equal(await outcome(stream, inflate, size), expected, `byte ${at}, ${inflate.name}`);
      }
    }
  });
});

describe("parseGzipHeader()", () => {
  it("gives the fields", () => {
    const bytes = Buffer.concat([
      noise(3),
      member(HELLO, { extra: Buffer.from("SG123"), name: "n\xe9", comment: "c", headerCrc: true }),
    ]);
    const header = parseGzipHeader(bytes, 3);
    assert.deepEqual(
      { ...header, extra: Buffer.from(header!.extra!).toString() },
      { size: 24, mtime: 0x04030201, extraFlags: 0, os: 3, isText: false, extra: "SG123", name: "n\xe9", comment: "c" },
    );
  });

  it("gives undefined for every sound beginning", () => {
    const bytes = member(HELLO, { extra: Buffer.from("SG123"), name: "n", comment: "c", headerCrc: true });
    const size = parseGzipHeader(bytes, 0)!.size;
    for (let cut = 0; cut < size; cut++) assert.equal(parseGzipHeader(bytes.subarray(0, cut), 0), undefined);
    assert.notEqual(parseGzipHeader(bytes.subarray(0, size), 0), undefined);
  });

  it("refuses a name without an end at the limit", async () => {
    const bytes = Buffer.concat([Uint8Array.of(0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 3), Buffer.alloc(300_000, 0x41)]);
    const { code, field } = await failure((async () => parseGzipHeader(bytes, 0))());
    assert.equal(code, "RESOURCE_EXHAUSTED");
    assert.equal(field, "header");
  });
});
