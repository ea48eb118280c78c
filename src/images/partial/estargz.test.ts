/** eStargz layers pulled in parts: the tree of a whole pull under an identity of its own, which nothing else is found by. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { describe, test } from "node:test";
import { type DiffId, parseDiffId } from "../../oci/index.ts";
import { type ScriptedServer, startScriptedServer } from "../../registry/testing/scripted-server.ts";
import { isTocIdentity, type Store } from "../../store/index.ts";
import {
  assertSound,
  assertTars,
  check,
  collect,
  type Files,
  noise,
  tar,
  withStore,
} from "../../store/testing/fixtures.ts";
import { withTemporaryDirectory } from "../../sys/testing/filesystems.ts";
import { estargzLayer, layerIndexOf, publish, pullFrom } from "./testing/images.ts";

const COMMON: Files = {
  "./": { type: "directory", mode: 0o711 },
  "bin/": "",
  "bin/tool": { content: noise(600_000, "tool"), mode: 0o4755, uid: 3, gid: 70_000 },
  "bin/link": { type: "symlink", linkTarget: "tool" },
  "bin/same": { type: "hardlink", linkTarget: "bin/tool" },
  "etc/": "",
  "etc/small": noise(900, "small"),
  empty: "",
};
const FIRST: Files = { ...COMMON, first: noise(150_000, "first") };
const SECOND: Files = {
  ...COMMON,
  second: noise(100_000, "second"),
  "etc/.wh.gone": "",
  "etc/changed": { content: Buffer.from("changed"), mtimeSeconds: 1_600_000_001 },
  null: { type: "character", rdevMajor: 1, rdevMinor: 3 },
  queue: { type: "fifo" },
};

interface Fixture {
  readonly root: string;
  readonly directory: string;
  readonly server: ScriptedServer;
}

/** A store that has "first", and "second" on the server. */
async function withSecond(use: (store: Store, fixture: Fixture) => Promise<void>): Promise<void> {
  await withTemporaryDirectory(async (directory) => {
    const root = join(directory, "store");
    await using server = await startScriptedServer();
    publish(server, "first", [await estargzLayer(tar(FIRST))]);
    publish(server, "second", [await estargzLayer(tar(SECOND))]);
    await withStore(root, async (store) => {
      await pullFrom(store, server, "first");
      await use(store, { root, directory, server });
    });
  });
}

const layerOf = (store: Store, name: string): DiffId => store.manifestsOf(name)[0]!.layers[0]!.diffId;

describe("an eStargz layer", () => {
  test("comes in parts where the store has some of it, with the tree of a whole pull", () =>
    withSecond(async (store, { directory, server }) => {
      const [layer] = (await pullFrom(store, server, "second")).layers;
      assert.ok(layer!.parts, "it was pulled whole");
      assert.equal(layer!.parts.referredFiles, 1);
      assert.ok(layer!.received < 130_000, `${layer!.received} bytes`);
      assert.ok(isTocIdentity(layerOf(store, "second")));
      const { findings, layersByToc } = await check(store);
      assert.deepEqual(findings, []);
      assert.equal(layersByToc, 1);
      const found = layerIndexOf(store, "second");
      await withStore(join(directory, "whole"), async (other) => {
        const [whole] = (await pullFrom(other, server, "second")).layers;
        assert.equal(whole!.parts, undefined);
        assert.equal(layerOf(other, "second"), layer!.diffId);
        assert.deepEqual(found, layerIndexOf(other, "second"));
      });
    }));

  test("is found by no diffId, and an image gets the verified one as soon as the store has it", () =>
    withSecond(async (store, { server }) => {
      const [layer] = (await pullFrom(store, server, "second")).layers;
      assert.equal(store.findLayer(layer!.diffId), undefined);
      const identity = layerOf(store, "second");
      assert.throws(() => parseDiffId(identity));
      assert.deepEqual(store.diffIdsOfBlob(layer!.digest!), []);
      await pullFrom(store, server, "second"); // present
      assert.equal(layerOf(store, "second"), identity);
      await pullFrom(store, server, "second", { whole: true });
      assert.equal(layerOf(store, "second"), layer!.diffId);
      assertTars(store, "second");
      const { items } = collect(store);
      assert.ok(items.some(({ kind, id }) => kind === "layer" && id === identity));
      await assertSound(store);
    }));
});
