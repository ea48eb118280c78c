import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { gunzipSync } from "node:zlib";
import { TarDecoder, type TarEntry } from "./index.ts";
import { decodeTar } from "./testing.ts";

/** What make-vectors.sh wrote: each tree as lstat(2) saw it, and the command that made each tar. */
interface Manifest {
  readonly vectors: readonly { file: string; tree: string; loses: readonly string[]; tool: string; command: string }[];
  readonly trees: Readonly<Record<string, readonly Expected[]>>;
}
interface Expected {
  readonly path: string;
  readonly type: string;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly size: number;
  readonly mtimeSeconds: number;
  readonly mtimeNanoseconds: number;
  readonly linkTarget: string;
  readonly rdevMajor: number;
  readonly rdevMinor: number;
  /** Equal numbers: one file with several names. 0: one name. */
  readonly inode: number;
  readonly xattrs: Readonly<Record<string, string>>;
  readonly content: string;
}

const FOLDER = new URL("testdata/", import.meta.url);
const manifest = JSON.parse(readFileSync(new URL("manifest.json", FOLDER), "utf8")) as Manifest;

interface Got {
  readonly entry: TarEntry;
  readonly content: string;
}

/** SHA-256 over the 512-byte blocks that are not zero, each after its offset as decimal text and a colon. */
function contentDigest(entry: TarEntry, payload: Buffer): string {
  const hash = createHash("sha256");
  let at = 0;
  for (const { offset, length } of entry.segments ?? [{ offset: 0, length: entry.size }]) {
    assert.equal(offset % 512, 0);
    for (let done = 0; done < length; done += 512) {
      const piece = payload.subarray(at, at + Math.min(512, length - done));
      if (piece.some((byte) => byte !== 0)) hash.update(`${offset + done}:`).update(piece);
      at += piece.length;
    }
  }
  assert.equal(at, payload.length);
  return hash.digest("hex");
}

test("every vector in testdata is in the manifest with its tool and command", () => {
  const files = readdirSync(FOLDER).filter((name) => name.endsWith(".tar.gz"));
  assert.deepEqual(files.sort(), manifest.vectors.map(({ file }) => file).sort());
  for (const { tool, command } of manifest.vectors) assert.ok(tool !== "" && command !== "");
});

for (const { file, tree, loses, tool, command } of manifest.vectors) {
  test(`TarDecoder reads ${file}: ${tool}: ${command.replace(/\S*out\.tar/, "OUT")}`, () => {
    const tar = gunzipSync(readFileSync(new URL(file, FOLDER)));
    const decoded = decodeTar([tar]);
    assert.ok(decoded.all.equals(tar));
    const got = new Map<string, Got>();
    for (const entry of decoded.entries) {
      got.set(entry.path.replace(/\/$/, ""), { entry, content: contentDigest(entry, entry.payload) });
    }
    const expected = manifest.trees[tree]!;
    assert.deepEqual([...got.keys()].sort(), expected.map(({ path }) => path).sort());
    for (const want of expected) compare(want, got, loses);
  });
}

function compare(want: Expected, all: ReadonlyMap<string, Got>, loses: readonly string[]): void {
  const named = all.get(want.path)!;
  let got = named;
  if (named.entry.type === "hardlink") {
    assert.notEqual(want.inode, 0, want.path);
    got = all.get(named.entry.linkTarget)!;
  }
  const { entry } = got;
  const time = loses.includes("mtime")
    ? { mtimeSeconds: 77, mtimeNanoseconds: 500_000_000 }
    : { mtimeSeconds: want.mtimeSeconds, mtimeNanoseconds: want.mtimeNanoseconds };
  if (loses.includes("nanoseconds")) {
    // GNU's format cuts the fraction off or rounds down; the second may be the one before for times before the epoch
    assert.ok(Math.abs(entry.mtimeSeconds - want.mtimeSeconds) <= 1);
    time.mtimeSeconds = entry.mtimeSeconds;
    time.mtimeNanoseconds = 0;
  }
  if (loses.includes("negative-nanoseconds") && want.mtimeSeconds === -2) {
    time.mtimeSeconds = -3; // make-vectors.sh tells why
    time.mtimeNanoseconds = 750_000_000;
  }
  assert.deepEqual(
    {
      type: entry.type,
      mode: entry.mode,
      uid: entry.uid,
      gid: entry.gid,
      size: entry.size,
      mtimeSeconds: entry.mtimeSeconds,
      mtimeNanoseconds: entry.mtimeNanoseconds,
      linkTarget: entry.linkTarget,
      rdevMajor: entry.rdevMajor,
      rdevMinor: entry.rdevMinor,
      xattrs: Object.fromEntries(
        entry.xattrs.map(({ name, value }) => [name, Buffer.from(value, "latin1").toString("hex")]),
      ),
      content: entry.type === "file" ? got.content : "",
    },
    {
      type: want.type,
      mode: want.type === "symlink" ? 0o777 : want.mode,
      uid: want.uid,
      gid: want.gid,
      size: want.size,
      ...time,
      linkTarget: want.linkTarget,
      rdevMajor: want.rdevMajor,
      rdevMinor: want.rdevMinor,
      xattrs: want.xattrs,
      content: want.content,
    },
    want.path,
  );
}

test("TarDecoder gives the same for vectors in chunks of 1, 511, 513 and 4095 bytes", () => {
  for (const file of ["gnu-full-gnu", "gnu-full-posix", "bsd-full-pax", "gnu-sparse-gnu", "gnu-sparse-1.0"]) {
    const tar = gunzipSync(readFileSync(new URL(`${file}.tar.gz`, FOLDER)));
    const whole = decodeTar([tar]);
    for (const length of [1, 511, 513, 4095]) {
      const chunks: Buffer[] = [];
      for (let at = 0; at < tar.length; at += length) chunks.push(tar.subarray(at, at + length));
      const cut = decodeTar(chunks);
      assert.deepEqual(cut.entries, whole.entries, `${file} by ${length}`);
      assert.ok(cut.all.equals(tar) && cut.raw.equals(whole.raw));
    }
  }
});

test("TarDecoder refuses every vector that is cut off, or ends at an entry", () => {
  const tar = gunzipSync(readFileSync(new URL("gnu-full-posix.tar.gz", FOLDER)));
  const ignore = { raw() {}, entry() {}, payload() {}, endEntry() {} };
  let complete = 0;
  for (let end = 0; end < tar.length; end += 256) {
    const decoder = new TarDecoder(ignore);
    decoder.write(tar.subarray(0, end));
    try {
      decoder.end();
      complete++;
    } catch (error) {
      assert.match(String(error), /is cut off: the tar ends inside it|the tar ends before its entry/);
    }
  }
  assert.ok(complete > 10);
});
