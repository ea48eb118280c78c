import assert from "node:assert/strict";
import { test } from "node:test";
import { type BuiltEntry, opaquePath, parentPath, stackLayers, whiteoutPath } from "./tree.ts";

const entry = (path: string, more: Partial<BuiltEntry> = {}): BuiltEntry => ({
  ...{ type: "file", path, linkTarget: "", mode: 0o644, uid: 0, gid: 0, size: 0 },
  ...{ mtimeSeconds: 0, mtimeNanoseconds: 0, rdevMajor: 0, rdevMinor: 0, xattrs: [] },
  ...more,
});
const directory = (path: string, mode = 0o755) => entry(path, { type: "directory", mode });
const lower = [
  directory("."),
  directory("d"),
  entry("d/a"),
  entry("d/b"),
  directory("d/e"),
  entry("d/e/f"),
  entry("g"),
];

const cases: readonly (readonly [string, readonly BuiltEntry[], readonly string[]])[] = [
  ["nothing", [], [".", "d", "d/a", "d/b", "d/e", "d/e/f", "g"]],
  ["a whiteout of a file", [entry("d/.wh.a")], [".", "d", "d/b", "d/e", "d/e/f", "g"]],
  ["a whiteout of a directory", [entry(".wh.d")], [".", "g"]],
  [
    "a whiteout beside a new file of the name",
    [entry("d/a"), entry("d/.wh.a")],
    [".", "d", "d/a", "d/b", "d/e", "d/e/f", "g"],
  ],
  [
    "an opaque marker after new entries",
    [directory("d"), entry("d/new"), entry("d/.wh..wh..opq")],
    [".", "d", "d/new", "g"],
  ],
  ["an opaque root", [entry(".wh..wh..opq"), entry("n")], [".", "n"]],
  ["a file over a directory", [entry("d")], [".", "d", "g"]],
  ["a directory over a directory", [directory("d", 0o700)], [".", "d", "d/a", "d/b", "d/e", "d/e/f", "g"]],
];
for (const [name, layer, paths] of cases) {
  test(`stackLayers() applies ${name}`, () => {
    assert.deepEqual([...stackLayers([lower, layer]).keys()].sort(), [...paths].sort());
  });
}

test("stackLayers() takes attributes from the highest layer and shares the entry of hard links", () => {
  const link = entry("link", { type: "hardlink", linkTarget: "g" });
  const tree = stackLayers([lower, [directory("d", 0o700), entry("g", { size: 5 }), link]]);
  assert.equal(tree.get("d")?.mode, 0o700);
  assert.equal(tree.get("link"), tree.get("g"));
  assert.equal(tree.get("link")?.size, 5);
});

test("whiteoutPath(), opaquePath() and parentPath() know the root", () => {
  assert.deepEqual(
    [whiteoutPath("a"), whiteoutPath("a/b"), opaquePath("."), opaquePath("a")],
    [".wh.a", "a/.wh.b", ".wh..wh..opq", "a/.wh..wh..opq"],
  );
  assert.deepEqual([parentPath("a"), parentPath("a/b")], [".", "a"]);
});
