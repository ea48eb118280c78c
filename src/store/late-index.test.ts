import assert from "node:assert/strict";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { DiffId } from "../oci/index.ts";
import { injectFault } from "../sys/index.ts";
import { withTemporaryDirectory } from "../sys/testing/filesystems.ts";
import type { Store } from "./index.ts";
import { assertSound, ingest, noise, tar, withStore } from "./testing/fixtures.ts";

interface Bench {
  readonly store: Store;
  readonly errors: unknown[];
  /** Commits a layer with the shared file, asks for its index and answers how much of it was found elsewhere. */
  put(name: string): Promise<number>;
  /** Rows of the index. */
  rows(): number;
}

const SHARED = noise(50_000, "shared");

const withBench = (use: (bench: Bench) => Promise<void>) =>
  withTemporaryDirectory((directory) =>
    withStore(join(directory, "store"), async (store) => {
      using operation = store.begin("test");
      const errors: unknown[] = [];
      await use({
        store,
        errors,
        async put(name) {
          const layer = await ingest(operation, join(directory, name), tar({ shared: SHARED, name }));
          operation.commitLayers([layer]);
          operation.indexLayersLater((error) => errors.push(error));
          return operation.getLayer(layer.diffId as DiffId).sharedBytes;
        },
        rows: () => rowsOf(store.root),
      });
      assert.deepEqual(errors.splice(0), []);
    }),
  );

function rowsOf(root: string): number {
  using database = new DatabaseSync(join(root, "shale.db"), { readOnly: true });
  return Number(database.prepare("SELECT count(*) AS n FROM payloads").get()!.n);
}

describe("StoreOperation.indexLayersLater()", () => {
  test("does it by itself, a while later", () =>
    withBench(async ({ put, rows, store }) => {
      await put("one");
      assert.equal(rows(), 0);
      while (rows() === 0) await sleep(20); // the runner's own limit ends it
      assert.equal(rows(), 1);
      await assertSound(store);
    }));

  test("has it done before the next ingest of the process begins", () =>
    withBench(async ({ put, rows }) => {
      assert.equal(await put("one"), 0);
      assert.equal(await put("two"), SHARED.length);
      assert.equal(rows(), 1);
    }));

  test("leaves it to the next process when the store is closed", async () => {
    await withTemporaryDirectory(async (directory) => {
      const root = join(directory, "store");
      await withStore(root, async (store) => {
        using operation = store.begin("test");
        operation.commitLayers([await ingest(operation, join(directory, "tar"), tar({ shared: SHARED }))]);
        operation.indexLayersLater((error) => assert.ifError(error));
      });
      assert.equal(rowsOf(root), 0);
      await withStore(root, (store) => {
        using operation = store.begin("test");
        operation.indexLayers();
        assert.equal(rowsOf(root), 1);
      });
    });
  });

  test("tells what went wrong, fails no ingest for it, and has another try", () =>
    withBench(async ({ put, rows, errors }) => {
      await put("one");
      {
        using _ = injectFault({ kind: "open", path: /blobs/, errno: "EMFILE" });
        assert.equal(await put("two"), 0);
      }
      assert.equal(errors.splice(0).length, 1);
      assert.equal(await put("three"), SHARED.length);
      assert.equal(rows(), 1);
    }));
});
