/** Snapshots as the rest of the store sees them: garbage, usage, check. What they mean to containerd: snapshotter/. */
import assert from "node:assert/strict";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { describe, test } from "node:test";
import type { DiffId } from "../oci/index.ts";
import { withTemporaryDirectory } from "../sys/testing/filesystems.ts";
import type { SnapshotRegister, Store } from "./index.ts";
import {
  assertSound,
  check,
  collect,
  type Files,
  noise,
  pull,
  tar,
  withStore,
  writeImage,
} from "./testing/fixtures.ts";

interface Bench {
  readonly store: Store;
  readonly register: SnapshotRegister;
  /** Makes an image of these layers and pulls it. */
  put(name: string, ...layers: readonly Files[]): Promise<readonly DiffId[]>;
  sql(statement: string): void;
}

async function withBench(use: (bench: Bench) => Promise<void>): Promise<void> {
  await withTemporaryDirectory((directory) =>
    withStore(join(directory, "store"), async (store) => {
      using register = store.openSnapshots();
      await use({
        store,
        register,
        async put(name, ...layers) {
          const image = writeImage(join(directory, "layout"), name, layers.map(tar));
          await pull(store, join(directory, "layout"), name);
          return image.diffIds;
        },
        sql(statement) {
          using database = new DatabaseSync(join(store.root, "shale.db"));
          database.exec(statement);
        },
      });
    }),
  );
}

const now = { labels: {}, createdAt: 1_700_000_000_123_456_789n } as const;

function commitLayer(register: SnapshotRegister, name: string, parent: string, diffId: DiffId): void {
  register.insertCommitted({ ...now, id: register.reserve(), name, parent, diffId });
}

describe("snapshots", () => {
  test("keep their layers, and mounts keep theirs and the merged image, until they are removed", () =>
    withBench(async ({ store, register, put }) => {
      const [one, two] = await put("image", { a: noise(9000, "a") }, { b: noise(9000, "b") });
      commitLayer(register, "one", "", one!);
      const mount = register.hostMounts.ensure('{"layer":"x"}', [two!], undefined);
      store.removeImage("image");
      const held = collect(store);
      assert.deepEqual(
        held.items.filter(({ kind }) => kind === "layer" || kind === "blob"),
        [],
      );
      register.hostMounts.forget(mount);
      assert.deepEqual(
        collect(store)
          .items.filter(({ kind }) => kind === "layer")
          .map(({ id }) => id),
        [two],
      );
      register.remove("one");
      collect(store);
      assert.deepEqual(store.listLayers(), []);
    }));

  test("claim a layer that is condemned and not yet removed", () =>
    withBench(async ({ store, register, put }) => {
      const [one] = await put("image", { a: noise(9000, "a") });
      store.removeImage("image");
      using _older = store.begin("an operation that may use it");
      collect(store);
      assert.equal(store.findLayer(one!), undefined);
      commitLayer(register, "one", "", one!);
      assert.ok(store.findLayer(one!));
    }));

  test("of a layer that is not there are refused, and nothing is recorded", () =>
    withBench(async ({ store, register, put }) => {
      const [one] = await put("image", { a: "a" });
      store.removeImage("image");
      collect(store);
      assert.throws(() => commitLayer(register, "one", "", one!), { code: "ABORTED" });
      assert.deepEqual([...store.listSnapshots()], []);
    }));

  test("keep nanoseconds", () =>
    withBench(async ({ register, put }) => {
      const [one] = await put("image", { a: "a" });
      commitLayer(register, "one", "", one!);
      assert.equal(register.find("one")?.createdAt, now.createdAt);
    }));

  test("are counted in the usage, and take what they hold out of the unique bytes of images", () =>
    withBench(async ({ store, register, put }) => {
      const [one] = await put("image", { a: noise(50_000, "a") });
      const before = store.measureUsage();
      assert.deepEqual(before.snapshots, { active: 0, view: 0, committed: 0, bytes: 0 });
      assert.ok(before.images[0]!.unique > 50_000);
      commitLayer(register, "one", "", one!);
      const { id, path } = register.makeDirectory();
      writeFileSync(join(path, "file"), noise(40_000, "f"));
      register.insert({
        ...now,
        ...{ id, name: "active", parent: "one", kind: "active", directory: true, bases: ["m1"], options: [] },
        unsyncedSince: undefined,
      });
      const { images, snapshots, stored } = store.measureUsage();
      assert.equal(images[0]!.unique, 0);
      assert.equal(images[0]!.stored, before.images[0]!.stored);
      assert.equal(snapshots.committed + snapshots.active, 2);
      assert.ok(snapshots.bytes >= 40_000 && snapshots.bytes < 60_000);
      assert.ok(stored >= before.stored + snapshots.bytes);
    }));

  test("that lack something are findings of a check, and so are files that are none", () =>
    withBench(async ({ store, register, put, sql }) => {
      const [one, two] = await put("image", { a: "a" }, { b: "b" });
      commitLayer(register, "one", "", one!);
      commitLayer(register, "two", "one", two!);
      for (const name of ["gone", "unsynced", "sound"]) {
        const { id } = register.makeDirectory();
        register.insert({
          ...now,
          ...{ id, name, parent: "", kind: "active", directory: true, bases: [], options: [] },
          unsyncedSince: undefined,
        });
        register.commit(name, { name: `${name} committed`, labels: {}, at: 1n, parent: "", directory: true });
      }
      await assertSound(store);
      sql("UPDATE snapshots SET boot = 'another' WHERE name = 'unsynced committed'");
      sql(`UPDATE layers SET damage = 'test' WHERE diff_id = '${two}'`);
      rmSync(register.directoryOf(register.find("gone committed")!.id), { recursive: true });
      mkdirSync(join(store.root, "snapshots/stray"));
      mkdirSync(join(store.root, "snapshots/4711"));
      const { findings } = await check(store);
      assert.deepEqual(
        findings
          .filter(({ kind }) => kind === "snapshot" || kind === "stray file")
          .map((finding) => ("name" in finding ? finding.name : finding.kind)),
        ["two", "gone committed", "unsynced committed", "stray file"],
      );
    }));
});
