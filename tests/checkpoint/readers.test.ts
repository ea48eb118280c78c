/** Other readers extract what shale writes: to the same trees, without a word. */
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { lstatSync, mkdirSync, readFileSync, realpathSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { before, describe, test } from "node:test";
import { makeMetadata, noise } from "../../src/checkpoint/testing/samples.ts";
import { describeTree, writeExtents } from "../../src/checkpoint/testing/trees.ts";
import { writeCheckpoint } from "../../src/checkpoint/write.ts";
import { mknod, setTimes, setXattr } from "../../src/sys/libc.ts";
import { needsRoot, withTemporaryDirectory } from "../../src/sys/testing/filesystems.ts";

/** node-tar is part of npm, which every machine of this project has. */
const NODE_TAR = `
const { extract } = require(process.argv[1]);
extract({ file: process.argv[2], cwd: process.argv[3], sync: true, preserveOwner: true, noChmod: false,
  processUmask: 0, strict: true, onwarn: (code, message) => { throw new Error(code + ": " + message); } });
`;
const PYTHON = `
import sys, tarfile, warnings
warnings.simplefilter("error")
with tarfile.open(sys.argv[1]) as tar: tar.extractall(sys.argv[2], numeric_owner=True)
`;

interface Reader {
  readonly name: string;
  readonly argv: (archive: string, target: string) => readonly string[];
  /** What this reader restores beyond names, content, modes, owners and whole seconds. */
  readonly exact: boolean;
  /** node-tar makes no devices and pipes. */
  readonly devices: boolean;
  /** bsdtar leaves the time of the directory that it extracts into. */
  readonly root: boolean;
}

function npmTar(): string {
  const npm = execFileSync("sh", ["-c", "command -v npm"]).toString().trim();
  return createRequire(realpathSync(npm)).resolve("tar");
}

const READERS: readonly Reader[] = [
  {
    name: "GNU tar",
    argv: (archive, target) => ["tar", "--xattrs", "--xattrs-include=*", "-C", target, "-xpf", archive],
    exact: true,
    devices: true,
    root: true,
  },
  {
    name: "bsdtar",
    argv: (archive, target) => ["bsdtar", "-C", target, "-xpf", archive],
    exact: true,
    devices: true,
    root: false,
  },
  {
    name: "Python's tarfile",
    argv: (archive, target) => ["python3", "-c", PYTHON, archive, target],
    exact: false,
    devices: true,
    root: true,
  },
  {
    name: "node-tar",
    argv: (archive, target) => [process.execPath, "-e", NODE_TAR, npmTar(), archive, target],
    exact: false,
    devices: false,
    root: true,
  },
];

function makeUpper(upper: string): void {
  mkdirSync(join(upper, "etc/sub"), { recursive: true });
  writeFileSync(join(upper, "etc/small"), "small");
  writeFileSync(join(upper, "etc/exact"), noise(16_384));
  writeFileSync(join(upper, "large"), noise(300_001));
  writeFileSync(join(upper, "etc/sub/empty"), "");
  writeFileSync(join(upper, "n".repeat(180)), noise(20_000));
  writeExtents(join(upper, "sparse"), [20_000, 400_000, 20_000], 1);
  execFileSync("ln", ["large", "hard"], { cwd: upper });
  execFileSync("ln", ["-s", "etc/small", "soft"], { cwd: upper });
  execFileSync("chown", ["1000:4000000", join(upper, "etc/small")]);
  execFileSync("chmod", ["4755", join(upper, "large")]);
  setXattr(join(upper, "etc/exact"), "user.test", Buffer.from("value"));
  for (const path of ["etc/small", "etc/exact", "etc/sub", "large", "soft", "sparse"]) {
    const time = { seconds: 1_700_000_000, nanoseconds: 123_456_789 };
    setTimes(join(upper, path), time, time);
  }
}

/** Without what a reader can't restore. */
function comparable(tree: string, { exact, root }: Reader): string[] {
  const lines = describeTree(tree, { xattrs: exact });
  if (!root) lines[0] = lines[0]!.replace(/ \d{19} /, " ");
  const seconds = lines.map((line) => (exact ? line : line.replace(/ (\d+)\d{9} /, " $1 ")));
  // Times of directories and symlinks are not everybody's concern.
  return exact ? seconds : seconds.map((line) => (/ (4|12)\d{4} /.test(line) ? line.replace(/ \d{9,} /, " ") : line));
}

describe("an archive of shale's is read by", needsRoot, () => {
  before(() => npmTar());
  for (const reader of READERS) {
    test(reader.name, async () => {
      await withTemporaryDirectory(async (directory) => {
        const upper = join(directory, "upper");
        mkdirSync(upper);
        makeUpper(upper);
        if (reader.devices) mknod(join(upper, "null"), 0o020000 | 0o640, 1, 3);
        if (reader.devices) mknod(join(upper, "pipe"), 0o010000 | 0o600, 0, 0);
        const metadata = makeMetadata(join(directory, "meta"));
        const archive = join(directory, "archive.tar");
        await writeCheckpoint({ metadata, rootfsDiff: upper }, { output: archive, alignment: 4096, writer: "test" });
        const extract = (from: string, name: string) => {
          const target = join(directory, name);
          mkdirSync(target);
          const [command, ...args] = reader.argv(from, target);
          const { status, stderr, stdout } = spawnSync(command!, args, { encoding: "utf8" });
          assert.deepEqual([status, stderr, stdout], [0, "", ""]);
          return target;
        };
        const outer = extract(archive, "outer");
        const pages = readFileSync(join(metadata, "checkpoint/pages-1.img"));
        assert.ok(readFileSync(join(outer, "checkpoint/pages-1.img")).equals(pages));
        assert.equal(lstatSync(join(outer, "checkpoint/pages-1.img")).mode & 0o777, 0o600);
        const inner = extract(join(outer, "rootfs-diff.tar"), "inner");
        assert.deepEqual(comparable(inner, reader), comparable(upper, reader));
      });
    });
  }

  for (const [compression, command] of [
    ["zstd", ["zstd", "-dq"]],
    ["gzip", ["gzip", "-d"]],
  ] as const) {
    test(`${command[0]}, when it is compressed, and is the plain one then`, async () => {
      await withTemporaryDirectory(async (directory) => {
        const upper = join(directory, "upper");
        mkdirSync(upper);
        makeUpper(upper);
        writeFileSync(join(upper, "more"), noise(5_000_000));
        const sources = { metadata: makeMetadata(join(directory, "meta")), rootfsDiff: upper };
        const options = { alignment: 4096, writer: "test", digestData: true };
        await writeCheckpoint(sources, { ...options, output: join(directory, "plain") });
        await writeCheckpoint(sources, { ...options, output: join(directory, "packed"), compression });
        const packed = readFileSync(join(directory, "packed"));
        const plain = execFileSync(command[0], command.slice(1), { input: packed, maxBuffer: 1 << 30 });
        assert.ok(plain.equals(readFileSync(join(directory, "plain"))));
      });
    });
  }
});
