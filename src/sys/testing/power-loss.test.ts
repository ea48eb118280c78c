import assert from "node:assert/strict";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { copyRange } from "../copy.ts";
import { recordDatabaseCommit, recordEffects } from "../effects.ts";
import * as files from "../files.ts";
import { removeTree } from "../remove-tree.ts";
import { withTemporaryDirectory } from "./filesystems.ts";
import {
  type Choices,
  DROP_UNSYNCED,
  KEEP_ALL,
  NAMES_ONLY,
  readEffectsLog,
  replay,
  seededChoices,
  snapshotTree,
} from "./power-loss.ts";

type Tree = Record<string, string>;

/** Paths to contents, directories as "name/": "". */
function treeOf(directory: string, prefix = ""): Tree {
  const tree: Tree = {};
  for (const { name, kind } of files.list(directory)) {
    const path = join(directory, name);
    if (kind === "directory") Object.assign(tree, { [`${prefix}${name}/`]: "" }, treeOf(path, `${prefix}${name}/`));
    else tree[prefix + name] = readFileSync(path, "latin1");
  }
  return tree;
}

interface Recording {
  readonly root: string;
  after(choices: Choices, upTo?: number): Tree;
  readonly count: number;
}

/** Runs `act` in a new directory, recorded, and hands the recording to `check`. */
function recorded(act: (root: string) => void, check: (recording: Recording) => void, before?: (root: string) => void) {
  return withTemporaryDirectory((scratch) => {
    const root = join(scratch, "root");
    const base = join(scratch, "base");
    mkdirSync(root);
    before?.(root);
    snapshotTree(root, base);
    {
      using _recorder = recordEffects(join(scratch, "log"));
      act(root);
    }
    const effects = readEffectsLog(join(scratch, "log"));
    const target = join(scratch, "after");
    check({
      root,
      count: effects.length,
      after(choices, upTo = effects.length) {
        rmSync(target, { recursive: true, force: true });
        replay(effects, { root, base, target, upTo, choices });
        return treeOf(target);
      },
    });
  });
}

function put(path: string, content: string, synced: boolean): void {
  const fd = files.createFile(path);
  files.writeAt(fd, Buffer.from(content), 0);
  if (synced) files.datasync(fd);
  files.closeFile(fd);
}

const cases: readonly {
  readonly name: string;
  readonly before?: (root: string) => void;
  readonly act: (root: string) => void;
  readonly dropped: Tree;
  readonly namesOnly?: Tree;
}[] = [
  {
    name: "loses a file whose directory was not synced, though its content was",
    act: (root) => put(`${root}/a`, "x", true),
    dropped: {},
    namesOnly: { a: "x" },
  },
  {
    name: "keeps the name and loses the content of a file that was not synced itself",
    act(root) {
      put(`${root}/a`, "xyz", false);
      files.syncDirectory(root);
    },
    dropped: { a: "" },
    namesOnly: { a: "\0\0\0" },
  },
  {
    name: "keeps a file that was synced with its directory, and loses what was written later",
    act(root) {
      put(`${root}/a`, "one", true);
      files.syncDirectory(root);
      const fd = files.openFile(`${root}/a`, "read-write");
      files.writeAt(fd, Buffer.from("TWO!"), 0);
      files.closeFile(fd);
    },
    dropped: { a: "one" },
    namesOnly: { a: "\0\0\0\0" },
  },
  {
    name: "carries the data state of an inode through a rename",
    act(root) {
      const fd = files.createFile(`${root}/a`);
      files.writeAt(fd, Buffer.from("before"), 0);
      files.rename(`${root}/a`, `${root}/b`);
      files.datasync(fd);
      files.closeFile(fd);
      files.syncDirectory(root);
    },
    dropped: { b: "before" },
  },
  {
    name: "undoes a replacing rename that was not synced: the old content has the name",
    before: (root) => writeFileSync(`${root}/a`, "old"),
    act(root) {
      put(`${root}/a.tmp`, "new", true);
      files.rename(`${root}/a.tmp`, `${root}/a`);
    },
    dropped: { a: "old" },
    namesOnly: { a: "new" },
  },
  {
    name: "makes a rename durable by its new directory, and removes the old name with it",
    before(root) {
      mkdirSync(`${root}/from`);
      mkdirSync(`${root}/to`);
      writeFileSync(`${root}/from/a`, "x");
    },
    act(root) {
      files.rename(`${root}/from/a`, `${root}/to/a`);
      files.syncDirectory(`${root}/to`);
    },
    dropped: { "from/": "", "to/": "", "to/a": "x" },
  },
  {
    name: "does not make a rename durable by its old directory",
    before(root) {
      mkdirSync(`${root}/from`);
      mkdirSync(`${root}/to`);
      writeFileSync(`${root}/from/a`, "x");
    },
    act(root) {
      files.rename(`${root}/from/a`, `${root}/to/a`);
      files.syncDirectory(`${root}/from`);
    },
    dropped: { "from/": "", "from/a": "x", "to/": "" },
  },
  {
    name: "never loses a file whose old name was taken again durably",
    before(root) {
      mkdirSync(`${root}/from`);
      mkdirSync(`${root}/to`);
      writeFileSync(`${root}/from/a`, "first");
    },
    act(root) {
      files.rename(`${root}/from/a`, `${root}/to/a`);
      put(`${root}/from/a`, "second", true);
      files.syncDirectory(`${root}/from`);
    },
    dropped: { "from/": "", "from/a": "second", "to/": "", "to/a": "first" },
  },
  {
    name: "brings an unlinked file back, and a removed tree, when the directories were not synced",
    before(root) {
      mkdirSync(`${root}/d`);
      writeFileSync(`${root}/d/a`, "x");
    },
    act: (root) => removeTree(`${root}/d`),
    dropped: { "d/": "", "d/a": "x" },
    namesOnly: {},
  },
  {
    name: "loses a synced tree under a directory whose own name was not synced",
    act(root) {
      files.makeDirectory(`${root}/d`);
      put(`${root}/d/a`, "x", true);
      files.syncDirectory(`${root}/d`);
    },
    dropped: {},
    namesOnly: { "d/": "", "d/a": "x" },
  },
  {
    name: "moves a directory with what is durable in it",
    act(root) {
      files.ensureDirectory(`${root}/staging/1`);
      files.ensureDirectory(`${root}/layers`);
      put(`${root}/staging/1/meta`, "m", true);
      files.syncDirectory(`${root}/staging/1`);
      put(`${root}/staging/1/lost`, "l", true);
      files.rename(`${root}/staging/1`, `${root}/layers/1`);
      files.syncDirectory(`${root}/layers`);
    },
    dropped: { "layers/": "", "layers/1/": "", "layers/1/meta": "m", "staging/": "" },
  },
  {
    name: "gives two names of an inode one content",
    act(root) {
      put(`${root}/a`, "x", true);
      files.linkIfAbsent(`${root}/a`, `${root}/b`);
      files.syncDirectory(root);
      const fd = files.openFile(`${root}/b`, "read-write");
      files.writeAt(fd, Buffer.from("y"), 0);
      files.datasync(fd);
      files.closeFile(fd);
    },
    dropped: { a: "y", b: "y" },
  },
  {
    name: "does not record a link or rename that lost to an existing name",
    before: (root) => writeFileSync(`${root}/b`, "old"),
    act(root) {
      put(`${root}/a`, "new", true);
      assert.equal(files.linkIfAbsent(`${root}/a`, `${root}/b`), false);
      assert.equal(files.renameNoReplace(`${root}/a`, `${root}/b`), false);
      files.syncDirectory(root);
    },
    dropped: { a: "new", b: "old" },
  },
  {
    name: "undoes a truncation and a punched hole that were not synced",
    before(root) {
      writeFileSync(`${root}/a`, "abcdef");
      writeFileSync(`${root}/b`, "abcdef");
    },
    act(root) {
      const a = files.openFile(`${root}/a`, "read-write");
      files.truncate(a, 2);
      files.closeFile(a);
      const b = files.openFile(`${root}/b`, "read-write");
      files.punchHole(b, 1, 2);
      files.closeFile(b);
    },
    dropped: { a: "abcdef", b: "abcdef" },
    namesOnly: { a: "ab", b: "a\0\0def" },
  },
  {
    name: "records what a copy inside the kernel wrote",
    before: (root) => writeFileSync(`${root}/a`, "0123456789"),
    act(root) {
      const source = files.openFile(`${root}/a`);
      const target = files.createFile(`${root}/b`);
      copyRange(source, 2, target, 1, 5);
      files.datasync(target);
      files.closeFile(source);
      files.closeFile(target);
      files.syncDirectory(root);
    },
    dropped: { a: "0123456789", b: "\x0023456" },
  },
  {
    name: "has the database of the last commit, whatever became of the rest",
    act(root) {
      writeFileSync(`${root}/db`, "one");
      recordDatabaseCommit([`${root}/db`, `${root}/db-wal`]);
      writeFileSync(`${root}/db-wal`, "two");
      recordDatabaseCommit([`${root}/db`, `${root}/db-wal`]);
      writeFileSync(`${root}/db`, "not committed");
    },
    dropped: { db: "one", "db-wal": "two" },
  },
  {
    name: "keeps what writeFileDurably() and ensureDirectory() promise",
    act(root) {
      files.ensureDirectory(`${root}/x/y`);
      files.writeFileDurably(`${root}/x/y/a`, Buffer.from("1"));
      files.writeFileDurably(`${root}/x/y/a`, Buffer.from("2"));
    },
    dropped: { "x/": "", "x/y/": "", "x/y/a": "2" },
  },
];

for (const { name, before, act, dropped, namesOnly } of cases) {
  test(`replay() ${name}`, () =>
    recorded(
      act,
      (recording) => {
        assert.deepEqual(recording.after(DROP_UNSYNCED), dropped);
        if (namesOnly !== undefined) assert.deepEqual(recording.after(NAMES_ONLY), namesOnly);
      },
      before,
    ));
}

for (const { name, before, act } of cases) {
  if (name.includes("database")) continue; // its last write is not one of the recorded effects
  test(`replay() with KEEP_ALL rebuilds the tree as it is: ${name}`, () =>
    recorded(act, ({ root, after }) => assert.deepEqual(after(KEEP_ALL), treeOf(root)), before));
}

test("replay() stops after the given number of effects", () =>
  recorded(
    (root) => files.writeFileDurably(`${root}/a`, Buffer.from("x")),
    ({ after, count }) => {
      assert.equal(count, 5); // the unlink of an absent file changed nothing
      const states = Array.from({ length: count + 1 }, (_, upTo) => after(KEEP_ALL, upTo));
      assert.deepEqual(states, [{}, { "a.tmp": "" }, { "a.tmp": "x" }, { "a.tmp": "x" }, { a: "x" }, { a: "x" }]);
    },
  ));

test("replay() with seeded choices leaves writeFileDurably() atomic at every moment, and is repeatable", () =>
  recorded(
    (root) => files.writeFileDurably(`${root}/a`, Buffer.from("new content")),
    ({ after, count }) => {
      fc.assert(
        fc.property(fc.integer(), fc.nat(count), (seed, upTo) => {
          const tree = after(seededChoices(seed), upTo);
          assert.ok(tree.a === "old" || tree.a === "new content", JSON.stringify(tree));
          if (upTo === count) assert.equal(tree.a, "new content");
          assert.deepEqual(after(seededChoices(seed), upTo), tree);
        }),
        { numRuns: 40 },
      );
    },
    (root) => writeFileSync(`${root}/a`, "old"),
  ));

test("replay() with seeded choices finds the missing datasync of a publishing rename", () =>
  recorded(
    (root) => {
      put(`${root}/a.tmp`, "content", false); // the mistake
      files.rename(`${root}/a.tmp`, `${root}/a`);
      files.syncDirectory(root);
    },
    ({ after }) => {
      const seen = new Set(Array.from({ length: 32 }, (_, seed) => after(seededChoices(seed)).a));
      assert.deepEqual([...seen].sort(), ["", "\0".repeat(7), "con\0\0\0\0", "content"].sort());
    },
  ));

test("readEffectsLog() leaves out a frame that was cut off", () =>
  withTemporaryDirectory((scratch) => {
    {
      using _recorder = recordEffects(scratch);
      put(join(scratch, "a"), "x", true);
    }
    const log = join(scratch, "effects.log");
    writeFileSync(log, readFileSync(log).subarray(0, -1));
    assert.deepEqual(
      readEffectsLog(scratch).map(({ kind }) => kind),
      ["create", "write"],
    );
  }));
