import assert from "node:assert/strict";
import { mkdirSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, test } from "node:test";
import { delay } from "../async/index.ts";
import { errnoOf } from "../errors/index.ts";
import { openDirectory, syncFileSystemOf } from "./beneath.ts";
import { closeFile } from "./files.ts";
import { run } from "./process.ts";
import { syncMeanwhile } from "./sync-file-system.ts";
import { needsRoot, withLoopFilesystem, withTemporaryDirectory } from "./testing/filesystems.ts";

const MIB = 1 << 20;

describe("syncMeanwhile()", needsRoot, () => {
  test("brings to the disk what was written since it began, and ends when disposed of", async () => {
    await withLoopFilesystem("ext4", {}, async (place) => {
      const onDisk = () => statSync(join(dirname(place), "image")).blocks * 512;
      const directory = openDirectory(place);
      try {
        const before = onDisk();
        {
          await using _syncing = syncMeanwhile(directory);
          writeFileSync(join(place, "file"), Buffer.alloc(16 * MIB, 1));
          while (onDisk() < before + 16 * MIB) await delay(20);
        }
        await using _again = syncMeanwhile(directory); // before its first sync
      } finally {
        closeFile(directory);
      }
    });
  });

  test("leaves errors of the disk to the sync that ends the work", async () => {
    await withTemporaryDirectory(async (scratch) => {
      const small = join(scratch, "small");
      mkdirSync(small);
      await run("mount", ["-t", "tmpfs", "-o", "size=24M", "tmpfs", small]);
      const before = process.env.TMPDIR;
      process.env.TMPDIR = small;
      try {
        await withLoopFilesystem("ext4", { size: 128 * MIB }, async (place) => {
          const directory = openDirectory(place);
          try {
            {
              await using _syncing = syncMeanwhile(directory);
              writeFileSync(join(place, "file"), Buffer.alloc(40 * MIB, 1)); // the disk has 24
              await delay(500); // long enough for a sync of its own to be told the error
            }
            assert.throws(
              () => syncFileSystemOf(directory),
              (error) => ["EIO", "ENOSPC"].includes(errnoOf(error) ?? ""),
            );
          } finally {
            closeFile(directory);
          }
        });
      } finally {
        if (before === undefined) delete process.env.TMPDIR;
        else process.env.TMPDIR = before;
      }
    });
  });
});
