/** write -> restore is the identity, whatever is in the directories, by any way that the bytes can take. */
import assert from "node:assert/strict";
import { mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import fc from "fast-check";
import { setXattr } from "../sys/libc.ts";
import { needsRoot, withLoopFilesystem, withTemporaryDirectory } from "../sys/testing/filesystems.ts";
import { openArchive, openArchiveStream } from "./archive/index.ts";
import { restoreCheckpoint } from "./restore.ts";
import { makeMetadata, PAGES } from "./testing/samples.ts";
import { describeTree, FILE_SPEC, makeTree, writeExtents } from "./testing/trees.ts";
import { type WriteOptions, type WriteResult, writeCheckpoint } from "./write.ts";

const WAYS = ["file", "pipe", "zstd", "gzip", "zstd pipe"] as const;
type Way = (typeof WAYS)[number];

interface Case {
  readonly changes: readonly (typeof FILE_SPEC extends fc.Arbitrary<infer T> ? T : never)[];
  readonly volume: Case["changes"];
  readonly way: Way;
  readonly alignment: number;
  readonly digestData: boolean;
}

const CASE: fc.Arbitrary<Case> = fc.record({
  changes: fc.array(FILE_SPEC, { maxLength: 25 }),
  volume: fc.array(FILE_SPEC, { maxLength: 6 }),
  way: fc.constantFrom(...WAYS),
  alignment: fc.constantFrom(512, 4096, 65536),
  digestData: fc.boolean(),
});

/** Writes by the way that is asked for; the archive is then in `path`. */
async function write(
  directory: string,
  path: string,
  { way, alignment, digestData }: Pick<Case, "way" | "alignment" | "digestData">,
): Promise<WriteResult> {
  const sources = {
    metadata: join(directory, "meta"),
    rootfsDiff: join(directory, "upper"),
    volumes: [{ name: "data", directory: join(directory, "volume") }],
    shm: join(directory, "shm"),
  };
  const pieces: Uint8Array[] = [];
  const toPipe = way === "pipe" || way === "zstd pipe";
  const options: WriteOptions = {
    output: toPipe ? async (bytes) => void pieces.push(Uint8Array.from(bytes)) : path,
    compression: way === "zstd" || way === "zstd pipe" ? "zstd" : way === "gzip" ? "gzip" : "none",
    alignment,
    digestData,
    writer: "test",
  };
  const result = await writeCheckpoint(sources, options);
  if (toPipe) writeFileSync(path, Buffer.concat(pieces));
  return result;
}

async function restore(path: string, target: string, asStream: boolean) {
  const targets = {
    upper: join(target, "upper"),
    bundle: join(target, "bundle"),
    shm: join(target, "shm"),
    volumes: [{ name: "data", directory: join(target, "volume") }],
  };
  async function* bytes() {
    const all = readFileSync(path);
    for (let at = 0; at < all.length; at += 100_003) yield all.subarray(at, at + 100_003);
  }
  await using archive = asStream ? await openArchiveStream(bytes(), "pipe") : await openArchive(path);
  return await restoreCheckpoint(archive, targets);
}

function makeSources(directory: string, changes: Case["changes"], volume: Case["volume"]): void {
  makeMetadata(join(directory, "meta"));
  for (const name of ["upper", "volume", "shm"]) mkdirSync(join(directory, name));
  makeTree(join(directory, "upper"), changes, true);
  makeTree(join(directory, "volume"), volume, false);
  writeFileSync(join(directory, "shm/segment"), "shared");
}

/** Every file from 16 KiB on begins at a multiple of the alignment, in the archive and so in the nested tar. */
async function assertAligned(path: string, alignment: number): Promise<void> {
  await using archive = await openArchive(path);
  for await (const member of archive.members()) {
    const { kind } = member.section;
    const start = member.content.place()!.offset;
    if (kind !== "rootfs" && kind !== "volume") {
      if (member.entry.size >= 16384) assert.equal(start % alignment, 0, member.path);
      continue;
    }
    assert.equal(start % alignment, 0, member.path);
    for await (const { path: name, entry, content } of (await member.open()).entries()) {
      if (entry.size >= 16384) assert.equal(content.place()!.offset % alignment, 0, name);
    }
  }
}

function assertSame(directory: string, target: string): void {
  for (const name of ["upper", "volume", "shm"]) {
    assert.deepEqual(describeTree(join(target, name)), describeTree(join(directory, name)), name);
  }
  assert.ok(readFileSync(join(target, "bundle/checkpoint/pages-1.img")).equals(PAGES));
  assert.equal(statSync(join(target, "bundle")).mode & 0o777, 0o700);
}

describe("writeCheckpoint() and restoreCheckpoint()", needsRoot, () => {
  test("are the identity for random trees and any way of the bytes", async () => {
    await withTemporaryDirectory(async (scratch) => {
      let run = 0;
      await fc.assert(
        fc.asyncProperty(CASE, async (example) => {
          const directory = join(scratch, `${run++}`);
          mkdirSync(directory);
          makeSources(directory, example.changes, example.volume);
          const path = join(directory, "archive");
          const result = await write(directory, path, example);
          assert.equal(statSync(path).size, result.written);
          if (example.way === "file" || example.way === "pipe") {
            assert.equal(result.written, result.size);
            await assertAligned(path, example.alignment);
          }
          const target = join(directory, "target");
          mkdirSync(target);
          const restored = await restore(path, target, run % 2 === 0);
          assertSame(directory, target);
          assert.ok(restored.verified.length >= 6);
          const seen = example.way !== "file" || example.digestData;
          assert.ok(!seen || restored.verified.every(({ data }) => data), "all data has a digest, and it was checked");
          rmSync(directory, { recursive: true });
        }),
        { numRuns: 100 },
      );
    });
  });

  test("share data with source and archive on XFS, holes stay holes, and the tails are written", async () => {
    await withLoopFilesystem("xfs", { size: 1 << 30 }, async (mount) => {
      makeSources(mount, [], []);
      writeExtents(join(mount, "upper/big"), [10_000_001], 1);
      writeExtents(join(mount, "upper/sparse"), [20_000, 50_000_000, 20_000, 50_000_000], 2);
      const written = await write(mount, join(mount, "archive"), { way: "file", alignment: 4096, digestData: false });
      assert.ok(written.moved.cloned > 110_000_000, `${written.moved.cloned} cloned`);
      assert.ok(written.moved.written < 40_000, `${written.moved.written} written`);
      assert.ok(statSync(join(mount, "archive")).blocks * 512 < 15_000_000, "the archive is sparse");
      mkdirSync(join(mount, "target"));
      const restored = await restore(join(mount, "archive"), join(mount, "target"), false);
      assert.ok(restored.cloned > 110_000_000, `${restored.cloned} cloned`);
      assert.ok(statSync(join(mount, "target/upper/sparse")).blocks * 512 < 200_000, "the restored file is sparse");
      assertSame(mount, join(mount, "target"));
    });
  });

  for (const way of ["pipe", "zstd"] as const) {
    test(`make holes of zeros in a ${way} archive`, async () => {
      await withTemporaryDirectory(async (directory) => {
        makeSources(directory, [], []);
        writeExtents(join(directory, "upper/sparse"), [20_000, 5_000_000, 20_000, 5_000_000], 2);
        await write(directory, join(directory, "archive"), { way, alignment: 4096, digestData: false });
        mkdirSync(join(directory, "target"));
        await restore(join(directory, "archive"), join(directory, "target"), way === "pipe");
        assert.ok(statSync(join(directory, "target/upper/sparse")).blocks * 512 < 200_000);
        assertSame(directory, join(directory, "target"));
      });
    });
  }

  test("keep xattrs that look like overlayfs's own as the container's", async () => {
    await withTemporaryDirectory(async (directory) => {
      makeSources(directory, [], []);
      writeFileSync(join(directory, "upper/file"), "x");
      // what the container sees as trusted.overlay.redirect: overlayfs keeps it escaped (Linux 6.7)
      setXattr(join(directory, "upper/file"), "trusted.overlay.overlay.redirect", Buffer.from("/etc"));
      await write(directory, join(directory, "archive"), { way: "file", alignment: 4096, digestData: false });
      mkdirSync(join(directory, "target"));
      await restore(join(directory, "archive"), join(directory, "target"), false);
      assertSame(directory, join(directory, "target"));
    });
  });
});
