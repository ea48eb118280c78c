import assert from "node:assert/strict";
import { hash } from "node:crypto";
import { linkSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { ShaleError } from "../errors/index.ts";
import { FileType } from "../formats/layer-index/index.ts";
import { type ActualFile, builtFacts, compareFiles, type FileFacts, mountedFiles } from "./compare.ts";
import type { TreeEntry } from "./tree.ts";

const CONTENT = Buffer.from("content\n");
const FACTS: FileFacts = {
  mode: FileType.REGULAR | 0o644,
  uid: 1,
  gid: 2,
  size: CONTENT.length,
  mtimeNs: 1_000_000_001n,
  links: 1,
  rdevMajor: 0,
  rdevMinor: 0,
  target: "",
  xattrs: [{ name: "user.a", value: "\xff" }],
  sha256: hash("sha256", CONTENT),
};

function actual(change: Partial<ActualFile> = {}): ActualFile {
  const { sha256: _, ...facts } = FACTS;
  return { path: "f", content: () => [CONTENT.subarray(0, 3), CONTENT.subarray(3)], ...facts, ...change };
}

const CHANGES: readonly { readonly change: Partial<ActualFile>; readonly what: string }[] = [
  { change: { mode: FileType.REGULAR | 0o645 }, what: "mode" },
  { change: { uid: 3 }, what: "uid" },
  { change: { gid: 3 }, what: "gid" },
  { change: { size: 7 }, what: "size" },
  { change: { mtimeNs: 1_000_000_002n }, what: "mtimeNs" },
  { change: { links: 2 }, what: "links" },
  { change: { rdevMajor: 1 }, what: "rdevMajor" },
  { change: { rdevMinor: 1 }, what: "rdevMinor" },
  { change: { target: "x" }, what: "target" },
  { change: { xattrs: [] }, what: "xattrs" },
  { change: { xattrs: [{ name: "user.a", value: "\xfe" }] }, what: "xattrs" },
  { change: { content: () => [Buffer.from("content!")] }, what: "sha256" },
];

for (const { change, what } of CHANGES) {
  test(`compareFiles() finds a difference in ${what} alone: ${Object.keys(change).join()}`, async () => {
    const { different, differences } = await compareFiles(new Map([["f", FACTS]]), [actual(change)]);
    assert.equal(different, 1);
    assert.deepEqual(differences, [{ path: "f", what: [what] }]);
  });
}

test("compareFiles() counts what is equal, missing and unexpected, and lists ten differences", async () => {
  const equal = await compareFiles(new Map([["f", FACTS]]), [actual()]);
  assert.deepEqual(equal, { entries: 1, files: 1, bytes: CONTENT.length, different: 0, differences: [] });
  const strangers = Array.from({ length: 12 }, (_, i) => actual({ path: `g${i}` }));
  const found = await compareFiles(new Map([["f", FACTS]]), strangers);
  assert.equal(found.different, 13);
  assert.equal(found.differences.length, 10);
  const missing = await compareFiles(new Map([["f", FACTS]]), []);
  assert.deepEqual(missing.differences, [{ path: "f", what: ["missing"] }]);
});

test("compareFiles() is CANCELLED by its signal in the middle of a file", async () => {
  const stop = new AbortController();
  function* endless() {
    for (;;) yield CONTENT;
  }
  setTimeout(() => stop.abort(), 1);
  const run = compareFiles(new Map(), [actual({ content: endless })], { signal: stop.signal });
  await assert.rejects(run, (error) => ShaleError.is(error, "CANCELLED"));
});

test("builtFacts() and mountedFiles() agree on a directory that has what the first tells of", async () => {
  const place = mkdtempSync(join(tmpdir(), "shale-compare-"));
  try {
    mkdirSync(join(place, "d/e"), { recursive: true, mode: 0o755 });
    const odd = Buffer.concat([Buffer.from(`${place}/d/`), Buffer.from([0xff])]);
    writeFileSync(odd, CONTENT, { mode: 0o644 });
    linkSync(odd, join(place, "again"));
    symlinkSync("again", join(place, "link"));
    for (const path of ["again", "d/e", "d", "."]) utimesSync(join(place, path), 1, 1);
    const [uid, gid] = [process.geteuid!(), process.getegid!()];
    const base = {
      uid,
      gid,
      size: 0,
      mtimeSeconds: 1,
      mtimeNanoseconds: 0,
      linkTarget: "",
      rdevMajor: 0,
      rdevMinor: 0,
    };
    const directory: TreeEntry = { ...base, type: "directory", mode: 0o755, xattrs: [] };
    const file: TreeEntry = {
      ...{ ...base, type: "file", mode: 0o644, xattrs: [] },
      ...{ size: CONTENT.length, sha256: hash("sha256", CONTENT) },
    };
    const tree = new Map([
      [".", { ...directory, mode: 0o700 }],
      ["d", directory],
      ["d/e", { ...directory }],
      ["d/\xff", file],
      ["again", file],
      ["link", { ...base, type: "symlink", mode: 0o777, linkTarget: "again", xattrs: [] }],
    ] as const satisfies readonly (readonly [string, TreeEntry])[]);
    const { different, differences, entries } = await compareFiles(builtFacts(tree), mountedFiles(place));
    assert.equal(entries, 6);
    // The time of a symlink can't be set from here.
    assert.deepEqual(differences, [{ path: "link", what: ["mtimeNs"] }]);
    assert.equal(different, 1);
  } finally {
    rmSync(place, { recursive: true });
  }
});
