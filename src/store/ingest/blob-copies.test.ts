/** BlobWriter.appendCopy(): the same bytes as append(), with blocks shared where the file system can. */
import assert from "node:assert/strict";
import { readFileSync, rmSync, statfsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import fc from "fast-check";
import { PayloadTable } from "../../formats/payload-table/index.ts";
import { closeFile, openFile } from "../../sys/index.ts";
import { needsRoot, withLoopFilesystem, withTemporaryDirectory } from "../../sys/testing/filesystems.ts";
import { noise } from "../testing/fixtures.ts";
import { BlobWriter } from "./blob-writer.ts";

const SOURCE_SIZE = 3 << 20;
const source = noise(SOURCE_SIZE, "source");
const others = noise(1 << 20, "others");

/** A run of chunks of `size` from one place of the source, or other bytes; in payloads, some of which are taken back. */
const part = fc.oneof(
  fc.record({
    from: fc.oneof(
      fc.nat(SOURCE_SIZE - 1),
      fc.nat(600).map((block) => block * 4096),
    ),
    sizes: fc.array(fc.integer({ min: 1, max: 300_000 }), { minLength: 1, maxLength: 4 }),
  }),
  fc.record({ other: fc.nat(40_000) }),
);
const payload = fc.record({ parts: fc.array(part, { minLength: 1, maxLength: 4 }), keep: fc.boolean() });

function write(directory: string, payloads: readonly { parts: readonly object[]; keep: boolean }[]): void {
  const path = join(directory, "blob");
  const sourcePath = join(directory, "source");
  writeFileSync(sourcePath, source);
  const file = openFile(sourcePath);
  const writer = new BlobWriter(path);
  const kept: { offset: number; bytes: Buffer }[] = [];
  try {
    for (const { parts, keep } of payloads) {
      const bytes: Buffer[] = [];
      for (const one of parts as readonly ({ from: number; sizes: number[] } | { other: number })[]) {
        if ("other" in one) {
          bytes.push(others.subarray(0, one.other));
          writer.append(bytes.at(-1)!);
          continue;
        }
        let at = one.from;
        for (const size of one.sizes) {
          bytes.push(source.subarray(at, at + size));
          writer.appendCopy(bytes.at(-1)!, file, at);
          at = Math.min(SOURCE_SIZE, at + size);
        }
      }
      if (keep) kept.push({ offset: writer.keep(), bytes: Buffer.concat(bytes) });
      else writer.takeBack();
    }
    const table = new PayloadTable();
    table.add(0, 1, Buffer.alloc(32)); // so that there is a file
    writer.finish(table);
  } finally {
    writer.close();
    closeFile(file);
  }
  const blob = readFileSync(path);
  for (const { offset, bytes } of kept) assert.ok(blob.subarray(offset, offset + bytes.length).equals(bytes));
}

describe("BlobWriter.appendCopy()", () => {
  test("writes what append() would, on a file system without reflinks", () =>
    fc.assert(
      fc.asyncProperty(fc.array(payload, { minLength: 1, maxLength: 4 }), (payloads) =>
        withTemporaryDirectory((directory) => write(directory, payloads)),
      ),
      { numRuns: 25 },
    ));

  test("writes what append() would, and shares long runs, on XFS", needsRoot, () =>
    withLoopFilesystem("xfs", {}, async (directory) => {
      await fc.assert(
        fc.asyncProperty(fc.array(payload, { minLength: 1, maxLength: 4 }), async (payloads) => {
          write(directory, payloads);
          rmSync(join(directory, "blob"));
        }),
        { numRuns: 25 },
      );
      const free = () => {
        const { bavail, bsize } = statfsSync(directory);
        return bavail * bsize;
      };
      write(directory, []); // the source itself
      rmSync(join(directory, "blob"), { force: true });
      const before = free();
      write(directory, [{ parts: [{ from: 8192, sizes: [50_000, 60_000, 2_000_000] }, { other: 100 }], keep: true }]);
      assert.ok(before - free() < 400_000, `${before - free()} bytes of disk for 2.1 MB that are there`);
    }),
  );
});
