import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { FormatError } from "../../errors/index.ts";
import type { TarEntry, TarHeader } from "../tar/index.ts";
import { header } from "../tar/testing.ts";
import { type BuiltLayer, LayerIndexBuilder, type LayerIndexLimits } from "./builder.ts";
import { FileType, type LayerIndex, NONE, ROOT } from "./index.ts";
import { IMPLIED_XATTR, isWhiteout, OPAQUE_XATTR, ORIGIN_XATTR } from "./overlay.ts";

type Fields = Partial<TarHeader> & { readonly path: string; readonly ignoredRecords?: readonly string[] };

/** Entries 512 bytes apart. */
function entry(fields: Fields, at: number): TarEntry {
  return {
    ...header(fields),
    segments: undefined,
    headerOffset: at * 512,
    ignoredRecords: fields.ignoredRecords ?? [],
  };
}

function build(list: readonly Fields[], limits: Partial<LayerIndexLimits> = {}): BuiltLayer & { inodes: number[] } {
  const builder = new LayerIndexBuilder({ seed: 5, limits });
  const inodes = list.map((fields, at) => builder.add(entry(fields, at)).inode);
  return { ...builder.finish(), inodes };
}

const dir = (path: string, more: Partial<Fields> = {}): Fields => ({ path, type: "directory", ...more });
const file = (path: string, more: Partial<Fields> = {}): Fields => ({ path, ...more });
const symlink = (path: string, linkTarget: string): Fields => ({ path, type: "symlink", linkTarget });
const link = (path: string, linkTarget: string): Fields => ({ path, type: "hardlink", linkTarget });

const LETTERS: Readonly<Record<number, string>> = {
  [FileType.REGULAR]: "f",
  [FileType.DIRECTORY]: "d",
  [FileType.SYMLINK]: "l",
  [FileType.CHARACTER]: "c",
  [FileType.BLOCK]: "b",
  [FileType.FIFO]: "p",
};

/** "d a", "f a/b 3", "l x -> a", "w gone"; a file with its size; directories with +implied, +opaque, +origin. */
function list(index: LayerIndex, directory = ROOT, prefix = ""): string[] {
  const lines: string[] = [];
  for (const dirent of index.sortedDirents(directory)) {
    const inode = index.direntInode(dirent);
    const path = `${prefix}${index.direntName(dirent)}`;
    let line = `${isWhiteout(index, inode) ? "w" : LETTERS[index.type(inode)]} ${path}`;
    if (index.type(inode) === FileType.REGULAR) line += ` ${index.size(inode)}`;
    if (index.type(inode) === FileType.SYMLINK) line += ` -> ${index.symlinkTarget(inode)}`;
    if (index.isDirectory(inode)) line += marks(index, inode);
    lines.push(line);
    if (index.isDirectory(inode)) lines.push(...list(index, inode, `${path}/`));
  }
  return lines;
}

function marks(index: LayerIndex, inode: number): string {
  const names = index.xattrs(inode).map(({ name }) => name);
  return (
    (names.includes(IMPLIED_XATTR) ? " +implied" : "") +
    (names.includes(OPAQUE_XATTR) ? " +opaque" : "") +
    (names.includes(ORIGIN_XATTR) ? " +origin" : "")
  );
}

const TREES: readonly { readonly name: string; readonly tar: readonly Fields[]; readonly want: readonly string[] }[] = [
  {
    name: "takes ./, /, doubled and trailing slashes as nothing",
    tar: [dir("./"), dir("./a/"), file("/a//b"), file(".//a/./c"), file("x/"), file("//y")],
    want: ["d a", "f a/b 0", "f a/c 0", "f x 0", "f y 0"],
  },
  {
    name: "resolves .. inside the root by text",
    tar: [file("no/../b"), dir("a/c/.."), file("a/../a/d")],
    want: ["d a", "f a/d 0", "f b 0"],
  },
  { name: "makes missing directories", tar: [file("a/b/c")], want: ["d a +implied", "d a/b +implied", "f a/b/c 0"] },
  {
    name: "takes the mark off a made directory when its entry comes",
    tar: [file("a/b/c"), dir("a"), dir("a/b")],
    want: ["d a", "d a/b", "f a/b/c 0"],
  },
  {
    name: "lets the last file of a name count",
    tar: [file("a", { size: 1 }), file("a", { size: 2 })],
    want: ["f a 2"],
  },
  {
    name: "keeps what is in a directory that comes again",
    tar: [dir("a"), file("a/b"), dir("a", { mode: 0o700 })],
    want: ["d a", "f a/b 0"],
  },
  {
    name: "replaces a directory and all in it by a file, and the reverse",
    tar: [dir("a"), file("a/b/c"), file("a"), dir("a"), file("a/d")],
    want: ["d a", "f a/d 0"],
  },
  {
    name: "goes through symlinks of the layer, absolute and relative",
    tar: [dir("usr/lib"), symlink("lib", "usr/lib"), symlink("abs", "/usr/lib"), file("lib/a"), file("abs/b")],
    want: ["l abs -> /usr/lib", "l lib -> usr/lib", "d usr +implied", "d usr/lib", "f usr/lib/a 0", "f usr/lib/b 0"],
  },
  {
    name: "keeps symlinks with .. inside the root",
    tar: [symlink("up", "../../../etc"), file("up/a"), dir("d"), symlink("d/up", ".."), file("d/up/b")],
    want: ["f b 0", "d d", "l d/up -> ..", "d etc +implied", "f etc/a 0", "l up -> ../../../etc"],
  },
  {
    name: "does not follow the last component",
    tar: [symlink("a", "b"), file("b"), file("a", { size: 1 })],
    want: ["f a 1", "f b 0"],
  },
  {
    name: "forgets the parent of the entry before when a symlink takes its place",
    tar: [dir("a"), file("a/x"), symlink("a", "b"), file("a/y")],
    want: ["l a -> b", "d b +implied", "f b/y 0"],
  },
  {
    name: "forgets the parent when the symlink before it is replaced",
    tar: [symlink("a", "b"), file("a/x"), dir("a"), file("a/y")],
    want: ["d a", "f a/y 0", "d b +implied", "f b/x 0"],
  },
  {
    name: "makes whiteouts",
    tar: [dir("a"), file("a/.wh.gone"), file(".wh.top")],
    want: ["d a +origin", "w a/gone", "w top"],
  },
  { name: "lets a file win over a whiteout before it", tar: [file(".wh.a"), file("a", { size: 1 })], want: ["f a 1"] },
  { name: "lets a file win over a whiteout after it", tar: [file("a", { size: 1 }), file(".wh.a")], want: ["f a 1"] },
  { name: "makes a directory over a whiteout opaque", tar: [file(".wh.a"), dir("a")], want: ["d a +opaque"] },
  {
    name: "makes a directory before a whiteout opaque",
    tar: [dir("a"), file("a/b"), file(".wh.a")],
    want: ["d a +opaque", "f a/b 0"],
  },
  {
    name: "makes an implied directory over a whiteout opaque",
    tar: [file(".wh.a"), file("a/b")],
    want: ["d a +implied +opaque", "f a/b 0"],
  },
  {
    name: "takes the opaque marker before and after the directory's entry and content",
    tar: [file("a/.wh..wh..opq"), dir("a"), dir("b"), file("b/x"), file("b/.wh..wh..opq"), file("b/.wh.y")],
    want: ["d a +opaque", "d b +opaque +origin", "f b/x 0", "w b/y"],
  },
  {
    name: "leaves out AUFS leftovers",
    tar: [dir(".wh..wh.plnk"), file(".wh..wh.aufs"), file(".wh..wh.orph/x"), dir("a"), file("a/.wh..wh.other")],
    want: ["d a"],
  },
  {
    name: "links to files that AUFS kept in plnk",
    tar: [file(".wh..wh.plnk/12.34", { size: 9 }), link("a", ".wh..wh.plnk/12.34"), link("b", ".wh..wh.plnk/12.34")],
    want: ["f a 9", "f b 9"],
  },
  {
    name: "takes .wh. inside a name as part of it",
    tar: [file("a.wh.b"), dir("c.wh."), file("c.wh./d")],
    want: ["f a.wh.b 0", "d c.wh.", "f c.wh./d 0"],
  },
  {
    name: "leaves out character device 0:0, keeping what was there",
    tar: [file("a", { size: 3 }), { path: "a", type: "character" }, { path: "b", type: "character" }],
    want: ["f a 3"],
  },
  {
    name: "keeps devices and fifos",
    tar: [
      { path: "c", type: "character", rdevMajor: 4095, rdevMinor: 1048575 },
      { path: "b", type: "block", rdevMajor: 0, rdevMinor: 0 },
      { path: "p", type: "fifo" },
    ],
    want: ["b b", "c c", "p p"],
  },
  {
    name: "links to a file, normalising the target",
    tar: [file("d/a", { size: 1 }), link("b", "./d/../d//a")],
    want: ["f b 1", "d d +implied", "f d/a 1"],
  },
  {
    name: "links through a symlink",
    tar: [file("d/a", { size: 1 }), symlink("s", "d"), link("b", "s/a")],
    want: ["f b 1", "d d +implied", "f d/a 1", "l s -> d"],
  },
  { name: "links to the symlink itself", tar: [symlink("s", "t"), link("b", "s")], want: ["l b -> t", "l s -> t"] },
  { name: "links forward", tar: [link("a", "z"), file("z", { size: 4 })], want: ["f a 4", "f z 4"] },
  {
    name: "links forward through a chain",
    tar: [link("a", "b"), link("b", "c"), link("c", "z"), file("z", { size: 4 })],
    want: ["f a 4", "f b 4", "f c 4", "f z 4"],
  },
  {
    name: "forgets a forward link that is replaced",
    tar: [link("a", "nothing"), file("a", { size: 1 })],
    want: ["f a 1"],
  },
  {
    name: "forgets a forward link whose directory is replaced",
    tar: [link("d/a", "nothing"), file("d")],
    want: ["f d 0"],
  },
  {
    name: "keeps a link when its target's name is taken later",
    tar: [file("a", { size: 1 }), link("b", "a"), file("a", { size: 2 })],
    want: ["f a 2", "f b 1"],
  },
  {
    name: "keeps a link over the directory of its target",
    tar: [file("d/a", { size: 1 }), link("d", "d/a")],
    want: ["f d 1"],
  },
  {
    name: "takes a link of a file to itself as nothing",
    tar: [file("a", { size: 1 }), link("a", "a")],
    want: ["f a 1"],
  },
  { name: "keeps names of 255 bytes", tar: [file("n".repeat(255))], want: [`f ${"n".repeat(255)} 0`] },
];

for (const { name, tar, want } of TREES) {
  test(`LayerIndexBuilder ${name}`, () => assert.deepEqual(list(build(tar).index), want));
}

const REFUSED: readonly {
  readonly name: string;
  readonly tar: readonly Fields[];
  readonly error: RegExp;
  readonly offset?: number;
  readonly limits?: Partial<LayerIndexLimits>;
  readonly code?: string;
}[] = [
  { name: ".. above the root", tar: [file("a/../../b")], error: /name of "a\/..\/..\/b" .*leaves the root/ },
  { name: ".. at the end above the root", tar: [dir("..")], error: /leaves the root/ },
  { name: "an absolute path with ..", tar: [file("/../etc/passwd")], error: /leaves the root/ },
  { name: "a hard link above the root", tar: [link("a", "../b")], error: /link name of "a" .*leaves the root/ },
  { name: "a path through a file", tar: [file("a"), file("a/b")], error: /not a directory/, offset: 512 },
  { name: "a path through a forward link", tar: [link("a", "b"), file("a/b")], error: /not a directory/, offset: 512 },
  {
    name: "a path through a symlink loop",
    tar: [symlink("a", "b"), symlink("b", "a"), file("a/x")],
    error: /too many symlinks/,
    offset: 1024,
    code: "RESOURCE_EXHAUSTED",
  },
  {
    name: "a path through a symlink of 300 components",
    tar: [symlink("a", "b/".repeat(300)), file("a/x")],
    error: /too many symlinks/,
    offset: 512,
    code: "RESOURCE_EXHAUSTED",
  },
  { name: "a root that is no directory", tar: [symlink(".", "/etc")], error: /root can't be a symlink/ },
  {
    name: "a hard link to nothing",
    tar: [file("x"), link("a", "b")],
    error: /link name of "a" at byte 512: "b" is not in this layer/,
    offset: 512,
  },
  { name: "a hard link to a directory", tar: [dir("d"), link("a", "d")], error: /is a directory/, offset: 512 },
  { name: "a hard link to the root", tar: [link("a", ".")], error: /is a directory/ },
  { name: "a forward hard link to a directory", tar: [link("a", "d"), dir("d")], error: /is a directory/ },
  { name: "a hard link to a whiteout", tar: [file(".wh.b"), link("a", "b")], error: /not in this layer/, offset: 512 },
  { name: "hard links in a circle", tar: [link("a", "b"), link("b", "a")], error: /back to itself/ },
  { name: "a hard link to itself and nothing else", tar: [link("a", "a")], error: /back to itself/ },
  { name: "a path below a whiteout", tar: [file(".wh.a/b")], error: /below a whiteout/ },
  { name: "a symlink into a whiteout name", tar: [symlink("s", ".wh.x"), file("s/b")], error: /whiteout/, offset: 512 },
  ...[".wh.", ".wh..", ".wh..."].map((path) => ({
    name: `a whiteout called ${path}`,
    tar: [file(path)],
    error: /whiteout of nothing/,
  })),
  { name: "a name of 256 bytes", tar: [file("n".repeat(256))], error: /more than 255 bytes/ },
  { name: "a directory name of 256 bytes", tar: [file(`${"n".repeat(256)}/a`)], error: /more than 255 bytes/ },
  { name: "an owner of 2^32-1", tar: [file("a", { uid: 2 ** 32 - 1 })], error: /uid of "a"/ },
  { name: "a group of 2^32-1", tar: [file("a", { gid: 2 ** 32 - 1 })], error: /gid of "a"/ },
  { name: "a major number of 4096", tar: [{ path: "a", type: "block", rdevMajor: 4096 }], error: /device number/ },
  {
    name: "a minor number of 2^20",
    tar: [{ path: "a", type: "character", rdevMinor: 2 ** 20 }],
    error: /device number/,
  },
  { name: "a symlink target of 4096 bytes", tar: [symlink("a", "t".repeat(4096))], error: /more than 4095/ },
  {
    name: "xattrs that do not fit",
    tar: [file("a", { xattrs: [0, 1, 2, 3, 4].map((n) => ({ name: `user.${n}`, value: "v".repeat(60000) })) })],
    error: /xattrs of "a"/,
    code: "RESOURCE_EXHAUSTED",
  },
  {
    name: "too many entries",
    tar: [file("a"), file("b")],
    limits: { entries: 2 },
    error: /more than 2 entries/,
    offset: 512,
    code: "RESOURCE_EXHAUSTED",
  },
  {
    name: "too many implied directories",
    tar: [file("a/b/c/d")],
    limits: { entries: 3 },
    error: /more than 3 entries/,
    code: "RESOURCE_EXHAUSTED",
  },
  {
    name: "too many bytes of names",
    tar: [file("aaaa"), symlink("b", "tttt")],
    limits: { nameBytes: 8 },
    error: /bytes of names/,
    offset: 512,
    code: "RESOURCE_EXHAUSTED",
  },
  {
    name: "too many bytes of xattrs",
    tar: [1, 2].map((n) => file(`${n}`, { xattrs: [{ name: "user.a", value: `${n}` }] })),
    limits: { xattrBytes: 300 },
    error: /bytes of xattrs/,
    offset: 512,
    code: "RESOURCE_EXHAUSTED",
  },
  {
    name: "too many forward links",
    tar: [link("a", "zz"), link("b", "zz")],
    limits: { forwardLinkBytes: 5 },
    error: /before its target/,
    offset: 512,
    code: "RESOURCE_EXHAUSTED",
  },
];

for (const { name, tar, error, offset, limits, code } of REFUSED) {
  test(`LayerIndexBuilder refuses ${name}`, () => {
    assert.throws(
      () => build(tar, limits),
      (thrown) => {
        assert.ok(thrown instanceof FormatError);
        assert.match(thrown.message, error);
        assert.equal(thrown.offset, offset ?? 0);
        assert.equal(thrown.code, code ?? "INVALID_ARGUMENT");
        return true;
      },
    );
  });
}

test("LayerIndexBuilder keeps a path of 4096 bytes", () => {
  const { index } = build([file(`${"d/".repeat(2047)}ab`)]);
  assert.equal(index.inodeCount, 2049);
});

test("LayerIndexBuilder gives the root 0755 root:root of the epoch until its entry comes", () => {
  const { index } = build([file("a")]);
  assert.equal(index.mode(ROOT), FileType.DIRECTORY | 0o755);
  assert.deepEqual([index.uid(ROOT), index.gid(ROOT), index.mtimeSeconds(ROOT)], [0, 0, 0]);
  assert.equal(marks(index, ROOT), " +implied");
  const other = build([dir("./", { mode: 0o1777, uid: 5, mtimeSeconds: 7 })]);
  assert.deepEqual(other.inodes, [ROOT]);
  assert.deepEqual(
    [other.index.mode(ROOT) & 0o7777, other.index.uid(ROOT), other.index.mtimeSeconds(ROOT)],
    [0o1777, 5, 7],
  );
  assert.equal(marks(other.index, ROOT), "");
});

test("LayerIndexBuilder keeps attributes, setuid and nanoseconds too; symlinks are 0777", () => {
  const xattrs = [
    { name: "security.capability", value: "\x01\0" },
    { name: "system.posix_acl_access", value: "\x02" },
  ];
  const { index, inodes } = build([
    file("a", { mode: 0o6755, uid: 1, gid: 2, mtimeSeconds: -5, mtimeNanoseconds: 6, size: 7, xattrs }),
    { ...symlink("l", "target"), mode: 0o644 },
  ]);
  assert.deepEqual(index.attributes(inodes[0]!), {
    ...{ mode: FileType.REGULAR | 0o6755, uid: 1, gid: 2, mtimeSeconds: -5, mtimeNanoseconds: 6, size: 7 },
    ...{ rdevMajor: 0, rdevMinor: 0, xattrs },
  });
  assert.equal(index.mode(inodes[1]!), FileType.SYMLINK | 0o777);
  assert.equal(index.size(inodes[1]!), 6);
});

test("LayerIndexBuilder updates a directory that comes again and keeps its opaque mark", () => {
  const { index, inodes } = build([
    dir("a", { mode: 0o700, xattrs: [{ name: "user.old", value: "1" }] }),
    file("a/.wh..wh..opq"),
    dir("a", { mode: 0o711, xattrs: [{ name: "user.new", value: "2" }] }),
  ]);
  assert.equal(inodes[0], inodes[2]);
  assert.equal(index.mode(inodes[0]!) & 0o7777, 0o711);
  assert.deepEqual(index.xattrs(inodes[0]!), [
    { name: OPAQUE_XATTR, value: "y" },
    { name: "user.new", value: "2" },
  ]);
});

test("LayerIndexBuilder.add() gives every file with content an inode, shown or not", () => {
  const { index, inodes } = build([
    file("a", { size: 1 }),
    file("a", { size: 2 }),
    file(".wh.x", { size: 3 }),
    file(".wh..wh.aufs", { size: 4 }),
    file("d/.wh..wh..opq", { size: 5 }),
    link("b", "a"),
    dir("d"),
  ]);
  assert.deepEqual(
    inodes.slice(0, 5).map((inode) => index.size(inode)),
    [1, 2, 3, 4, 5],
  );
  assert.deepEqual(
    inodes.slice(0, 5).map((inode) => index.links(inode)),
    [0, 2, 0, 0, 0],
  );
  assert.equal(inodes[5], NONE);
  assert.equal(index.isDirectory(inodes[6]!), true);
});

test("LayerIndexBuilder reports what is left out, by kind, path and offset", () => {
  const { index, notices, inodes } = build([
    file(".wh..wh.aufs"),
    { path: "dev", type: "character" },
    file("a", {
      xattrs: [
        { name: "trusted.overlay.redirect", value: "/etc" },
        { name: "user.overlay.opaque", value: "y" },
        { name: "system.nfs4_acl", value: "" },
        { name: "user.", value: "" },
        { name: "user.kept", value: "" },
      ],
      ignoredRecords: ["SCHILY.fflags"],
    }),
    { ...link("b", "a"), mode: 0o600 },
    link("c", "a"),
  ]);
  assert.deepEqual(
    notices.map(({ kind, path, offset }) => [kind, path, offset]),
    [
      ["aufs-metadata", ".wh..wh.aufs", 0],
      ["whiteout-device", "dev", 512],
      ["unsupported-record", "a", 1024],
      ["overlay-xattr", "a", 1024],
      ["overlay-xattr", "a", 1024],
      ["unsupported-xattr", "a", 1024],
      ["unsupported-xattr", "a", 1024],
      ["hardlink-attributes", "b", 1536],
    ],
  );
  assert.deepEqual(index.xattrs(inodes[2]!), [{ name: "user.kept", value: "" }]);
  assert.deepEqual(JSON.parse(JSON.stringify(notices)), notices);
});

test("LayerIndexBuilder counts the notices that it does not keep", () => {
  const many = Array.from({ length: 5 }, (_, n) => ({ path: `${n}`, type: "character" as const }));
  const { notices } = build(many, { notices: 2 });
  assert.deepEqual(
    notices.map(({ kind }) => kind),
    ["whiteout-device", "whiteout-device", "more"],
  );
  assert.equal(notices[2]!.message, "3 more notices were not kept");
});

test("LayerIndexBuilder.add() after finish() is our mistake", () => {
  const builder = new LayerIndexBuilder();
  builder.finish();
  assert.throws(() => builder.add(entry(file("a"), 0)), RangeError);
  assert.throws(() => builder.finish(), RangeError);
});

test("LayerIndexBuilder counts every live link right for any entries", () => {
  const path = fc
    .array(fc.constantFrom("a", "b", "c", ".wh.a", ".", "..", ".wh..wh..opq"), { minLength: 1, maxLength: 4 })
    .map((parts) => parts.join("/"));
  const any: fc.Arbitrary<Fields> = fc.record({
    path,
    linkTarget: path,
    type: fc.constantFrom("file", "directory", "symlink", "hardlink", "character", "fifo"),
    rdevMajor: fc.nat({ max: 1 }),
  });
  let built = 0;
  fc.assert(
    fc.property(fc.array(any, { maxLength: 12 }), (entries) => {
      let index: LayerIndex;
      try {
        index = build(entries).index;
        built++;
      } catch (error) {
        if (error instanceof FormatError) return;
        throw error;
      }
      const links = new Map<number, number>();
      let seen = 0;
      const visit = (directory: number): void => {
        links.set(directory, (links.get(directory) ?? 0) + 2);
        for (const dirent of index.dirents(directory)) {
          seen++;
          const inode = index.direntInode(dirent);
          if (!index.isDirectory(inode)) links.set(inode, (links.get(inode) ?? 0) + 1);
          else {
            assert.equal(links.get(inode), undefined);
            links.set(directory, links.get(directory)! + 1);
            visit(inode);
          }
        }
      };
      visit(ROOT);
      assert.equal(seen, index.liveDirentCount);
      for (const [inode, count] of links) assert.equal(index.links(inode), count);
      for (let inode = 0; inode < index.inodeCount; inode++) {
        if (!links.has(inode) && !index.isDirectory(inode)) assert.equal(index.links(inode), 0);
      }
    }),
    { numRuns: 1000 },
  );
  assert.ok(built > 50);
});
