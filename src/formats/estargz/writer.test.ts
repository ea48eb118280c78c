import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { describe, test } from "node:test";
import { gunzipSync, zstdDecompressSync } from "node:zlib";
import fc from "fast-check";
import { toHex } from "../../bytes/index.ts";
import { frameCompressor, scanGzipMembers } from "../compression/index.ts";
import { TAR_END, type TarEntry } from "../tar/index.ts";
import { block, decodeTar, entryBytes, GNU_MAGIC, meta, records, tarOf } from "../tar/testing.ts";
import { locate, openToc, readChunk, readVector, replay } from "../toc/testing.ts";
import { memorySpool } from "../toc/writing.ts";
import { type EstargzResult, EstargzWriter } from "./index.ts";

const CHUNK = 4 * 1024 * 1024;

interface Written extends EstargzResult {
  readonly blob: Buffer;
}

async function write(tar: Uint8Array, sizes: readonly number[] = []): Promise<Written> {
  const writer = new EstargzWriter({ compressor: frameCompressor({ kind: "gzip", level: 6 }), openSpool: memorySpool });
  const blob = Buffer.concat(await Array.fromAsync(writer.write(cut(tar, sizes))));
  return { blob, ...writer.result };
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

/** Without what a TOC does not tell. */
function told({
  headerOffset: _,
  unkept: __,
  ignoredRecords: ___,
  segments: ____,
  xattrs,
  ...entry
}: TarEntry): unknown {
  const { payload: _____, ...rest } = entry as TarEntry & { payload?: Buffer };
  return { ...rest, xattrs: [...xattrs].sort((a, b) => (a.name < b.name ? -1 : 1)) };
}

describe("EstargzWriter", () => {
  test("writes the tar it got, a landmark before it and the TOC behind", async () => {
    const tar = zstdDecompressSync(readVector("skopeo.zstd-chunked").blob);
    const written = await write(tar, [777]);
    const out = gunzipSync(written.blob);
    assert.equal(createHash("sha256").update(out).digest("hex"), toHex(written.tarDigest));
    assert.equal(out.length, written.tarSize);
    assert.equal(written.annotations["io.containers.estargz.uncompressed-size"], `${out.length}`);
    const before = decodeTar([tar]).entries;
    const after = decodeTar([out]).entries;
    assert.deepEqual(
      after.map(({ path }) => path),
      [".no.prefetch.landmark", ...before.map(({ path }) => path), "stargz.index.json"],
    );
    assert.deepEqual(
      after.slice(1, -1).map(({ headerOffset: _, ...entry }) => entry),
      before.map(({ headerOffset: _, ...entry }) => entry),
    );
    assert.deepEqual(after[0]!.payload, Buffer.from([0x0f]));
    // headers come through to the byte, with all that a layer does not keep
    const length = tar.length - 2 * 512;
    assert.ok(out.indexOf(tar.subarray(0, before.at(-1)!.headerOffset)) === 1024 && length > 0);
  });

  test("tells in its TOC what ctr-remote tells, times to the nanosecond", async () => {
    const theirs = readVector("ctr-remote.estargz");
    const tar = zstdDecompressSync(readVector("skopeo.zstd-chunked").blob);
    const ours = await write(tar);
    const elements = (blob: Buffer, annotations: Readonly<Record<string, string>>) => {
      const { region } = locate(blob, annotations);
      const [toc] = decodeTar([gunzipSync(blob.subarray(region.offset, region.offset + region.length))]).entries;
      const { entries }: { entries: Record<string, unknown>[] } = JSON.parse(toc!.payload.toString());
      return entries.map(({ offset: _, modtime: __, userName: ___, groupName: ____, ...entry }) => entry);
    };
    assert.deepEqual(elements(ours.blob, ours.annotations), elements(theirs.blob, theirs.annotations));
    const { entries } = await replay(await openToc(ours.blob, ours.annotations), ours.blob);
    assert.deepEqual(entries.map(told), decodeTar([gunzipSync(ours.blob)]).entries.map(told));
  });

  test("begins a member with every content and every 4 MiB of one", async () => {
    const large = Buffer.alloc(2 * CHUNK + 5, "large");
    const exact = Buffer.alloc(CHUNK, "exact");
    const tar = tarOf(
      entryBytes({ path: "large" }, large.toString("latin1")),
      entryBytes({ path: "d/", type: "directory" }),
      entryBytes({ path: "exact" }, exact.toString("latin1")),
    );
    const { blob, annotations } = await write(tar, [1_000_003]);
    const members = (await Array.fromAsync(scanGzipMembers(cut(blob, [])))).map(({ offset }) => offset);
    const toc = await openToc(blob, annotations);
    const { payloads } = await replay(toc, blob);
    const chunks = payloads.flatMap((payload) => payload.chunks);
    assert.deepEqual(
      chunks.map(({ size }) => size),
      [1, CHUNK, CHUNK, 5, CHUNK, payloads.at(-1)!.entry.size],
    );
    assert.deepEqual(members, [0, ...chunks.map(({ blobOffset }) => blobOffset), blob.length - 51]);
    const content = (position: number) =>
      Buffer.concat(payloads[position]!.chunks.map((chunk) => readChunk(blob, "estargz", chunk)));
    assert.ok(content(1).equals(large) && content(2).equals(exact));
  });

  test("leaves out what an earlier conversion added, and what belongs to no file", async () => {
    const inner = await write(
      tarOf(entryBytes({ path: "a" }, "content"), entryBytes({ path: "b/", type: "directory" })),
    );
    const again = await write(gunzipSync(inner.blob));
    assert.deepEqual(again.blob, inner.blob);
    const tar = Buffer.concat([
      block({ name: "label", type: "V", magic: GNU_MAGIC }),
      meta("g", records(["mtime", "5"])),
      entryBytes({ path: "./.prefetch.landmark" }, "\x0f"),
      entryBytes({ path: "a" }, "content"),
      TAR_END,
      Buffer.alloc(20_000),
    ]);
    const entries = decodeTar([gunzipSync((await write(tar, [100])).blob)]).entries;
    assert.deepEqual(
      entries.map(({ path, mtimeSeconds }) => [path, mtimeSeconds]),
      [
        [".no.prefetch.landmark", 0],
        ["a", 5],
        ["stargz.index.json", 0],
      ],
    );
  });

  test("writes the holes of a sparse file as zeros, with a header that says so", async () => {
    const map = meta(
      "x",
      records(["GNU.sparse.map", "2,3,10,1"], ["GNU.sparse.size", "15"], ["GNU.sparse.name", "sparse"]),
    );
    const tar = tarOf(map, entryBytes({ path: "x" }, "abcd"), entryBytes({ path: "next" }, "n"));
    const { blob, annotations } = await write(tar, [7]);
    const entries = decodeTar([gunzipSync(blob)]).entries;
    assert.deepEqual(entries[1]!.payload, Buffer.from("\0\0abc\0\0\0\0\0d\0\0\0\0"));
    assert.deepEqual([entries[1]!.path, entries[1]!.segments, entries[2]!.path], ["sparse", undefined, "next"]);
    const { payloads } = await replay(await openToc(blob, annotations), blob);
    assert.deepEqual(readChunk(blob, "estargz", payloads[1]!.chunks[0]!), entries[1]!.payload);
  });

  test("writes the same whatever the pieces, and every file comes back from its TOC", async () => {
    const file = fc.record({
      path: fc.stringMatching(/^[a-zé]{1,12}(\/[a-z]{1,120}){0,1}$/),
      content: fc.oneof(
        fc.uint8Array({ maxLength: 2000 }),
        fc.nat(3000).map((n) => new Uint8Array(n)),
      ),
      mtimeSeconds: fc.constantFrom(0, 1, -5),
      mtimeNanoseconds: fc.constantFrom(0, 999_999_999),
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
        fc.array(file, { maxLength: 6 }),
        fc.array(fc.integer({ min: 1, max: 900 }), { maxLength: 3 }),
        async (files, sizes) => {
          const tar = tarOf(
            ...files.map(({ content, path, ...rest }) =>
              entryBytes(
                { ...rest, path: Buffer.from(path).toString("latin1") },
                Buffer.from(content).toString("latin1"),
              ),
            ),
          );
          const written = await write(tar, sizes);
          assert.deepEqual((await write(tar)).blob, written.blob);
          const { entries, payloads } = await replay(await openToc(written.blob, written.annotations), written.blob);
          const expected = decodeTar([gunzipSync(written.blob)]).entries;
          assert.deepEqual(entries.map(told), expected.map(told));
          assert.deepEqual(
            payloads.map(({ chunks }) =>
              Buffer.concat(chunks.map((chunk) => readChunk(written.blob, "estargz", chunk))),
            ),
            expected.filter(({ size }) => size > 0).map(({ payload }) => payload),
          );
        },
      ),
      { numRuns: 60 },
    );
  });

  test("refuses a name that its TOC can't tell", async () => {
    await assert.rejects(write(tarOf(entryBytes({ path: "\xff" }))), {
      name: "NotConvertibleError",
      message: /not UTF-8/,
    });
    await assert.rejects(write(tarOf(entryBytes({ path: "f", mtimeSeconds: 300_000_000_000 }))), {
      code: "FAILED_PRECONDITION",
    });
  });
});
