import assert from "node:assert/strict";
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { withTemporaryDirectory } from "../sys/testing/filesystems.ts";
import type { Store } from "./index.ts";
import { collect, type Files, noise, pull, tar, withStore, writeImage } from "./testing/fixtures.ts";

const IMAGES: Readonly<Record<string, readonly Files[]>> = {
  one: [
    { "./": "", base: noise(50_000, "base"), small: "inline" },
    { one: noise(30_001, "one"), twin: noise(30_001, "one"), empty: "" },
  ],
  two: [
    { "./": "", base: noise(50_000, "base"), small: "inline" },
    { two: noise(70_000, "two"), same: noise(30_001, "one") },
  ],
  three: [{ "./": "", holes: Buffer.concat([noise(5000, 1), Buffer.alloc(1 << 20), noise(5000, 2)]) }],
  alias: [{ "./": "", holes: Buffer.concat([noise(5000, 1), Buffer.alloc(1 << 20), noise(5000, 2)]) }],
};

async function withImages(use: (store: Store) => Promise<void> | void): Promise<void> {
  await withTemporaryDirectory((directory) =>
    withStore(join(directory, "store"), async (store) => {
      for (const [name, layers] of Object.entries(IMAGES)) {
        writeImage(join(directory, "layout"), name, layers.map(tar));
        await pull(store, join(directory, "layout"), name);
      }
      await use(store);
    }),
  );
}

/** Blocks on disk below some directories of the store. */
function allocated(store: Store, ...directories: readonly string[]): number {
  return directories
    .flatMap((directory) => readdirSync(join(store.root, directory), { recursive: true, withFileTypes: true }))
    .filter((entry) => entry.isFile())
    .reduce((sum, entry) => sum + statSync(join(entry.parentPath, entry.name)).blocks * 512, 0);
}

describe("measureUsage()", () => {
  test("adds up to what is on disk", () =>
    withImages((store) => {
      const usage = store.measureUsage();
      assert.equal(usage.blobs, allocated(store, "blobs"));
      assert.equal(usage.metadata, allocated(store, "layers"));
      assert.equal(usage.merged, allocated(store, "merged"));
      assert.equal(usage.stored, usage.blobs + usage.metadata + usage.merged + usage.database + usage.downloads);
      for (const one of [...usage.images, ...usage.layers]) assert.equal(one.stored, one.unique + one.shared);
    }));

  test("counts content as the tars have it", () =>
    withImages((store) => {
      const { images, layersApparent, savedByDeduplication, blobs } = store.measureUsage();
      const apparent = (name: string) => images.find((image) => image.name === name)!.apparent;
      assert.equal(apparent("one"), 50_000 + 6 + 2 * 30_001);
      assert.equal(apparent("two"), 50_000 + 6 + 70_000 + 30_001);
      assert.equal(apparent("three"), 10_000 + (1 << 20));
      assert.equal(layersApparent, 50_006 + 2 * 30_001 + 100_001 + 10_000 + (1 << 20), "each layer once");
      assert.equal(savedByDeduplication, layersApparent - blobs - 6);
    }));

  for (const name of Object.keys(IMAGES)) {
    test(`says of image ${name} exactly what removing it and gc give back`, () =>
      withImages((store) => {
        const { unique } = store.measureUsage().images.find((image) => image.name === name)!;
        const before = allocated(store, "blobs", "layers", "merged");
        store.removeImage(name);
        assert.equal(collect(store).freed, unique);
        assert.equal(before - allocated(store, "blobs", "layers", "merged"), unique);
      }));
  }

  test("says of the last image that everything is its own", () =>
    withImages((store) => {
      for (const name of ["two", "three", "alias"]) store.removeImage(name);
      collect(store);
      const [one] = store.measureUsage().images;
      assert.equal(one!.shared, 0);
      assert.equal(one!.unique, allocated(store, "blobs", "layers", "merged"));
    }));

  test("names the images of each layer", () =>
    withImages((store) => {
      const { layers } = store.measureUsage();
      assert.deepEqual(layers.map((layer) => layer.images.join()).sort(), ["alias,three", "one", "one,two", "two"]);
    }));
});
