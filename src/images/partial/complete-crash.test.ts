/**
 * SIGKILL while the eStargz layers of an image that came in parts are completed for a save: the store opens, is sound, tells
 * of each layer only what it has of it, and the next save gives the tars that the image's config names.
 */
import assert from "node:assert/strict";
import { cpSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { openOciLayout } from "../../archives/index.ts";
import { mapConcurrent } from "../../async/index.ts";
import { startScriptedServer } from "../../registry/testing/scripted-server.ts";
import { isTocIdentity, type Store } from "../../store/index.ts";
import {
  assertSound,
  assertTars,
  collect,
  type Files,
  noise,
  sha256,
  tar,
  withStore,
} from "../../store/testing/fixtures.ts";
import { storeProcess } from "../../store/testing/processes.ts";
import { withTemporaryDirectory } from "../../sys/testing/filesystems.ts";
import { saveImages } from "../save.ts";
import { estargzLayer, layerIndexOf, publish, pullFrom, testClient } from "./testing/images.ts";

const shared = (name: string): Files => ({ "./": "", [`shared-${name}`]: noise(500_000, name), small: "small" });
/** Two layers, so that a kill finds one complete and the other not. */
const FIRST = [shared("below"), shared("above")];
const SECOND = [
  { ...shared("below"), below: noise(60_000, "of below") },
  { ...shared("above"), above: noise(60_000, "of above"), "small-too": "too" },
];
/** Beside the child this process works too. */
const AT_A_TIME = 2;

const SAVE = `
  const { testClient } = await import(args.images);
  const { saveImages } = await import(args.save);
  const client = testClient();
  const store = Store.open(args.root);
  await saveImages(store, ["second"], { output: args.output, registry: async () => client });
  await store.close();
`;

const layersOf = (store: Store) => store.manifestsOf("second")[0]!.layers.map(({ diffId }) => diffId);

/** Each of the store's own points as often as it is passed; of plain effects, which are many, the one in the middle. */
function pointsOf(log: string): string[] {
  const seen = new Map<string, number>();
  for (const line of readFileSync(log, "utf8").trimEnd().split("\n")) {
    const name = line.slice(0, line.indexOf("\t"));
    seen.set(name, (seen.get(name) ?? 0) + 1);
  }
  assert.ok(seen.has("image:layers-replaced") && seen.has("commit:recorded"), [...seen.keys()].join(" "));
  return [...seen].flatMap(([name, count]) => {
    const wanted = name.includes(":") ? Array.from({ length: count }, (_, i) => i + 1) : [Math.ceil(count / 2)];
    return wanted.map((nth) => `${name}#${nth}`);
  });
}

test("a SIGKILL at each kind of crash point of a save that completes an image", () =>
  withTemporaryDirectory(async (directory) => {
    await using server = await startScriptedServer();
    const make = (image: readonly Files[]) => Promise.all(image.map((files) => estargzLayer(tar(files))));
    const second = await make(SECOND);
    const diffIds = second.map(({ diffId }) => diffId);
    publish(server, "first", await make(FIRST));
    publish(server, "second", second);
    const prepared = join(directory, "prepared");
    const expected = await withStore(prepared, async (store) => {
      await pullFrom(store, server, "first");
      const { layers } = await pullFrom(store, server, "second");
      assert.ok(layers.every(({ parts }) => parts !== undefined) && layersOf(store).every(isTocIdentity));
      return layerIndexOf(store, "second");
    });

    const killedAt = async (name: string, env: Readonly<Record<string, string>>) => {
      const root = join(directory, name);
      cpSync(prepared, root, { recursive: true });
      const images = new URL("./testing/images.ts", import.meta.url).href;
      const save = new URL("../save.ts", import.meta.url).href;
      await using child = storeProcess(SAVE, { root, output: join(directory, `${name}-saved/`), images, save }, env);
      return { root, ...(await child.ended) };
    };
    const log = join(directory, "points");
    const { code, stderr } = await killedAt("recorded", { SHALE_CRASH_RECORD: log });
    assert.equal(code, 0, stderr);

    await mapConcurrent(pointsOf(log), AT_A_TIME, async (point, number) => {
      const { root } = await killedAt(`killed-${number}`, { SHALE_CRASH_AT: point });
      await withStore(root, async (store) => {
        assert.deepEqual(readdirSync(join(root, "staging")), [], point);
        await assertSound(store, point);
        const left = layersOf(store);
        // one transaction: both or none
        if (!left.every(isTocIdentity)) assert.deepEqual(left, diffIds, point);
        if (point.startsWith("image:layers-replaced")) assert.deepEqual(left, diffIds, point);
        assert.deepEqual(layerIndexOf(store, "second"), expected, point);
        await using client = testClient();
        // into the layout that the killed one has begun
        const output = join(directory, `killed-${number}-saved/`);
        await saveImages(store, ["second"], { output, registry: async () => client });
        assert.deepEqual(layersOf(store), diffIds, point);
        assertTars(store, "second");
        const layout = openOciLayout(output);
        const { manifest } = layout.readManifest(layout.get("latest"));
        assert.ok(manifest.kind === "manifest");
        for (const [at, { digest }] of manifest.layers.entries()) {
          assert.equal(digest, diffIds[at], point);
          assert.equal(`sha256:${sha256(readFileSync(join(output, "blobs/sha256", digest.slice(7))))}`, digest, point);
        }
        collect(store);
        assert.equal(store.listLayers().filter(({ diffId }) => isTocIdentity(diffId)).length, 0, point);
        await assertSound(store, point);
      });
      rmSync(root, { recursive: true });
    });
  }));
