/**
 * Changes that a real overlay recorded, written and restored: by shale into a new upper directory, and as podman does it, by
 * unpacking into a copy of the image and removing what deleted.files says. Each must look as the container did.
 */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { mountOverlay, unmount } from "../../sys/index.ts";
import { getXattr, mknod } from "../../sys/libc.ts";
import { needsRoot, withLoopFilesystem } from "../../sys/testing/filesystems.ts";
import { openArchive } from "../archive/index.ts";
import { restoreCheckpoint } from "../restore.ts";
import { makeMetadata } from "../testing/samples.ts";
import { describeTree } from "../testing/trees.ts";
import { writeCheckpoint } from "../write.ts";

interface Case {
  readonly name: string;
  /** Changes, made in the container's root. */
  readonly script: string;
  readonly options?: Readonly<Record<string, string | true>>;
  /** podman leaves the root directory as it is. */
  readonly shaleOnly?: true;
}

const CASES: readonly Case[] = [
  { name: "a changed file and its attributes", script: "echo new > etc/conf; chmod 4711 bin/tool; chown 5:6 etc/conf" },
  { name: "a removed file", script: "rm etc/conf" },
  { name: "a removed directory", script: "rm -r usr" },
  { name: "a directory removed and made again", script: "rm -r usr; mkdir usr; echo x > usr/new" },
  {
    name: "the same, with names of before",
    script: "rm -r usr; mkdir -p usr/share/doc; echo x > usr/share/doc/readme",
  },
  { name: "a directory in place of a file", script: "rm etc/conf; mkdir etc/conf; echo x > etc/conf/x" },
  { name: "a file in place of a directory", script: "rm -r usr/share; echo x > usr/share" },
  { name: "a symlink in place of a directory", script: "rm -r usr/share; ln -s /etc usr/share" },
  { name: "a directory that was only changed", script: "chmod 700 usr/share; chown 7:8 usr/share" },
  { name: "a new directory with what is in it", script: "mkdir -p opt/a/b; echo x > opt/a/b/c" },
  { name: "a renamed directory, copied", script: "mkdir new; cp -a usr/share new/share; rm -r usr/share" },
  { name: "hard links of image files", script: "ln bin/tool bin/tool2; echo more >> bin/tool" },
  { name: "a file that was only renamed", script: "mv etc/conf etc/conf2" },
  {
    name: "changed attributes of a file, without its data (metacopy)",
    script: "chmod 600 usr/share/big; chown 9:9 usr/share/big",
    options: { metacopy: "on" },
  },
  {
    name: "the same, renamed",
    script: "chmod 600 usr/share/big; mv usr/share/big opt-big",
    options: { metacopy: "on" },
  },
  { name: "a changed root directory", script: "chmod 711 .", shaleOnly: true },
];

function makeImage(lower: string): void {
  for (const each of ["etc", "bin", "usr/share/doc"]) fs.mkdirSync(join(lower, each), { recursive: true });
  fs.writeFileSync(join(lower, "etc/conf"), "image\n");
  fs.writeFileSync(join(lower, "bin/tool"), "tool\n", { mode: 0o755 });
  fs.writeFileSync(join(lower, "usr/share/doc/readme"), "readme\n");
  fs.writeFileSync(join(lower, "usr/share/doc/other"), "other\n");
  fs.writeFileSync(join(lower, "usr/share/big"), Buffer.alloc(100_000, "big "));
  fs.chmodSync(join(lower, "usr"), 0o751);
}

/** The times of directories and the root's change with what is mounted and unpacked where. */
function view(tree: string): string[] {
  return describeTree(tree, { marks: false }).map((line) =>
    / 4\d{4} /.test(line) ? line.replace(/ \d{19} /, " ") : line,
  );
}

async function withOverlay(
  lower: readonly string[],
  place: (name: string) => string,
  names: readonly [string, string, string],
  options: Case["options"],
  use: (merged: string) => void | Promise<void>,
): Promise<void> {
  const [upper, work, target] = names.map(place) as [string, string, string];
  for (const path of [work, target]) fs.mkdirSync(path, { recursive: true });
  mountOverlay({ lower, upper, work, target, ...(options && { options }) });
  try {
    await use(target);
  } finally {
    unmount(target);
  }
}

/**
 * As libpod's CRApplyRootFsDiffTar and CRRemoveDeletedFiles do it: what is in the way goes, unless both are directories; the
 * root itself stays as it is; deletions come last.
 */
const PODMAN = `
import json, os, shutil, sys, tarfile
archive, root = sys.argv[1:]
with tarfile.open(archive) as outer:
    with tarfile.open(fileobj=outer.extractfile("rootfs-diff.tar")) as tar:
        directories = []
        for member in tar:
            path = os.path.join(root, member.name)
            if os.path.normpath(member.name) == ".": continue
            if os.path.lexists(path) and not (member.isdir() and os.path.isdir(path) and not os.path.islink(path)):
                shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.remove(path)
            tar.extract(member, root, numeric_owner=True)
    if "deleted.files" in outer.getnames():
        for path in json.load(outer.extractfile("deleted.files")):
            path = root + path
            if os.path.isdir(path) and not os.path.islink(path): shutil.rmtree(path)
            elif os.path.lexists(path): os.remove(path)
`;

/** Python's times are doubles, and its tarfile gives symlinks none. */
function asPython(lines: readonly string[]): string[] {
  return lines.map((line) => line.replace(/ (\d{10})\d{9} /, / 12\d{4} /.test(line) ? " " : " $1 "));
}

describe("the changes of an overlay", needsRoot, () => {
  for (const { name, script, options, shaleOnly } of CASES) {
    test(`are kept: ${name}`, async () => {
      await withLoopFilesystem("xfs", {}, async (directory) => {
        const place = (each: string) => join(directory, each);
        makeImage(place("lower"));
        // A second layer above, with a deletion and an opaque directory of its own.
        fs.mkdirSync(place("upper2"));
        await withOverlay([place("lower")], place, ["upper2", "work2", "merged2"], undefined, (root) => {
          execFileSync("sh", ["-ec", "rm usr/share/doc/other; mkdir -p var/log; echo l > var/log/l"], { cwd: root });
        });
        const lower = [place("upper2"), place("lower")];
        fs.mkdirSync(place("upper"));
        let expected: string[] = [];
        await withOverlay(lower, place, ["upper", "work", "merged"], options, (root) => {
          execFileSync("sh", ["-ec", script], { cwd: root });
          expected = view(root);
        });
        const sources = { metadata: makeMetadata(place("meta")), rootfsDiff: place("upper"), lower };
        const { notices } = await writeCheckpoint(sources, { output: place("archive"), writer: "test" });
        assert.deepEqual(notices, []);

        await using archive = await openArchive(place("archive"));
        await restoreCheckpoint(archive, { upper: place("restored"), lower });
        await withOverlay(lower, place, ["restored", "work3", "merged3"], undefined, (root) => {
          assert.deepEqual(view(root), expected, "by shale");
        });

        fs.mkdirSync(place("podman"));
        await withOverlay(lower, place, ["podman", "work4", "merged4"], undefined, (root) => {
          execFileSync("python3", ["-c", PODMAN, place("archive"), root]);
          if (shaleOnly) return;
          assert.deepEqual(asPython(view(root)), asPython(expected), "by podman");
        });
      });
    });
  }

  test("are kept exactly for shale's restore where the lower directories are not named, with a notice", async () => {
    await withLoopFilesystem("xfs", {}, async (directory) => {
      const place = (each: string) => join(directory, each);
      makeImage(place("lower"));
      fs.mkdirSync(place("upper"));
      await withOverlay([place("lower")], place, ["upper", "work", "merged"], undefined, (root) => {
        execFileSync("sh", ["-ec", "rm -r usr; mkdir usr; echo x > usr/new"], { cwd: root });
      });
      const sources = { metadata: makeMetadata(place("meta")), rootfsDiff: place("upper") };
      const { notices } = await writeCheckpoint(sources, { output: place("archive"), writer: "test" });
      assert.match(notices.join(), /1 directories .*--lower/);
      await using archive = await openArchive(place("archive"));
      await restoreCheckpoint(archive, { upper: place("restored") });
      assert.equal(getXattr(place("restored/usr"), "trusted.overlay.opaque").toString(), "y");
    });
  });

  test("are refused where a file has only metadata and the lower directories are not named", async () => {
    await withLoopFilesystem("xfs", {}, async (directory) => {
      const place = (each: string) => join(directory, each);
      makeImage(place("lower"));
      fs.mkdirSync(place("upper"));
      await withOverlay([place("lower")], place, ["upper", "work", "merged"], { metacopy: "on" }, (root) => {
        fs.chmodSync(join(root, "usr/share/big"), 0o600);
      });
      const sources = { metadata: makeMetadata(place("meta")), rootfsDiff: place("upper") };
      const writing = writeCheckpoint(sources, { output: place("archive"), writer: "test" });
      await assert.rejects(writing, { code: "FAILED_PRECONDITION", message: /usr\/share\/big.*metacopy/ });
      assert.ok(!fs.existsSync(place("archive")));
    });
  });

  test("are refused where a directory was renamed by reference", async () => {
    await withLoopFilesystem("xfs", {}, async (directory) => {
      const place = (each: string) => join(directory, each);
      makeImage(place("lower"));
      fs.mkdirSync(place("upper"));
      await withOverlay([place("lower")], place, ["upper", "work", "merged"], { redirect_dir: "on" }, (root) => {
        fs.renameSync(join(root, "usr/share"), join(root, "usr/moved"));
      });
      const sources = { metadata: makeMetadata(place("meta")), rootfsDiff: place("upper"), lower: [place("lower")] };
      const writing = writeCheckpoint(sources, { output: place("archive"), writer: "test" });
      await assert.rejects(writing, { code: "UNIMPLEMENTED", message: /usr\/moved.*redirect_dir/ });
    });
  });

  test("leave out sockets, and say deletions that are not UTF-8 can't be written", async () => {
    await withLoopFilesystem("xfs", {}, async (directory) => {
      const place = (each: string) => join(directory, each);
      fs.mkdirSync(place("upper"));
      execFileSync("python3", [
        "-c",
        "import socket,sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])",
        place("upper/socket"),
      ]);
      const sources = { metadata: makeMetadata(place("meta")), rootfsDiff: place("upper") };
      await writeCheckpoint(sources, { output: place("archive"), writer: "test" });
      await using archive = await openArchive(place("archive"));
      await restoreCheckpoint(archive, { upper: place("restored") });
      assert.deepEqual(fs.readdirSync(place("restored")), []);
      mknod(Buffer.concat([Buffer.from(`${place("upper")}/`), Buffer.of(0xff)]), 0o020000, 0, 0);
      const writing = writeCheckpoint(sources, { output: place("archive2"), writer: "test" });
      await assert.rejects(writing, { code: "UNIMPLEMENTED", message: /deleted\.files/ });
    });
  });
});
