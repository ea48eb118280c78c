/**
 * The newest erofs-utils and composefs as judges of exports. Run by `npm run test:export-lab`, which makes the tree of peers first;
 * as root. What fsck.erofs of Debian 12 can judge is in `judges.test.ts`; of what mkcomposefs wrote, `composefs.test.ts` keeps digests.
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { after, before, describe, test } from "node:test";
import { promisify } from "node:util";
import { exportComposefs, exportDisk, exportTarfs } from "../../src/export/index.ts";
import type { ManifestRecord, Store, StoreOperation } from "../../src/store/index.ts";
import { COMPOSEFS_DIGEST, IMAGE, openStoreWithImage, UNLINKED_IMAGE, writeLayout } from "./image.ts";
import { filesBelow } from "./kill.ts";

const PEERS = join(import.meta.dirname, "../peers/peers.sh");
const run = promisify(execFile);

describe("erofs-utils and composefs of today", { timeout: 600_000 }, () => {
  /** /share of the peers. */
  let share: string;
  let store: Store;
  let manifest: ManifestRecord;
  let operation: StoreOperation;

  const inside = async (script: string): Promise<string> => {
    const env = { ...process.env, PEERS_SHARE: share };
    const { stdout } = await run(PEERS, ["run", "bash", "-euo", "pipefail", "-c", script], { env, maxBuffer: 1e8 });
    return stdout;
  };

  before(async () => {
    share = mkdtempSync(join(tmpdir() === "/tmp" ? "/var/tmp" : tmpdir(), "shale-export-lab-")); // /tmp is another one inside
    await writeLayout(join(share, "layout"));
    ({ store, manifest } = await openStoreWithImage(join(share, "store"), join(share, "layout")));
    operation = store.begin("laboratory of exports");
  });

  after(async () => {
    operation[Symbol.dispose]();
    await store.close();
    rmSync(share, { recursive: true, force: true });
  });

  /** Fails with what fsck.erofs says; `words` are of its command line. */
  async function assertClean(...words: readonly string[]): Promise<void> {
    const said = await inside(`cd /share; fsck.erofs --extract ${words.join(" ")} 2>&1 || echo "status $?"`);
    assert.doesNotMatch(said, /<[EW]>|status/, words.join(" "));
  }

  /** And when the files that it extracts are not those of the mount of `plain`, which `judges.test.ts` compares with the store's. */
  async function assertCleanAndSame(disk: string, plain: string): Promise<void> {
    await assertClean(disk);
    const said = await inside(
      `cd /share; mkdir /tmp/mount; mount -t erofs -o loop,ro ${plain} /tmp/mount; fsck.erofs --extract=/tmp/extracted ${disk}
       for tree in mount extracted; do (cd /tmp/$tree && find . -type f -exec sha256sum {} + | sort) >/tmp/$tree.sums; done
       umount /tmp/mount; wc -l </tmp/mount.sums; diff /tmp/mount.sums /tmp/extracted.sums || :`,
    );
    assert.match(said, /^[1-9]\d*\n$/, disk); // as many files, and no line of diff's
  }

  test("fsck.erofs finds disks in blocks of 512 clean, and their content", async () => {
    for (const layer of [undefined, ...manifest.layers.keys()]) {
      const name = (verity: string) => `disk-${layer ?? "image"}-${verity}`;
      for (const verity of ["plain", "superblock", "bare"] as const) {
        const form = { blockSize: 512, verity: verity === "plain" ? undefined : verity } as const;
        await exportDisk(operation, { manifest, layer }, join(share, name(verity)), form);
        await assertCleanAndSame(name(verity), name("plain"));
      }
    }
  });

  // Their metadata only: of files that are consecutive blocks on a device of the table, 1.9.4 like 1.5 reads the right offset of the
  // wrong file (erofs_map_dev() sets no device). What they hold, the kernel says in `judges.test.ts`.
  test("fsck.erofs finds boots and disks of tarfs clean", async () => {
    const tarfs = await exportTarfs(operation, manifest, join(share, "tarfs"), { disks: "both", verity: true });
    const inTarfs = (path: string) => `tarfs/${basename(path)}`;
    const layers = tarfs.layers.map((layer) => ({ ...layer, devices: [layer.tar] }));
    for (const { boot, devices, disk } of [tarfs, ...layers]) {
      await assertClean(inTarfs(disk!.path));
      await assertClean(inTarfs(boot), ...devices.map((path) => `--device=${inTarfs(path)}`));
    }
  });

  test("(fsck.erofs does refuse damage in either)", async () => {
    for (const name of ["tarfs/damaged.boot", "damaged-disk"]) {
      const source = name === "damaged-disk" ? "disk-image-plain" : `tarfs/${blobName(manifest)}.image.boot`;
      const bytes = readFileSync(join(share, source));
      bytes[1024 + 36]! ^= 1; // in the superblock, the block where metadata begins
      writeFileSync(join(share, name), bytes);
      await assert.rejects(assertClean(name), assert.AssertionError);
    }
  });

  /** Exports an image as a disk, for mkcomposefs to read as a mount, and as composefs. */
  async function exportBoth(image: string): Promise<{ readonly name: string; readonly digest: string }> {
    const name = `${image}-composefs`;
    const opened = await openStoreWithImage(join(share, `${name}-store`), join(share, "layout"), { image });
    try {
      using its = opened.store.begin("laboratory of exports");
      await exportDisk(its, { manifest: opened.manifest, layer: undefined }, join(share, `${name}-disk`));
      const { digest } = await exportComposefs(its, opened.manifest, join(share, `${name}.cfs`), {
        objects: join(share, `${name}-objects`),
      });
      return { name, digest };
    } finally {
      await opened.store.close();
    }
  }

  /** mkcomposefs over the mount of the disk: digest of its image. */
  async function theirs(name: string): Promise<string> {
    const said = await inside(
      `cd /share; mkdir /tmp/tree; mount -t erofs -o loop,ro ${name}-disk /tmp/tree
       mkcomposefs --print-digest --digest-store=${name}-theirs /tmp/tree ${name}-theirs.cfs; umount /tmp/tree`,
    );
    return said.trim();
  }

  test("mkcomposefs makes the very image and objects of a mounted tree", async () => {
    const { name, digest } = await exportBoth(UNLINKED_IMAGE);
    assert.equal(digest, await theirs(name));
    const [ours, others] = [filesBelow(share)[`${name}.cfs`], filesBelow(share)[`${name}-theirs.cfs`]];
    assert.ok(ours !== undefined && ours === others);
    assert.deepEqual(filesBelow(join(share, `${name}-objects`)), filesBelow(join(share, `${name}-theirs`)));
    assert.ok(existsSync(join(share, `${name}-objects`)));
    assert.equal(digest, COMPOSEFS_DIGEST, "kept for runs without mkcomposefs");
  });

  // Of a directory, mkcomposefs makes a file of each name (composefs 1.0.8): only a dump can tell it of hard links.
  test("mkcomposefs makes the very image with hard links, from a dump of it", async () => {
    const { name, digest } = await exportBoth(IMAGE);
    await theirs(name);
    assert.deepEqual(filesBelow(join(share, `${name}-objects`)), filesBelow(join(share, `${name}-theirs`)));
    const said = await inside(
      `cd /share; composefs-info dump ${name}.cfs >ours.dump; composefs-info dump ${name}-theirs.cfs >theirs.dump
       mkcomposefs --from-file --print-digest-only ours.dump
       composefs-info --basedir=${name}-objects missing-objects ${name}.cfs
       diff theirs.dump ours.dump || :`,
    );
    const [again, ...rest] = said.trimEnd().split("\n");
    assert.equal(again, digest);
    // nothing else differs, and no object is missing
    assert.deepEqual(
      rest.filter((line) => !/^(\d|---)/.test(line)).map((line) => line.split(" ").slice(0, 5).join(" ")),
      [
        "< /lib/first 20000 100644 1",
        "< /lib/second 20000 100644 1",
        "> /lib/first 20000 100644 2",
        "> /lib/second 20000 @100644 2",
      ],
    );
  });
});

/** The name of the top layer's files in a tarfs export. */
function blobName({ layers }: ManifestRecord): string {
  return layers.at(-1)!.digest.slice("sha256:".length);
}
