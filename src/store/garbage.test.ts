import assert from "node:assert/strict";
import {
  closeSync,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { describe, test } from "node:test";
import { ShaleError } from "../errors/index.ts";
import { tryLock } from "../sys/index.ts";
import { withTemporaryDirectory } from "../sys/testing/filesystems.ts";
import type { GarbageReport, Store } from "./index.ts";
import {
  assertSound,
  assertTars,
  collect,
  contentOf,
  type Files,
  ingest,
  type MadeImage,
  noise,
  pull,
  tar,
  withStore,
  writeImage,
} from "./testing/fixtures.ts";

interface Bench {
  readonly store: Store;
  /** Makes an image of these layers and pulls it. */
  put(name: string, ...layers: readonly Files[]): Promise<MadeImage>;
  /** One value of the database. */
  value(sql: string): unknown;
  blobs(): string[];
}

async function withBench(use: (bench: Bench) => Promise<void>): Promise<void> {
  await withTemporaryDirectory((directory) =>
    withStore(join(directory, "store"), async (store) => {
      const layout = join(directory, "layout");
      await use({
        store,
        async put(name, ...layers) {
          const image = writeImage(layout, name, layers.map(tar));
          await pull(store, layout, name);
          return image;
        },
        value(sql) {
          const database = new DatabaseSync(join(store.root, "shale.db"), { readOnly: true });
          const row = database.prepare(sql).get();
          database.close();
          return row === undefined ? undefined : Object.values(row)[0];
        },
        blobs: () => readdirSync(join(store.root, "blobs")),
      });
    }),
  );
}

/** Blocks on disk of everything that holds layers. */
function allocated(store: Store): number {
  let sum = 0;
  for (const directory of ["blobs", "layers", "merged", "downloads"]) {
    for (const entry of readdirSync(join(store.root, directory), { recursive: true, withFileTypes: true })) {
      if (entry.isFile()) sum += statSync(join(entry.parentPath, entry.name)).blocks * 512;
    }
  }
  return sum;
}

const facts = (report: GarbageReport) => ({
  freed: report.freed,
  items: report.items.map(({ kind, id, size }) => `${kind} ${id} ${size}`).sort(),
  postponed: report.postponed.map(({ kind, id }) => `${kind} ${id}`).sort(),
});

/** Collects, and insists that a dry run foresaw it and that exactly that much less is on disk. */
function collectExactly(store: Store): GarbageReport {
  const foreseen = collect(store, { dryRun: true });
  const before = allocated(store);
  const done = collect(store);
  assert.deepEqual(facts(foreseen), facts(done));
  assert.equal(before - allocated(store), done.freed);
  return done;
}

const kinds = (report: GarbageReport) => report.items.map((item) => item.kind).sort();
const base: Files = { "./": "", base: noise(50_000, "base"), small: "base" };
const layer = (seed: string): Files => ({ "./": "", [seed]: noise(30_000, seed) });

describe("collectGarbage()", () => {
  test("frees nothing while an image, a mount or nothing at all needs it", () =>
    withBench(async ({ store, put }) => {
      assert.deepEqual(collectExactly(store).items, []);
      const image = await put("one", base, layer("one"));
      assert.deepEqual(collectExactly(store).items, []);
      {
        using operation = store.begin("mount");
        operation.mergedFiles(image.diffIds);
        operation.recordMount({
          target: "/mnt",
          image: "one",
          manifest: image.manifest.digest,
          chainId: store.manifestsOf("one")[0]!.chainId,
          diffIds: image.diffIds,
          mode: "merged",
          writable: undefined,
          bootId: "boot",
          namespace: "ns",
          createdAt: new Date(),
        });
      }
      store.removeImage("one");
      assert.deepEqual(collectExactly(store).items, [], "mounted");
      store.forgetMount("/mnt");
      assert.deepEqual(kinds(collectExactly(store)), ["blob", "blob", "layer", "layer", "merged image"]);
      assert.equal(allocated(store), 0);
      await assertSound(store);
    }));

  // Found by R10: it stayed in sight with the operation that had made it, its layers went, and the same chain came again.
  test("condemns a merged image with its layers, also when the operation that made it is under way", () =>
    withBench(async ({ store, put }) => {
      const image = await put("one", base, layer("one"));
      const condemned = () => {
        using database = new DatabaseSync(join(store.root, "shale.db"), { readOnly: true });
        const rows = database.prepare("SELECT condemned FROM merged").all();
        return rows.map((row) => row.condemned !== null);
      };
      {
        using operation = store.begin("read");
        const { devices } = operation.mergedFiles(image.diffIds);
        store.removeImage("one");
        collect(store);
        assert.deepEqual(condemned(), [true]);
        assert.ok(devices.every(existsSync), "the operation goes on");
        assert.throws(
          () => operation.mergedFiles(image.diffIds),
          (error) => ShaleError.is(error, "NOT_FOUND"),
        );
      }
      assert.deepEqual(kinds(collectExactly(store)), ["blob", "blob", "layer", "layer", "merged image"]);
    }));

  test("keeps layers that another image has, and pinned images can't be removed", () =>
    withBench(async ({ store, put }) => {
      await put("one", base, layer("one"));
      await put("two", base, layer("two"));
      contentOf(store, "one"); // makes its merged image
      store.setPinned("two", true);
      store.removeImage("one");
      assert.throws(
        () => store.removeImage("two"),
        (error) => ShaleError.is(error, "FAILED_PRECONDITION"),
      );
      assert.deepEqual(kinds(collectExactly(store)), ["blob", "layer", "merged image"]);
      assert.deepEqual(Object.keys(contentOf(store, "two")).sort(), ["/base", "/small", "/two"]);
      assertTars(store, "two");
      await assertSound(store);
    }));

  test("punches out of a shared blob exactly what nothing refers to, holes and shadowed payloads included", () =>
    withBench(async ({ store, put, value, blobs }) => {
      const shared = noise(20_000, "shared");
      const hidden = noise(9000, "hidden");
      const holes = Buffer.concat([noise(4096, 1), Buffer.alloc(300_000), noise(4096, 2)]);
      await put("one", { "./": "", a: noise(10_000, "a"), shared, b: holes, hidden, c: noise(5000, "c") });
      // "hidden" is replaced by a later entry of the same tar: no name leads to it, but the tar needs it.
      await put("two", { "./": "", "two-shared": shared, "./x": hidden, x: "replaced" });
      const [blob] = blobs();
      assert.deepEqual(blobs(), [blob], "two brings nothing of its own");
      store.removeImage("one");
      assert.deepEqual(kinds(collectExactly(store)), ["blob ranges", "layer"]);
      const table = statSync(join(store.root, "blobs", blob!)).size % 4096;
      assert.ok(table < 4096);
      assert.equal(statSync(join(store.root, "blobs", blob!)).blocks * 512, 20_480 + 12_288 + 4096);
      assert.equal(value("SELECT count(*) FROM payloads"), 2, "what lives may serve further pulls");
      assertTars(store, "two");
      await assertSound(store);
      await put("three", { "./": "", again: shared, new: noise(10_000, "a") });
      assert.equal(store.listLayers().at(-1)!.sharedBytes, shared.length);
      assert.deepEqual(collectExactly(store).items, [], "a second run finds nothing to punch");
      store.removeImage("two");
      store.removeImage("three");
      collectExactly(store);
      assert.equal(allocated(store), 0);
      assert.equal(value("SELECT count(*) FROM payloads"), 0);
    }));

  test("takes the index rows of what it condemns away before anything is freed, and waits for old leases", () =>
    withBench(async ({ store, put, value, blobs }) => {
      const image = await put("one", layer("one"));
      store.removeImage("one");
      const [blob] = blobs();
      {
        using _old = store.begin("an operation that began before");
        const report = collectExactly(store);
        assert.deepEqual(facts(report), { freed: 0, items: [], postponed: [`layer ${image.diffIds[0]}`] });
        assert.equal(value("SELECT count(*) FROM payloads"), 0);
        assert.deepEqual(blobs(), [blob]);
        assert.equal(store.findLayer(image.diffIds[0]!), undefined, "out of sight");
        using _young = store.begin("an operation that began after");
        assert.equal(collectExactly(store).items.length, 0);
      }
      assert.deepEqual(kinds(collectExactly(store)), ["blob", "layer"]);
    }));

  test("does not wait for leases that began after its layers were condemned", () =>
    withBench(async ({ store, put }) => {
      await put("one", layer("one"));
      store.removeImage("one");
      {
        using _ = store.begin("old");
        collect(store);
      }
      using _young = store.begin("young");
      assert.deepEqual(
        kinds(collect(store)),
        ["layer"],
        "its blob waits: the young one may refer to it by other layers",
      );
    }));

  test("leaves what an operation under way has committed but not yet named (R5)", () =>
    withBench(async ({ store }) => {
      using operation = store.begin("pull");
      const bytes = tar(layer("new"));
      const result = await ingest(operation, join(store.root, "../new.tar"), bytes);
      operation.commitLayers([result]);
      assert.deepEqual(collectExactly(store).items, []);
      assert.ok(store.findLayer(result.diffId as never));
      operation[Symbol.dispose]();
      assert.deepEqual(kinds(collectExactly(store)), ["blob", "layer"]);
    }));

  test("gives a condemned layer back to a pull that claims it, and finds its payloads again", () =>
    withBench(async ({ store, put, value }) => {
      const image = await put("one", layer("one"));
      const id = store.listLayers()[0]!.id;
      store.removeImage("one");
      {
        using _ = store.begin("old");
        collect(store);
      }
      await pull(store, image.directory, "one");
      assert.equal(store.listLayers()[0]!.id, id, "not fetched again");
      assert.equal(value("SELECT count(*) FROM payloads"), 1);
      assert.deepEqual(collectExactly(store).items, []);
      assertTars(store, "one");
      await assertSound(store);
    }));

  test("names the process that collects already", () =>
    withBench(async ({ store }) => {
      using _ = tryLock(join(store.root, "gc.lock"), { command: "gc" });
      assert.throws(
        () => collect(store),
        (error) => ShaleError.is(error, "FAILED_PRECONDITION") && error.message.includes(`process ${process.pid}`),
      );
    }));

  test("stops at a signal, and the next run continues", () =>
    withBench(async ({ store, put }) => {
      await put("one", base, layer("one"));
      store.removeImage("one");
      {
        using operation = store.begin("gc");
        operation.collectGarbage({ signal: AbortSignal.abort() });
      }
      assert.ok(allocated(store) > 0);
      collectExactly(store);
      assert.equal(allocated(store), 0);
    }));

  test("goes on without what a damaged layer may refer to, and says why (G10)", () =>
    withBench(async ({ store, put, blobs }) => {
      await put("one", { "./": "", shared: noise(9000, "shared"), dead: noise(9000, "dead") });
      await put("two", { "./": "", shared: noise(9000, "shared"), own: noise(5000, "own") });
      const broken = store.listLayers().at(-1)!;
      const meta = join(store.root, "layers", broken.id, "meta.erofs");
      const bytes = readFileSync(meta);
      unlinkSync(meta);
      store.removeImage("one");
      const report = collectExactly(store);
      assert.deepEqual(kinds(report), ["layer"]);
      assert.match(report.postponed[0]!.why, /can't be read and may refer to it: run shale check/);
      assert.equal(blobs().length, 2);
      writeFileSync(meta, bytes);
      assert.deepEqual(kinds(collectExactly(store)), ["blob ranges"]);
      assertTars(store, "two");
      await assertSound(store);
    }));

  test("leaves a blob that a file handle still reads", () =>
    withBench(async ({ store, put, blobs }) => {
      await put("one", layer("one"));
      const [blob] = blobs();
      const fd = openSync(join(store.root, "blobs", blob!), "r");
      store.removeImage("one");
      assert.deepEqual(kinds(collectExactly(store)), ["layer"]);
      assert.ok(existsSync(join(store.root, "blobs", blob!)));
      closeSync(fd);
      assert.deepEqual(kinds(collectExactly(store)), ["blob"]);
    }));
});
