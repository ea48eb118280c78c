import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import fc from "fast-check";
import { toHex } from "../../bytes/index.ts";
import { ShaleError } from "../../errors/index.ts";
import { FileType, LayerIndex, NONE, ROOT } from "../layer-index/index.ts";
import { superblockChecksum } from "./format.ts";
import { writeErofs } from "./index.ts";
import { canMount, describeByKernel } from "./testing/kernel.ts";
import { hardTree, noise, randomTree } from "./testing/samples.ts";
import { describeReader, openTree, TestTree, UUID } from "./testing/trees.ts";

/** sha256 of the small tree in the golden test. Another digest means that stored images look different: say why. */
const GOLDEN = "e0f6ade871dcfe231ec932873e30ddf50f0d410eebb62b7e80c8c37c260e4bc9";

describe("writeErofs()", () => {
  test("writes what ErofsReader reads back: every file type and edge", () => {
    const tree = hardTree();
    const { bytes, image } = tree.write();
    assert.equal(bytes.length, image.size);
    assert.deepEqual(describeReader(openTree(bytes, tree.devices)), tree.describe());
  });

  test("writes what ErofsReader reads back: random trees", () => {
    fc.assert(
      fc.property(randomTree, (tree) => {
        const { bytes } = tree.write();
        assert.deepEqual(describeReader(openTree(bytes, tree.devices)), tree.describe());
      }),
      { numRuns: 60 },
    );
  });

  test("writes what the kernel shows", { skip: !canMount && "needs root" }, () => {
    const trees = [hardTree(), manyDevices(), ...fc.sample(randomTree, { numRuns: 10, seed: 11 })];
    const shown = describeByKernel(trees.map((tree) => [{ bytes: tree.write().bytes, devices: tree.devices }]));
    trees.forEach((tree, i) => {
      assert.deepEqual(shown[i], tree.describe(), `tree ${i}`);
    });
  });

  test("writes images of 300 devices", () => {
    const tree = manyDevices();
    assert.deepEqual(describeReader(openTree(tree.write().bytes, tree.devices)), tree.describe());
  });

  test("writes images that fsck.erofs finds clean, content included", () => {
    for (const tree of [hardTree(), hardTree(false), ...fc.sample(randomTree, { numRuns: 5, seed: 3 })]) {
      const { bytes } = tree.write();
      assert.equal(fsck(bytes, tree), "");
    }
    const tree = hardTree(false);
    const { bytes, image } = tree.write();
    bytes.fill(0xff, image.nids[tree.at("sub")]! * 32, image.nids[tree.at("sub")]! * 32 + 8);
    assert.notEqual(fsck(bytes, tree), ""); // the judge does say no
  });

  for (const { blockSize, selfContained } of [
    { blockSize: 512, selfContained: false },
    { blockSize: 512, selfContained: true },
    { blockSize: 4096, selfContained: true },
  ]) {
    const form = `blocks of ${blockSize}, devices ${selfContained ? "inside" : "beside"}`;
    const own = (tree: TestTree) => (selfContained ? [] : tree.devices);

    test(`writes what ErofsReader reads back: ${form}`, () => {
      for (const tree of [hardTree(), ...fc.sample(randomTree, { numRuns: 20, seed: 5 })]) {
        const { bytes, image } = tree.writeAs(blockSize, selfContained);
        assert.deepEqual(describeReader(openTree(bytes, own(tree))), tree.describe());
        assert.equal(image.size % 4096, 0);
        assert.ok(
          image.deviceOffsets.every((offset) => offset % 4096 === 0),
          `${image.deviceOffsets}`,
        );
      }
    });

    test(`writes what the kernel shows: ${form}`, { skip: !canMount && "needs root" }, () => {
      const trees = [hardTree(), ...fc.sample(randomTree, { numRuns: 5, seed: 11 })];
      const shown = describeByKernel(
        trees.map((tree) => [{ bytes: tree.writeAs(blockSize, selfContained).bytes, devices: own(tree) }]),
      );
      trees.forEach((tree, i) => {
        assert.deepEqual(shown[i], tree.describe(), `tree ${i}`);
      });
    });

    // fsck.erofs of Debian 12 (1.5) knows no blocks smaller than a page; 1.9.3 found an exported image of them clean
    if (blockSize < 4096) continue;
    test(`writes images that fsck.erofs finds clean: ${form}`, () => {
      for (const tree of [hardTree(), ...fc.sample(randomTree, { numRuns: 3, seed: 3 })]) {
        const { bytes } = tree.writeAs(blockSize, selfContained);
        assert.equal(fsck(bytes, { devices: own(tree) }), "");
      }
    });
  }

  test("writes devices that 4096 does not divide behind one another at multiples of it, with blocks of 512", () => {
    const tree = new TestTree();
    const devices = [
      { tag: "a", blocks: 3 },
      { tag: "b", blocks: 9 },
    ];
    const options = { devices, uuid: UUID, readInline: () => new Uint8Array(0), write() {}, blockSize: 512 };
    const image = writeErofs(tree.index, options);
    assert.deepEqual(image.deviceOffsets, [image.size, image.size + 4096]);
    assert.equal(image.totalSize, image.size + 4096 + 9 * 512);
  });

  test("refuses what 32-bit block numbers do not reach: 2 TiB in blocks of 512", () => {
    const write = (blocks: number) =>
      writeErofs(new TestTree().index, {
        devices: [{ tag: "tar", blocks }],
        uuid: UUID,
        readInline: () => new Uint8Array(0),
        write() {},
        blockSize: 512,
      });
    assert.ok(write(2 ** 32 - 100).totalSize > 2 ** 41 - 2 ** 16);
    assert.throws(
      () => write(2 ** 32 - 1),
      (error) => ShaleError.is(error, "RESOURCE_EXHAUSTED"),
    );
  });

  test("gives the same bytes for the same input", () => {
    const digest = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");
    const small = new TestTree();
    small.directory("etc");
    small.file("etc/hostname", "shale\n");
    small.deviceFile("bin", "0123", noise(10_000));
    small.symlink("link", "etc/hostname");
    assert.equal(digest(hardTree().write().bytes), digest(hardTree().write().bytes));
    assert.equal(digest(small.write().bytes), GOLDEN);
  });

  test("stores the checksum and the uuid of the superblock", () => {
    const { bytes } = hardTree().write();
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    assert.equal(view.getUint32(1028, true), superblockChecksum(bytes.subarray(1024), 4096));
    assert.equal(toHex(bytes.subarray(1072, 1088)), toHex(UUID));
  });

  test("places the root where 16 bits reach it, whatever its size and the number of devices", () => {
    const tree = new TestTree();
    for (let i = 0; i < 3000; i++) tree.file(`${i}`.padStart(200, "0"), "");
    const devices = Array.from({ length: 16_000 }, (_, i) => ({ tag: `d${i}`, blocks: 1 }));
    const image = writeErofs(tree.index, { devices, uuid: UUID, readInline: () => new Uint8Array(0), write() {} });
    assert.ok(image.rootNid <= 0xffff, `${image.rootNid}`);
  });

  test("writes unlinked files only with keepUnlinked, and never removed directories", () => {
    const tree = new TestTree();
    tree.directory("d");
    const shadowed = tree.file("d/f", noise(1000));
    const onDevice = tree.deviceFile("d/g", "blob", noise(9000, 2));
    const directory = tree.at("d");
    tree.index.remove(tree.index.find(ROOT, "d"));
    const kept = tree.file("kept", "kept");

    const without = tree.write();
    assert.deepEqual([without.image.nids[shadowed], without.image.nids[onDevice]], [NONE, NONE]);
    assert.deepEqual([without.image.inodes, openTree(without.bytes).unlinked()], [2, []]);

    const { bytes, image } = tree.write(true);
    assert.equal(image.nids[directory], NONE);
    const reader = openTree(bytes, tree.devices);
    assert.deepEqual([...reader.unlinked()], [image.nids[shadowed], image.nids[onDevice]]);
    const [first, second] = reader.unlinked().map((nid) => reader.inode(nid));
    assert.deepEqual([first!.links, second!.links], [0, 0]);
    assert.deepEqual(Buffer.concat([...reader.content(first!)]), Buffer.from(noise(1000)));
    assert.deepEqual(Buffer.concat([...reader.content(second!)]), Buffer.from(noise(9000, 2)));
    assert.deepEqual(Object.keys(describeReader(reader)), ["", "kept"]);
    assert.equal(reader.lookup(reader.root, "kept")!.nid, image.nids[kept]);
  });

  test("fills the gaps beside inline files: under 3 % are lost with 30,000 files of all sizes", () => {
    const index = new LayerIndex();
    const plain = { uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0, rdevMajor: 0, rdevMinor: 0, xattrs: [] };
    index.addInode({ ...plain, mode: FileType.DIRECTORY | 0o755, size: 0 });
    const sizes = Buffer.from(noise(60_000, 8));
    let directory = ROOT;
    for (let i = 0; i < 30_000; i++) {
      if (i % 15 === 0) {
        directory = index.addInode({ ...plain, mode: FileType.DIRECTORY | 0o755, size: 0 });
        index.addDirent(ROOT, `d${i}`, directory);
      }
      // 20 % on a device or empty, 30 % under 1 KiB, 50 % of 1..3.9 KiB
      const kind = i % 10;
      const random = sizes.readUInt16LE(i * 2) / 65_536;
      const size = kind < 2 ? 0 : kind < 5 ? Math.floor(random * 1024) : Math.floor(1024 + random * 2970);
      const file = index.addInode({ ...plain, mode: FileType.REGULAR | 0o644, size });
      if (size > 0) index.setContent(file, 1, 0, 0);
      index.addDirent(directory, `file-${i}`, file);
    }
    const content = new Uint8Array(4096);
    let previous = -1;
    let furthest = 0;
    const readInline = (inode: number) => {
      furthest = Math.max(furthest, previous - inode);
      previous = inode;
      return content.subarray(0, index.size(inode));
    };
    const image = writeErofs(index, { devices: [], uuid: UUID, readInline, write() {} });
    assert.ok(image.waste / image.size < 0.03, `${image.waste} of ${image.size} bytes are waste`);
    assert.ok(furthest < 2000, `inline content was read ${furthest} inodes back`);
  });

  test("hands the image over in order, in pieces of about 1 MiB", () => {
    const tree = new TestTree();
    for (let i = 0; i < 1500; i++) tree.file(`f${i}`, noise(3000, i));
    const pieces: number[] = [];
    const options = { devices: [], uuid: UUID, readInline: (inode: number) => tree.content(inode) };
    const image = writeErofs(tree.index, { ...options, write: (chunk) => pieces.push(chunk.length) });
    assert.equal(
      pieces.reduce((sum, length) => sum + length, 0),
      image.size,
    );
    assert.ok(
      pieces.slice(0, -1).every((length) => length > 900_000 && length <= 1 << 20),
      `${pieces}`,
    );
  });

  const refused: readonly { name: string; code: string; make(): TestTree; blocks?: number }[] = [
    {
      name: "more than 2^32 blocks",
      code: "RESOURCE_EXHAUSTED",
      make: () => new TestTree(),
      blocks: 2 ** 32 - 2,
    },
    {
      name: "an xattr outside the known prefixes",
      code: "INVALID_ARGUMENT",
      make: () => new TestTree({ xattrs: [{ name: "system.nfs4_acl", value: "x" }] }),
    },
    {
      name: "an xattr value of 65536 bytes",
      code: "RESOURCE_EXHAUSTED",
      make: () => new TestTree({ xattrs: [{ name: "user.x", value: "x".repeat(65_536) }] }),
    },
    {
      name: "more xattrs than an inode can have",
      code: "RESOURCE_EXHAUSTED",
      make: () =>
        new TestTree({ xattrs: [1, 2, 3, 4, 5].map((i) => ({ name: `user.${i}`, value: "x".repeat(65_535) })) }),
    },
    {
      name: "a device number over 4095:1048575",
      code: "INVALID_ARGUMENT",
      make: () => {
        const tree = new TestTree();
        tree.special("b", FileType.BLOCK, 4096, 0);
        return tree;
      },
    },
  ];
  for (const { name, code, make, blocks } of refused) {
    test(`refuses ${name} with ${code}`, () => {
      const options = { devices: [{ tag: "d", blocks: blocks ?? 0 }], uuid: UUID, write() {} };
      assert.throws(
        () => writeErofs(make().index, { ...options, readInline: () => new Uint8Array(0) }),
        (error) => ShaleError.is(error) && error.code === code,
      );
    });
  }
});

function manyDevices(): TestTree {
  const tree = new TestTree();
  for (let i = 0; i < 300; i++) {
    tree.deviceFile(`f${i}`, createHash("sha256").update(`${i}`).digest("hex"), noise(4200, i));
  }
  return tree;
}

/** What fsck.erofs has to complain about; "" when nothing. */
function fsck(image: Uint8Array, tree: Pick<TestTree, "devices">): string {
  const directory = mkdtempSync(join(tmpdir(), "ef-"));
  try {
    writeFileSync(join(directory, "image"), image);
    const devices = tree.devices.map(({ tag, bytes }) => {
      writeFileSync(join(directory, tag), bytes);
      return `--device=${join(directory, tag)}`;
    });
    // 1.5 does not find flat files on extra devices; the kernel does, see above
    const content = devices.length === 0 ? ["--extract"] : [];
    const run = spawnSync("fsck.erofs", [...content, ...devices, join(directory, "image")], { encoding: "utf8" });
    if (run.error) throw run.error;
    return run.status === 0 ? "" : `status ${run.status}: ${run.stderr}${run.stdout}`;
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}
