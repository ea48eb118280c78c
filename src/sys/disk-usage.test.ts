import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { linkSync, mkdirSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { type DiskUsage, diskUsage } from "./disk-usage.ts";
import { withTemporaryDirectory } from "./testing/filesystems.ts";

const du = (directory: string): DiskUsage => ({
  size: Number.parseInt(execFileSync("du", ["-s", "-B1", directory], { encoding: "utf8" }), 10),
  inodes: Number.parseInt(execFileSync("du", ["-s", "--inodes", directory], { encoding: "utf8" }), 10),
});

test("diskUsage() counts as du(1) does: blocks, holes, hard links, symlinks, odd names", () =>
  withTemporaryDirectory((directory) => {
    mkdirSync(join(directory, "a/b"), { recursive: true });
    writeFileSync(join(directory, "a/file"), Buffer.alloc(100_000, 1));
    linkSync(join(directory, "a/file"), join(directory, "a/b/link"));
    writeFileSync(join(directory, "hole"), "x");
    truncateSync(join(directory, "hole"), 1 << 30);
    symlinkSync("a/file", join(directory, "symlink"));
    writeFileSync(Buffer.concat([Buffer.from(`${directory}/`), Buffer.of(0xff, 0x80)]), "x");
    for (let at = 0; at < 200; at++) writeFileSync(join(directory, "a/b", String(at)), "x".repeat(at * 50));
    assert.deepEqual(diskUsage(directory), du(directory));
    assert.deepEqual(diskUsage(join(directory, "none")), { size: 0, inodes: 0 });
  }));

test("diskUsage() counts a tree that is deeper than a path can be long", () =>
  withTemporaryDirectory((directory) => {
    const name = "d".repeat(200);
    const script = `cd "$1"; i=0; while [ $i -lt 60 ]; do mkdir ${name}; echo > f; cd ${name}; i=$((i+1)); done`;
    assert.equal(spawnSync("sh", ["-c", script, "sh", directory]).status, 0);
    assert.deepEqual(diskUsage(directory), du(directory));
    spawnSync("rm", ["-rf", join(directory, name)]);
  }));
