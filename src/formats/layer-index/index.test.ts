import assert from "node:assert/strict";
import { test } from "node:test";
import { FileType, type InodeAttributes, LayerIndex, NONE, ROOT } from "./index.ts";

const attributes = (mode: number, more: Partial<InodeAttributes> = {}): InodeAttributes => ({
  mode,
  uid: 0,
  gid: 0,
  mtimeSeconds: 0,
  mtimeNanoseconds: 0,
  size: 0,
  rdevMajor: 0,
  rdevMinor: 0,
  xattrs: [],
  ...more,
});
const directory = attributes(FileType.DIRECTORY | 0o755);
const file = attributes(FileType.REGULAR | 0o644);

function tree(): LayerIndex {
  const index = new LayerIndex(7);
  index.addInode(directory);
  return index;
}

test("LayerIndex counts links of files and directories", () => {
  const index = tree();
  const a = index.addInode(directory);
  index.addDirent(ROOT, "a", a);
  const f = index.addInode(file);
  index.addDirent(a, "one", f);
  const second = index.addDirent(ROOT, "two", f);
  assert.deepEqual([index.links(ROOT), index.links(a), index.links(f)], [3, 2, 2]);
  index.remove(second);
  assert.equal(index.links(f), 1);
  index.remove(index.find(ROOT, "a"));
  assert.deepEqual([index.links(ROOT), index.links(f), index.liveDirentCount], [2, 0, 0]);
});

test("LayerIndex finds and sorts 20,000 names, also after removal and reuse", () => {
  const index = tree();
  for (let i = 0; i < 20_000; i++) index.addDirent(ROOT, `n${i}`, index.addInode(file));
  for (let i = 0; i < 20_000; i += 2) index.remove(index.find(ROOT, `n${i}`));
  assert.equal(index.find(ROOT, "n10"), NONE);
  const again = index.addInode(file);
  index.addDirent(ROOT, "n10", again);
  assert.equal(index.findInode(ROOT, "n10"), again);
  const names = Array.from(index.sortedDirents(ROOT), (d) => index.direntName(d));
  assert.equal(names.length, 10_001);
  assert.deepEqual(names, [...names].sort());
});

test("LayerIndex keeps names that are not UTF-8 and orders them by byte", () => {
  const index = tree();
  for (const name of ["\xff\xfe", "a", "\x80", "!", "-", "."]) index.addDirent(ROOT, name, index.addInode(file));
  const names = Array.from(index.sortedDirents(ROOT), (d) => index.direntName(d));
  assert.deepEqual(names, ["!", "-", ".", "a", "\x80", "\xff\xfe"]);
});

test("LayerIndex shares equal xattr sets whatever their order", () => {
  const index = tree();
  const x = { name: "user.a", value: "1" };
  const y = { name: "user.b", value: "\0\xff" };
  const one = index.addInode({ ...file, xattrs: [x, y] });
  const two = index.addInode({ ...file, xattrs: [y, x] });
  assert.equal(index.xattrSetId(one), index.xattrSetId(two));
  assert.deepEqual(index.xattrs(one), [x, y]);
});

test("LayerIndex keeps symlink targets", () => {
  const index = tree();
  const link = index.addInode(attributes(FileType.SYMLINK | 0o777, { size: 6 }), "../a/b");
  index.addDirent(ROOT, "l", link);
  assert.equal(index.symlinkTarget(link), "../a/b");
});
