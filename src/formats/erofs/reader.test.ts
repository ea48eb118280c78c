import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { type ByteSource, memorySource } from "../../bytes/index.ts";
import { type ErrorCode, FormatError, ShaleError } from "../../errors/index.ts";
import { FileType } from "../layer-index/index.ts";
import { MergeBuilder } from "../layer-index/merge.ts";
import { FeatureIncompat, SUPERBLOCK, SUPERBLOCK_OFFSET } from "./format.ts";
import { ErofsReader, erofsTree, HOLE, PRIMARY, readDeviceTags, verifySuperblock } from "./index.ts";
import { canMount, describeByKernel, type KernelImage } from "./testing/kernel.ts";
import { compactImage, mkfsImage, sealSuperblock } from "./testing/peer.ts";
import { hardTree, noise } from "./testing/samples.ts";
import { describeReader, openTree, TestTree } from "./testing/trees.ts";

const hasCode = (code: ErrorCode) => (error: unknown) => ShaleError.is(error, code);

/** Images of others, each of which exercises what ours don't have. */
const PEERS: readonly { readonly name: string; make(): KernelImage }[] = [
  { name: "mkfs.erofs 1.5, default", make: () => mkfsImage([]) },
  { name: "mkfs.erofs 1.5, compact inodes", make: () => mkfsImage(["-Eforce-inode-compact", "-T1600000000"]) },
  { name: "mkfs.erofs 1.5, extended inodes", make: () => mkfsImage(["-Eforce-inode-extended"]) },
  { name: "mkfs.erofs 1.5, shared xattrs", make: () => mkfsImage(["-x1"]) },
  { name: "mkfs.erofs 1.5, chunks of 4 KiB with holes", make: () => mkfsImage(["--chunksize=4096"]) },
  { name: "mkfs.erofs 1.5, chunks on an extra device", make: () => mkfsImage(["--chunksize=8192"], true) },
  { name: "by hand, blocks of 512, compact inodes, 4-byte chunks", make: () => compactImage(9, false) },
  { name: "by hand, blocks of 1024", make: () => compactImage(10, false) },
  { name: "by hand, blocks of 4096, 48BIT", make: () => compactImage(12, true) },
  { name: "by hand, long xattr prefixes", make: longPrefixImage },
];

describe("ErofsReader", () => {
  test("reads images of other writers as the kernel does", { skip: !canMount && "needs root" }, () => {
    const images = PEERS.map(({ make }) => make());
    const judged = describeByKernel(images.map((image) => [image]));
    images.forEach((image, i) => {
      const shown = describeReader(openTree(image.bytes, image.devices));
      assert.deepEqual(shown, judged[i], PEERS[i]!.name);
    });
    assert.ok(Object.keys(judged[0]!).length > 400);
    assert.deepEqual(judged.at(-1)!.f!.xattrs, ["trusted.overlay.abc=v"]);
  });

  test("reads compact inodes, small blocks and 4-byte chunks", () => {
    for (const [bits, wide] of [
      [9, false],
      [11, false],
      [12, true],
    ] as const) {
      const { bytes, content } = compactImage(bits, wide);
      const reader = openTree(bytes);
      const file = reader.resolve("/f");
      assert.deepEqual(Buffer.concat([...reader.content(file)]), Buffer.from(content));
      assert.deepEqual([file.mtimeSeconds, file.mtimeNanoseconds], [1_600_000_000 + (wide ? 1000 : 0), 5]);
      assert.equal([...reader.extents(file)].length, 2);
    }
  });

  test("refuses compressed files and unknown features with UNIMPLEMENTED", () => {
    const { bytes } = mkfsImage(["-zlz4hc"]);
    assert.throws(() => openTree(bytes).resolve("compressible"), hasCode("UNIMPLEMENTED"));
    const other = new TestTree().write().bytes.slice();
    SUPERBLOCK.write(other, SUPERBLOCK_OFFSET, { featureIncompat: 0x8000 });
    sealSuperblock(other);
    assert.throws(() => openTree(other), hasCode("UNIMPLEMENTED"));
  });

  test("lookup() finds each name of large and odd directories, and no other", () => {
    const tree = hardTree();
    const reader = openTree(tree.write().bytes, tree.devices);
    for (const path of ["", "many", "empty", "tail-255"]) {
      const directory = reader.resolve(path);
      const names = [...reader.directory(directory)];
      for (const { name, nid } of names) assert.equal(reader.lookup(directory, name)?.nid, nid);
      for (const { name } of names.slice(0, 300)) assert.equal(reader.lookup(directory, `${name}\x01`), undefined);
      for (const name of ["", "\x01", "\xff\xff\xff", "/"]) assert.equal(reader.lookup(directory, name), undefined);
    }
  });

  test("resolve() follows links, clamps .. at the root and tells what is wrong", () => {
    const tree = new TestTree();
    tree.directory("usr");
    tree.directory("usr/lib");
    tree.file("usr/lib/file", "found");
    tree.symlink("lib", "usr/lib");
    tree.symlink("absolute", "/usr/./lib//file");
    tree.symlink("usr/up", "../../../../lib");
    tree.symlink("loop", "loop");
    tree.symlink("dangling", "nowhere/at/all");
    const { bytes, image } = tree.write();
    const reader = openTree(bytes);
    const file = image.nids[tree.at("usr/lib/file")];
    for (const path of [
      "usr/lib/file",
      "/usr/lib/file",
      "lib/file",
      "absolute",
      "../../usr/up/file",
      "usr/../lib/file",
    ]) {
      assert.equal(reader.resolve(path).nid, file, path);
    }
    assert.equal(reader.resolve("").nid, image.rootNid);
    assert.equal(reader.resolve("/..").nid, image.rootNid);
    assert.equal(reader.resolve("lib", { followSymlinks: false }).nid, image.nids[tree.at("lib")]);
    assert.equal(reader.resolve("lib/", { followSymlinks: false }).nid, image.nids[tree.at("usr/lib")]);
    assert.equal(reader.readlink(reader.resolve("loop", { followSymlinks: false })), "loop");
    for (const path of ["missing", "usr/missing/x", "dangling"]) {
      assert.throws(() => reader.resolve(path), hasCode("NOT_FOUND"), path);
    }
    for (const path of ["loop", "usr/lib/file/", "absolute/x"]) {
      assert.throws(() => reader.resolve(path), hasCode("FAILED_PRECONDITION"), path);
    }
  });

  test("read() gives any range of a file, short at its end", () => {
    const tree = hardTree();
    const reader = openTree(tree.write().bytes, tree.devices);
    const paths = ["inline-4033", "inline-4097", "device-4097", "device-1100000", "xattrs-huge", "inline-0"];
    fc.assert(
      fc.property(fc.constantFrom(...paths), fc.nat(25_000), fc.nat(9000), (path, offset, length) => {
        const expected = tree.content(tree.at(path)).subarray(offset, offset + length);
        assert.deepEqual(Buffer.from(reader.read(reader.resolve(path), offset, length)), Buffer.from(expected));
      }),
      { numRuns: 300 },
    );
  });

  test("extents() tells where content is", () => {
    const tree = new TestTree();
    tree.deviceFile("first", "a", noise(100));
    tree.deviceFile("second", "b", noise(9000));
    tree.deviceFile("third", "a", noise(5000));
    tree.file("inline", noise(700));
    tree.file("empty");
    const reader = openTree(tree.write().bytes, tree.devices);
    const extents = (path: string) => [...reader.extents(reader.resolve(path))];
    assert.deepEqual(extents("second"), [{ device: 1, offset: 0, length: 9000 }]);
    assert.deepEqual(extents("third"), [{ device: 0, offset: 4096, length: 5000 }]);
    assert.deepEqual(
      extents("inline").map(({ device, length }) => [device, length]),
      [[PRIMARY, 700]],
    );
    assert.deepEqual(extents("empty"), []);
  });

  test("extents() gives chunks that are nowhere as holes, which read as zeros", () => {
    const { bytes, content } = compactImage(12, false);
    new DataView(bytes.buffer).setUint32(4096 + 4 * 32 + 32, 0xffffffff, true); // the first of two chunks
    const reader = openTree(bytes);
    const file = reader.resolve("f");
    const extents = [...reader.extents(file)];
    assert.deepEqual(extents[0], { device: HOLE, offset: 0, length: 4096 });
    assert.deepEqual([extents[1]!.device, extents[1]!.length], [PRIMARY, 100]);
    assert.deepEqual(Buffer.from(reader.read(file, 0, 4096)), Buffer.alloc(4096));
    assert.deepEqual(Buffer.from(reader.read(file, 4096, 100)), Buffer.from(content.subarray(4096)));
  });

  test("opens a device once, and only for its content", () => {
    const tree = new TestTree();
    tree.deviceFile("a", "blob-a", noise(100));
    tree.deviceFile("b", "blob-b", noise(200));
    const opened: string[] = [];
    const reader = new ErofsReader(memorySource(tree.write().bytes), (tag, index) => {
      opened.push(`${index}:${tag}`);
      return memorySource(tree.devices[index]!.bytes);
    });
    for (const { inode } of reader.walk()) reader.xattrs(inode);
    assert.deepEqual(opened, []);
    for (let i = 0; i < 3; i++) assert.equal(reader.read(reader.resolve("b"), 0, 500).length, 200);
    assert.deepEqual(opened, ["1:blob-b"]);
  });

  test("reads flattened images, and says what is missing otherwise", () => {
    const tree = new TestTree();
    tree.deviceFile("f", "blob", noise(5000));
    const { bytes } = tree.write();
    const flat = new ErofsReader(memorySource(Buffer.concat([bytes, tree.devices[0]!.bytes])));
    assert.deepEqual(Buffer.concat([...flat.content(flat.resolve("f"))]), Buffer.from(noise(5000)));
    const bare = new ErofsReader(memorySource(bytes));
    assert.throws(() => bare.read(bare.resolve("f"), 0, 1), hasCode("FAILED_PRECONDITION"));
    const short = openTree(bytes, [{ tag: "blob", bytes: new Uint8Array(4096) }]);
    assert.throws(() => short.read(short.resolve("f"), 4090, 100), hasCode("DATA_LOSS"));
  });

  test("reads little of the image for its device tags", () => {
    const tree = hardTree();
    const { bytes } = tree.write();
    let read = 0;
    const source: ByteSource = {
      size: bytes.length,
      read(offset, length) {
        read += length;
        return bytes.subarray(offset, offset + length);
      },
    };
    assert.deepEqual(readDeviceTags(source), ["blob-a", "blob-b"]);
    assert.ok(read < 4096, `${read} bytes were read`);
  });

  test("finds changed bytes of superblock and device table", () => {
    const tree = new TestTree();
    for (let i = 0; i < 40; i++) tree.deviceFile(`${i}`, `blob-${i}`, noise(10));
    const { bytes } = tree.write();
    verifySuperblock(memorySource(bytes));
    const tableEnd = 1152 + 40 * 128;
    for (let at = 0; at < tableEnd; at += at < 1152 ? 1 : 7) {
      if (at === 40) at = 1024; // between the two headers is nothing
      const damaged = bytes.slice();
      damaged[at]! ^= 1 << (at % 8);
      // bytes 32..39 of the private header are reserved
      if (at >= 32 && at < 40) verifySuperblock(memorySource(damaged));
      else {
        assert.throws(() => verifySuperblock(memorySource(damaged)), ShaleError, `byte ${at}`);
        assert.throws(() => readDeviceTags(memorySource(damaged)), ShaleError, `byte ${at}`);
      }
    }
  });

  test("refuses an image that is cut off, at any length", () => {
    const { bytes } = hardTree().write();
    for (let length = 0; length < bytes.length; length += length < 8192 ? 97 : 40_000) {
      assert.throws(() => new ErofsReader(memorySource(bytes.subarray(0, length))), FormatError);
    }
  });

  test("gives a result or a ShaleError for every changed byte of an image", () => {
    const tree = fuzzTree();
    const { bytes } = tree.write(true);
    let refused = 0;
    for (let at = 0; at < bytes.length; at++) {
      const dull = bytes[at] === 0 || bytes[at] === "x".charCodeAt(0); // padding, and the middle of names
      if (dull && at % 16 !== 0) continue;
      const damaged = bytes.slice();
      damaged[at] = otherValue(bytes[at]!, at);
      if (at >= SUPERBLOCK_OFFSET && at < 4096) sealSuperblock(damaged);
      if (!survives(damaged, tree)) refused++;
    }
    assert.ok(refused > 100, `${refused} of all were refused`);
  });

  test("gives a result or a ShaleError for changed bytes of other writers' images", () => {
    for (const { bytes, devices } of [compactImage(9, false), compactImage(9, true), longPrefixImage()]) {
      const tree = { devices };
      const blockSize = 2 ** bytes[SUPERBLOCK_OFFSET + 12]!;
      for (let at = SUPERBLOCK_OFFSET; at < bytes.length; at += bytes[at] === 0 ? 8 : 1) {
        const damaged = bytes.slice();
        damaged[at] = otherValue(bytes[at]!, at);
        sealSuperblock(damaged, blockSize);
        survives(damaged, tree);
      }
    }
  });

  test("gives a result or a ShaleError for random bytes behind a sound superblock", () => {
    const { bytes } = fuzzTree().write();
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 64, maxLength: 512 }), fc.nat(bytes.length), (random, at) => {
        const damaged = bytes.slice();
        damaged.set(random.subarray(0, Math.max(0, damaged.length - at)), at);
        if (at < 4096) {
          damaged.set(bytes.subarray(1024, 1024 + 128), 1024);
          sealSuperblock(damaged);
        }
        survives(damaged, fuzzTree());
      }),
      { numRuns: 200 },
    );
  });
});

/** High bit, a low bit, or all bits, by position: single flips, and the largest number. */
function otherValue(byte: number, at: number): number {
  return at % 3 === 0 ? byte ^ 0x80 : at % 3 === 1 ? byte ^ (1 << (at % 7)) : byte === 0xff ? 0 : 0xff;
}

/** Small, but with all that has a place in an image. */
function fuzzTree(): TestTree {
  const tree = new TestTree();
  tree.directory("d", { xattrs: [{ name: "user.x", value: "value" }] });
  tree.file("d/inline", "inline content");
  tree.deviceFile("d/extent", "blob", noise(4200));
  tree.symlink("link", "d/inline");
  tree.special("null", FileType.CHARACTER, 1, 3);
  tree.link("hard", tree.at("d/inline"));
  for (let i = 0; i < 20; i++) tree.file(`name-${"x".repeat(200)}-${i}`);
  const removed = tree.file("removed", "gone");
  tree.index.remove(tree.index.find(0, "removed"));
  assert.equal(tree.index.links(removed), 0);
  return tree;
}

/** Uses every method; true when nothing was refused. Anything but a ShaleError is a failure of the test. */
function survives(
  bytes: Uint8Array,
  tree: { readonly devices: readonly { tag: string; bytes: Uint8Array }[] },
): boolean {
  const attempt = (use: () => void) => {
    try {
      use();
      return true;
    } catch (error) {
      if (!ShaleError.is(error)) throw error;
      return false;
    }
  };
  let reader: ErofsReader | undefined;
  const open = (tag: string) => memorySource(tree.devices.find((one) => one.tag === tag)?.bytes ?? new Uint8Array(0));
  let sound = attempt(() => {
    reader = new ErofsReader(memorySource(bytes), open);
  });
  if (!reader) return false;
  const { walk, xattrs, readlink, extents, read, lookup, inode } = methodsOf(reader);
  sound =
    attempt(() => {
      let entries = 0;
      for (const entry of walk()) {
        assert.ok(++entries <= bytes.length, "endless walk");
        const type = entry.inode.mode & FileType.MASK;
        sound = attempt(() => xattrs(entry.inode)) && sound;
        if (type === FileType.SYMLINK) sound = attempt(() => readlink(entry.inode)) && sound;
        if (type === FileType.DIRECTORY) sound = attempt(() => lookup(entry.inode, "inline")) && sound;
        sound =
          attempt(() => {
            let parts = 0;
            for (const _ of extents(entry.inode)) assert.ok(++parts <= bytes.length, "endless extents");
            read(entry.inode, 0, 10_000);
            read(entry.inode, Math.max(0, entry.inode.size - 10), 10);
          }) && sound;
      }
    }) && sound;
  sound = attempt(() => reader!.resolve("link")) && sound;
  sound = attempt(() => reader!.unlinked().forEach((nid) => void inode(nid))) && sound;
  return attempt(() => new MergeBuilder().addLayer(erofsTree(reader!))) && sound;
}

function methodsOf(reader: ErofsReader) {
  return {
    walk: () => reader.walk(),
    xattrs: reader.xattrs.bind(reader),
    readlink: reader.readlink.bind(reader),
    extents: reader.extents.bind(reader),
    read: reader.read.bind(reader),
    lookup: reader.lookup.bind(reader),
    inode: reader.inode.bind(reader),
  };
}

/** Our image with a prefix table added behind it: "trusted." + "overlay." for an xattr that was written as user.*. */
function longPrefixImage(): KernelImage {
  const tree = new TestTree();
  tree.file("f", "x", { xattrs: [{ name: "user.abc", value: "v" }] });
  const { bytes, image } = tree.write();
  const entry = image.nids[tree.at("f")]! * 32 + 64 + 12;
  bytes[entry + 1] = 0x80; // long prefix 0 in the place of 1, "user."
  const infix = Buffer.from("overlay.");
  const block = Buffer.alloc(4096);
  block.writeUInt16LE(1 + infix.length, 0);
  block[2] = 4; // "trusted."
  infix.copy(block, 3);
  const whole = Buffer.concat([bytes, block]);
  SUPERBLOCK.write(whole, SUPERBLOCK_OFFSET, {
    blocks: whole.length / 4096,
    featureIncompat: FeatureIncompat.CHUNKED_FILE | FeatureIncompat.XATTR_PREFIXES,
    xattrPrefixCount: 1,
    xattrPrefixStart: bytes.length / 4,
  });
  sealSuperblock(whole);
  return { bytes: whole, devices: [] };
}
