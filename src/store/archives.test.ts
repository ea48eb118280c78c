/** Checkpoint archives in the store: kept in parts, given back bit for bit, known to everything that knows layers. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { chmodSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import fc from "fast-check";
import { podmanArchive, sampleProcesses, tarOf } from "../checkpoint/testing/sample-archives.ts";
import { encodePagemap } from "../formats/criu/testing/images.ts";
import type { DiffId } from "../oci/index.ts";
import { withTemporaryDirectory } from "../sys/testing/filesystems.ts";
import type { LayerForm, LayerRecord, Store, StoreOperation } from "./index.ts";
import { assertSound, collect, noise, sha256, withStore } from "./testing/fixtures.ts";

const diffIdOf = (bytes: Uint8Array) => `sha256:${sha256(bytes)}` as DiffId;

async function withBench(
  use: (
    store: Store,
    operation: StoreOperation,
    put: (bytes: Buffer, form?: LayerForm) => Promise<LayerRecord>,
  ) => Promise<void>,
): Promise<void> {
  await withTemporaryDirectory((directory) =>
    withStore(join(directory, "store"), async (store) => {
      using operation = store.begin("test");
      let number = 0;
      await use(store, operation, async (bytes, form = "archive") => {
        const path = join(directory, `archive${number++}`);
        writeFileSync(path, bytes);
        const feed = { path, offset: 0, length: bytes.length };
        operation.commitLayers([await operation.ingest(feed, { diffId: diffIdOf(bytes) }, { form })]);
        operation.indexLayers();
        const record = operation.claimLayer(diffIdOf(bytes), form);
        assert.equal(record?.form, form);
        return record;
      });
    }),
  );
}

function rebuilt(operation: StoreOperation, layer: LayerRecord): string {
  using source = operation.openTar(layer);
  const hasher = createHash("sha256");
  for (const piece of source.read()) hasher.update(piece);
  return `sha256:${hasher.digest("hex")}`;
}

/** An archive whose one process has this memory at a fixed address. */
function withMemory(memory: Buffer): Buffer {
  const run = { address: 0x5555_0000_0000, pages: memory.length / 4096 };
  return podmanArchive({ processes: [{ pid: 1, ppid: 0, comm: "x", runs: [run], memory }] });
}

describe("archives in the store", () => {
  test("come back bit for bit, and a second checkpoint costs its changes", () =>
    withBench(async (store, operation, put) => {
      const memory = noise(4 << 20, 1);
      const first = await put(withMemory(memory));
      assert.equal(rebuilt(operation, first), first.diffId);
      const changed = Buffer.from(memory);
      changed.fill("changed", 1_000_000, 1_000_100);
      const second = await put(withMemory(changed));
      assert.equal(rebuilt(operation, second), second.diffId);
      assert.equal(second.ownBytes, 65_536);
      assert.ok(second.metadataBytes < 32_768, `${second.metadataBytes} bytes of metadata`);
      await assertSound(store);
    }));

  test("memory that grew in the middle of the address space is the same before and behind", () =>
    withBench(async (_store, operation, put) => {
      const [low, high, grown] = [noise(1 << 20, 1), noise(1 << 20, 2), noise(12_288, 3)];
      const archive = (middle: Buffer) =>
        podmanArchive({
          processes: [
            {
              ...{ pid: 1, ppid: 0, comm: "x", memory: Buffer.concat([low, middle, high]) },
              runs: [
                { address: 0x10_0000, pages: 256 },
                ...(middle.length === 0 ? [] : [{ address: 0x40_0000, pages: middle.length / 4096 }]),
                { address: 0x7000_0000, pages: 256 },
              ],
            },
          ],
        });
      await put(archive(Buffer.alloc(0)));
      const second = await put(archive(grown));
      assert.equal(second.ownBytes, grown.length);
      assert.equal(rebuilt(operation, second), second.diffId);
    }));

  test("property: any archive comes back bit for bit, also beside others", () =>
    withBench(async (store, operation, put) => {
      // few contents, of sizes about the limits, so that most are there already in one place or another
      const content = fc
        .tuple(fc.constantFrom(0, 1, 511, 512, 2048, 2049, 4096, 65_535, 65_536, 70_000, 140_000), fc.nat(3))
        .map(([size, seed]) => (seed === 0 ? Buffer.alloc(size) : noise(size, seed)));
      const names = fc.constantFrom(
        "config.dump",
        "a/b",
        "checkpoint/pages-1.img",
        "checkpoint/pages-shmem-7.img",
        "pages-2.img",
      );
      const file = fc.record({ path: names, content });
      const nested = fc.record({
        path: fc.constantFrom("rootfs-diff.tar", "volumes/v.tar", "x"),
        content: fc.array(file, { maxLength: 4 }).map((files) => tarOf(files)),
      });
      const pagemap = fc
        .array(fc.record({ gap: fc.integer({ min: 0, max: 40 }), pages: fc.integer({ min: 1, max: 40 }) }), {
          maxLength: 6,
        })
        .map((runs) => {
          let address = 0x7000_0000_0000;
          const placed = runs.map(({ gap, pages }) => {
            const run = { address: address + gap * 4096, pages };
            address = run.address + pages * 4096;
            return run;
          });
          const size = runs.reduce((sum, { pages }) => sum + pages * 4096, 0);
          return [
            { path: "checkpoint/pagemap-3.img", content: encodePagemap(3, placed) },
            { path: "checkpoint/pages-3.img", content: noise(size, 9) },
          ];
        });
      const archive = fc
        .tuple(fc.array(fc.oneof(file, nested), { maxLength: 6 }), pagemap)
        .map(([members, memory]) => tarOf([...members, ...memory]));
      await fc.assert(
        fc.asyncProperty(archive, async (bytes) => {
          const record = await put(bytes);
          assert.equal(rebuilt(operation, record), diffIdOf(bytes));
        }),
        { numRuns: 40 },
      );
      await assertSound(store);
    }));

  test("zeros of memory are one hole", () =>
    withBench(async (_store, _operation, put) => {
      const record = await put(withMemory(Buffer.alloc(8 << 20)));
      assert.ok(record.sharedBytes >= (8 << 20) - 65_536);
    }));

  test("share their files with the layers of images, in both directions", () =>
    withBench(async (_store, _operation, put) => {
      const content = noise(1 << 20, 4);
      await put(tarOf([{ path: "usr/bin/large", content }]), "tree");
      const archive = podmanArchive({ rootfs: [{ path: "data/copy", content }], processes: sampleProcesses(3) });
      const record = await put(archive);
      assert.ok(record.sharedBytes >= content.length);
      const again = await put(
        tarOf([
          { path: "renamed", content },
          { path: "more", content: "x" },
        ]),
        "tree",
      );
      assert.equal(again.ownBytes, 0);
    }));

  test("can't be opened as a tree, which may be there beside them", () =>
    withBench(async (store, operation, put) => {
      const bytes = podmanArchive();
      const archive = await put(bytes);
      for (const open of [
        () => operation.openLayer(archive),
        () => operation.layerFiles(archive),
        () => operation.openChain([archive.diffId]),
        () => operation.mergedFiles([archive.diffId]),
      ]) {
        assert.throws(open, { code: "FAILED_PRECONDITION" });
      }
      assert.equal(operation.claimLayer(archive.diffId), undefined);
      assert.equal(store.findLayer(archive.diffId)?.form, "archive");
      const tree = await put(bytes, "tree");
      assert.equal(store.findLayer(archive.diffId)?.form, "tree");
      using opened = operation.openChain([archive.diffId]);
      assert.ok(opened.reader.resolve("config.dump").size > 0);
      assert.deepEqual([rebuilt(operation, archive), rebuilt(operation, tree)], [archive.diffId, archive.diffId]);
      await assertSound(store);
    }));

  test("a damaged one is found by check, and is not given back", () =>
    withBench(async (store, operation, put) => {
      const archive = await put(withMemory(noise(1 << 20, 1)));
      const blob = join(store.root, "blobs", archive.id);
      const bytes = readFileSync(blob);
      bytes[500_000]! ^= 1;
      chmodSync(blob, 0o600);
      writeFileSync(blob, bytes);
      const report = await operation.check();
      assert.ok(report.findings.length > 0);
      operation.quarantineDamage(report);
      assert.throws(() => operation.getLayer(archive.diffId), { code: "DATA_LOSS" });
    }));

  test("are removed by a collection when no image has them", () =>
    withTemporaryDirectory((directory) =>
      withStore(join(directory, "store"), async (store) => {
        const bytes = podmanArchive();
        const path = join(directory, "archive");
        writeFileSync(path, bytes);
        {
          using operation = store.begin("test");
          const feed = { path, offset: 0, length: bytes.length };
          operation.commitLayers([await operation.ingest(feed, {}, { form: "archive" })]);
        }
        collect(store);
        collect(store);
        assert.deepEqual(store.listLayers(), []);
        await assertSound(store);
      }),
    ));
});
