import assert from "node:assert/strict";
import {
  chmodSync,
  linkSync,
  lutimesSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { HostFiles } from "./host-files.ts";

/** A tree like a host's, with usr merged; its path is given, and paths in results are made relative to it. */
function onHost(run: (root: string, namesOf: (files: HostFiles) => string[]) => void): void {
  const root = mkdtempSync(join(tmpdir(), "shale-host-"));
  try {
    chmodSync(root, 0o755);
    for (const path of ["usr", "usr/bin", "usr/lib", "usr/share", "usr/share/a", "usr/share/z"]) {
      mkdirSync(join(root, path));
    }
    writeFileSync(join(root, "usr/bin/dash"), "program");
    symlinkSync("dash", join(root, "usr/bin/sh"));
    symlinkSync("usr/bin", join(root, "bin"));
    const prefix = `${root.slice(1)}/`;
    run(root, (files) =>
      [...files.entries.keys()].filter((p) => p.startsWith(prefix)).map((p) => p.slice(prefix.length)),
    );
  } finally {
    rmSync(root, { recursive: true });
  }
}

test("HostFiles.addFile() adds the symlinks and directories on the way, in an order that a tar can have", () =>
  onHost((root, namesOf) => {
    const files = new HostFiles();
    assert.equal(files.addFile(join(root, "bin/sh")), join(root, "usr/bin/dash"));
    assert.deepEqual(namesOf(files), ["bin", "usr", "usr/bin", "usr/bin/sh", "usr/bin/dash"]);
    assert.equal(files.addFile(join(root, "bin/../bin/sh")), join(root, "usr/bin/dash"));
    assert.equal(files.files, 1);
    assert.equal(files.addFile(join(root, "bin/none")), undefined);
    assert.equal(files.skipped, 0);
  }));

test("HostFiles.addFile() gives up on a circle of symlinks", () =>
  onHost((root) => {
    symlinkSync("two", join(root, "one"));
    symlinkSync("one", join(root, "two"));
    assert.equal(new HostFiles().addFile(join(root, "one")), undefined);
  }));

test("HostFiles takes only what everyone may read, and counts the rest", () =>
  onHost((root, namesOf) => {
    const share = join(root, "usr/share");
    writeFileSync(join(share, "a/private"), "x", { mode: 0o640 });
    writeFileSync(join(share, "a/public"), "xyz", { mode: 0o644 });
    mkdirSync(join(share, "hidden"), { mode: 0o750 });
    writeFileSync(join(share, "hidden/file"), "x");
    writeFileSync(Buffer.from(`${share}/z/\xff`, "latin1"), "x");
    const files = new HostFiles();
    files.addTree(share, { files: 100, bytes: 1e6 });
    assert.deepEqual(namesOf(files), ["usr", "usr/share", "usr/share/a", "usr/share/z", "usr/share/a/public"]);
    assert.deepEqual([files.files, files.bytes, files.skipped], [1, 3, 3]);
  }));

test("HostFiles keeps hard links, link targets and times before the epoch to the nanosecond", () =>
  onHost((root) => {
    const [a, b, link] = [join(root, "usr/share/a/a"), join(root, "usr/share/a/b"), join(root, "usr/share/a/l")];
    writeFileSync(a, "content");
    utimesSync(a, new Date(-1500), new Date(-1500)); // a negative number would mean now
    linkSync(a, b);
    symlinkSync("../nowhere", link);
    lutimesSync(link, 7, 7);
    const files = new HostFiles();
    files.addTree(join(root, "usr/share/a"), { files: 100, bytes: 1e6 });
    const get = (path: string) => files.entries.get(path.slice(1));
    assert.deepEqual([get(a)?.mtimeSeconds, get(a)?.mtimeNanoseconds], [-2, 500_000_000]);
    assert.equal(Buffer.from(get(a)!.content!()).toString(), "content");
    assert.deepEqual([get(b)?.type, get(b)?.linkTarget, get(b)?.content], ["hardlink", a.slice(1), undefined]);
    assert.deepEqual([get(link)?.type, get(link)?.linkTarget, get(link)?.mtimeSeconds], ["symlink", "../nowhere", 7]);
  }));

test("HostFiles.addTree() stops at its budget, and leaves out what the layer below has except directories", () =>
  onHost((root, namesOf) => {
    const share = join(root, "usr/share");
    for (let i = 0; i < 9; i++) writeFileSync(join(share, `z/${i}`), "12345");
    const below = new HostFiles();
    below.addFile(join(share, "z/0"));
    const files = new HostFiles(below);
    files.addTree(share, { files: 2, bytes: 1e6 });
    assert.deepEqual(namesOf(files), [
      "usr",
      "usr/share",
      "usr/share/a",
      "usr/share/z",
      "usr/share/z/1",
      "usr/share/z/2",
    ]);
    files.addTree(share, { files: 100, bytes: 20 });
    assert.deepEqual([files.files, files.bytes], [4, 20]);
    files.addTree(join(root, "none"), { files: 100, bytes: 1e6 });
    assert.equal(files.files, 4);
  }));
