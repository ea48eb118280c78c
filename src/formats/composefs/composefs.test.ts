/**
 * Judge: mkcomposefs 1.0.8 built from https://github.com/containers/composefs (meson setup build && ninja -C build), found on PATH or
 * named by SHALE_MKCOMPOSEFS; Debian 12 has no package of it. The digests below are of its output for the same dumps.
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import fc from "fast-check";
import type { ByteString } from "../../bytes/index.ts";
import { ShaleError } from "../../errors/index.ts";
import { memorySource } from "../../bytes/index.ts";
import { ErofsReader } from "../erofs/index.ts";
import { noise, randomTree } from "../erofs/testing/samples.ts";
import { TestTree } from "../erofs/testing/trees.ts";
import { FileType, ROOT } from "../layer-index/index.ts";
import { fsVerityDigest } from "../verity/index.ts";
import { INLINE_LIMIT, objectPath, writeComposefs } from "./index.ts";
import { xxh32 } from "./xxh32.ts";

const MKCOMPOSEFS = process.env.SHALE_MKCOMPOSEFS ?? "mkcomposefs";
const hasJudge = spawnSync(MKCOMPOSEFS, ["--help"]).error === undefined;

function write(tree: TestTree): Uint8Array {
  return writeComposefs(tree.index, {
    readInline: (inode) => tree.content(inode),
    digestOf: (inode) => fsVerityDigest(tree.content(inode)),
  });
}

/** As mkcomposefs writes it from a dump of the tree. */
function judge(tree: TestTree): Buffer {
  const directory = mkdtempSync(join(tmpdir(), "composefs-"));
  try {
    writeFileSync(join(directory, "dump"), dump(tree), "latin1");
    const run = spawnSync(MKCOMPOSEFS, ["--from-file", join(directory, "dump"), join(directory, "image")], {
      encoding: "utf8",
    });
    assert.equal(run.status, 0, run.stderr);
    return readFileSync(join(directory, "image"));
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

/** composefs-dump(5). */
function dump(tree: TestTree): string {
  const { index } = tree;
  const lines: string[] = [];
  const first = new Map<number, ByteString>();
  const visit = (inode: number, path: ByteString) => {
    const type = index.type(inode);
    const link = first.get(inode);
    const isFile = type === FileType.REGULAR;
    const bytes = isFile ? tree.content(inode) : new Uint8Array(0);
    const inline = bytes.length <= INLINE_LIMIT;
    const digest = isFile && !inline ? fsVerityDigest(bytes).toString("hex") : undefined;
    const payload =
      link ??
      (type === FileType.SYMLINK ? index.symlinkTarget(inode) : digest === undefined ? undefined : objectPath(digest));
    const rdev =
      ((index.rdevMinor(inode) & 0xff) | (index.rdevMajor(inode) << 8) | ((index.rdevMinor(inode) & ~0xff) << 12)) >>>
      0;
    const fields = [
      quote(path === "" ? "/" : `/${path}`),
      type === FileType.SYMLINK ? index.symlinkTarget(inode).length : bytes.length,
      `${link === undefined ? "" : "@"}${index.mode(inode).toString(8)}`,
      index.links(inode),
      index.uid(inode),
      index.gid(inode),
      rdev,
      `${index.mtimeSeconds(inode)}.${index.mtimeNanoseconds(inode)}`,
      payload === undefined ? "-" : quote(link === undefined ? payload : `/${payload}`),
      isFile && inline && bytes.length > 0 && link === undefined ? quote(Buffer.from(bytes).toString("latin1")) : "-",
      digest === undefined || link !== undefined ? "-" : digest,
      ...(link === undefined ? index.xattrs(inode).map(({ name, value }) => `${quote(name)}=${quote(value)}`) : []),
    ];
    lines.push(fields.join(" "));
    if (type !== FileType.DIRECTORY) {
      first.set(inode, path);
      return;
    }
    for (const dirent of index.sortedDirents(inode)) {
      const name = index.direntName(dirent);
      visit(index.direntInode(dirent), path === "" ? name : `${path}/${name}`);
    }
  };
  visit(ROOT, "");
  return `${lines.join("\n")}\n`;
}

function quote(text: ByteString): string {
  if (text === "-") return "\\x2d";
  return text.replace(/[^!-<>-[\]-~]/g, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`);
}

function ordinary(): TestTree {
  const tree = new TestTree({ mtimeSeconds: 1_600_000_000 });
  tree.directory("etc", { mtimeSeconds: 1_600_000_000 });
  tree.file("etc/hostname", "shale\n", { mtimeSeconds: 1_600_000_000 });
  tree.file("etc/passwd", noise(1000));
  tree.symlink("link", "etc/passwd");
  tree.special("null", FileType.CHARACTER | 0o666, 1, 3);
  tree.special("far", FileType.BLOCK | 0o600, 300, 70_000);
  tree.special("fifo", FileType.FIFO | 0o600);
  const linked = tree.file("etc/z", noise(5000, 3));
  tree.link("a", linked);
  tree.link("etc/y", linked);
  return tree;
}

function edges(): TestTree {
  const tree = new TestTree({ xattrs: [{ name: "security.selinux", value: "root_t\0" }] });
  for (const size of [0, 1, 63, 64, 65, 4095, 4096, 4097, 8192, 8193, 100_000])
    tree.file(`size-${size}`, noise(size, size + 1));
  for (const size of [1, 100, 1000, 3900, 4000, 4031, 4032, 4033, 4063, 4064, 4065, 4095])
    tree.symlink(`link-${size}`, "t".repeat(size));
  for (let i = 0; i < 40; i++) {
    const shared = [
      { name: "user.shared", value: "all" },
      { name: "trusted.t", value: `${i % 3}` },
    ];
    tree.file(`xattrs-${i}`, noise(i * 10), {
      xattrs: [...shared, { name: `user.own${i}`, value: "v".repeat(i * 30) }],
    });
  }
  tree.file("escaped", noise(100, 8), {
    xattrs: [
      { name: "trusted.overlay.metacopy", value: "x" },
      { name: "user.overlay.opaque", value: "y" },
    ],
  });
  const acl = "\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x04\0\x04\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";
  tree.file("acl", noise(200), { xattrs: [{ name: "system.posix_acl_access", value: acl }] });
  tree.file("owner", "x", { uid: 70_000, gid: 3_000_000_000 });
  tree.file("old", "x", { mtimeSeconds: -5, mtimeNanoseconds: 7 });
  tree.file("older", "x", { mtimeSeconds: -5, mtimeNanoseconds: 6 });
  tree.directory("00");
  tree.directory("ff");
  tree.file("ab", "a file with the name of a directory of objects");
  for (const name of ["!x", "-d", "...", "..a", ".-", "\x80\xff", "a b", "=", "caf\xc3\xa9", "\\"])
    tree.file(name, name);
  for (const count of [80, 85, 86, 160, 170, 171, 900]) {
    tree.directory(`many-${count}`);
    for (let i = 0; i < count; i++) tree.file(`many-${count}/${String(i).padStart(12, "n")}`, "");
  }
  tree.file("n".repeat(255), "long name");
  return tree;
}

const SAMPLES = [
  {
    name: "an ordinary tree",
    tree: ordinary,
    sha256: "1cdd9e5912e07b1ff1d64e95eaa3bb721f933175d9515d6fb018303df6845838",
  },
  {
    name: "every edge of the layout",
    tree: edges,
    sha256: "b1d81931c126ea8e073133f0ff3f0f1af14b138a6928dd2075e8a86cbb12908c",
  },
];

describe("writeComposefs()", () => {
  for (const { name, tree, sha256 } of SAMPLES) {
    test(`gives the bytes of mkcomposefs: ${name}`, () => {
      const bytes = write(tree());
      if (hasJudge) assert.deepEqual(Buffer.from(bytes), judge(tree()));
      assert.equal(createHash("sha256").update(bytes).digest("hex"), sha256);
    });
  }

  test("gives the bytes of mkcomposefs for random trees, and reads back", () => {
    fc.assert(
      fc.property(randomTree, (tree) => {
        const bytes = write(tree);
        if (hasJudge) assert.deepEqual(Buffer.from(bytes), judge(tree));
        const reader = new ErofsReader(memorySource(bytes));
        const names = [...reader.walk()].map(({ path }) => path);
        assert.ok(Object.keys(tree.describe()).every((path) => names.includes(path)));
      }),
      { numRuns: 30, seed: 7 },
    );
  });

  test("refuses whiteouts", () => {
    const tree = new TestTree();
    tree.special("gone", FileType.CHARACTER, 0, 0);
    assert.throws(
      () => write(tree),
      (error) => ShaleError.is(error, "UNIMPLEMENTED"),
    );
  });

  test("xxh32() gives the values of the reference implementation", () => {
    // xxhsum -H32 (0.8.1); the last is the bit that mkfs.erofs clears for "user.foo"
    assert.equal(xxh32("", 0), 0x02cc5d05);
    assert.equal(xxh32("a", 0), 0x550d7456);
    assert.equal(xxh32("abcdefghijklmnopqrstuvwxyz", 0), 0x63a14d5f);
    assert.equal(xxh32("foo", 0x25bbe08f + 1) & 31, 12);
  });
});
