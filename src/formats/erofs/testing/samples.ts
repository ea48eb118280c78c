/** Trees with everything that is hard, and random ones. */
import fc from "fast-check";
import { FileType } from "../../layer-index/index.ts";
import { type Attributes, TestTree } from "./trees.ts";

/** Bytes that differ everywhere, the same for the same seed. */
export function noise(length: number, seed = 1): Uint8Array {
  const bytes = new Uint8Array(length);
  let state = seed >>> 0 || 1;
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    bytes[i] = state >>> 24;
  }
  return bytes;
}

/** Every file type and every edge that EROFS has; with or without content on devices. */
export function hardTree(withDevices = true): TestTree {
  const tree = new TestTree({
    mtimeSeconds: 1,
    mtimeNanoseconds: 999_999_999,
    xattrs: [{ name: "user.root", value: "r" }],
  });
  for (const name of ["!x", "-d", ",", "...", "..a", ".-", ".a", "~", "\xff\xfe", "\x80", "a b", "\n", "caf\xc3\xa9"]) {
    tree.file(name, name);
  }
  tree.file("n".repeat(255), "long name");
  for (const size of [0, 1, 31, 32, 33, 3967, 3968, 4031, 4032, 4033, 4095, 4096, 4097, 8192, 20_000]) {
    tree.file(`inline-${size}`, noise(size, size));
  }
  if (withDevices) {
    for (const size of [1, 4095, 4096, 4097, 1_100_000]) {
      tree.deviceFile(`device-${size}`, "blob-a", noise(size, size + 1));
    }
    tree.deviceFile("other-device", "blob-b", noise(5000, 77));
  }
  for (const size of [1, 64, 3900, 4031, 4032, 4033, 4095]) tree.symlink(`link-${size}`, "t".repeat(size));
  tree.symlink("link-xattr", "t".repeat(4000), { xattrs: [{ name: "trusted.t", value: "v".repeat(200) }] });

  tree.special("null", FileType.CHARACTER | 0o666, 1, 3);
  tree.special("whiteout", FileType.CHARACTER, 0, 0);
  tree.special("block", FileType.BLOCK | 0o660, 300, 70_000);
  tree.special("block-max", FileType.BLOCK | 0o660, 4095, 1_048_575);
  tree.special("fifo", FileType.FIFO | 0o600);
  tree.special("socket", FileType.SOCKET | 0o755);

  tree.file("modes", "x", { mode: FileType.REGULAR | 0o7777 });
  tree.file("owner", "x", { uid: 4_294_967_294, gid: 3_000_000_000 });
  tree.file("old", "x", { mtimeSeconds: -1, mtimeNanoseconds: 1 });
  tree.file("older", "x", { mtimeSeconds: -5_000_000_000, mtimeNanoseconds: 123_456_789 });
  tree.file("late", "x", { mtimeSeconds: 8_000_000_000, mtimeNanoseconds: 999_999_999 });

  const acl = "\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x04\0\x04\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";
  const xattrs = [
    { name: "user.empty", value: "" },
    { name: "user.long", value: Buffer.from(noise(3000, 9)).toString("latin1") },
    { name: `user.${"n".repeat(250)}`, value: "\0\xff" },
    { name: "trusted.t", value: "1" },
    { name: "security.capability", value: "\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0" },
    { name: "system.posix_acl_access", value: acl },
  ];
  tree.file("xattrs", noise(900, 3), { xattrs });
  tree.file("xattrs-plain", noise(4000, 4), { xattrs });
  if (withDevices) tree.deviceFile("xattrs-device", "blob-a", noise(4000, 5), { xattrs });
  tree.file("xattrs-huge", noise(40, 6), {
    xattrs: [1, 2, 3].map((i) => ({ name: `user.${i}`, value: Buffer.from(noise(9000, i)).toString("latin1") })),
  });
  tree.directory("xattrs-directory", { xattrs });

  tree.directory("many");
  for (let i = 0; i < 5000; i++) tree.file(`many/${(i * 7919) % 5000}-${"x".repeat(i % 40)}`, "");
  tree.directory("empty", { mode: FileType.DIRECTORY | 0o1777 });
  tree.directory("sub");
  tree.directory("sub/sub");
  tree.directory("sub/sub/sub");
  const linked = tree.file("sub/sub/first", "one inode");
  tree.link("second-name", linked);
  tree.link("sub/third-name", linked);
  // One directory for each size of its last block around the point where it no longer fits beside its inode.
  for (let length = 200; length <= 255; length += 5) {
    tree.directory(`tail-${length}`);
    for (let i = 0; i < 15; i++) tree.file(`tail-${length}/${String(i).padEnd(length, "y")}`, "");
  }
  return tree;
}

interface Step {
  readonly kind: number;
  readonly parent: number;
  readonly name: string;
  readonly size: number;
  readonly more: Attributes;
}

const byte = fc.integer({ min: 1, max: 255 }).map((code) => String.fromCharCode(code === 0x2f ? 0x2e : code));
const entryName = fc
  .oneof(
    { weight: 6, arbitrary: fc.array(byte, { minLength: 1, maxLength: 12 }).map((parts) => parts.join("")) },
    { weight: 1, arbitrary: fc.integer({ min: 100, max: 255 }).map((length) => "l".repeat(length)) },
  )
  .filter((name) => name !== "." && name !== "..");
const value = fc.array(byte, { maxLength: 300 }).map((parts) => parts.join(""));
const attributes: fc.Arbitrary<Attributes> = fc.record({
  uid: fc.integer({ min: 0, max: 0xfffffffe }),
  gid: fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 0xfffffffe })),
  mtimeSeconds: fc.oneof(fc.constant(0), fc.integer({ min: -(2 ** 40), max: 2 ** 40 })),
  mtimeNanoseconds: fc.integer({ min: 0, max: 999_999_999 }),
  xattrs: fc.uniqueArray(
    fc.record({ name: fc.constantFrom("user.a", "user.b", "trusted.c", "security.d", "user.e"), value }),
    { selector: ({ name }) => name, maxLength: 3 },
  ),
});
const step: fc.Arbitrary<Step> = fc.record({
  kind: fc.integer({ min: 0, max: 9 }),
  parent: fc.nat(),
  name: entryName,
  size: fc.oneof(
    fc.integer({ min: 0, max: 200 }),
    fc.integer({ min: 3800, max: 4200 }),
    fc.integer({ max: 20_000, min: 0 }),
  ),
  more: attributes,
});

/** Trees of up to 60 entries of all kinds. */
export const randomTree: fc.Arbitrary<TestTree> = fc.array(step, { maxLength: 60 }).map((steps) => {
  const tree = new TestTree();
  const directories = [""];
  const files: number[] = [];
  steps.forEach(({ kind, parent, name, size, more }, i) => {
    const above = directories[parent % directories.length]!;
    const path = above === "" ? name : `${above}/${name}`;
    if (tree.index.findInode(tree.at(above), name) !== 0xffffffff) return;
    if (kind <= 2) {
      tree.directory(path, more);
      directories.push(path);
    } else if (kind <= 4) files.push(tree.file(path, noise(size, i), more));
    else if (kind === 5) files.push(tree.deviceFile(path, `blob-${size % 3}`, noise(size + 1, i), more));
    else if (kind === 6) tree.symlink(path, "s".repeat(1 + (size % 4095)), withoutUser(more));
    else if (kind === 7) tree.special(path, FileType.BLOCK | 0o600, size % 4096, size, withoutUser(more));
    else if (kind === 8) tree.special(path, FileType.FIFO | 0o600, 0, 0, withoutUser(more));
    else if (files.length > 0) tree.link(path, files[size % files.length]!);
  });
  return tree;
});

/** The kernel hides user.* of anything but files and directories, xattr(7). */
function withoutUser(more: Attributes): Attributes {
  return { ...more, xattrs: (more.xattrs ?? []).filter(({ name }) => !name.startsWith("user.")) };
}
