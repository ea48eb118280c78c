/** Images that block numbers of 32 bits do not reach: a file of more than 2 TiB, all of it a hole. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readdirSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { memorySource } from "../bytes/index.ts";
import { ShaleError } from "../errors/index.ts";
import { ErofsReader } from "../formats/erofs/index.ts";
import { TestTree, writeTree } from "../formats/erofs/testing/trees.ts";
import { Content, FileType } from "../formats/layer-index/index.ts";
import { PayloadTable } from "../formats/payload-table/index.ts";
import type { ManifestRecord, StoreOperation } from "../store/index.ts";
import { withTemporaryDirectory } from "../sys/testing/filesystems.ts";
import { exportDisk } from "./disk.ts";
import { exportTarfs } from "./tarfs.ts";

const SIZE = 2 ** 41 + 4096;
const DIGEST = `sha256:${"5a".repeat(32)}`;
const MANIFEST = {
  digest: DIGEST,
  layers: [{ digest: DIGEST, diffId: DIGEST }],
} as unknown as ManifestRecord;
const SOURCE = { manifest: MANIFEST, layer: undefined };

/** The metadata of an image with that file alone, on the device "blob". */
function metadata(): Uint8Array {
  const tree = new TestTree();
  const { index } = tree;
  const huge = index.addInode({
    mode: FileType.REGULAR | 0o644,
    uid: 0,
    gid: 0,
    mtimeSeconds: 0,
    mtimeNanoseconds: 0,
    size: SIZE,
    rdevMajor: 0,
    rdevMinor: 0,
    xattrs: [],
  });
  tree.link("hole", huge);
  index.setContent(huge, Content.EXTENT, 0, 0);
  return writeTree(index, [{ tag: "blob", blocks: SIZE / 4096 }], () => new Uint8Array(0)).bytes;
}

/** What exports ask of an operation, for a store that has this image in `directory`. `onRead` hears that its tar is read. */
function operationOf(directory: string, onRead: () => void): StoreOperation {
  const bytes = metadata();
  const [image, blob] = [join(directory, "image"), join(directory, "blob")];
  writeFileSync(image, bytes);
  writeFileSync(blob, "");
  truncateSync(blob, SIZE);
  const table = new PayloadTable();
  table.add(0, SIZE, createHash("sha256").digest());
  for (const piece of table.encode(SIZE)) writeFileSync(blob, piece, { flag: "a" });
  const reader = new ErofsReader(memorySource(bytes));
  const nid = [...reader.walk()].find(({ path }) => path === "hole")!.inode.nid;
  const operation = {
    mergedFiles: () => ({ image, devices: [blob] }),
    getLayer: () => ({}),
    openLayer: () => ({ reader, [Symbol.dispose]() {} }),
    openTar: () => ({
      size: SIZE + 2048,
      payloads: () => [{ nid, tarOffset: 512, segments: undefined }],
      *read() {
        onRead();
        yield new Uint8Array(512);
      },
      [Symbol.dispose]() {},
    }),
  };
  return operation as unknown as StoreOperation; // nothing else is asked
}

const isOverLimit = (error: unknown) =>
  ShaleError.is(error, "RESOURCE_EXHAUSTED") && /need \d+ blocks, limit 4294967294/.test(error.message);

describe("an image of more than 2 TiB", () => {
  for (const verity of [undefined, "superblock", "bare"] as const) {
    test(`is refused as a disk in blocks of 512 before anything is written, verity ${verity ?? "none"}`, () =>
      withTemporaryDirectory(async (directory) => {
        const operation = operationOf(directory, () => assert.fail("its tar was read"));
        const before = readdirSync(directory);
        const target = join(directory, "disk");
        await assert.rejects(exportDisk(operation, SOURCE, target, { blockSize: 512, verity }), isOverLimit);
        assert.deepEqual(readdirSync(directory), before);
      }));
  }

  test("is a disk in blocks of 4096, if there is room", () =>
    withTemporaryDirectory(async (directory) => {
      const operation = operationOf(directory, () => assert.fail("its tar was read"));
      const stop = new AbortController();
      const progress = { step: () => stop.abort(), advance: () => {} };
      const running = { progress, signal: stop.signal };
      await assert.rejects(
        exportDisk(operation, SOURCE, join(directory, "disk"), running),
        (error) =>
          // it came as far as the room, or as copying
          ShaleError.is(error, "CANCELLED") || (ShaleError.is(error) && /it needs 2199\d{9} bytes/.test(error.message)),
      );
    }));

  test("is refused as tarfs before its tar is read", () =>
    withTemporaryDirectory(async (directory) => {
      const operation = operationOf(directory, () => assert.fail("its tar was read"));
      const target = join(directory, "tarfs");
      await assert.rejects(exportTarfs(operation, MANIFEST, target), isOverLimit);
      assert.deepEqual(readdirSync(target), []);
    }));
});
