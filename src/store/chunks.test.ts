/** The chunk index: made on demand, never with a row of a layer that is out of sight. */
import assert from "node:assert/strict";
import { hash } from "node:crypto";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { withTemporaryDirectory } from "../sys/testing/filesystems.ts";
import { Database } from "./database.ts";
import type { Store } from "./index.ts";
import { assertSound, check, collect, noise, pull, tar, withStore, writeImage } from "./testing/fixtures.ts";

const small = (seed: string) => noise(700, seed);
const IMAGES = {
  one: { a: small("a"), b: small("b"), large: noise(50_000, "large") },
  two: { a: small("a"), c: small("c") },
};

interface Fixture {
  readonly store: Store;
  readonly database: Database;
  rows(): Map<string, string>;
}

/** A store with both images, and its database. */
async function withImages(use: (fixture: Fixture) => Promise<void>): Promise<void> {
  await withTemporaryDirectory(async (directory) => {
    const layout = join(directory, "layout");
    for (const [name, files] of Object.entries(IMAGES)) writeImage(layout, name, [tar(files)]);
    await withStore(join(directory, "store"), async (store) => {
      await pull(store, layout, "one");
      await pull(store, layout, "two");
      using database = Database.open(join(store.root, "shale.db"));
      const rows = () =>
        new Map(
          database
            .all("SELECT digest, layer FROM chunks")
            .map((row) => [Buffer.from(row.digest as Uint8Array).toString("hex"), String(row.layer)]),
        );
      await use({ store, database, rows });
    });
  });
}

async function index(store: Store): Promise<void> {
  using operation = store.begin("test");
  await operation.indexChunks();
}

const digests = (...seeds: string[]) => seeds.map((seed) => hash("sha256", small(seed))).sort();

describe("StoreOperation.indexChunks()", () => {
  test("makes rows of small files, once, for layers that came without a TOC", () =>
    withImages(async ({ store, rows, database }) => {
      assert.equal(rows().size, 0);
      await index(store);
      assert.deepEqual([...rows().keys()].sort(), digests("a", "b", "c"));
      assert.equal(database.get("SELECT count(*) AS n FROM layers WHERE chunked = 0")!.n, 0);
      database.run("DELETE FROM chunks");
      await index(store);
      assert.equal(rows().size, 0, "they are not made again");
      await assertSound(store);
    }));

  test("has no row of a layer that garbage collection took out of sight, also while its files are there", () =>
    withImages(async ({ store, rows, database }) => {
      await index(store);
      using _reader = store.begin("something that was there before");
      store.removeImage("one");
      collect(store);
      assert.equal(database.get("SELECT count(*) AS n FROM layers WHERE condemned > 0")!.n, 1);
      const ids = new Set(store.listLayers().map(({ id }) => id));
      assert.ok([...rows().values()].every((layer) => ids.has(layer)));
      await assertSound(store);
    }));

  test("makes the rows again of a layer that was claimed back", () =>
    withImages(async ({ store, rows, database }) => {
      await index(store);
      const { diffId } = store.manifestsOf("one")[0]!.layers[0]!;
      {
        using _reader = store.begin("something that was there before");
        store.removeImage("one");
        collect(store);
        using operation = store.begin("claim");
        assert.ok(operation.claimLayer(diffId));
        await operation.indexChunks();
      }
      assert.deepEqual([...rows().keys()].sort(), digests("a", "b", "c"));
      assert.equal(database.get("SELECT count(*) AS n FROM layers WHERE chunked = 0")!.n, 0);
    }));

  test("goes on without the rows of a damaged layer", () =>
    withImages(async ({ store, rows }) => {
      const layer = store.findLayer(store.manifestsOf("one")[0]!.layers[0]!.diffId)!;
      rmSync(join(store.root, "layers", layer.id, "tar.headers"));
      await index(store);
      assert.deepEqual([...rows().keys()].sort(), digests("a", "c"));
    }));
});

describe("check", () => {
  test("reports a row whose layer is gone, and --repair removes it", () =>
    withImages(async ({ store, rows, database }) => {
      await index(store);
      database.run("UPDATE chunks SET layer = 'nobody' WHERE digest = ?", Buffer.from(digests("b")[0]!, "hex"));
      const report = await check(store);
      assert.deepEqual(
        report.findings.map((finding) => finding.kind),
        ["index row"],
      );
      using operation = store.begin("repair");
      operation.quarantineDamage(report);
      assert.deepEqual([...rows().keys()].sort(), digests("a", "c"));
    }));
});
