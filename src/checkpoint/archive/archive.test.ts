import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { compressSeekableFrame, encodeSeekableIndex } from "../../formats/compression/index.ts";
import { encodeTarHeader, TAR_END, type TarHeader, tarPadding } from "../../formats/tar/index.ts";
import {
  type ArchiveMember,
  type CheckpointArchive,
  DialectDetector,
  isNested,
  openArchive,
  openArchiveStream,
} from "./index.ts";

let directory: string;
before(() => {
  directory = mkdtempSync(join(tmpdir(), "shale-archive-"));
});
after(() => rmSync(directory, { recursive: true, force: true }));

const BIG = Buffer.alloc(3_000_000, "0123456789abcdef");

/** As podman lays one out, by GNU tar. */
function podmanTar(): string {
  const bundle = join(directory, "bundle");
  const rootfs = join(directory, "rootfs");
  for (const each of ["checkpoint", "artifacts"]) mkdirSync(join(bundle, each), { recursive: true });
  mkdirSync(join(rootfs, "etc"), { recursive: true });
  writeFileSync(join(rootfs, "etc/small"), "changed\n");
  writeFileSync(join(rootfs, "big"), BIG);
  execFileSync("tar", ["-C", rootfs, "-cf", join(bundle, "rootfs-diff.tar"), "etc/small", "big"]);
  writeFileSync(join(bundle, "config.dump"), '{"id":"x"}');
  writeFileSync(join(bundle, "network.status"), "null");
  writeFileSync(join(bundle, "deleted.files"), '["/etc/gone"]');
  writeFileSync(join(bundle, "checkpoint/pages-1.img"), BIG);
  const path = join(directory, "podman.tar");
  const members = ["artifacts", "config.dump", "network.status", "checkpoint", "rootfs-diff.tar", "deleted.files"];
  execFileSync("tar", ["-C", bundle, "-cf", path, ...members]);
  return path;
}

/** Everything that a pass over the archive sees. */
async function summary(archive: CheckpointArchive): Promise<unknown> {
  const seen: unknown[] = [];
  const dialect = new DialectDetector();
  for await (const member of archive.members()) {
    dialect.member(member.path, member.section);
    const { path, section, entry } = member;
    seen.push([path, section.kind, entry.type, isNested(section.kind) ? await nested(member) : await read(member)]);
  }
  return [dialect.dialect, ...seen];
}

async function nested(member: ArchiveMember): Promise<unknown> {
  const tar = await member.open();
  const seen: unknown[] = [tar.compression];
  for await (const each of tar.entries()) seen.push([each.path, each.entry.type, await read(each)]);
  return seen;
}

async function read({ entry, content }: Pick<ArchiveMember, "entry" | "content">): Promise<string> {
  if (entry.type !== "file") return "";
  const bytes = Buffer.from(await content.bytes(10_000_000));
  return bytes.length > 100 ? `${bytes.length} bytes, ${bytes.equals(BIG) ? "right" : "wrong"}` : bytes.toString();
}

const PODMAN_SUMMARY = [
  "podman",
  ["artifacts", "artifacts", "directory", ""],
  ["config.dump", "config", "file", '{"id":"x"}'],
  ["network.status", "network", "file", "null"],
  ["checkpoint", "images", "directory", ""],
  ["checkpoint/pages-1.img", "images", "file", "3000000 bytes, right"],
  [
    "rootfs-diff.tar",
    "rootfs",
    "file",
    ["none", ["etc/small", "file", "changed\n"], ["big", "file", "3000000 bytes, right"]],
  ],
  ["deleted.files", "deleted", "file", '["/etc/gone"]'],
];

describe("openArchive()", () => {
  let plain: string;
  before(() => {
    plain = podmanTar();
  });

  for (const [compression, command] of [
    ["none", ["cat"]],
    ["gzip", ["gzip", "-1"]],
    ["bzip2", ["bzip2", "-1"]],
    ["xz", ["xz", "-0"]],
    ["zstd", ["zstd", "-1"]],
  ] as const) {
    test(`reads a ${compression} archive from a file, twice, and from a pipe`, async () => {
      const path = `${plain}.${compression}`;
      const bytes = execFileSync(command[0], command.slice(1), { input: readFileSync(plain), maxBuffer: 1 << 30 });
      writeFileSync(path, bytes);
      await using archive = await openArchive(path);
      assert.equal(archive.compression, compression);
      assert.deepEqual(await summary(archive), PODMAN_SUMMARY);
      assert.deepEqual(await summary(archive), PODMAN_SUMMARY);
      const child = spawn("cat", [path], { stdio: ["ignore", "pipe", "inherit"] });
      await using stream = await openArchiveStream(child.stdout, "stdin");
      assert.equal(stream.compression, compression);
      assert.deepEqual(await summary(stream), PODMAN_SUMMARY);
      await assert.rejects(summary(stream), { code: "FAILED_PRECONDITION" });
    });
  }

  /** In frames of `size` bytes, with an index of them. */
  async function writeFrames(path: string, bytes: Uint8Array, size: number): Promise<void> {
    const frames: { compressed: Uint8Array; size: number }[] = [];
    for (let at = 0; at < bytes.length; at += size) {
      const piece = bytes.subarray(at, at + size);
      frames.push({ compressed: await compressSeekableFrame(piece, 3), size: piece.length });
    }
    const index = encodeSeekableIndex(frames.map((f) => ({ compressedSize: f.compressed.length, size: f.size })));
    writeFileSync(path, Buffer.concat([...frames.map((f) => f.compressed), index]));
  }

  test("reads zstd with an index of frames by its frames, and passes over what is not asked for", async () => {
    const path = join(directory, "seekable.tar.zst");
    await writeFrames(path, readFileSync(plain), 100_000);
    execFileSync("zstd", ["-tq", path]);
    await using archive = await openArchive(path);
    assert.equal(archive.access, "seek");
    assert.deepEqual(await summary(archive), PODMAN_SUMMARY);
    const names: string[] = [];
    for await (const { path: name } of archive.members()) names.push(name);
    assert.deepEqual(
      names,
      PODMAN_SUMMARY.slice(1).map(([name]) => name),
    );
  });

  test("reads frames of any size: headers lie across several, whose memory is used again", async () => {
    const tree = join(directory, "names");
    mkdirSync(join(tree, "x".repeat(200), "y".repeat(200)), { recursive: true });
    for (let i = 0; i < 20; i++) writeFileSync(join(tree, "x".repeat(200), "y".repeat(200), `${i}`), `content ${i}`);
    const tar = execFileSync("tar", ["-C", tree, "--format=pax", "--pax-option=exthdr.name=%f", "-cf", "-", "."]);
    const expected: string[] = [];
    for (const size of [tar.length, 97, 250, 513, 4096]) {
      const path = join(directory, `frames-of-${size}.tar.zst`);
      await writeFrames(path, tar, size);
      await using archive = await openArchive(path);
      assert.equal(archive.access, "seek");
      const found: string[] = [];
      for await (const member of archive.members()) found.push(`${member.path}: ${await read(member)}`);
      if (size === tar.length) expected.push(...found);
      assert.deepEqual(found, expected, `frames of ${size} bytes`);
    }
    assert.equal(expected.length, 22);
  });

  test("gives the place of content in a plain file", async () => {
    await using archive = await openArchive(plain);
    const file = readFileSync(plain);
    for await (const member of archive.members()) {
      if (member.section.kind !== "rootfs") continue;
      for await (const { path, content } of (await member.open()).entries()) {
        const { offset } = content.place()!;
        if (path === "big") assert.ok(file.subarray(offset, offset + BIG.length).equals(BIG));
      }
    }
  });

  test("says NOT_FOUND for no file and FAILED_PRECONDITION for a directory", async () => {
    await assert.rejects(openArchive(join(directory, "none")), { code: "NOT_FOUND" });
    await assert.rejects(openArchive(directory), { code: "FAILED_PRECONDITION" });
  });

  test("finds the end missing, wherever the archive is cut", async () => {
    const bytes = readFileSync(plain);
    const end = bytes.length - 10240; // GNU tar's last record
    for (const at of [0, 1, 511, 700, 20_000, 2_000_000, 3_500_000, end - 3000]) {
      const path = join(directory, "cut.tar");
      writeFileSync(path, bytes.subarray(0, at));
      await using archive = await openArchive(path);
      await assert.rejects(summary(archive), { name: "FormatError" }, `cut at ${at}`);
    }
  });
});

describe("readMembers() refuses", () => {
  const HEADER: TarHeader = {
    type: "file",
    path: "config.dump",
    linkTarget: "",
    mode: 0o600,
    uid: 0,
    gid: 0,
    size: 0,
    mtimeSeconds: 0,
    mtimeNanoseconds: 0,
    rdevMajor: 0,
    rdevMinor: 0,
    xattrs: [],
  };
  function tarOf(...files: readonly { readonly header: Partial<TarHeader>; readonly content?: Uint8Array }[]): Buffer {
    const parts = files.flatMap(({ header, content = new Uint8Array(0) }) => [
      encodeTarHeader({ ...HEADER, size: content.length, ...header }),
      content,
      tarPadding(content.length),
    ]);
    return Buffer.concat([...parts, TAR_END]);
  }
  const inner = tarOf({ header: { path: "x", size: 1_000_000 } }).subarray(0, 2048);
  const CASES: readonly [string, Buffer, RegExp][] = [
    ['".."', tarOf({ header: { path: "checkpoint/../../etc/passwd" } }), /has a "\.\." in it/],
    ["an absolute name", tarOf({ header: { path: "/etc/passwd" } }), /is absolute/],
    ["a name of 300 bytes", tarOf({ header: { path: "a".repeat(300) } }), /more than 255 bytes/],
    [
      "an inner tar that claims more than its member",
      tarOf({ header: { path: "rootfs-diff.tar" }, content: inner }),
      /cut off/,
    ],
    [
      "a symlink as rootfs-diff.tar",
      tarOf({ header: { path: "rootfs-diff.tar", type: "symlink", linkTarget: "/etc/shadow" } }),
      /it is a symlink/,
    ],
    [
      '".." in a nested tar',
      tarOf({ header: { path: "volumes/v.tar" }, content: tarOf({ header: { path: "../x" } }) }),
      /has a "\.\." in it/,
    ],
    ["a size of 8 EiB", tarOf({ header: {} }).fill(0xff, 124, 136), /checksum|size/],
    ["no tar at all", Buffer.alloc(2048, "x"), /header/],
  ];
  for (const [what, bytes, says] of CASES) {
    test(what, async () => {
      const path = join(directory, "hostile.tar");
      writeFileSync(path, bytes);
      await using archive = await openArchive(path);
      await assert.rejects(summary(archive), (error: Error) => {
        assert.equal(error.name, "FormatError");
        assert.match(error.message, says);
        return true;
      });
    });
  }

  test("a decompressed size over the limit", async () => {
    const path = join(directory, "bomb.tar.gz");
    const bomb = tarOf({ header: { path: "checkpoint/pages-1.img" }, content: Buffer.alloc(50_000_000) });
    writeFileSync(path, execFileSync("gzip", ["-1"], { input: bomb, maxBuffer: 1 << 30 }));
    await using archive = await openArchive(path, { maximumSize: 1_000_000 });
    await assert.rejects(summary(archive), { code: "RESOURCE_EXHAUSTED" });
  });
});
