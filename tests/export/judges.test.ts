/**
 * Every form of EROFS that exports come in, each layer by itself as well as the image: fsck.erofs and the kernel's mounts as judges.
 * fsck.erofs of Debian 12 (1.5) knows no blocks of 512 bytes, and Debian 12 has no mkcomposefs: `peers.lab.ts` asks the newest ones.
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { type DiskOptions, exportComposefs, exportDisk, exportTarfs } from "../../src/export/index.ts";
import type { ManifestRecord, Store, StoreOperation } from "../../src/store/index.ts";
import { which } from "../../src/sys/index.ts";
import { needsRoot } from "../../src/sys/testing/filesystems.ts";
import { COMPOSEFS_DIGEST, openStoreWithImage, UNLINKED_IMAGE, writeLayout } from "./image.ts";
import { describeMounts, type Plan } from "./mounts.ts";

const FORMS: readonly (DiskOptions & { readonly blockSize: 512 | 4096 })[] = ([512, 4096] as const).flatMap(
  (blockSize) => [{ blockSize }, { blockSize, verity: "superblock" }, { blockSize, verity: "bare" }],
);

describe("every form of an export", () => {
  let top: string;
  let store: Store;
  let manifest: ManifestRecord;
  let operation: StoreOperation;
  /** The image, then its layers. */
  let sources: readonly (number | undefined)[];

  before(async () => {
    top = mkdtempSync(join(tmpdir(), "shale-judges-"));
    await writeLayout(join(top, "layout"));
    ({ store, manifest } = await openStoreWithImage(join(top, "store"), join(top, "layout")));
    operation = store.begin("test of exports");
    sources = [undefined, ...manifest.layers.keys()];
  });

  after(async () => {
    operation[Symbol.dispose]();
    await store.close();
    rmSync(top, { recursive: true, force: true });
  });

  /** The store's own mount of a source. */
  function storePlan(layer: number | undefined): Plan {
    const { image, devices } =
      layer === undefined
        ? operation.mergedFiles(manifest.layers.map(({ diffId }) => diffId))
        : operation.layerFiles(operation.getLayer(manifest.layers[layer]!.diffId));
    return { kind: "erofs", source: image, devices };
  }

  async function makeDisk(layer: number | undefined, form: (typeof FORMS)[number]): Promise<string> {
    const path = join(top, `disk-${layer ?? "image"}-${form.blockSize}-${form.verity ?? "plain"}`);
    await exportDisk(operation, { manifest, layer }, path, form);
    return path;
  }

  test("of EROFS mounts to what the store's mount of the image or the layer shows", needsRoot, async () => {
    const tarfs = await exportTarfs(operation, manifest, join(top, "tarfs"), { disks: "both", verity: true });
    for (const layer of sources) {
      const own = layer === undefined ? undefined : tarfs.layers[layer]!;
      const { boot, disk } = own ?? tarfs;
      const plans: Plan[] = [
        { kind: "erofs", source: boot, devices: own === undefined ? tarfs.devices : [own.tar] },
        { kind: "erofs", source: disk!.path },
      ];
      for (const form of FORMS) plans.push({ kind: "erofs", source: await makeDisk(layer, form) });
      const [expected, ...shown] = describeMounts([storePlan(layer), ...plans]);
      for (const [number, tree] of shown.entries()) assert.deepEqual(tree, expected, JSON.stringify(plans[number]));
    }
  });

  const needsFsck = { skip: which("fsck.erofs") === undefined && "needs fsck.erofs" };

  test("of a disk is what fsck.erofs finds clean, content included, in blocks of 4096", needsFsck, async () => {
    for (const layer of sources) {
      for (const form of FORMS.filter(({ blockSize }) => blockSize === 4096)) {
        assert.equal(fsck(await makeDisk(layer, form)), "", `${layer} ${JSON.stringify(form)}`);
      }
    }
  });

  test("(which does refuse a damaged disk)", needsFsck, async () => {
    const path = await makeDisk(undefined, { blockSize: 4096 });
    const bytes = readFileSync(path);
    bytes[1024 + 36]! ^= 1; // in the superblock, the block where metadata begins
    writeFileSync(path, bytes);
    assert.notEqual(fsck(path), "");
  });

  test("of composefs is what mkcomposefs made of a mount of the same tree", async () => {
    const image = UNLINKED_IMAGE;
    const opened = await openStoreWithImage(join(top, "unlinked"), join(top, "layout"), { image });
    try {
      using its = opened.store.begin("test of exports");
      const { digest } = await exportComposefs(its, opened.manifest, join(top, "image.cfs"));
      assert.equal(digest, COMPOSEFS_DIGEST);
    } finally {
      await opened.store.close();
    }
  });
});

/** What fsck.erofs has to complain about; "" when nothing. */
function fsck(path: string): string {
  const { status, stdout, stderr } = spawnSync("fsck.erofs", ["--extract", path], { encoding: "utf8" });
  return status === 0 && !/<[EW]>/.test(stderr) ? "" : `status ${status}: ${stderr}${stdout}`;
}
