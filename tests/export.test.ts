/**
 * Exports of a made-up image, judged by the kernel's mounts, fsck.erofs, veritysetup, fsverity, GNU tar and e2fsck. What is built is
 * compared with the store's own mount entry by entry.
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { ShaleError } from "../src/errors/index.ts";
import {
  chainManifest,
  type DiskOptions,
  collectAll,
  collectExports,
  ExportCache,
  encodeKataOption,
  exportComposefs,
  exportDisk,
  exportExt4,
  exportTar,
  exportTarfs,
  kataVolume,
  leastTarSize,
  listExports,
  publishTar,
  readSidecar,
  type Sidecar,
  verifyFile,
} from "../src/export/index.ts";
import type { ManifestRecord, Store, StoreOperation } from "../src/store/index.ts";
import { injectFault, isRoot } from "../src/sys/index.ts";
import { needsRoot, withLoopFilesystem } from "../src/sys/testing/filesystems.ts";
import { OTHER_IMAGE, openStoreWithImage, writeLayout } from "./export/image.ts";
import { type Description, describeMounts, type Plan } from "./export/mounts.ts";

const ENVIRONMENT = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` };
const has = (command: string) => spawnSync(command, ["--version"], { env: ENVIRONMENT }).error === undefined;
const needs = (...commands: string[]) => {
  const missing = commands.filter((command) => !has(command));
  return { skip: missing.length > 0 ? `needs ${missing.join(", ")}` : false } as const;
};

let top: string;
let layout: string;
let store: Store;
let manifest: ManifestRecord;
let operation: StoreOperation;
/** The store's own mount of the image. */
let expected: Description;

before(async () => {
  top = mkdtempSync(join(tmpdir(), "shale-export-"));
  layout = join(top, "layout");
  await writeLayout(layout);
  ({ store, manifest } = await openStoreWithImage(join(top, "store"), layout));
  operation = store.begin("test of exports");
  if (isRoot()) [expected] = describeMounts([storePlan()]) as [Description];
});

after(async () => {
  operation[Symbol.dispose]();
  await store.close();
  rmSync(top, { recursive: true, force: true });
});

function storePlan(): Plan {
  const { image, devices } = operation.mergedFiles(manifest.layers.map(({ diffId }) => diffId));
  return { kind: "erofs", source: image, devices };
}

function directory(name: string): string {
  const path = join(top, name);
  mkdirSync(path, { recursive: true });
  return path;
}

const image = () => ({ manifest, layer: undefined });
const sha256 = (path: string) => createHash("sha256").update(readFileSync(path)).digest("hex");
const isCode = (code: ShaleError["code"]) => (error: unknown) => ShaleError.is(error, code);

/** Runs `veritysetup verify` with the parameters of the sidecar; 0 is acceptance. */
function veritysetup(path: string, { verity }: Sidecar): number | null {
  assert.ok(verity);
  const words = ["verify", path, path, `--hash-offset=${verity.hashOffset}`];
  if (!verity.superblock) {
    words.push("--no-superblock", "--format=1", "--hash=sha256", `--salt=${verity.salt || "-"}`);
    words.push(`--data-block-size=${verity.dataBlockSize}`, `--hash-block-size=${verity.hashBlockSize}`);
    words.push(`--data-blocks=${verity.dataBlocks}`);
  }
  return spawnSync("veritysetup", [...words, verity.rootHash], { env: ENVIRONMENT }).status;
}

describe("export of a disk", () => {
  const FORMS: readonly { readonly name: string; readonly options: DiskOptions }[] = [
    { name: "plain", options: {} },
    { name: "verity", options: { verity: "superblock" } },
    { name: "verity-bare", options: { verity: "bare" } },
    { name: "verity-512", options: { verity: "superblock", blockSize: 512 } },
    { name: "bare-512", options: { verity: "bare", blockSize: 512, salt: Buffer.from("a1b2", "hex") } },
  ];

  for (const { name, options } of FORMS) {
    test(`mounts to what the store's mount shows: ${name}`, needsRoot, async () => {
      const path = join(directory("mounted"), name);
      await exportDisk(operation, image(), path, options);
      const [byFile, byLoop] = describeMounts([
        { kind: "erofs", source: path, backing: "file" },
        { kind: "erofs", source: path, backing: "loop" },
      ]);
      assert.deepEqual(byFile, expected);
      assert.deepEqual(byLoop, expected);
    });

    test(`has the same bytes from a store that keeps the payloads elsewhere: ${name}`, async () => {
      const here = join(directory("same"), name);
      const there = `${here}-other`;
      const { sidecar } = await exportDisk(operation, image(), here, options);
      const other = await openStoreWithImage(join(directory("others"), name), layout, { before: [OTHER_IMAGE] });
      try {
        using elsewhere = other.store.begin("test of exports");
        const again = await exportDisk(elsewhere, { manifest: other.manifest, layer: undefined }, there, {
          ...options,
          jobs: 1,
        });
        assert.equal(sha256(there), sha256(here));
        assert.deepEqual(again.sidecar, sidecar);
        assert.equal(statSync(here).size, sidecar.size);
      } finally {
        await other.store.close();
      }
    });
  }

  test("is what fsck.erofs finds clean, content included", needs("fsck.erofs"), async () => {
    const path = join(directory("fsck"), "disk");
    await exportDisk(operation, image(), path, { verity: "superblock" });
    const run = spawnSync("fsck.erofs", ["--extract", path], { encoding: "utf8", env: ENVIRONMENT });
    assert.equal(run.status, 0, run.stderr);
    assert.doesNotMatch(run.stderr, /<E>|<W>/);
  });

  test("is accepted by veritysetup, and refused with one flipped bit anywhere", needs("veritysetup"), async () => {
    for (const { name, options } of FORMS.slice(1)) {
      const path = join(directory("flipped"), name);
      const { sidecar } = await exportDisk(operation, image(), path, options);
      const rootHash = sidecar.verity!.rootHash;
      assert.equal(veritysetup(path, sidecar), 0, name);
      await verifyFile(path, { rootHash });
      const sound = readFileSync(path);
      const { treeOffset } = sidecar.verity!;
      for (const at of [
        0,
        1100,
        Math.floor(treeOffset / 2),
        treeOffset - 5000,
        treeOffset,
        treeOffset + 40,
        sound.length - 4000,
      ]) {
        const damaged = Buffer.from(sound);
        damaged[at]! ^= 1 << (at % 8);
        writeFileSync(path, damaged);
        assert.notEqual(veritysetup(path, sidecar), 0, `${name}, byte ${at}`);
        await assert.rejects(verifyFile(path, { rootHash }), isCode("DATA_LOSS"), `${name}, byte ${at}`);
      }
    }
  });

  test("of each layer: stacked by overlayfs they are the image", needsRoot, async () => {
    const layers: Plan[] = [];
    for (const [layer] of manifest.layers.entries()) {
      const source = join(directory("layers"), `${layer}`);
      const { sidecar } = await exportDisk(operation, { manifest, layer }, source, { verity: "superblock" });
      assert.equal(sidecar.layer, layer);
      layers.push({ kind: "erofs", source });
    }
    const [stacked] = describeMounts([{ kind: "overlay", layers }]);
    // overlayfs counts links of a merged directory as 1, and shows a root that the upper layers only imply
    const loose = (tree: Description) =>
      Object.entries(tree)
        .filter(([path]) => path !== "")
        .map(([path, line]) => [path, line.replace(/links=\d+/, "")]);
    assert.deepEqual(loose(stacked!), loose(expected));
  });

  test("takes salt and uuid as they are given, and derives them from the image otherwise", async () => {
    const path = join(directory("identity"), "disk");
    const salt = Buffer.from("00ff", "hex");
    const uuid = Buffer.from("0123456789abcdef0123456789abcdef", "hex");
    const given = await exportDisk(operation, image(), path, { verity: "superblock", salt, uuid });
    assert.equal(given.sidecar.verity!.salt, "00ff");
    assert.equal(given.sidecar.fileSystem.uuid, "01234567-89ab-cdef-0123-456789abcdef");
    assert.deepEqual(readFileSync(path).subarray(1072, 1088), uuid);
    const derived = await exportDisk(operation, image(), path, { verity: "superblock" });
    assert.equal(derived.sidecar.verity!.salt.length, 64);
    assert.notEqual(derived.sidecar.verity!.rootHash, given.sidecar.verity!.rootHash);
    const layer = await exportDisk(operation, { manifest, layer: 0 }, path, { verity: "superblock" });
    assert.notEqual(layer.sidecar.verity!.salt, derived.sidecar.verity!.salt);
  });

  test("refuses a layer that is not there", async () => {
    const path = join(directory("refused"), "disk");
    await assert.rejects(exportDisk(operation, { manifest, layer: 3 }, path), isCode("INVALID_ARGUMENT"));
    await assert.rejects(exportDisk(operation, { manifest, layer: -1 }, path), isCode("INVALID_ARGUMENT"));
    assert.deepEqual(readdirSync(join(top, "refused")), []);
  });
});

describe("exports as files", () => {
  test("made twice at the same time are made once", async () => {
    const path = join(directory("twice"), "disk");
    let hashed = 0;
    const progress = { step: (name: string) => (hashed += name.endsWith("hashing") ? 1 : 0), advance: () => {} };
    const options = { verity: "superblock", progress } as const;
    const results = await Promise.all([1, 2, 3].map(() => exportDisk(operation, image(), path, options)));
    assert.equal(hashed, 1);
    assert.deepEqual(results.map(({ shared }) => shared).sort(), [false, true, true]);
    assert.deepEqual(results[1]!.sidecar, results[0]!.sidecar);
    assert.deepEqual(readdirSync(join(top, "twice")).sort(), ["disk", "disk.json"]);
  });

  test("made at the same time with other options are each made, and file and sidecar belong together", async () => {
    const path = join(directory("others-at-once"), "disk");
    const forms: readonly DiskOptions[] = [
      { verity: "superblock" },
      { verity: "bare" },
      { blockSize: 512, verity: "bare" },
    ];
    const results = await Promise.all(forms.map((options) => exportDisk(operation, image(), path, options)));
    assert.deepEqual(
      results.map(({ shared }) => shared),
      [false, false, false],
    );
    await verifyFile(path, { rootHash: readSidecar(path)!.verity!.rootHash });
  });

  test("leave what was there, and nothing else, when the disk is full", async () => {
    const path = join(directory("full"), "disk");
    await exportDisk(operation, image(), path, {});
    const before = sha256(path);
    for (const kind of ["write", "copy", "truncate", "datasync", "rename"] as const) {
      using _fault = injectFault({ kind, errno: "ENOSPC", path: /full\/(#\d+ \(deleted\)|\.disk\.shale-new)/ });
      await assert.rejects(
        exportDisk(operation, image(), path, { verity: "superblock", jobs: 1 }),
        { code: "ENOSPC" },
        kind,
      );
      assert.equal(sha256(path), before);
      assert.ok(
        readdirSync(join(top, "full")).every((name) => ["disk", "disk.json"].includes(name)),
        kind,
      );
    }
  });

  test("are refused beforehand where they can't fit", needsRoot, () =>
    withLoopFilesystem("ext4", { size: 8 << 20 }, async (small) => {
      const path = join(small, "disk");
      await assert.rejects(
        exportDisk(operation, image(), path, { verity: "superblock" }),
        isCode("RESOURCE_EXHAUSTED"),
      );
      await assert.rejects(exportTarfs(operation, manifest, join(small, "tarfs")), isCode("RESOURCE_EXHAUSTED"));
      assert.deepEqual(
        readdirSync(small).filter((name) => name.includes("disk")),
        [],
      );
    }),
  );

  test("stop when their signal is aborted, and leave nothing", async () => {
    const path = join(directory("aborted"), "disk");
    const stop = new AbortController();
    const progress = { step: (name: string) => name.endsWith("hashing") && stop.abort(), advance: () => {} };
    const options = { verity: "superblock", progress, signal: stop.signal } as const;
    await assert.rejects(exportDisk(operation, image(), path, options), isCode("CANCELLED"));
    assert.deepEqual(readdirSync(join(top, "aborted")), []);
  });

  test("on XFS share their blocks with the store", needsRoot, () =>
    withLoopFilesystem("xfs", {}, async (mount) => {
      const other = await openStoreWithImage(join(mount, "store"), layout);
      try {
        using here = other.store.begin("test of exports");
        const source = { manifest: other.manifest, layer: undefined };
        const used = () => {
          spawnSync("sync", ["-f", mount]);
          return Number(spawnSync("df", ["--output=used", "-B1", mount], { encoding: "utf8" }).stdout.split("\n")[1]);
        };
        await exportDisk(here, source, join(mount, "first"));
        const before = used();
        const { sidecar } = await exportDisk(here, source, join(mount, "second"));
        const grown = used() - before;
        assert.ok(sidecar.size > 3_000_000 && grown < 512 * 1024, `${sidecar.size} bytes took ${grown}`);
        const map = spawnSync("filefrag", ["-v", join(mount, "second")], { encoding: "utf8", env: ENVIRONMENT }).stdout;
        assert.match(map, /shared/);
        await exportTarfs(here, other.manifest, join(mount, "tarfs"), { disks: "image" });
        const disk = readdirSync(join(mount, "tarfs")).find((name) => name.endsWith(".image.disk"))!;
        const tarfs = spawnSync("filefrag", ["-v", join(mount, "tarfs", disk)], {
          encoding: "utf8",
          env: ENVIRONMENT,
        }).stdout;
        assert.match(tarfs, /shared/); // with the tars beside it
      } finally {
        await other.store.close();
      }
    }),
  );
});

describe("export as tarfs", () => {
  test("has each layer's own tar, and images that mount to the store's mount", needsRoot, async () => {
    const place = directory("tarfs");
    const result = await exportTarfs(operation, manifest, place, { disks: "both", verity: true });
    assert.deepEqual(
      result.layers.map(({ diffId }) => diffId),
      manifest.layers.map(({ diffId }) => diffId),
    );
    for (const { tar, diffId } of result.layers) assert.equal(`sha256:${sha256(tar)}`, diffId);
    assert.equal(result.disk!.path, result.boot.replace(/image\.boot$/, "image.disk"));
    const stack = (layers: readonly Plan[]): Plan => ({ kind: "overlay", layers });
    const [byFile, byLoop, disk, diskByLoop, boots, disks] = describeMounts([
      { kind: "erofs", source: result.boot, devices: result.devices, backing: "file" },
      { kind: "erofs", source: result.boot, devices: result.devices, backing: "loop" },
      { kind: "erofs", source: result.disk!.path, backing: "file" },
      { kind: "erofs", source: result.disk!.path, backing: "loop" },
      stack(result.layers.map(({ boot, tar }) => ({ kind: "erofs", source: boot, devices: [tar] }))),
      stack(result.layers.map((layer) => ({ kind: "erofs", source: layer.disk!.path }))),
    ]);
    for (const shown of [byFile, byLoop, disk, diskByLoop]) assert.deepEqual(shown, expected);
    assert.deepEqual(disks, boots);
    assert.deepEqual(Object.keys(boots!), Object.keys(expected));
  });

  test("has disks with the tree and the label of nydus-snapshotter", needs("veritysetup"), async () => {
    const { layers, disk } = await exportTarfs(operation, manifest, directory("tarfs-labels"), {
      disks: "both",
      verity: true,
    });
    for (const each of [disk!, ...layers.map((layer) => layer.disk!)]) {
      const [, blocks, offset, root] = /^(\d+),(\d+),sha256:([0-9a-f]{64})$/.exec(each.label)!;
      const verity = each.sidecar.verity!;
      assert.deepEqual([Number(blocks), Number(offset), root], [verity.dataBlocks, verity.hashOffset, verity.rootHash]);
      assert.deepEqual([verity.salt, verity.superblock, verity.dataBlockSize], ["", false, 512]);
      assert.equal(veritysetup(each.path, each.sidecar), 0);
    }
  });

  test("makes only the disks that are asked for, with an empty label without verity", async () => {
    const none = await exportTarfs(operation, manifest, directory("tarfs-none"), {});
    assert.deepEqual([none.disk, ...none.layers.map(({ disk }) => disk)], [undefined, undefined, undefined, undefined]);
    const layer = await exportTarfs(operation, manifest, directory("tarfs-layer"), { disks: "layer" });
    assert.deepEqual([layer.disk, layer.layers[0]!.disk!.label], [undefined, ""]);
  });

  test("ends with the error of the layer that fails", async () => {
    const place = directory("tarfs-failing");
    const failing = new RegExp(`${manifest.layers[1]!.digest.slice(7)}\\.shale-new`);
    using _fault = injectFault({ kind: "rename", errno: "EIO", path: failing });
    await assert.rejects(exportTarfs(operation, manifest, place, {}), { code: "EIO" });
    assert.ok(existsSync(join(place, manifest.layers[0]!.digest.slice(7))));
    assert.ok(!readdirSync(place).some((name) => name.startsWith(manifest.layers[1]!.digest.slice(7))));
  });
});

describe("Kata volumes", () => {
  test("describe what was exported, as nydus-snapshotter validates it", async () => {
    for (const [layer, type] of [
      [undefined, "image_raw_block"],
      [1, "layer_raw_block"],
    ] as const) {
      const path = join(directory("kata"), type);
      const { sidecar } = await exportDisk(operation, { manifest, layer }, path, { verity: "bare", blockSize: 512 });
      const option = encodeKataOption(kataVolume(path, sidecar));
      const [name, text] = [option.slice(0, option.indexOf("=")), option.slice(option.indexOf("=") + 1)];
      assert.equal(name, "io.katacontainers.volume");
      const volume = JSON.parse(Buffer.from(text, "base64").toString("utf8"));
      assert.deepEqual(
        [volume.volume_type, volume.source, volume.fs_type, volume.options],
        [type, path, "erofs", ["ro"]],
      );
      const { hashtype, hash, blocknum, blocksize, hashsize, offset } = volume.dm_verity;
      assert.deepEqual([hashtype, hash, blocksize, hashsize], ["sha256", sidecar.verity!.rootHash, 512, 4096]);
      assert.ok(blocknum > 0 && blocknum < 2 ** 32 && offset % hashsize === 0 && offset >= blocknum * blocksize);
    }
  });

  test("refuse what Kata can't open", async () => {
    const path = join(directory("kata-refused"), "disk");
    const salted = await exportDisk(operation, image(), path, { verity: "superblock" });
    assert.throws(() => kataVolume(path, salted.sidecar), isCode("INVALID_ARGUMENT"));
    const bare = await exportDisk(operation, image(), path, { verity: "bare" });
    assert.throws(() => kataVolume(path, bare.sidecar, "layer_raw_block"), isCode("INVALID_ARGUMENT"));
    assert.throws(() => kataVolume(path, bare.sidecar, "direct_block"), isCode("INVALID_ARGUMENT"));
    const plain = await exportDisk(operation, image(), path, {});
    assert.deepEqual(kataVolume(path, plain.sidecar, "direct_block").direct_volume, { metadata: {} });
  });
});

describe("export as composefs", () => {
  test("mounts with its objects to what the store's mount shows", needsRoot, async () => {
    const place = directory("composefs");
    const result = await exportComposefs(operation, manifest, join(place, "image"));
    const [shown] = describeMounts([{ kind: "composefs", image: result.image, objects: result.objects }]);
    assert.deepEqual(shown, expected);
    const again = await exportComposefs(operation, manifest, join(place, "again"));
    assert.deepEqual([again.digest, again.newObjects], [result.digest, 0]);
    assert.ok(readdirSync(result.objects).every((name) => /^[0-9a-f]{2}$/.test(name)));
  });

  test("names objects and image by the digests of fsverity", needs("fsverity"), async () => {
    const {
      image: path,
      objects,
      digest,
      objectCount,
    } = await exportComposefs(operation, manifest, join(directory("digests"), "image"));
    const files = readdirSync(objects, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
    assert.equal(files.length, objectCount);
    const paths = files.map((entry) => join(entry.parentPath, entry.name));
    const run = spawnSync("fsverity", ["digest", "--compact", path, ...paths], { encoding: "utf8" });
    const digests = run.stdout
      .trim()
      .split("\n")
      .map((line) => line.split(" ")[0]);
    assert.deepEqual(digests, [digest, ...paths.map((each) => each.slice(objects.length + 1).replace("/", ""))]);
  });
});

describe("export as tar and ext4", () => {
  test("the tar unpacks to the image, and the layer's tar is the layer's", needsRoot, async () => {
    const path = join(directory("tar"), "image.tar");
    const size = await publishTar(path, exportTar(operation, image()));
    const least = leastTarSize(operation, image());
    assert.ok(least <= size && least > 0.95 * size, `${least} of ${size}`);
    const root = directory("tar/root");
    const run = spawnSync("tar", ["-xpf", path, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-C", root], {
      encoding: "utf8",
    });
    assert.equal(run.status, 0, run.stderr);
    const target = join(top, "tar", "again.ext4");
    truncateSync(writeEmpty(target), 64 << 20);
    const made = spawnSync("mke2fs", ["-q", "-F", "-t", "ext4", "-d", root, target], {
      encoding: "utf8",
      env: ENVIRONMENT,
    });
    assert.equal(made.status, 0, made.stderr);
    const [shown] = describeMounts([{ kind: "ext4", source: target }]);
    assert.deepEqual(withoutExt4(shown!), withoutExt4(expected));
    for (const [layer, { diffId }] of manifest.layers.entries()) {
      await publishTar(path, exportTar(operation, { manifest, layer }));
      assert.equal(`sha256:${sha256(path)}`, diffId);
      assert.equal(leastTarSize(operation, { manifest, layer }), statSync(path).size);
    }
  });

  test("ext4 is clean, deterministic, and mounts to the image", needsRoot, async () => {
    const path = join(directory("ext4"), "disk");
    const { sidecar } = await exportExt4(operation, image(), path, { verity: "superblock" });
    await verifyFile(path, { rootHash: sidecar.verity!.rootHash });
    const [shown] = describeMounts([{ kind: "ext4", source: path }]);
    assert.deepEqual(withoutExt4(shown!), withoutExt4(expected));
    const copy = `${path}.copy`;
    copyFileSync(path, copy);
    truncateSync(copy, sidecar.fileSystem.size);
    const run = spawnSync("e2fsck", ["-fn", copy], { encoding: "utf8", env: ENVIRONMENT });
    assert.equal(run.status, 0, run.stdout);
    const again = await exportExt4(operation, image(), `${path}.again`, { verity: "superblock" });
    assert.equal(again.sidecar.verity!.rootHash, sidecar.verity!.rootHash);
    assert.deepEqual(
      readdirSync(join(top, "ext4")).filter((name) => name.startsWith(".")),
      [],
    );
  });
});

function writeEmpty(path: string): string {
  writeFileSync(path, "");
  return path;
}

/** mke2fs 1.47.0 keeps whole seconds, and every ext4 has a lost+found; the root's links and time are then its own. */
function withoutExt4(tree: Description): (readonly [string, string])[] {
  return Object.entries(tree)
    .filter(([path]) => path !== "lost+found" && path !== "")
    .map(([path, line]) => [path, line.replace(/(mtime=-?\d+)\d{9}/, "$1")] as const);
}

function shaleAt(root: string, ...words: string[]) {
  const main = join(import.meta.dirname, "../src/cli/main.ts");
  const before = ["--disable-warning=ExperimentalWarning", main, "--root", root, "-q"];
  return spawnSync(process.execPath, [...before, ...words], { encoding: "utf8", env: ENVIRONMENT });
}

describe("shale export, verity, verify", () => {
  const shale = (...words: string[]) => shaleAt(join(top, "store"), ...words);
  const name = () => store.listImages()[0]!.name;

  test("export a disk, verify it with what was printed, and refuse it when it is damaged", () => {
    const path = join(directory("command"), "disk");
    const made = shale("export", name(), "--verity", "--json", "-o", path);
    assert.equal(made.status, 0, made.stderr);
    const { sidecar, instructions } = JSON.parse(made.stdout) as {
      readonly sidecar: Sidecar;
      readonly instructions: readonly { readonly command: string }[];
    };
    assert.deepEqual(readSidecar(path), sidecar);
    const { rootHash } = sidecar.verity!;
    assert.match(instructions[0]!.command, new RegExp(`^veritysetup open .* ${rootHash}$`));
    assert.equal(shale("verify", path, "--root-hash", rootHash).status, 0);
    const bytes = readFileSync(path);
    bytes[5000]! ^= 1;
    writeFileSync(path, bytes);
    const refused = shale("verify", path, "--root-hash", rootHash);
    assert.equal(refused.status, 1);
    assert.match(refused.stderr, /Cannot trust the data: block 1 /);
  });

  test("compute and write the tree of any file", needs("veritysetup"), () => {
    const place = directory("command-verity");
    const [data, tree] = [join(place, "data"), join(place, "tree")];
    writeFileSync(data, Buffer.alloc(3 * 4096, "shale"));
    const made = shale("verity", data, "--json", "-o", tree);
    assert.equal(made.status, 0, made.stderr);
    const { rootHash } = JSON.parse(made.stdout);
    assert.equal(spawnSync("veritysetup", ["verify", data, tree, rootHash], { env: ENVIRONMENT }).status, 0);
    assert.equal(shale("verify", data, "--hash-file", tree, "--root-hash", rootHash).status, 0);
    const appended = shale("verity", data, "--append", "--no-superblock", "--json");
    const bare = JSON.parse(appended.stdout);
    const words = [
      "verify",
      data,
      "--no-superblock",
      "--hash-offset",
      `${bare.hashOffset}`,
      "--root-hash",
      bare.rootHash,
    ];
    assert.equal(shale(...words).status, 0);
    writeFileSync(data, "not a whole block");
    assert.match(shale("verity", data).stderr, /not whole blocks of 4096/);
  });

  test("answers a sparse file over 2 TiB of 512-byte blocks with the limit", () => {
    const path = join(directory("command-huge"), "huge");
    truncateSync(writeEmpty(path), 2 ** 41 + 512);
    const refused = shale("verity", path, "--block-size", "512");
    assert.equal(refused.status, 1);
    assert.match(refused.stderr, /4294967297 data blocks of 512 bytes, limit 4294967295/);
  });

  for (const words of [
    ["--format", "tar", "--verity"],
    ["--salt", "00"],
    ["-o", "-"],
    ["--format", "disk", "--disks", "none"],
  ]) {
    test(`refuses export ${words.join(" ")} as a mistake`, () => {
      assert.equal(shale("export", name(), ...words).status, 2);
    });
  }
});

describe("ExportCache", () => {
  test("makes what a policy wants once, gives it out as links, and drops it with the image", async () => {
    const { store: own, manifest: its, name } = await openStoreWithImage(join(directory("cached"), "store"), layout);
    try {
      const cache = new ExportCache(own);
      assert.deepEqual([listExports(own), collectExports(own)], [[], []]);
      {
        using operation = own.begin("test of the cache");
        const policy = { mode: "layer", verity: "superblock", when: "pull" } as const;
        const made = await cache.apply(operation, its, policy);
        const again = await cache.apply(operation, its, policy);
        assert.deepEqual(
          made.map(({ shared }) => shared),
          [false, false, false],
        );
        assert.deepEqual(
          again,
          made.map((disk) => ({ ...disk, shared: true })),
        );
        assert.deepEqual(await cache.apply(operation, its, { ...policy, mode: "off" }), []);
        const target = join(top, "cached", "disk");
        assert.equal(await cache.place(made[1]!, target), "hard link");
        assert.equal(statSync(target).ino, statSync(made[1]!.path).ino);
        await verifyFile(target, { rootHash: made[1]!.sidecar.verity!.rootHash });
      }
      assert.deepEqual(
        listExports(own).map(({ layer }) => layer),
        [0, 1, 2],
      );
      assert.deepEqual(collectExports(own), []);
      own.removeImage(name);
      assert.equal(collectExports(own, { dryRun: true }).length, 3);
      assert.equal(listExports(own).length, 3);
      assert.equal(collectExports(own).length, 3);
      assert.deepEqual([listExports(own), readdirSync(cache.directory)], [[], []]);
      await verifyFile(join(top, "cached", "disk"), {
        rootHash: readSidecar(join(top, "cached", "disk"))!.verity!.rootHash,
      });
    } finally {
      await own.close();
    }
  });
});

describe("the cache of exports", () => {
  /** A store with the image under two names, and its disk in the cache. */
  async function storeWithCache(
    name: string,
  ): Promise<{ readonly root: string; readonly names: readonly string[]; readonly disk: string }> {
    const root = join(directory(name), "store");
    const copy = join(top, name, "layout");
    cpSync(layout, copy, { recursive: true });
    const names: string[] = [];
    let disk = "";
    for (const from of [layout, copy]) {
      const { store: own, manifest: its, name: image } = await openStoreWithImage(root, from);
      try {
        using operation = own.begin("test of the cache");
        const source = { manifest: its, layer: undefined };
        disk = (await new ExportCache(own).ensureDisk(operation, source, { verity: "superblock" })).path;
      } finally {
        await own.close();
      }
      names.push(image);
    }
    return { root, names, disk };
  }

  test("is told by df, and by rm of the last image that needs it; gc frees it", async () => {
    const { root, names, disk } = await storeWithCache("cache-told");
    const ok = (...words: string[]) => {
      const { status, stdout, stderr } = shaleAt(root, ...words);
      assert.equal(status, 0, stderr);
      return stdout;
    };
    const { size } = JSON.parse(readFileSync(`${disk}.json`, "utf8"));
    const shown = JSON.parse(ok("df", "--json"));
    assert.deepEqual(
      shown.cachedExports.map(({ needed }: { needed: boolean }) => needed),
      [true],
    );
    assert.ok(shown.exports > 0 && shown.exports <= size + 8192);
    assert.match(ok("df"), /\n.* in 1 cached export, blocks shared with the store included\n$/);

    assert.deepEqual(JSON.parse(ok("rm", names[0]!, "--json")).exports, [], "another image has that manifest");
    const text = ok("rm", names[1]!);
    assert.match(text, /removed in .*\n1 cached export \(.*\) of what was removed: shale gc frees it\n$/);
    assert.ok(existsSync(disk), "rm is metadata only");
    assert.match(ok("df"), /in 1 cached export, .*; .* of them in 1 that shale gc frees\n$/);
    assert.match(ok("gc", "--dry-run"), /export +sha256-.* no image has its manifest any more\n/);
    assert.match(ok("gc"), /1 export \(/);
    assert.deepEqual(readdirSync(join(root, "exports")), []);
    assert.doesNotMatch(ok("df"), /cached export/);
  });

  test("goes at once with rm --gc", async () => {
    const { root, names } = await storeWithCache("cache-rm-gc");
    const { stdout } = shaleAt(root, "rm", "--gc", ...names);
    assert.match(stdout, /1 export \(/);
    assert.doesNotMatch(stdout, /shale gc frees/);
    assert.deepEqual(readdirSync(join(root, "exports")), []);
  });

  /** A store with the image, and the disk of its chain in the cache. */
  async function storeWithChain(name: string) {
    const root = join(directory(name), "store");
    const opened = await openStoreWithImage(root, layout);
    using operation = opened.store.begin("test of the cache");
    const diffIds = opened.manifest.layers.map(({ diffId }) => diffId);
    const source = { manifest: chainManifest(operation, diffIds), layer: undefined };
    await new ExportCache(opened.store).ensureDisk(operation, source, {});
    return { root, own: opened.store, image: opened.name };
  }

  test("of a chain of layers goes with them, and a dry run foresees it", async () => {
    const { root, own, image } = await storeWithChain("cache-chain");
    await own.close();
    const exportsOf = (...words: string[]) =>
      JSON.parse(shaleAt(root, "gc", "--json", ...words).stdout).items.filter(
        ({ kind }: { kind: string }) => kind === "export",
      );
    assert.deepEqual(exportsOf("--dry-run"), []);
    assert.equal(shaleAt(root, "rm", image).status, 0);
    const foreseen = exportsOf("--dry-run");
    assert.equal(foreseen.length, 1);
    assert.equal(foreseen[0].why, "a layer of it is gone");
    assert.equal(readdirSync(join(root, "exports")).length, 1);
    assert.deepEqual(exportsOf(), foreseen);
    assert.deepEqual(readdirSync(join(root, "exports")), []);
  });

  test("of a chain whose layers wait for an older operation goes as a dry run foresees it", async () => {
    const { own, image } = await storeWithChain("cache-chain-held");
    try {
      using _ = own.begin("older");
      own.removeImage(image);
      const exportsOf = async (dryRun: boolean) =>
        (await collectAll(own, { dryRun })).items.filter(({ kind }) => kind === "export");
      const foreseen = await exportsOf(true);
      assert.equal(foreseen.length, 1);
      assert.deepEqual(await exportsOf(false), foreseen);
    } finally {
      await own.close();
    }
  });

  test("with a damaged entry is made anew, and is no error of df, rm or gc", async () => {
    const { root, names, disk } = await storeWithCache("cache-damaged");
    const sound = readFileSync(`${disk}.json`, "utf8");
    for (const damage of [
      "",
      "{}",
      '{"version":1,"request":"x"}',
      sound.slice(0, 200),
      sound.replace(/"size": \d+,\n {2}"req/, '"size": 1,\n  "req'),
    ]) {
      writeFileSync(`${disk}.json`, damage);
      assert.deepEqual(JSON.parse(shaleAt(root, "df", "--json").stdout).cachedExports, [], damage);
      const { store: own, manifest: its } = await openStoreWithImage(root, layout);
      try {
        using operation = own.begin("test of the cache");
        const source = { manifest: its, layer: undefined };
        const made = await new ExportCache(own).ensureDisk(operation, source, { verity: "superblock" });
        assert.equal(made.shared, false, damage);
      } finally {
        await own.close();
      }
      assert.equal(readFileSync(`${disk}.json`, "utf8"), sound);
    }
    writeFileSync(`${disk}.json`, "{}");
    assert.equal(shaleAt(root, "rm", ...names).status, 0);
    assert.match(shaleAt(root, "gc").stdout, /1 export \(/);
    assert.deepEqual(readdirSync(join(root, "exports")), []);
  });

  test("keeps an entry that is being made from gc", async () => {
    const { store: own, manifest: its } = await openStoreWithImage(join(directory("cache-busy"), "store"), layout);
    try {
      using operation = own.begin("test of the cache");
      const collected: unknown[] = [];
      const progress = { step: () => void collected.push(...collectExports(own)), advance: () => {} };
      const source = { manifest: its, layer: undefined };
      const { path } = await new ExportCache(own).ensureDisk(operation, source, { verity: "bare", progress });
      assert.deepEqual(collected, []);
      assert.ok(existsSync(path));
    } finally {
      await own.close();
    }
  });

  test("takes salts that are longer than a name", async () => {
    const { store: own, manifest: its } = await openStoreWithImage(join(directory("cache-salt"), "store"), layout);
    try {
      using operation = own.begin("test of the cache");
      const source = { manifest: its, layer: undefined };
      const salts = [1, 2].map((fill) => Buffer.alloc(256, fill));
      for (const salt of [...salts, salts[0]!]) {
        await new ExportCache(own).ensureDisk(operation, source, { verity: "superblock", salt });
      }
      assert.equal(listExports(own).length, 2);
    } finally {
      await own.close();
    }
  });

  test("gives out a link over what is there in one step, also over itself", async () => {
    const { store: own, manifest: its } = await openStoreWithImage(join(directory("cache-place"), "store"), layout);
    try {
      using operation = own.begin("test of the cache");
      const cache = new ExportCache(own);
      const disk = await cache.ensureDisk(operation, { manifest: its, layer: undefined }, {});
      const target = join(directory("cache-place/out"), "disk");
      writeFileSync(target, "before");
      {
        using _fault = injectFault({ kind: "rename", errno: "EIO", path: /shale-new/ });
        await assert.rejects(cache.place(disk, target), { code: "EIO" });
      }
      assert.equal(readFileSync(target, "utf8"), "before");
      for (let i = 0; i < 2; i++) assert.equal(await cache.place(disk, target), "hard link");
      assert.deepEqual(readdirSync(join(top, "cache-place/out")).sort(), ["disk", "disk.json"]);
      assert.deepEqual(readSidecar(target), disk.sidecar);
    } finally {
      await own.close();
    }
  });
});

describe("verifyFile()", () => {
  test("needs a root hash from the user, and refuses another one, a truncated tree and a foreign sidecar", async () => {
    const path = join(directory("verify"), "disk");
    const { sidecar } = await exportDisk(operation, image(), path, { verity: "superblock" });
    const { rootHash, hashOffset } = sidecar.verity!;
    await verifyFile(path, { rootHash });
    await verifyFile(path, { rootHash, hashOffset });
    await assert.rejects(verifyFile(path, { rootHash: undefined }), isCode("INVALID_ARGUMENT"));
    await assert.rejects(verifyFile(path, { rootHash: "12" }), isCode("INVALID_ARGUMENT"));
    await assert.rejects(verifyFile(path, { rootHash: "12".repeat(32) }), isCode("DATA_LOSS"));
    await assert.rejects(verifyFile(path, { rootHash, hashOffset: hashOffset + 4096 }), isCode("INVALID_ARGUMENT"));
    writeFileSync(`${path}.json`, "{}");
    await assert.rejects(verifyFile(path, { rootHash }), isCode("INVALID_ARGUMENT"));
    rmSync(`${path}.json`);
    await assert.rejects(verifyFile(path, { rootHash }), isCode("INVALID_ARGUMENT"));
    truncateSync(path, sidecar.size - 4096);
    await assert.rejects(verifyFile(path, { rootHash, hashOffset }), isCode("DATA_LOSS"));
    truncateSync(path, hashOffset + 100);
    await assert.rejects(verifyFile(path, { rootHash, hashOffset }), isCode("INVALID_ARGUMENT"));
  });
});
