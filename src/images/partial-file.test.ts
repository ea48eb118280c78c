import assert from "node:assert/strict";
import {
  existsSync,
  linkSync,
  lstatSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { ShaleError } from "../errors/index.ts";
import { injectFault } from "../sys/index.ts";
import { PartialFile } from "./partial-file.ts";

async function inDirectory(run: (path: string, directory: string) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "shale-partial-"));
  try {
    await run(join(directory, "file"), directory);
  } finally {
    rmSync(directory, { recursive: true });
  }
}

test("PartialFile has its name only after publish(), in place of what had it", () =>
  inDirectory(async (path, directory) => {
    writeFileSync(path, "old");
    {
      using file = await PartialFile.open(path);
      file.write(Buffer.from("new "));
      file.write(Buffer.from("content"));
      assert.equal(file.size, 11);
      assert.equal(readFileSync(path, "utf8"), "old");
      file.publish();
      assert.equal(readFileSync(path, "utf8"), "new content");
    }
    assert.deepEqual(readdirSync(directory), ["file"]);
    assert.equal(statSync(path).mode & 0o777, 0o644 & ~process.umask());
  }));

test("PartialFile leaves nothing when it is disposed of unpublished, and twice", () =>
  inDirectory(async (path, directory) => {
    const file = await PartialFile.open(path);
    file.write(Buffer.from("x"));
    file[Symbol.dispose]();
    file[Symbol.dispose]();
    assert.deepEqual(readdirSync(directory), []);
  }));

test("PartialFile.open() follows a symlink, which stays", () =>
  inDirectory(async (path, directory) => {
    writeFileSync(join(directory, "target"), "old");
    symlinkSync("target", path);
    using file = await PartialFile.open(path);
    file.write(Buffer.from("new"));
    file.publish();
    assert.ok(lstatSync(path).isSymbolicLink());
    assert.equal(readFileSync(join(directory, "target"), "utf8"), "new");
  }));

test("PartialFile.open() removes what a killed writer left, and never writes into it", () =>
  inDirectory(async (path) => {
    writeFileSync(`${path}.partial`, "half of an archive");
    linkSync(`${path}.partial`, `${path}.held-by-someone`);
    using file = await PartialFile.open(path);
    file.write(Buffer.from("whole"));
    assert.equal(readFileSync(`${path}.partial`, "utf8"), "whole");
    file.publish();
    assert.equal(readFileSync(path, "utf8"), "whole");
    assert.equal(readFileSync(`${path}.held-by-someone`, "utf8"), "half of an archive");
  }));

test("PartialFile.open() waits for another writer of the same file, and stops waiting by its signal", () =>
  inDirectory(async (path) => {
    const first = await PartialFile.open(path);
    first.write(Buffer.from("first"));
    const stop = new AbortController();
    const stopped = PartialFile.open(path, { signal: stop.signal });
    stop.abort();
    await assert.rejects(stopped, (error) => ShaleError.is(error, "CANCELLED"));
    const waiting = PartialFile.open(path);
    first.publish();
    first[Symbol.dispose]();
    using second = await waiting;
    assert.equal(readFileSync(path, "utf8"), "first");
    second.write(Buffer.from("second"));
    second.publish();
    assert.equal(readFileSync(path, "utf8"), "second");
  }));

for (const kind of ["write", "datasync", "rename"] as const) {
  test(`PartialFile says that the disk is full when a ${kind} finds it so, and leaves the old file`, () =>
    inDirectory(async (path) => {
      writeFileSync(path, "old");
      const attempt = async () => {
        using file = await PartialFile.open(path);
        using _ = injectFault({ kind, path: /file\.partial/, errno: "ENOSPC" });
        file.write(Buffer.from("new"));
        file.publish();
      };
      await assert.rejects(attempt, (error: Error) => {
        assert.ok(ShaleError.is(error, "RESOURCE_EXHAUSTED"), String(error));
        assert.match(error.message, /^Cannot write .*file: the disk is full$/);
        return true;
      });
      assert.equal(readFileSync(path, "utf8"), "old");
      assert.equal(existsSync(`${path}.partial`), false);
    }));
}
