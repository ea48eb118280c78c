import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { decodeEstargzFooter, findTocPointer, findZstdChunkedFooter, TocAnnotation } from "./index.ts";
import { readVector } from "./testing.ts";
import { encodeEstargzFooter, ZSTD_FOOTER, ZSTD_FOOTER_FRAME, ZSTD_FOOTER_MAGIC, ZSTD_FOOTER_SIZE } from "./writing.ts";

const DIGEST = `sha256:${"ab".repeat(32)}`;
const BLOB_SIZE = 10_000;
const SOUND = {
  [TocAnnotation.ZSTD_CHECKSUM]: DIGEST,
  [TocAnnotation.ZSTD_POSITION]: "5000:100:900:1",
  [TocAnnotation.ZSTD_TAR_SPLIT_POSITION]: "5108:200:800",
};

describe("findTocPointer()", () => {
  test("finds nothing where there are no annotations", () => {
    assert.equal(findTocPointer({}, BLOB_SIZE), undefined);
    assert.equal(findTocPointer({ "org.example": "x" }, BLOB_SIZE), undefined);
  });

  test("tells the region of TOC and tar-split as one", () => {
    const pointer = findTocPointer(SOUND, BLOB_SIZE);
    assert.ok(pointer?.format === "zstd:chunked");
    assert.deepEqual(pointer.location.region, { offset: 5000, length: 308 });
    assert.deepEqual(pointer.location.tarSplit, { offset: 5108, length: 200, size: 800 });
  });

  test("leaves the place of an eStargz TOC to the footer", () => {
    const pointer = findTocPointer({ [TocAnnotation.ESTARGZ_DIGEST]: DIGEST }, BLOB_SIZE);
    assert.deepEqual(pointer, { format: "estargz", digest: Buffer.from("ab".repeat(32), "hex") });
  });

  const REFUSED: readonly (readonly [string, Record<string, string | undefined>, string, RegExp])[] = [
    [
      "two tables",
      { [TocAnnotation.ESTARGZ_DIGEST]: DIGEST },
      "INVALID_ARGUMENT",
      /a zstd:chunked TOC and an eStargz TOC/,
    ],
    ["a checksum that is none", { [TocAnnotation.ZSTD_CHECKSUM]: "sha256:xy" }, "INVALID_ARGUMENT", /is no SHA-256/],
    ["no position", { [TocAnnotation.ZSTD_POSITION]: undefined }, "INVALID_ARGUMENT", /is missing/],
    ["words as position", { [TocAnnotation.ZSTD_POSITION]: "a:b:c:d" }, "INVALID_ARGUMENT", /must be 4 numbers/],
    ["three numbers", { [TocAnnotation.ZSTD_POSITION]: "1:2:3" }, "INVALID_ARGUMENT", /must be 4 numbers/],
    [
      "a number over 2^53",
      { [TocAnnotation.ZSTD_POSITION]: "9999999999999999:1:1:1" },
      "INVALID_ARGUMENT",
      /must be 4 numbers/,
    ],
    ["a negative number", { [TocAnnotation.ZSTD_POSITION]: "-1:100:900:1" }, "INVALID_ARGUMENT", /must be 4 numbers/],
    [
      "another type of TOC",
      { [TocAnnotation.ZSTD_POSITION]: "5000:100:900:2" },
      "INVALID_ARGUMENT",
      /manifest type: 2/,
    ],
    ["an empty TOC", { [TocAnnotation.ZSTD_POSITION]: "5000:0:900:1" }, "INVALID_ARGUMENT", /TOC: is empty/],
    [
      "a TOC over the limit",
      { [TocAnnotation.ZSTD_POSITION]: "5000:100:1073741825:1" },
      "RESOURCE_EXHAUSTED",
      /the limit is 1073741824/,
    ],
    [
      "a tar-split over the limit",
      { [TocAnnotation.ZSTD_TAR_SPLIT_POSITION]: "5108:200:4294967297" },
      "RESOURCE_EXHAUSTED",
      /tar-split: has 4294967297/,
    ],
    ["no tar-split", { [TocAnnotation.ZSTD_TAR_SPLIT_POSITION]: undefined }, "UNIMPLEMENTED", /tar-split: is missing/],
    [
      "a tar-split elsewhere",
      { [TocAnnotation.ZSTD_TAR_SPLIT_POSITION]: "5200:200:800" },
      "INVALID_ARGUMENT",
      /5200 is not behind the TOC/,
    ],
    [
      "a tar-split beyond the blob",
      { [TocAnnotation.ZSTD_TAR_SPLIT_POSITION]: "5108:9000:800" },
      "INVALID_ARGUMENT",
      /not in the blob/,
    ],
    ["a TOC at the start", { [TocAnnotation.ZSTD_POSITION]: "7:100:900:1" }, "INVALID_ARGUMENT", /not in the blob/],
    [
      "an eStargz digest that is none",
      { [TocAnnotation.ZSTD_CHECKSUM]: undefined, [TocAnnotation.ESTARGZ_DIGEST]: "md5:1" },
      "INVALID_ARGUMENT",
      /is no SHA-256 digest/,
    ],
  ];
  for (const [name, change, code, message] of REFUSED) {
    test(`refuses ${name}`, () => {
      const annotations = Object.fromEntries(
        Object.entries({ ...SOUND, ...change }).filter((pair): pair is [string, string] => pair[1] !== undefined),
      );
      assert.throws(() => findTocPointer(annotations, BLOB_SIZE), { code, message });
    });
  }
});

describe("findZstdChunkedFooter()", () => {
  const footer = (change: Partial<Record<"tocOffset" | "tocStored" | "type" | "tarSplitOffset" | "frame", bigint>>) => {
    const bytes = Buffer.alloc(ZSTD_FOOTER_SIZE);
    const own = {
      tocOffset: 5000n,
      tocStored: 100n,
      tocSize: 900n,
      type: 1n,
      tarSplitOffset: 5108n,
      tarSplitStored: 200n,
    };
    const values = { frame: ZSTD_FOOTER_FRAME, ...own, tarSplitSize: 800n, magic: ZSTD_FOOTER_MAGIC };
    ZSTD_FOOTER.write(bytes, 0, { ...values, ...change });
    return bytes;
  };

  test("finds nothing at the end of another blob", () => {
    assert.equal(findZstdChunkedFooter(Buffer.alloc(200), BLOB_SIZE), undefined);
    assert.equal(findZstdChunkedFooter(Buffer.alloc(10), 10), undefined);
    assert.equal(findZstdChunkedFooter(footer({ frame: 1n }), BLOB_SIZE), undefined);
    assert.equal(findZstdChunkedFooter(readVector("ctr-remote.estargz").blob.subarray(-72), BLOB_SIZE), undefined);
  });

  test("tells what the annotations would, but vouches for nothing", () => {
    const pointer = findTocPointer(SOUND, BLOB_SIZE);
    assert.ok(pointer?.format === "zstd:chunked");
    assert.deepEqual(findZstdChunkedFooter(footer({}), BLOB_SIZE), { ...pointer.location, digest: undefined });
  });

  test("refuses what the annotations may not say either", () => {
    assert.throws(() => findZstdChunkedFooter(footer({ type: 2n }), BLOB_SIZE), { code: "INVALID_ARGUMENT" });
    assert.throws(() => findZstdChunkedFooter(footer({ tarSplitOffset: 0n }), BLOB_SIZE), { code: "UNIMPLEMENTED" });
    assert.throws(() => findZstdChunkedFooter(footer({ tocOffset: 2n ** 63n }), BLOB_SIZE), {
      message: /not below 2\^53/,
    });
    assert.throws(() => findZstdChunkedFooter(footer({ tocStored: 101n }), BLOB_SIZE), { code: "INVALID_ARGUMENT" });
  });
});

describe("decodeEstargzFooter()", () => {
  const digest = Buffer.alloc(32);
  const decode = (tail: Uint8Array, size = BLOB_SIZE) => decodeEstargzFooter(tail, size, digest);

  test("encodeEstargzFooter() gives the bytes of ctr-remote", () => {
    const { blob } = readVector("ctr-remote.estargz");
    const { region } = decode(blob.subarray(-51), blob.length);
    assert.deepEqual(encodeEstargzFooter(region.offset), blob.subarray(-51));
    assert.equal(region.offset + region.length, blob.length - 51);
  });

  test("refuses a legacy footer of 47 bytes", () => {
    const legacy = Buffer.concat([
      Buffer.from("1f8b08040000000000ff1600", "hex"),
      Buffer.from("0000000000000100STARGZ"),
      Buffer.from("010000ffff0000000000000000", "hex"),
    ]);
    assert.equal(legacy.length, 47);
    assert.throws(() => decode(Buffer.concat([Buffer.alloc(4), legacy])), {
      code: "UNIMPLEMENTED",
      message: /legacy stargz footer/,
    });
  });

  test("refuses a TOC in another image", () => {
    const external = Buffer.concat([
      Buffer.from("1f8b08040000000000ff15005347", "hex"),
      Buffer.from("1100", "hex"),
      Buffer.from("STARGZEXTERNALTOC"),
      Buffer.from("010000ffff0000000000000000", "hex"),
    ]);
    assert.equal(external.length, 46);
    assert.throws(() => decode(Buffer.concat([Buffer.alloc(5), external])), {
      code: "UNIMPLEMENTED",
      message: /its TOC in another image/,
    });
  });

  test("refuses what is no footer", () => {
    const bad = (change: (bytes: Buffer) => void) => {
      const bytes = Buffer.from(encodeEstargzFooter(100));
      change(bytes);
      assert.throws(() => decode(bytes), { name: "FormatError", code: "INVALID_ARGUMENT" });
    };
    bad((bytes) => bytes.fill(0));
    bad((bytes) => bytes.writeUInt16LE(0, 10)); // stargz-snapshotter #2256: an empty extra field
    bad((bytes) => bytes.writeUInt16LE(0xffff, 10));
    bad((bytes) => bytes.write("SX", 12));
    bad((bytes) => bytes.writeUInt16LE(21, 14));
    bad((bytes) => bytes.write("zz", 16));
    bad((bytes) => bytes.write("STARGY", 32));
    bad((bytes) => bytes.fill(1, 43));
    assert.throws(() => decode(Buffer.alloc(3), 3), { code: "INVALID_ARGUMENT" });
  });

  test("refuses a TOC that is not in the blob, or larger than the limit", () => {
    assert.throws(() => decode(encodeEstargzFooter(BLOB_SIZE)), { message: /is not in the blob of 10000 bytes/ });
    assert.throws(() => decode(encodeEstargzFooter(2 ** 53)), { message: /not below 2\^53/ });
    assert.throws(() => decode(encodeEstargzFooter(5), 2 ** 31), { code: "RESOURCE_EXHAUSTED" });
  });
});
