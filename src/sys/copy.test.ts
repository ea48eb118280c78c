import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { ShaleError } from "../errors/index.ts";
import { copyRange } from "./copy.ts";
import { injectFault } from "./effects.ts";
import * as files from "./files.ts";
import { needsRoot, withLoopFilesystem, withTemporaryDirectory } from "./testing/filesystems.ts";

const BLOCK = 4096;
const BYTES = Buffer.from(Uint32Array.from({ length: 8 * 1024 }, (_, i) => i * 2654435761).buffer);

/** Copies into a file of "x" and checks every byte of it. */
function copied(from: string, to: string, sourceOffset: number, targetOffset: number, length: number) {
  const source = files.openFile(from);
  const target = files.createFile(to);
  try {
    files.writeAt(target, Buffer.alloc(BYTES.length, "x"), 0);
    const method = copyRange(source, sourceOffset, target, targetOffset, length);
    const expected = Buffer.alloc(Math.max(BYTES.length, targetOffset + length), "x");
    BYTES.copy(expected, targetOffset, sourceOffset, sourceOffset + length);
    assert.ok(readFileSync(to).equals(expected), `${sourceOffset}+${length} to ${targetOffset}`);
    return method;
  } finally {
    files.closeFile(source);
    files.closeFile(target);
    files.unlink(to);
  }
}

for (const type of ["xfs", "btrfs"] as const) {
  test(`copyRange() shares blocks on ${type}, and copies what is not aligned`, needsRoot, () =>
    withLoopFilesystem(type, {}, (directory) => {
      const [from, to] = [join(directory, "from"), join(directory, "to")];
      writeFileSync(from, BYTES);
      assert.equal(copied(from, to, 0, 0, BYTES.length), "reflink");
      assert.equal(copied(from, to, BLOCK, 2 * BLOCK, BLOCK), "reflink");
      assert.equal(copied(from, to, 1, 3 * BLOCK, 1000), "copy_file_range");
    }),
  );
}

test("copyRange() reflinks take no space, and survive a hole punched into the source", needsRoot, () =>
  withLoopFilesystem("xfs", {}, (directory) => {
    const size = 8 << 20;
    writeFileSync(join(directory, "from"), Buffer.alloc(size, 7));
    const source = files.openFile(join(directory, "from"), "read-write");
    files.datasync(source);
    const before = files.fileSystemStatus(directory).available;
    const target = files.createFile(join(directory, "to"));
    assert.equal(copyRange(source, 0, target, 0, size), "reflink");
    files.datasync(target);
    assert.ok(before - files.fileSystemStatus(directory).available < size / 2);
    assert.equal(files.statFile(target).allocated, files.statFile(source).allocated); // each counts the shared blocks
    files.punchHole(source, 0, size);
    assert.equal(files.statFile(source).allocated, 0);
    files.closeFile(source);
    files.closeFile(target);
    assert.ok(readFileSync(join(directory, "to")).equals(Buffer.alloc(size, 7)));
  }),
);

test("copyRange() copies on ext4, between file systems, and step by step down the ladder", needsRoot, () =>
  withLoopFilesystem("ext4", {}, (ext4) =>
    withTemporaryDirectory((other) => {
      const [from, to] = [join(ext4, "from"), join(ext4, "to")];
      writeFileSync(from, BYTES);
      assert.equal(copied(from, to, 0, 0, BYTES.length), "copy_file_range");
      assert.equal(copied(from, to, 5, 20_000, 1234), "copy_file_range");
      copied(from, join(other, "to"), BLOCK, 0, BLOCK); // another file system: by whichever means this kernel has
      for (const errno of ["EXDEV", "ENOTSUP", "EINVAL", "ENOSYS", "EPERM"]) {
        using _fault = injectFault({ kind: "copy", persistent: true, errno });
        assert.equal(copied(from, to, 7, 9, 30_000), "read-write", errno);
      }
    }),
  ),
);

test("copyRange() does not go on after an error that another means would meet too", () =>
  withTemporaryDirectory((directory) => {
    const from = join(directory, "from");
    writeFileSync(from, BYTES);
    for (const errno of ["EIO", "ENOSPC", "EDQUOT"]) {
      using _fault = injectFault({ kind: "copy", errno });
      assert.throws(() => copied(from, join(directory, "to"), 0, 0, BLOCK), { code: errno });
    }
  }));

for (const errno of [undefined, "ENOSYS"]) {
  test(`copyRange() says DATA_LOSS when the source ends early (${errno ?? "in the kernel"})`, () =>
    withTemporaryDirectory((directory) => {
      const from = join(directory, "from");
      writeFileSync(from, BYTES);
      using _fault = errno === undefined ? undefined : injectFault({ kind: "copy", persistent: true, errno });
      assert.throws(
        () => copied(from, join(directory, "to"), BLOCK, 0, BYTES.length),
        (error) => ShaleError.is(error, "DATA_LOSS"),
      );
    }));
}
