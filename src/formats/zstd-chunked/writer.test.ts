import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { describe, test } from "node:test";
import { zstdDecompressSync } from "node:zlib";
import fc from "fast-check";
import { toHex } from "../../bytes/index.ts";
import { frameCompressor } from "../compression/index.ts";
import { TAR_END, type TarHeader } from "../tar/index.ts";
import { block, decodeTar, entryBytes, GNU_MAGIC, meta, records, tarOf, withChecksum } from "../tar/testing.ts";
import { findTocPointer, findZstdChunkedFooter } from "../toc/index.ts";
import { locate, openToc, readChunk, readVector, replay } from "../toc/testing.ts";
import { memorySpool } from "../toc/writing.ts";
import { ZstdChunkedWriter } from "./index.ts";

interface Written {
  readonly blob: Buffer;
  readonly annotations: Readonly<Record<string, string>>;
}

async function write(tar: Uint8Array, sizes: readonly number[] = []): Promise<Written> {
  const writer = new ZstdChunkedWriter({
    compressor: frameCompressor({ kind: "zstd", level: 3 }),
    openSpool: memorySpool,
  });
  const blob = Buffer.concat(await Array.fromAsync(writer.write(cut(tar, sizes))));
  return { blob, annotations: writer.annotations };
}

/** Pieces that are overwritten when the next one is asked for. */
async function* cut(bytes: Uint8Array, sizes: readonly number[]): AsyncGenerator<Uint8Array> {
  for (let at = 0, i = 0; at < bytes.length; i++) {
    const size = sizes.length === 0 ? bytes.length : sizes[i % sizes.length]!;
    const piece = Buffer.from(bytes.subarray(at, at + size));
    yield piece;
    piece.fill(0xee);
    at += size;
  }
}

function documents({ blob, annotations }: Written): { toc: { entries: Record<string, unknown>[] }; tarSplit: string } {
  const location = locate(blob, annotations);
  assert.ok(location.format === "zstd:chunked");
  const text = ({ offset, length }: { offset: number; length: number }) =>
    zstdDecompressSync(blob.subarray(offset, offset + length)).toString("utf8");
  return { toc: JSON.parse(text(location.toc)), tarSplit: text(location.tarSplit) };
}

describe("ZstdChunkedWriter", () => {
  test("tells of a layer what skopeo tells, to the byte, but for where frames lie", async () => {
    const { blob, annotations } = readVector("skopeo.zstd-chunked");
    const theirs = documents({ blob, annotations });
    const ours = documents(await write(zstdDecompressSync(blob), [1000]));
    assert.equal(ours.tarSplit, theirs.tarSplit);
    const placeless = (toc: object) =>
      JSON.stringify(toc, (key, value) => (/^(offset|endOffset|tarSplitDigest)$/.test(key) ? 0 : value));
    assert.equal(placeless(ours.toc), placeless(theirs.toc));
  });

  test("writes a footer that tells what the annotations tell", async () => {
    const { blob, annotations } = await write(tarOf(entryBytes({ path: "a" }, "content")));
    const pointer = findTocPointer(annotations, blob.length);
    assert.ok(pointer?.format === "zstd:chunked");
    assert.deepEqual(
      { ...findZstdChunkedFooter(blob, blob.length), digest: pointer.location.digest },
      pointer.location,
    );
  });

  test("writes an empty layer", async () => {
    const written = await write(TAR_END);
    const toc = await openToc(written.blob, written.annotations);
    assert.equal(toc.summary.entries, 0);
    assert.deepEqual((await replay(toc, written.blob)).tar, Buffer.from(TAR_END));
    await assert.rejects(write(new Uint8Array(0)), { name: "NotConvertibleError", message: /the tar has no bytes/ });
  });

  test("writes a tar that comes back from its TOC and its chunks, the same whatever the pieces", async () => {
    const content = fc.array(
      fc.oneof(
        fc.uint8Array({ maxLength: 300 }),
        fc.nat(3000).map((n) => new Uint8Array(n)),
        fc.tuple(fc.nat(255), fc.integer({ min: 0, max: 70_000 })).map(([seed, n]) => pseudoRandom(seed + 1, n)),
      ),
      { maxLength: 3 },
    );
    const file = fc.record({
      path: fc.stringMatching(/^[a-z<é]{1,12}(\/[a-z]{1,100}){0,2}$/),
      content,
      mode: fc.integer({ min: 0, max: 0o7777 }),
      uid: fc.constantFrom(0, 1000, 2 ** 31),
      mtimeSeconds: fc.constantFrom(0, 1, -5, 1_700_000_000),
      mtimeNanoseconds: fc.constantFrom(0, 1, 999_999_999),
      xattrs: fc.constantFrom(
        [],
        [
          { name: "user.b", value: "\0\xff" },
          { name: "user.a", value: "" },
        ],
      ),
    });
    await fc.assert(
      fc.asyncProperty(
        fc.uniqueArray(file, { maxLength: 6, selector: ({ path }) => path }),
        fc.array(fc.integer({ min: 1, max: 5000 }), { maxLength: 3 }),
        async (files, sizes) => {
          const parts = files.map(({ content: bytes, path, ...rest }) =>
            entryBytes(
              { ...rest, path: Buffer.from(path).toString("latin1") },
              Buffer.concat(bytes).toString("latin1"),
            ),
          );
          const directory = entryBytes({ path: "dir/", type: "directory" });
          const link = entryBytes({ path: "dir/link", type: "symlink", linkTarget: "x".repeat(150) });
          const tar = tarOf(directory, ...parts, link);
          const written = await write(tar, sizes);
          assert.deepEqual(zstdDecompressAll(written.blob), tar);
          assert.deepEqual((await write(tar)).blob, written.blob);
          const toc = await openToc(written.blob, written.annotations);
          const replayed = await replay(toc, written.blob);
          assert.deepEqual(replayed.tar, tar);
          assert.deepEqual(
            replayed.entries,
            decodeTar([tar]).entries.map(({ payload: _, ...entry }) => entry),
          );
          for (const { digest, chunks } of replayed.payloads) {
            const bytes = chunks.map((chunk) => readChunk(written.blob, "zstd:chunked", chunk));
            assert.equal(sha256(Buffer.concat(bytes)), toHex(digest!));
            assert.deepEqual(
              bytes.map(sha256),
              chunks.map((chunk) => toHex(chunk.digest)),
            );
          }
        },
      ),
      { numRuns: 60 },
    );
  });

  test("divides a chunk of more than a MiB into frames that are one to a reader", async () => {
    const repeated = "r".repeat(3_000_000);
    const hole = "\0".repeat(2_500_000);
    const tar = tarOf(entryBytes({ path: "a" }, repeated), entryBytes({ path: "b" }, `x${hole}`));
    const written = await write(tar, [70_000]);
    const toc = await openToc(written.blob, written.annotations);
    const { tar: again, payloads } = await replay(toc, written.blob);
    assert.equal(again.equals(tar), true);
    assert.deepEqual(
      payloads.map(({ chunks }) => chunks.map(({ size, zeros }) => [size, zeros])),
      [
        [[3_000_000, false]],
        [
          [1, false],
          [2_500_000, true],
        ],
      ],
    );
  });

  test("keeps what tars say beside a layer's attributes: file type in the mode, access and change time", async () => {
    const old = withChecksum(
      Object.assign(
        block({ name: "old", magic: GNU_MAGIC, at: { 100: "0100644\0", 345: "00000000005\0", 357: "00000000006\0" } }),
      ),
    );
    const pax = meta("x", records(["atime", "1.5"], ["ctime", "-1.5"]));
    const { toc } = documents(await write(tarOf(old, pax, entryBytes({ path: "new" }))));
    assert.deepEqual(toc.entries, [
      {
        ...{ type: "reg", name: "old", mode: 0o100644, uid: 0o644, gid: 0o644, modtime: "1970-01-01T00:00:00Z" },
        ...{ accesstime: "1970-01-01T00:00:05Z", changetime: "1970-01-01T00:00:06Z" },
      },
      {
        ...{ type: "reg", name: "new", mode: 0o644, modtime: "1970-01-01T00:00:00Z" },
        ...{ accesstime: "1970-01-01T00:00:01.5Z", changetime: "1969-12-31T23:59:58.5Z" },
      },
    ]);
  });

  const file = (fields: Partial<TarHeader> = {}) => entryBytes({ path: "f", ...fields });
  const REFUSED: readonly (readonly [string, Uint8Array, RegExp])[] = [
    [
      "a name that is there twice",
      tarOf(file({ path: "./a/b" }), file({ path: "a//b" })),
      /"a\/\/b": it is there twice/,
    ],
    ["a name that is not UTF-8", tarOf(file({ path: "\xff" })), /not UTF-8/],
    ["a link target that is not UTF-8", tarOf(file({ type: "symlink", linkTarget: "\xff" })), /not UTF-8/],
    [
      "a sparse file",
      tarOf(meta("x", records(["GNU.sparse.map", "0,1"], ["GNU.sparse.size", "5"])), entryBytes({ path: "f" }, "x")),
      /it is sparse/,
    ],
    ["a contiguous file", tarOf(block({ type: "7" })), /its type flag is 7/],
    ["a global header", tarOf(meta("g", records(["comment", "x"])), file()), /headers stand before it/],
    ["a global header that counts", tarOf(meta("g", records(["mtime", "5"])), file()), /a global header counts for it/],
    ["a volume label", tarOf(block({ type: "V", magic: GNU_MAGIC }), file()), /headers stand before it/],
    [
      "an xattr of libarchive",
      tarOf(meta("x", records(["LIBARCHIVE.xattr.user.a", "dg=="])), file()),
      /a record LIBARCHIVE\.xattr\.user\.a/,
    ],
    ["a directory with a size", tarOf(block({ name: "d/", type: "5", size: 5 })), /a directory with a size/],
    ["a file with a device number", tarOf(block({ at: { 329: "0000001\0" } })), /a file with a device number/],
    ["a time after 9999", tarOf(file({ mtimeSeconds: 300_000_000_000 })), /out of the range of years/],
    ["an access time that is none", tarOf(meta("x", records(["atime", "soon"])), file()), /or is none/],
  ];
  for (const [name, tar, message] of REFUSED) {
    test(`refuses ${name}, which readers would refuse`, async () => {
      await assert.rejects(write(tar), { name: "NotConvertibleError", code: "FAILED_PRECONDITION", message });
    });
  }

  test("gives the error of its source, and of a tar that is cut", async () => {
    const writer = new ZstdChunkedWriter({
      compressor: frameCompressor({ kind: "zstd", level: 3 }),
      openSpool: memorySpool,
    });
    const failing = async function* (): AsyncGenerator<Uint8Array> {
      yield entryBytes({ path: "f" }, "x");
      throw new Error("the source failed");
    };
    await assert.rejects(Array.fromAsync(writer.write(failing())), /the source failed/);
    assert.throws(() => writer.annotations, RangeError);
    await assert.rejects(write(entryBytes({ path: "f" }, "x").subarray(0, 600)), { name: "FormatError" });
  });
});

function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/** Frames and skippable frames: the blob as an ordinary decoder sees it. */
function zstdDecompressAll(blob: Uint8Array): Buffer {
  return blob.length === 0 ? Buffer.alloc(0) : zstdDecompressSync(blob);
}

function pseudoRandom(seed: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  let state = Math.imul(seed, 0x9e3779b1) | 1;
  for (let i = 0; i < length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    bytes[i] = state >>> 11;
  }
  return bytes;
}
