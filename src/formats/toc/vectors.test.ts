/** TOCs that peers wrote: skopeo's zstd:chunked and ctr-remote's eStargz, both of the layer of testdata/make-layer.sh. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { describe, test } from "node:test";
import { gunzipSync, zstdDecompressSync } from "node:zlib";
import { toHex } from "../../bytes/index.ts";
import { LayerIndexBuilder } from "../layer-index/builder.ts";
import { TarDecoder, type TarEntry } from "../tar/index.ts";
import { decodeTar } from "../tar/testing.ts";
import { decodeTarSplit, findZstdChunkedFooter, type TocPayload } from "./index.ts";
import { locate, openToc, readChunk, readVector, regionOf, replay } from "./testing.ts";

const PIECES = [1, 7, 511, 4096, 1024 * 1024];

describe("a zstd:chunked layer of skopeo", () => {
  const { blob, annotations, diffId } = readVector("skopeo.zstd-chunked");
  const tar = zstdDecompressSync(blob);
  const expected = decodeTar([tar]);

  test("its tar is that of the vector", () => assert.equal(sha256(tar), diffId.slice(7)));

  test("findZstdChunkedFooter() tells what the annotations tell", () => {
    const location = locate(blob, annotations);
    const footer = findZstdChunkedFooter(blob.subarray(-100), blob.length);
    assert.deepEqual({ ...footer, digest: undefined }, { ...location, digest: undefined });
  });

  for (const size of PIECES) {
    test(`LayerToc.replay() gives the tar in pieces of ${size}`, async () => {
      const toc = await openToc(blob, annotations, size);
      const replayed = await replay(toc, blob);
      assert.equal(sha256(replayed.tar), diffId.slice(7));
      assert.deepEqual(replayed.entries, expected.entries.map(withoutPayload));
    });
  }

  test("LayerToc.replay() tells the digest of each file and chunk", async () => {
    const toc = await openToc(blob, annotations);
    const { payloads } = await replay(toc, blob);
    assert.equal(payloads.length, toc.summary.files);
    for (const payload of payloads) checkDigests(blob, "zstd:chunked", payload);
    const mixed = payloads.find(({ entry }) => entry.path === "./data/mixed")!;
    assert.ok(mixed.chunks.length > 3);
    assert.deepEqual(
      mixed.chunks.filter(({ zeros }) => zeros).map(({ size }) => size),
      [1024, 5000, 2000],
    );
  });

  test("a layer index built from it is that of the tar", async () => {
    const toc = await openToc(blob, annotations);
    const fromToc = new LayerIndexBuilder();
    const sink = { raw() {}, entry: (entry: TarEntry) => void fromToc.add(entry), payload() {}, endEntry() {} };
    for await (const _ of toc.replay(sink));
    const fromTar = new LayerIndexBuilder();
    const decoder = new TarDecoder({ ...sink, entry: (entry) => void fromTar.add(entry) });
    decoder.write(tar);
    decoder.end();
    assert.deepEqual(describeIndex(fromToc), describeIndex(fromTar));
  });

  test("a changed byte of TOC or tar-split is DATA_LOSS", async () => {
    const { region } = locate(blob, annotations);
    for (const at of [region.offset, region.offset + region.length - 1]) {
      const damaged = Buffer.from(blob);
      damaged[at]! ^= 1;
      await assert.rejects(openToc(damaged, annotations), { code: "DATA_LOSS" });
    }
  });

  test("decodeTarSplit() tells the CRC-64 of each content", async () => {
    const { tarSplit } = locate(blob, annotations) as { tarSplit: { offset: number; length: number } };
    const json = zstdDecompressSync(blob.subarray(tarSplit.offset, tarSplit.offset + tarSplit.length));
    const items = await Array.fromAsync(decodeTarSplit(regionOf(json, 1000)(0, json.length)));
    const contents = items.filter((item) => item.kind === "content");
    assert.deepEqual(
      contents.map(({ name, size }) => [name, size]),
      expected.entries.map(({ path, size }) => [path, size]),
    );
    assert.equal(
      contents.filter(({ crc64 }) => crc64?.length === 8).length,
      expected.entries.filter(({ size }) => size > 0).length,
    );
  });
});

describe("an eStargz layer of ctr-remote", () => {
  const { blob, annotations, diffId } = readVector("ctr-remote.estargz");
  const tar = gunzipSync(blob);
  const expected = decodeTar([tar]);

  test("its tar is that of the vector", () => assert.equal(sha256(tar), diffId.slice(7)));

  for (const size of PIECES) {
    test(`LayerToc.replay() gives the entries of the tar in pieces of ${size}`, async () => {
      const toc = await openToc(blob, annotations, size);
      const { entries, payloads } = await replay(toc, blob);
      assert.deepEqual(entries.map(comparable), expected.entries.map(comparable));
      assert.deepEqual(
        payloads.map(({ entry, chunks }) => [
          entry.path,
          sha256(Buffer.concat(chunks.map((c) => readChunk(blob, "estargz", c)))),
        ]),
        expected.entries.filter(({ size }) => size > 0).map(({ path, payload }) => [path, sha256(payload)]),
      );
      for (const payload of payloads) checkDigests(blob, "estargz", payload);
    });
  }

  test("its landmark comes first, its TOC last, as in the tar", async () => {
    const { entries } = await replay(await openToc(blob, annotations), blob);
    assert.equal(entries[0]?.path, ".no.prefetch.landmark");
    assert.equal(entries.at(-1)?.path, "stargz.index.json");
  });

  test("a changed byte of the TOC is DATA_LOSS or no gzip", async () => {
    const { region } = locate(blob, annotations);
    const damaged = Buffer.from(blob);
    damaged[region.offset + 100]! ^= 1;
    await assert.rejects(openToc(damaged, annotations), (error: { code?: string }) => {
      return error.code === "DATA_LOSS" || error.code === "INVALID_ARGUMENT";
    });
  });
});

function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

function withoutPayload({ payload: _, ...entry }: TarEntry & { payload: Buffer }): TarEntry {
  return entry;
}

/** ctr-remote rounds times to seconds, and a TOC has neither offsets of the tar nor what a layer does not keep. */
function comparable(entry: TarEntry & { payload?: Buffer }): unknown {
  const {
    payload: _,
    headerOffset: __,
    unkept: ___,
    ignoredRecords: ____,
    xattrs,
    mtimeNanoseconds,
    mtimeSeconds,
    ...rest
  } = entry;
  return {
    ...rest,
    mtime: Math.round(mtimeSeconds + mtimeNanoseconds / 1e9),
    xattrs: [...xattrs].sort((a, b) => (a.name < b.name ? -1 : 1)),
  };
}

function checkDigests(
  blob: Uint8Array,
  format: "zstd:chunked" | "estargz",
  { entry, digest, chunks }: TocPayload,
): void {
  const parts = chunks.map((chunk) => {
    const bytes = readChunk(blob, format, chunk);
    assert.equal(sha256(bytes), toHex(chunk.digest), entry.path);
    assert.equal(chunk.zeros ? bytes.every((byte) => byte === 0) : true, true);
    return bytes;
  });
  assert.equal(sha256(Buffer.concat(parts)), toHex(digest!), entry.path);
  assert.equal(Buffer.concat(parts).length, entry.size);
}

function describeIndex(builder: LayerIndexBuilder): unknown {
  const { index, notices } = builder.finish();
  const inodes = Array.from({ length: index.inodeCount }, (_, inode) => [index.attributes(inode), index.links(inode)]);
  const dirents = Array.from({ length: index.direntCount }, (_, dirent) => [
    index.direntName(dirent),
    index.direntParent(dirent),
    index.direntInode(dirent),
  ]);
  return { inodes, dirents, notices };
}
