import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { FormatError } from "../../errors/index.ts";
import { erofsTree, indexFromErofs } from "../erofs/index.ts";
import { canMount, describeByKernel } from "../erofs/testing/kernel.ts";
import { hardTree, noise } from "../erofs/testing/samples.ts";
import {
  blocksOf,
  type Description,
  describeIndex,
  describeReader,
  openTree,
  TestTree,
  writeTree,
} from "../erofs/testing/trees.ts";
import { FileType } from "./index.ts";
import { MergeBuilder, type MergedTree, treeFromIndex } from "./merge.ts";
import { IMPLIED_XATTR, OPAQUE_XATTR, ORIGIN_XATTR } from "./overlay.ts";

const OPAQUE = { name: OPAQUE_XATTR, value: "y" };
const ORIGIN = { name: ORIGIN_XATTR, value: "" };
const IMPLIED = { name: IMPLIED_XATTR, value: "" };

interface Case {
  readonly name: string;
  /** Lowest first. */
  readonly layers: readonly ((tree: TestTree) => void)[];
  /** Paths that are left. */
  readonly paths: readonly string[];
}

const CASES: readonly Case[] = [
  {
    name: "a later file replaces an earlier one",
    layers: [(t) => t.file("a", "one", { uid: 1 }), (t) => t.file("a", "two", { gid: 2 })],
    paths: ["a"],
  },
  {
    name: "directories merge, the topmost one's metadata shows",
    layers: [
      (t) => {
        t.directory("d", { mode: FileType.DIRECTORY | 0o700, uid: 5, xattrs: [{ name: "user.low", value: "1" }] });
        t.file("d/low", "low");
        t.file("d/both", "low");
      },
      (t) => {
        t.directory("d", { mode: FileType.DIRECTORY | 0o711, gid: 6, xattrs: [{ name: "user.high", value: "2" }] });
        t.file("d/both", "high");
        t.file("d/high", "high");
      },
    ],
    paths: ["d", "d/both", "d/high", "d/low"],
  },
  {
    name: "a file replaces a directory with all that is in it",
    layers: [
      (t) => {
        t.directory("d");
        t.directory("d/e");
        t.file("d/e/f", "x");
      },
      (t) => t.file("d", "file"),
    ],
    paths: ["d"],
  },
  {
    name: "a directory replaces a file, and a lower directory below that file stays hidden",
    layers: [
      (t) => {
        t.directory("d");
        t.file("d/lowest", "x");
      },
      (t) => t.symlink("d", "elsewhere"),
      (t) => {
        t.directory("d");
        t.file("d/new", "y");
      },
    ],
    paths: ["d", "d/new"],
  },
  {
    name: "whiteouts remove files, trees and symlinks of lower layers",
    layers: [
      (t) => {
        t.file("f", "x");
        t.directory("d");
        t.directory("d/e");
        t.file("d/e/f", "x");
        t.symlink("l", "f");
        t.directory("kept", { xattrs: [ORIGIN] });
        t.file("kept/a", "a");
        t.file("kept/b", "b");
      },
      (t) => {
        t.whiteout("f");
        t.whiteout("d");
        t.whiteout("l");
        t.directory("kept", { xattrs: [ORIGIN] });
        t.whiteout("kept/a");
      },
    ],
    paths: ["kept", "kept/b"],
  },
  {
    name: "a whiteout of a name that is missing is nothing",
    layers: [
      (t) => t.file("f", "x"),
      (t) => {
        t.whiteout("missing");
        t.directory("new", { xattrs: [ORIGIN] });
        t.whiteout("new/missing");
      },
    ],
    paths: ["f", "new"],
  },
  {
    name: "a name can come back after its whiteout, as another type",
    layers: [
      (t) => {
        t.directory("d");
        t.file("d/old", "x");
        t.file("f", "old");
      },
      (t) => {
        t.whiteout("d");
        t.whiteout("f");
      },
      (t) => {
        t.directory("d");
        t.file("d/new", "y");
        t.special("f", FileType.FIFO | 0o600);
      },
    ],
    paths: ["d", "d/new", "f"],
  },
  {
    name: "an opaque directory hides lower layers only",
    layers: [
      (t) => {
        t.directory("d");
        t.file("d/low", "x");
        t.directory("d/sub");
        t.file("d/sub/low", "x");
      },
      (t) => {
        t.directory("d", { xattrs: [OPAQUE, ORIGIN, { name: "trusted.other", value: "z" }] });
        t.file("d/middle", "y");
        t.directory("d/sub");
      },
      (t) => {
        t.directory("d");
        t.file("d/high", "z");
      },
    ],
    paths: ["d", "d/high", "d/middle", "d/sub"],
  },
  {
    name: "hard links hold within a layer, also beside replaced names",
    layers: [
      (t) => {
        const one = t.file("a", "linked");
        t.link("b", one);
        t.link("c", one);
        t.directory("d");
        t.link("d/e", one);
      },
      (t) => {
        t.file("a", "replaced");
        t.whiteout("c");
        const two = t.file("x", "linked above");
        t.link("y", two);
      },
    ],
    paths: ["a", "b", "d", "d/e", "x", "y"],
  },
  {
    name: "content on devices survives, whatever layers share a blob",
    layers: [
      (t) => {
        t.deviceFile("low", "blob-low", noise(6000, 1));
        t.deviceFile("gone", "blob-gone", noise(5000, 2));
      },
      (t) => {
        t.deviceFile("high", "blob-high", noise(9000, 3));
        t.file("inline", noise(3000, 4));
        t.whiteout("gone");
      },
    ],
    paths: ["high", "inline", "low"],
  },
];

describe("MergeBuilder", () => {
  for (const { name, layers, paths } of CASES) {
    test(`${name}`, () => {
      const { shown } = merge(layers.map(build));
      assert.deepEqual(Object.keys(shown), ["", ...paths]);
      const books = Object.values(shown).flatMap(({ xattrs }) =>
        xattrs.filter((x) => x.startsWith("trusted.overlay.")),
      );
      assert.deepEqual(books, []);
    });
  }

  test("agrees with overlayfs in all cases above and on random stacks", { skip: !canMount && "needs root" }, () => {
    const stacks = CASES.map(({ layers }) => layers.map(build));
    stacks.push(...fc.sample(randomStack, { numRuns: 30, seed: 5 }));
    const judged = describeByKernel(
      stacks.map((trees) => trees.map((tree) => ({ bytes: tree.write().bytes, devices: tree.devices }))),
    );
    stacks.forEach((trees, i) => {
      const name = CASES[i]?.name ?? `random stack ${i - CASES.length}`;
      assert.deepEqual(comparable(merge(trees).shown), comparable(judged[i]!), name);
    });
  });

  test("gives names that survive the replacement of another name of their inode one link less", () => {
    const { shown } = merge([build(CASES[8]!.layers[0]!), build(CASES[8]!.layers[1]!)]);
    assert.deepEqual([shown.b!.links, shown["d/e"]!.sameAs, shown.a!.links, shown.y!.sameAs], [2, "b", 1, "x"]);
  });

  test("lists each blob once, the lowest layer's first, and leaves out those without a file", () => {
    const low = build((t) => {
      t.deviceFile("1", "a", noise(100, 1));
      t.deviceFile("2", "unused", noise(100, 2));
      t.deviceFile("3", "b", noise(100, 3));
    });
    const high = build((t) => {
      t.deviceFile("4", "c", noise(100, 4));
      t.deviceFile("5", "a", noise(100, 1));
      t.whiteout("2");
    });
    const { merged, shown } = merge([low, high]);
    assert.deepEqual(
      merged.devices.map(({ tag }) => tag),
      ["a", "b", "c"],
    );
    assert.equal(shown["5"]!.content, shown["1"]!.content);
  });

  test("takes no metadata from a directory that its layer only implies", () => {
    const low = build((t) => t.directory("d", { mode: FileType.DIRECTORY | 0o1777, uid: 9, mtimeSeconds: 77 }));
    const high = new TestTree({ mode: FileType.DIRECTORY | 0o700, xattrs: [IMPLIED] });
    high.directory("d", { mtimeSeconds: 0, xattrs: [IMPLIED, ORIGIN] });
    high.file("d/new", "x");
    const { shown } = merge([low, high]);
    assert.deepEqual([shown[""]!.mode, shown.d!.mode, shown.d!.owner], ["40755", "41777", "9:0"]);
    assert.deepEqual([shown.d!.mtime, shown.d!.xattrs, shown["d/new"]!.content], ["77000000000", [], "x"]);
  });

  test("keeps xattrs that are escaped for an overlay within the layer", () => {
    const xattrs = [{ name: "trusted.overlay.overlay.opaque", value: "y" }, OPAQUE, ORIGIN];
    const { shown } = merge([build((t) => t.directory("d", { xattrs }))]);
    assert.deepEqual(shown.d!.xattrs, ["trusted.overlay.overlay.opaque=y"]);
  });

  test("merges one layer into itself without a loss", () => {
    const tree = hardTree();
    tree.index.remove(tree.index.find(0, "whiteout"));
    assert.deepEqual(merge([tree, tree]).shown, tree.describe());
  });

  test("refuses an image whose directories form a loop", () => {
    const tree = new TestTree();
    tree.directory("a");
    tree.directory("a/b");
    const { bytes, image } = tree.write();
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    const target = image.nids[tree.at("a/b")]!;
    // The dirent of "b" in "a": make it lead back to "a".
    const at = findNid(view, image.nids[tree.at("a")]! * 32, target);
    view.setUint32(at, image.nids[tree.at("a")]!, true);
    assert.throws(() => new MergeBuilder().addLayer(erofsTree(openTree(bytes))), FormatError);
    assert.throws(() => [...openTree(bytes).walk()], FormatError);
  });
});

describe("indexFromErofs()", () => {
  test("gives back the index that was written, whiteouts included", () => {
    const tree = hardTree();
    const reader = openTree(tree.write().bytes, tree.devices);
    const index = indexFromErofs(reader);
    const content = (inode: number) => {
      if (index.contentKind(inode) === 0) return new Uint8Array(0);
      if (index.contentKind(inode) === 1) {
        const source = reader.inode(index.contentOffset(inode));
        return reader.read(source, 0, source.size);
      }
      const offset = index.contentOffset(inode);
      return tree.devices[index.contentDevice(inode)]!.bytes.subarray(offset, offset + index.size(inode));
    };
    assert.deepEqual(describeIndex(index, content), tree.describe());
  });
});

function build(fill: (tree: TestTree) => void): TestTree {
  const tree = new TestTree();
  fill(tree);
  return tree;
}

/** Writes each layer, merges the images, writes the result and reads it back. Merging the indexes gives the same bytes. */
function merge(layers: readonly TestTree[]): { readonly merged: MergedTree; readonly shown: Description } {
  const builder = new MergeBuilder(1);
  const unwritten = new MergeBuilder(2);
  const blobs = new Map<string, Uint8Array>();
  for (const tree of layers) {
    for (const { tag, bytes } of tree.devices) blobs.set(tag, bytes);
    builder.addLayer(erofsTree(openTree(tree.write().bytes, tree.devices)));
    unwritten.addLayer(treeFromIndex(tree.index, blocksOf(tree.devices), (inode) => tree.content(inode)));
  }
  const merged = builder.finish();
  const devices = merged.devices.map(({ tag }) => ({ tag, bytes: blobs.get(tag)! }));
  assert.deepEqual(
    merged.devices.map(({ tag, blocks }) => ({ tag, blocks })),
    blocksOf(devices),
  );
  const { bytes } = writeTree(merged.index, merged.devices, (inode) => merged.readInline(inode));
  const same = unwritten.finish();
  const again = writeTree(same.index, same.devices, (inode) => same.readInline(inode));
  assert.ok(Buffer.from(again.bytes).equals(bytes));
  return { merged, shown: describeReader(openTree(bytes, devices)) };
}

/** Without link counts: overlayfs says 1 for a merged directory, and counts names of a file that higher layers hide. */
function comparable(tree: Description): Description {
  return Object.fromEntries(Object.entries(tree).map(([path, one]) => [path, { ...one, links: 0 }]));
}

function findNid(view: DataView, from: number, nid: number): number {
  for (let at = from; ; at += 4) if (view.getUint32(at, true) === nid && view.getUint32(at + 4, true) === 0) return at;
}

const stackName = fc.constantFrom("a", "b", "c", "d");
const stackStep = fc.record({
  depth: fc.integer({ min: 1, max: 3 }),
  names: fc.tuple(stackName, stackName, stackName),
  kind: fc.nat(8),
});

/** Three layers over a handful of names, so that everything meets everything. */
const randomStack: fc.Arbitrary<TestTree[]> = fc
  .array(fc.array(stackStep, { minLength: 3, maxLength: 14 }), { minLength: 3, maxLength: 3 })
  .map((layers) =>
    layers.map((steps, layer) => {
      const tree = new TestTree({ uid: layer });
      let linked: number | undefined;
      steps.forEach(({ depth, names, kind }, i) => {
        let parent = "";
        for (const name of names.slice(0, depth - 1)) {
          const path = parent === "" ? name : `${parent}/${name}`;
          const there = tree.at(path);
          // The origin mark as the tar builder sets it: overlayfs would list whiteouts without it.
          if (there === 0xffffffff) tree.directory(path, { uid: layer, gid: i, xattrs: [ORIGIN] });
          else if (!tree.index.isDirectory(there)) return;
          parent = path;
        }
        const path = parent === "" ? names[depth - 1]! : `${parent}/${names[depth - 1]!}`;
        if (tree.at(path) !== 0xffffffff) return;
        if (kind <= 1) tree.whiteout(path);
        else if (kind === 2) tree.directory(path, { gid: i, xattrs: [OPAQUE, ORIGIN] });
        else if (kind === 3) tree.directory(path, { gid: i, xattrs: [ORIGIN] });
        else if (kind === 4) tree.symlink(path, `../${i}`);
        else if (kind === 5) linked = tree.file(path, `linked ${layer} ${i}`);
        else if (kind === 6 && linked !== undefined) tree.link(path, linked);
        else if (kind === 7) tree.deviceFile(path, `blob-${layer}`, noise(4100 + i, i));
        else tree.file(path, `file ${layer} ${i}`);
      });
      return tree;
    }),
  );
