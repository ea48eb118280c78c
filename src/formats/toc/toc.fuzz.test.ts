/** Fuzz targets: made-up and mutated input gives a result, a FormatError or DATA_LOSS, nothing else. And properties. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { gunzipSync, gzipSync, zstdCompressSync, zstdDecompressSync } from "node:zlib";
import { createHash } from "node:crypto";
import fc from "fast-check";
import { ShaleError } from "../../errors/index.ts";
import { readJsonList, readJsonSequence } from "./json-values.ts";
import { decodeEstargzFooter, findTocPointer, findZstdChunkedFooter, LayerToc, type TocLocation } from "./index.ts";
import { locate, readVector, regionOf } from "./testing.ts";
import { Crc64, goString, rfc3339 } from "./writing.ts";

const RUNS = { numRuns: 300 };
const zstd = readVector("skopeo.zstd-chunked");
const estargz = readVector("ctr-remote.estargz");

async function holds(act: () => unknown): Promise<void> {
  try {
    await act();
  } catch (error) {
    if (
      ShaleError.is(error) &&
      ["INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "DATA_LOSS", "UNIMPLEMENTED"].includes(error.code)
    )
      return;
    throw error;
  }
}

async function play(location: TocLocation, blob: Uint8Array, pieceSize = 4096): Promise<void> {
  const toc = await LayerToc.open(location, regionOf(blob, pieceSize));
  for await (const _ of toc.replay({ raw() {}, entry() {}, payload() {}, endEntry() {} }));
}

/** A document with some of its bytes changed, or parts of it left out or doubled. */
function mutated(document: Uint8Array): fc.Arbitrary<Buffer> {
  const edit = fc.record({
    at: fc.nat(document.length - 1),
    length: fc.nat(40),
    bytes: fc.oneof(
      fc.uint8Array({ maxLength: 8 }),
      fc.constantFrom(
        ...["{", "}", "[", "]", ",", '"', "\\", "null", "-1", "1e99", "99999999999999999999"].map((s) =>
          Buffer.from(s),
        ),
      ),
    ),
  });
  return fc.array(edit, { minLength: 1, maxLength: 4 }).map((edits) => {
    let bytes = Buffer.from(document);
    for (const { at, length, bytes: put } of edits)
      bytes = Buffer.concat([bytes.subarray(0, at), put, bytes.subarray(at + length)]);
    return bytes;
  });
}

describe("fuzz", () => {
  test("footers and annotations of any bytes", async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 100 }), fc.nat(), fc.string(), async (tail, size, text) => {
        await holds(() => findZstdChunkedFooter(tail, size));
        await holds(() => decodeEstargzFooter(tail, size, Buffer.alloc(32)));
        await holds(() =>
          findTocPointer({ ...zstd.annotations, "io.github.containers.zstd-chunked.manifest-position": text }, size),
        );
      }),
      RUNS,
    );
  });

  test("a zstd:chunked blob with changed bytes at its end", async () => {
    const location = locate(zstd.blob, zstd.annotations);
    const { region } = location;
    const unsigned: TocLocation = { ...location, format: "zstd:chunked", digest: undefined } as TocLocation;
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.nat(region.length - 1), fc.nat(255)), { minLength: 1, maxLength: 3 }),
        async (changes) => {
          const blob = Buffer.from(zstd.blob);
          for (const [at, value] of changes) blob[region.offset + at] = value;
          await holds(() => play(unsigned, blob));
        },
      ),
      RUNS,
    );
  });

  test("a zstd:chunked TOC and tar-split that were edited", async () => {
    const location = locate(zstd.blob, zstd.annotations);
    assert.ok(location.format === "zstd:chunked");
    const { toc, tarSplit } = location;
    const json = zstdDecompressSync(zstd.blob.subarray(toc.offset, toc.offset + toc.length));
    const split = zstdDecompressSync(zstd.blob.subarray(tarSplit.offset, tarSplit.offset + tarSplit.length));
    const arbitrary = fc.tuple(
      fc.oneof(fc.constant(json), mutated(json)),
      fc.oneof(fc.constant(split), mutated(split)),
    );
    await fc.assert(
      fc.asyncProperty(arbitrary, async ([jsonBytes, splitBytes]) => {
        const splitStored = zstdCompressSync(splitBytes);
        const digest = `sha256:${createHash("sha256").update(splitStored).digest("hex")}`;
        const text = jsonBytes.toString("latin1").replace(/"tarSplitDigest":"[^"]*"/, `"tarSplitDigest":"${digest}"`);
        const document = Buffer.from(text, "latin1");
        const stored = zstdCompressSync(document);
        const blob = Buffer.concat([zstd.blob.subarray(0, toc.offset), stored, Buffer.alloc(8), splitStored]);
        await holds(() =>
          play(
            {
              ...{ format: "zstd:chunked", blobSize: blob.length, digest: undefined },
              region: { offset: toc.offset, length: blob.length - toc.offset },
              toc: { offset: toc.offset, length: stored.length, size: document.length },
              tarSplit: { offset: toc.offset + stored.length + 8, length: splitStored.length, size: splitBytes.length },
            },
            blob,
          ),
        );
      }),
      RUNS,
    );
  });

  test("an eStargz TOC that was edited", async () => {
    const { region } = locate(estargz.blob, estargz.annotations);
    const member = gunzipSync(estargz.blob.subarray(region.offset, region.offset + region.length));
    const size = Number.parseInt(member.toString("latin1", 124, 135), 8);
    const json = member.subarray(512, 512 + size);
    await fc.assert(
      fc.asyncProperty(mutated(json), fc.boolean(), async (document, outside) => {
        const tar = outside
          ? document
          : Buffer.concat([
              resized(member.subarray(0, 512), document.length),
              document,
              Buffer.alloc(2048 - (document.length % 512)),
            ]);
        const stored = gzipSync(tar);
        const blob = Buffer.concat([estargz.blob.subarray(0, region.offset), stored, Buffer.alloc(51)]);
        const digest = createHash("sha256").update(document).digest();
        await holds(() =>
          play(
            {
              format: "estargz",
              blobSize: blob.length,
              region: { offset: region.offset, length: stored.length },
              digest,
            },
            blob,
          ),
        );
      }),
      RUNS,
    );
  });
});

/** A tar header with another size. */
function resized(block: Uint8Array, size: number): Buffer {
  const header = Buffer.from(block);
  header.write(size.toString(8).padStart(11, "0"), 124, "latin1");
  header.fill(0x20, 148, 156);
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
  return header;
}

async function* cut(bytes: Uint8Array, sizes: readonly number[]): AsyncGenerator<Uint8Array> {
  let at = 0;
  for (let i = 0; at < bytes.length; i++) {
    const size = sizes.length === 0 ? bytes.length : sizes[i % sizes.length]!;
    yield bytes.subarray(at, at + size);
    at += size;
  }
}

const sizes = fc.array(fc.integer({ min: 1, max: 50 }), { maxLength: 5 });

describe("properties", () => {
  test("readJsonList() gives the elements and members of any document, whatever the cut", async () => {
    const element = fc.dictionary(fc.string(), fc.jsonValue());
    const arbitrary = fc.record({
      list: fc.array(element, { maxLength: 6 }),
      other: fc.jsonValue(),
      space: fc.constantFrom("", "\t", "  "),
    });
    await fc.assert(
      fc.asyncProperty(arbitrary, sizes, fc.boolean(), async ({ list, other, space }, cuts, first) => {
        const document = first ? { list, other } : { other, list };
        const text = JSON.stringify(document, null, space);
        const read = readJsonList(cut(Buffer.from(text), cuts), "list", "TOC", 1e6);
        const elements = await Array.fromAsync(read.elements);
        assert.deepEqual(
          elements.map(({ value }) => JSON.stringify(value)),
          list.map((value) => JSON.stringify(value)),
        );
        assert.equal(JSON.stringify(read.members.get("other")), JSON.stringify(other));
      }),
      RUNS,
    );
  });

  test("readJsonSequence() gives the objects of any sequence, whatever the cut", async () => {
    const list = fc.array(fc.dictionary(fc.string(), fc.jsonValue()), { maxLength: 6 });
    await fc.assert(
      fc.asyncProperty(list, sizes, fc.constantFrom("\n", "", " \r\n"), async (values, cuts, between) => {
        const text = values.map((value) => JSON.stringify(value)).join(between);
        const read = await Array.fromAsync(readJsonSequence(cut(Buffer.from(text), cuts), "tar-split", 1e6));
        assert.deepEqual(
          read.map(({ value }) => JSON.stringify(value)),
          values.map((value) => JSON.stringify(value)),
        );
        const offsets = read.map(({ offset }) => Buffer.from(text)[offset]);
        assert.ok(offsets.every((byte) => byte === 0x7b));
      }),
      RUNS,
    );
  });

  test("Crc64 is that of Go, whatever the cut", async () => {
    assert.equal(
      Buffer.from(new Crc64().update(Buffer.from("123456789")).digest()).toString("hex"),
      "b90956c775a41001",
    );
    await fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), fc.nat(200), (bytes, at) => {
        const whole = new Crc64().update(bytes).digest();
        assert.deepEqual(new Crc64().update(bytes.subarray(0, at)).update(bytes.subarray(at)).digest(), whole);
        assert.equal(Buffer.from(whole).readBigUInt64BE(), slowCrc64(bytes));
      }),
      RUNS,
    );
  });

  test("goString() is JSON that means the same, in ASCII where Go escapes", () => {
    assert.equal(goString("<&>\t"), '"\\u003c\\u0026\\u003e\\t"');
    assert.equal(goString(Buffer.from("\u2028é").toString("latin1")), '"\\u2028é"');
    assert.throws(() => goString("\xff"), RangeError);
    fc.assert(
      fc.property(fc.string({ unit: "grapheme" }), (text) => {
        assert.equal(JSON.parse(goString(Buffer.from(text).toString("latin1"))), text);
      }),
      RUNS,
    );
  });

  test("rfc3339() tells years 0 to 9999", () => {
    assert.equal(rfc3339(0, 0), "1970-01-01T00:00:00Z");
    assert.equal(rfc3339(-2, 500_000_000), "1969-12-31T23:59:58.5Z");
    assert.equal(rfc3339(-62_167_219_200, 1), "0000-01-01T00:00:00.000000001Z");
    assert.equal(rfc3339(253_402_300_799, 999_999_999), "9999-12-31T23:59:59.999999999Z");
    assert.equal(rfc3339(253_402_300_800, 0), undefined);
    assert.equal(rfc3339(-62_167_219_201, 0), undefined);
  });
});

/** ISO 3309, bit by bit. */
function slowCrc64(bytes: Uint8Array): bigint {
  let crc = 2n ** 64n - 1n;
  for (const byte of bytes) {
    crc ^= BigInt(byte);
    for (let bit = 0; bit < 8; bit++) crc = crc & 1n ? (crc >> 1n) ^ 0xd800000000000000n : crc >> 1n;
  }
  return crc ^ (2n ** 64n - 1n);
}
