/** Wherever source, archive and target lie, and whatever goes wrong on the way: the same result, or none. */
import assert from "node:assert/strict";
import { mkdirSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { injectFault, mountOverlay, unmount } from "../sys/index.ts";
import * as libc from "../sys/libc.ts";
import {
  type LoopFileSystem,
  needsRoot,
  withLoopFilesystem,
  withTemporaryDirectory,
} from "../sys/testing/filesystems.ts";
import { openArchive } from "./archive/index.ts";
import { restoreCheckpoint } from "./restore.ts";
import { makeMetadata, noise } from "./testing/samples.ts";
import { describeTree, writeExtents } from "./testing/trees.ts";
import { type WriteOptions, writeCheckpoint } from "./write.ts";

function makeUpper(upper: string): void {
  mkdirSync(join(upper, "d"), { recursive: true });
  writeFileSync(join(upper, "d/large"), noise(1_000_001));
  writeFileSync(join(upper, "d/aligned"), noise(65_536, 2));
  writeFileSync(join(upper, "d/small"), noise(100, 3));
  writeExtents(join(upper, "sparse"), [20_000, 2_000_000, 20_000, 500_000], 4);
}

async function write(scratch: string, upper: string, output: string, more: Partial<WriteOptions> = {}) {
  const metadata = join(scratch, "meta");
  return await writeCheckpoint(
    { metadata: makeMetadata(metadata), rootfsDiff: upper },
    { output, writer: "test", ...more },
  );
}

async function restore(path: string, target: string, options: { readonly sync?: boolean } = {}) {
  await using archive = await openArchive(path);
  const targets = { upper: join(target, "restored"), bundle: join(target, "bundle") };
  return await restoreCheckpoint(archive, targets, options);
}

async function withTmpfs(use: (directory: string) => Promise<void>): Promise<void> {
  await withTemporaryDirectory(async (directory) => {
    const context = libc.fsopen("tmpfs");
    libc.fsconfig(context, libc.FSCONFIG_CMD_CREATE, null, null);
    libc.moveMount(libc.fsmount(context, 0), directory);
    await use(directory);
  });
}

type Place = LoopFileSystem | "tmpfs";

function on(place: Place, use: (directory: string) => Promise<void>): Promise<void> {
  return place === "tmpfs" ? withTmpfs(use) : withLoopFilesystem(place, {}, use);
}

describe("an archive is written and restored", needsRoot, () => {
  const CASES: readonly { readonly from: Place; readonly to: Place; readonly clones: boolean }[] = [
    { from: "xfs", to: "xfs", clones: true },
    { from: "btrfs", to: "btrfs", clones: true },
    { from: "ext4", to: "ext4", clones: false },
    { from: "tmpfs", to: "tmpfs", clones: false },
    { from: "ext4", to: "xfs", clones: false },
    { from: "xfs", to: "tmpfs", clones: false },
    { from: "tmpfs", to: "btrfs", clones: false },
  ];
  for (const { from, to, clones } of CASES) {
    test(`from ${from} to ${from === to ? "the same file system" : to}${clones ? ", by reflink" : ""}`, async () => {
      await withTemporaryDirectory(async (scratch) => {
        await on(from, async (source) => {
          makeUpper(join(source, "upper"));
          const back = async (target: string) => {
            const { moved } = await write(scratch, join(source, "upper"), join(target, "archive"));
            assert.equal(moved.cloned > 0, clones, JSON.stringify(moved));
            const { cloned } = await restore(join(target, "archive"), target);
            assert.equal(cloned > 0, to === "xfs" || to === "btrfs"); // between archive and target, whatever the source was
            assert.deepEqual(describeTree(join(target, "restored")), describeTree(join(source, "upper")));
            const [sparse, all] = [statSync(join(target, "restored/sparse")), statSync(join(target, "archive"))];
            assert.ok(sparse.blocks * 512 < 300_000, `${sparse.blocks} blocks: the hole is filled`);
            assert.ok(all.blocks * 512 < 2_000_000, `${all.blocks} blocks in the archive`);
          };
          if (from === to) await back(source);
          else await on(to, back);
        });
      });
    });
  }

  test("from a merged overlay, which is another superblock", async () => {
    await withLoopFilesystem("xfs", {}, async (directory) => {
      const place = (name: string) => join(directory, name);
      for (const name of ["lower", "upper", "work", "merged"]) mkdirSync(place(name));
      mountOverlay({ lower: [place("lower")], upper: place("upper"), work: place("work"), target: place("merged") });
      try {
        makeUpper(place("merged"));
        const { moved } = await write(directory, place("merged"), place("archive"));
        assert.ok(moved.copied + moved.written > 1_000_000, JSON.stringify(moved));
        await restore(place("archive"), directory);
        assert.deepEqual(describeTree(place("restored")), describeTree(place("merged")));
      } finally {
        unmount(place("merged"));
      }
    });
  });

  for (const errno of ["EXDEV", "EOPNOTSUPP", "EINVAL", "EPERM"]) {
    test(`where neither cloning nor copying in the kernel is possible (${errno})`, async () => {
      await withTemporaryDirectory(async (directory) => {
        makeUpper(join(directory, "upper"));
        using _ = injectFault({ kind: "copy", persistent: true, errno });
        const { moved } = await write(directory, join(directory, "upper"), join(directory, "archive"));
        assert.deepEqual([moved.cloned, moved.copied], [0, 0]);
        await restore(join(directory, "archive"), directory);
        assert.deepEqual(describeTree(join(directory, "restored")), describeTree(join(directory, "upper")));
      });
    });
  }
});

describe("writeCheckpoint() leaves nothing, and says why,", needsRoot, () => {
  const leavesNothing = async (
    directory: string,
    upper: string,
    expected: object,
    more: Partial<WriteOptions> = {},
  ) => {
    const out = join(directory, "out");
    mkdirSync(out, { recursive: true });
    await assert.rejects(write(directory, upper, join(out, "archive"), more), expected);
    assert.deepEqual(readdirSync(out), []);
  };

  test("when the disk is full", async () => {
    await withTemporaryDirectory(async (directory) => {
      makeUpper(join(directory, "upper"));
      await withLoopFilesystem("ext4", { size: 16 << 20 }, async (small) => {
        writeFileSync(join(directory, "upper/huge"), noise(20_000_000));
        await assert.rejects(write(directory, join(directory, "upper"), join(small, "archive")), { code: "ENOSPC" });
        assert.deepEqual(readdirSync(small), ["lost+found"]);
        await write(directory, join(directory, "upper"), join(directory, "archive"));
        await assert.rejects(restore(join(directory, "archive"), small), { code: "ENOSPC" });
        assert.deepEqual(readdirSync(small), ["lost+found"]);
      });
    });
  });

  test("when a read, a write or a sync fails", async () => {
    await withTemporaryDirectory(async (directory) => {
      makeUpper(join(directory, "upper"));
      makeMetadata(join(directory, "meta"));
      for (const kind of ["read", "write", "datasync", "truncate", "rename", "list", "open"] as const) {
        using _ = injectFault({ kind, nth: kind === "open" ? 4 : 1, errno: "EIO" });
        await leavesNothing(directory, join(directory, "upper"), { code: "EIO" });
      }
    });
  });

  test("when its signal is aborted", async () => {
    await withTemporaryDirectory(async (directory) => {
      makeUpper(join(directory, "upper"));
      await leavesNothing(directory, join(directory, "upper"), { name: "AbortError" }, { signal: AbortSignal.abort() });
    });
  });

  test("when there are no CRIU images, or no such directory", async () => {
    await withTemporaryDirectory(async (directory) => {
      mkdirSync(join(directory, "empty"));
      const output = join(directory, "archive");
      await assert.rejects(writeCheckpoint({ metadata: join(directory, "empty") }, { output, writer: "t" }), {
        code: "INVALID_ARGUMENT",
        message: /no CRIU images/,
      });
      await assert.rejects(writeCheckpoint({ metadata: join(directory, "none") }, { output, writer: "t" }), {
        code: "NOT_FOUND",
      });
      const metadata = makeMetadata(join(directory, "meta"));
      const rootfsDiff = join(directory, "none");
      await assert.rejects(writeCheckpoint({ metadata, rootfsDiff }, { output, writer: "t" }), { code: "NOT_FOUND" });
      assert.deepEqual(readdirSync(directory).sort(), ["empty", "meta"]);
    });
  });
});

describe("restoreCheckpoint()", needsRoot, () => {
  test("syncs nothing unless asked: a name that is durable before its content would only look complete", async () => {
    await withTemporaryDirectory(async (directory) => {
      makeUpper(join(directory, "upper"));
      await write(directory, join(directory, "upper"), join(directory, "archive"));
      for (const sync of [false, true]) {
        const out = join(directory, `out-${sync}`);
        mkdirSync(out);
        using _ = injectFault({ kind: "syncDirectory", nth: 1, errno: "EIO" });
        const restored = restore(join(directory, "archive"), out, { sync });
        if (sync) await assert.rejects(restored, { code: "EIO" });
        else await restored;
      }
    });
  });
});

describe("restoreCheckpoint() leaves nothing", needsRoot, () => {
  test("when anything that it does fails", async () => {
    await withTemporaryDirectory(async (directory) => {
      makeUpper(join(directory, "upper"));
      await write(directory, join(directory, "upper"), join(directory, "archive"));
      const out = join(directory, "out");
      mkdirSync(out);
      for (const kind of ["create", "write", "mkdir", "copy", "truncate", "rename", "syncDirectory"] as const) {
        for (const nth of [1, 2, 3]) {
          using fault = injectFault({ kind, nth, errno: "EIO" });
          await restore(join(directory, "archive"), out, { sync: true }).then(
            () => assert.ok(nth > 1, `${kind} ${nth} was not reached`),
            (error: { code?: string }) => assert.equal(error.code, "EIO", `${kind} ${nth}`),
          );
          fault[Symbol.dispose]();
          if (readdirSync(out).length > 0) {
            assert.deepEqual(readdirSync(out).sort(), ["bundle", "restored"]);
            for (const name of readdirSync(out)) {
              const { removeTree } = await import("../sys/index.ts");
              removeTree(join(out, name));
            }
          }
        }
      }
    });
  });
});
