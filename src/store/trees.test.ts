import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync, unlinkSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { describe, test } from "node:test";
import { ShaleError } from "../errors/index.ts";
import { withTemporaryDirectory } from "../sys/testing/filesystems.ts";
import type { DiffId } from "../oci/index.ts";
import type { IngestResult, Store } from "./index.ts";
import {
  assertSound,
  contentOf,
  ingest,
  type MadeImage,
  noise,
  pull,
  sha256,
  tar,
  withStore,
  writeImage,
} from "./testing/fixtures.ts";

async function withChain(use: (store: Store, image: MadeImage) => Promise<void>): Promise<void> {
  await withTemporaryDirectory(async (directory) => {
    const image = writeImage(join(directory, "layout"), "one", [
      tar({ "./": "", "d/": "", "d/gone": "x", "d/kept": noise(5000, "kept"), f: "lower" }),
      tar({ "d/.wh.gone": "", f: noise(9000, "upper") }),
    ]);
    await withStore(join(directory, "store"), async (store) => {
      await pull(store, image.directory, "one");
      await use(store, image);
    });
  });
}

const merged = (store: Store) => readdirSync(join(store.root, "merged"));

describe("openChain()", () => {
  test("shows the layers as one, whiteouts applied", () =>
    withChain(async (store) => {
      assert.deepEqual(contentOf(store, "one"), {
        "/d": "40000 ",
        "/d/kept": `5000 ${sha256(noise(5000, "kept"))}`,
        "/f": `9000 ${sha256(noise(9000, "upper"))}`,
      });
    }));

  test("makes the merged image once, and the same one when its file is gone", () =>
    withChain(async (store, image) => {
      using operation = store.begin("test");
      assert.deepEqual(merged(store), [], "before anybody needs it");
      const path = operation.mergedFiles(image.diffIds).image;
      const before = readFileSync(path);
      assert.equal(operation.mergedFiles(image.diffIds).image, path);
      assert.deepEqual(merged(store), [basename(path)]);
      unlinkSync(path);
      const again = operation.mergedFiles(image.diffIds);
      assert.notEqual(again.image, path);
      assert.ok(readFileSync(again.image).equals(before));
      assert.equal(again.devices.length, 2);
      assert.ok(again.devices.every(existsSync));
      await assertSound(store);
    }));

  test("made by the thread that has just ingested a layer is the same, without reading that one again", () =>
    withTemporaryDirectory(async (directory) => {
      const tars = [
        tar({ "./": "", "d/": "", "d/gone": "x", "d/kept": noise(5000, "kept"), f: "lower", "d/small": noise(900, 1) }),
        tar({
          "d/.wh.gone": "",
          f: noise(9000, "upper"),
          g: "",
          h: noise(4000, "inline"),
          l: { type: "symlink", linkTarget: "d" },
        }),
      ];
      await withStore(join(directory, "store"), async (store) => {
        using operation = store.begin("test");
        const layers: IngestResult[] = [];
        for (const [i, bytes] of tars.entries())
          layers.push(await ingest(operation, join(directory, `${i}.tar`), bytes));
        operation.commitLayers(layers);
        const diffIds = layers.map(({ diffId }) => diffId as DiffId);
        const upper = join(store.root, "layers", layers[1]!.id, "meta.erofs");
        const sound = readFileSync(upper);
        writeFileSync(upper, Buffer.alloc(sound.length));
        await operation.ensureMerged(diffIds);
        writeFileSync(upper, sound);
        const path = operation.mergedFiles(diffIds).image;
        const fromMemory = readFileSync(path);
        unlinkSync(path);
        assert.ok(readFileSync(operation.mergedFiles(diffIds).image).equals(fromMemory));
        unlinkSync(operation.mergedFiles(diffIds).image);
        writeFileSync(upper, Buffer.alloc(sound.length));
        await assert.rejects(operation.ensureMerged(diffIds), /magic/); // it is kept for one merge
        writeFileSync(upper, sound);
      });
    }));

  test("made by two operations at once is one", () =>
    withChain(async (store, image) => {
      using one = store.begin("one");
      using two = store.begin("two");
      assert.equal(one.mergedFiles(image.diffIds).image, two.mergedFiles(image.diffIds).image);
      assert.equal(merged(store).length, 1);
    }));

  test("of one layer that stands alone is that layer's image", () =>
    withChain(async (store, image) => {
      using operation = store.begin("test");
      const files = operation.mergedFiles(image.diffIds.slice(0, 1));
      assert.equal(files.image, join(store.root, "layers", operation.getLayer(image.diffIds[0]!).id, "meta.erofs"));
    }));
});

describe("reading", () => {
  test("says NOT_FOUND for a layer that was never there", () =>
    withChain(async (store) => {
      using operation = store.begin("test");
      assert.throws(
        () => operation.getLayer(`sha256:${"0".repeat(64)}` as never),
        (error) => ShaleError.is(error, "NOT_FOUND"),
      );
    }));

  for (const file of ["meta.erofs", "tar.headers", "blob"] as const) {
    test(`says DATA_LOSS, with what to do, when ${file} is gone`, () =>
      withChain(async (store, image) => {
        using operation = store.begin("test");
        const layer = operation.getLayer(image.diffIds[0]!);
        unlinkSync(file === "blob" ? join(store.root, "blobs", layer.id) : join(store.root, "layers", layer.id, file));
        assert.throws(
          () => {
            using source = operation.openTar(layer);
            for (const _ of source.read());
          },
          (error) => ShaleError.is(error, "DATA_LOSS") && /shale check --repair/.test(error.hint ?? ""),
        );
      }));
  }

  test("rebuilds a tar from any byte", () =>
    withChain(async (store, image) => {
      using operation = store.begin("test");
      using source = operation.openTar(operation.getLayer(image.diffIds[0]!));
      const whole = image.layers[0]!.tar;
      assert.equal(source.size, whole.length);
      for (const from of [0, 1, 511, 512, 2048, 5000, whole.length - 1, whole.length]) {
        assert.ok(Buffer.concat([...source.read(from)]).equals(whole.subarray(from)), `from ${from}`);
      }
    }));
});
