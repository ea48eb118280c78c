/** The same image gives the same bytes, whatever its store had before and in whichever order the layers came. */
import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import type { ManifestRecord, Store, StoreOperation } from "../../src/store/index.ts";
import { isRoot } from "../../src/sys/index.ts";
import { unmountBelow } from "../../src/sys/testing/filesystems.ts";
import { FORMATS } from "./formats.ts";
import { LAYER_IMAGES, OTHER_IMAGE, openStoreWithImage, writeLayout } from "./image.ts";
import { filesBelow } from "./kill.ts";

/** What each store has before it pulls the image. */
const PASTS: readonly (readonly string[])[] = [[], LAYER_IMAGES.toReversed(), [OTHER_IMAGE]];

interface Opened {
  readonly store: Store;
  readonly manifest: ManifestRecord;
  readonly operation: StoreOperation;
}

describe("the same export from stores with different pasts", () => {
  let top: string;
  const stores: Opened[] = [];

  before(async () => {
    top = mkdtempSync(join(tmpdir(), "shale-determinism-"));
    const layout = join(top, "layout");
    await writeLayout(layout);
    for (const [number, past] of PASTS.entries()) {
      const { store, manifest } = await openStoreWithImage(join(top, `store-${number}`), layout, { before: past });
      stores.push({ store, manifest, operation: store.begin("test of determinism") });
    }
  });

  after(async () => {
    for (const { store, operation } of stores) {
      operation[Symbol.dispose]();
      await store.close();
    }
    unmountBelow(top); // ext4 has a mount, which a failure may leave
    rmSync(top, { recursive: true, force: true });
  });

  test("(the stores do differ)", () => {
    const shapes = stores.map(({ operation, manifest }) => {
      const layers = manifest.layers.map(({ diffId }) => operation.getLayer(diffId));
      const numbers = layers.map(({ id }) => id.replace(/-[0-9a-f]{12}-/, " ")); // without what is random
      return JSON.stringify([numbers, layers.map((layer) => operation.layerFiles(layer).devices.length)]);
    });
    assert.equal(new Set(shapes).size, PASTS.length, shapes.join("\n"));
  });

  for (const { name, target, make } of FORMATS) {
    const skip = name === "ext4" && !isRoot() ? "needs root" : false;
    test(`has the same bytes: ${name}`, { skip }, async () => {
      const made: Readonly<Record<string, string>>[] = [];
      for (const [number, { operation, manifest }] of stores.entries()) {
        const place = join(top, `${name}-${number}`);
        mkdirSync(place);
        await make(operation, manifest, place);
        assert.ok(readdirSync(place).includes(target(manifest)));
        made.push(filesBelow(place));
      }
      for (const other of made.slice(1)) assert.deepEqual(other, made[0]);
    });
  }
});
