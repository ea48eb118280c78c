import assert from "node:assert/strict";
import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { errnoOf } from "../errors/index.ts";
import { readLink, readXattrs, realPath } from "./host-files.ts";
import { setXattr } from "./libc.ts";

function inDirectory(run: (directory: string) => void): void {
  const directory = mkdtempSync(join(tmpdir(), "shale-host-files-"));
  try {
    run(directory);
  } finally {
    rmSync(directory, { recursive: true });
  }
}

test("realPath() follows symlinks, and gives undefined where they end in nothing", () =>
  inDirectory((directory) => {
    writeFileSync(join(directory, "file"), "");
    symlinkSync("file", join(directory, "link"));
    symlinkSync("gone", join(directory, "dangling"));
    symlinkSync("circle", join(directory, "circle"));
    assert.equal(realPath(join(directory, "link")), realPath(join(directory, "file")));
    assert.equal(realPath(join(directory, "dangling")), undefined);
    assert.equal(realPath(join(directory, "file/below")), undefined);
    assert.throws(
      () => realPath(join(directory, "circle")),
      (error) => errnoOf(error) === "ELOOP",
    );
  }));

test("readLink() gives the target byte by byte", () =>
  inDirectory((directory) => {
    symlinkSync(Buffer.from("a/\xff\xc3\xa9", "latin1"), join(directory, "link"));
    assert.equal(readLink(join(directory, "link")), "a/\xff\xc3\xa9");
  }));

test("readXattrs() lists names and values sorted, and nothing where there are none", () =>
  inDirectory((directory) => {
    const path = join(directory, "file");
    writeFileSync(path, "");
    const own = () => readXattrs(path).filter(({ name }) => name.startsWith("user."));
    assert.deepEqual(own(), []);
    setXattr(path, "user.b", Buffer.from("\0\xff", "latin1"));
    setXattr(path, "user.a", Buffer.alloc(0));
    assert.deepEqual(own(), [
      { name: "user.a", value: "" },
      { name: "user.b", value: "\0\xff" },
    ]);
    assert.deepEqual(readXattrs("/proc/self/status"), []);
  }));
