import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { ShaleError } from "../errors/index.ts";
import { injectFault } from "./effects.ts";
import { fileSource } from "./file-source.ts";
import * as files from "./files.ts";
import { Child, moduleUrl } from "./testing/child.ts";
import { needsRoot, withLoopFilesystem, withTemporaryDirectory } from "./testing/filesystems.ts";

test("createFile() refuses a name that is taken, also by a dangling symlink", () =>
  withTemporaryDirectory((directory) => {
    symlinkSync("nowhere", join(directory, "a"));
    assert.throws(() => files.createFile(join(directory, "a")), { code: "EEXIST" });
  }));

test("openFile() does not follow a symlink unless asked to", () =>
  withTemporaryDirectory((directory) => {
    writeFileSync(join(directory, "a"), "");
    symlinkSync("a", join(directory, "b"));
    assert.throws(() => files.openFile(join(directory, "b")), { code: "ELOOP" });
    files.closeFile(files.openFile(join(directory, "b"), "read", { followSymlink: true }));
  }));

test("writeFileDurably() replaces a file and what a dead writer left, and leaves no temporary file", () =>
  withTemporaryDirectory((directory) => {
    const path = join(directory, "a");
    writeFileSync(path, "old and longer");
    writeFileSync(`${path}.tmp`, "torn");
    files.writeFileDurably(path, Buffer.from("new"));
    assert.deepEqual(files.list(directory), [{ name: "a", kind: "file" }]);
    assert.equal(readFileSync(path, "utf8"), "new");
  }));

test("readFile() refuses a file over its limit, before reading it", () =>
  withTemporaryDirectory((directory) => {
    const path = join(directory, "a");
    const fd = files.createFile(path);
    files.truncate(fd, 2 ** 42); // 4 TiB of hole: reading it first would not end well
    files.closeFile(fd);
    assert.throws(() => files.readFile(path, 1000), {
      code: "RESOURCE_EXHAUSTED",
      message: `Cannot read ${path}: 4398046511104 bytes are over the limit of 1000`,
    });
    writeFileSync(path, "x".repeat(1000));
    assert.equal(files.readFile(path, 1000).length, 1000);
  }));

test("linkIfAbsent() and renameNoReplace() answer false and change nothing when the name is taken", () =>
  withTemporaryDirectory((directory) => {
    const [a, b, c] = ["a", "b", "c"].map((name) => join(directory, name)) as [string, string, string];
    writeFileSync(a, "a");
    assert.equal(files.linkIfAbsent(a, b), true);
    assert.equal(files.linkIfAbsent(a, b), false);
    assert.equal(files.statFile(a).nlink, 2);
    assert.equal(files.renameNoReplace(a, b), false);
    assert.equal(files.renameNoReplace(a, c), true);
    assert.throws(() => files.renameNoReplace(a, c), { code: "ENOENT" });
  }));

test("ensureDirectory() creates all missing parents, accepts an existing one, and refuses a file in the way", () =>
  withTemporaryDirectory((directory) => {
    const path = join(directory, "a/b/c");
    files.ensureDirectory(path);
    files.ensureDirectory(path);
    assert.equal(files.statFile(path).kind, "directory");
    assert.equal(files.statFile(path).mode & 0o777, 0o700);
    writeFileSync(join(directory, "file"), "");
    assert.throws(() => files.ensureDirectory(join(directory, "file")), { code: "ENOTDIR" });
    assert.throws(() => files.ensureDirectory(join(directory, "file/x")), { code: "ENOTDIR" });
  }));

test("punchHole() gives the blocks back and keeps size and offsets", () =>
  withTemporaryDirectory((directory) => {
    const fd = files.createFile(join(directory, "a"));
    files.writeAt(fd, Buffer.alloc(1 << 20, 1), 0);
    files.datasync(fd);
    const before = files.statFile(fd);
    files.punchHole(fd, 4096, 512 * 1024);
    const after = files.statFile(fd);
    assert.equal(after.size, before.size);
    assert.equal(before.allocated - after.allocated, 512 * 1024);
    const bytes = Buffer.alloc(8192);
    files.readAt(fd, bytes, 0);
    assert.deepEqual([bytes[4095], bytes[4096], bytes[8191]], [1, 0, 0]);
    files.closeFile(fd);
  }));

test("findFile() is undefined for an absent name and an absent parent, and throws for other reasons", () =>
  withTemporaryDirectory((directory) => {
    assert.equal(files.findFile(join(directory, "a")), undefined);
    assert.equal(files.findFile(join(directory, "a/b")), undefined);
    assert.throws(() => files.findFile(join(directory, "x".repeat(300))), { code: "ENAMETOOLONG" });
    assert.throws(() => files.statFile(join(directory, "a")), { code: "ENOENT" });
  }));

test("files below 2^53 keep their exact size and offsets", () =>
  withTemporaryDirectory((directory) => {
    for (const offset of [2 ** 31 - 1, 2 ** 31, 2 ** 32, 2 ** 43]) {
      const fd = files.createFile(join(directory, String(offset)));
      files.writeAt(fd, Buffer.from("x"), offset);
      files.startWriteback(fd, offset, 1);
      assert.equal(files.statFile(fd).size, offset + 1);
      const byte = Buffer.alloc(1);
      assert.equal(files.readAt(fd, byte, offset), 1);
      assert.equal(byte.toString(), "x");
      files.closeFile(fd);
    }
  }));

test("fileSource() reads the same as the bytes of the file, at any place and length", () =>
  withTemporaryDirectory((directory) => {
    const path = join(directory, "a");
    const size = 3 * 65536 + 1234;
    const bytes = Buffer.from(Uint32Array.from({ length: Math.ceil(size / 4) }, (_, i) => i).buffer).subarray(0, size);
    writeFileSync(path, bytes);
    using source = fileSource(path);
    assert.equal(source.size, size);
    fc.assert(
      fc.property(fc.nat(size), fc.nat(size), (a, b) => {
        const [start, end] = [Math.min(a, b), Math.max(a, b)];
        assert.deepEqual(Buffer.from(source.read(start, end - start)), bytes.subarray(start, end));
      }),
      {
        numRuns: 200,
        examples: [
          [65535, 65537],
          [65536, 131072],
          [size, size],
          [0, 0],
        ],
      },
    );
    assert.throws(
      () => source.read(size - 1, 2),
      (error) => ShaleError.is(error, "DATA_LOSS"),
    );
  }));

test("fileSource() keeps views good after the cache has dropped their page", () =>
  withTemporaryDirectory((directory) => {
    const path = join(directory, "a");
    const pages = 70;
    const fd = files.createFile(path);
    for (let page = 0; page < pages; page++) files.writeAt(fd, Buffer.alloc(16, page), page * 65536);
    files.closeFile(fd);
    using source = fileSource(path);

    const views = Array.from({ length: pages }, (_, page) => {
      source.read(page * 65536, 1); // the second read of a page is the cached one
      return source.read(page * 65536, 16);
    });
    for (const [page, view] of views.entries()) assert.deepEqual(Buffer.from(view), Buffer.alloc(16, page));
  }));

test("fileSource() says DATA_LOSS when the file has shrunk, passes EIO on, and refuses to read after close", () =>
  withTemporaryDirectory((directory) => {
    const path = join(directory, "a");
    writeFileSync(path, Buffer.alloc(100_000));
    const source = fileSource(path);
    {
      using _fault = injectFault({ kind: "read", errno: "EIO" });
      assert.throws(() => source.read(0, 10), { code: "EIO" });
    }
    writeFileSync(path, "short");
    assert.throws(
      () => source.read(70_000, 10),
      (error) => ShaleError.is(error, "DATA_LOSS"),
    );
    source.close();
    source.close();
    assert.throws(() => source.read(0, 1), RangeError);
  }));

test("writeFileDurably() on a full disk keeps the old file, and files can still be removed", needsRoot, () =>
  withLoopFilesystem("ext4", { size: 16 << 20 }, (directory) => {
    const path = join(directory, "a");
    files.writeFileDurably(path, Buffer.from("old"));
    const filler = files.createFile(join(directory, "filler"));
    assert.throws(
      () => {
        for (let at = 0; ; at += 1 << 20) files.writeAt(filler, Buffer.alloc(1 << 20, 1), at);
      },
      { code: "ENOSPC" },
    );
    files.closeFile(filler);
    assert.ok(files.fileSystemStatus(directory).available < 1 << 20);
    assert.throws(() => files.writeFileDurably(path, Buffer.alloc(1 << 20)), { code: "ENOSPC" });
    assert.equal(files.readFile(path, 10).toString(), "old");
    assert.equal(files.findFile(`${path}.tmp`), undefined);
    assert.equal(files.unlink(join(directory, "filler")), true);
    files.writeFileDurably(path, Buffer.alloc(1 << 20));
    assert.equal(files.statFile(path).size, 1 << 20);
  }),
);

test("importing sys/ loads no native code, files and lists need none", async () => {
  await using child = new Child(`
    import { list, fileSource, statFile } from ${moduleUrl("index.ts")};
    import { readFileSync } from "node:fs";
    list("/"); statFile("/"); fileSource("/etc/passwd").read(0, 4);
    console.log(/koffi.*[.]node/.test(readFileSync("/proc/self/maps", "latin1")));`);
  assert.equal(await child.line(), "false");
});

test("unlink() frees a large file's blocks", () =>
  withTemporaryDirectory((directory) => {
    const path = join(directory, "a");
    execFileSync("fallocate", ["-l", "64M", path]);
    assert.equal(files.statFile(path).allocated, 64 << 20);
    assert.equal(files.unlink(path), true);
    assert.equal(files.unlink(path), false);
  }));
