/** The commands as a user types them: files, pipes, JSON, what is refused. */
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { makeMetadata, noise } from "../../src/checkpoint/testing/samples.ts";
import { describeTree } from "../../src/checkpoint/testing/trees.ts";
import { needsRoot, withTemporaryDirectory } from "../../src/sys/testing/filesystems.ts";

const MAIN = join(import.meta.dirname, "../../src/cli/main.ts");
const NODE = [process.execPath, "--disable-warning=ExperimentalWarning", MAIN];

function shale(args: readonly string[], options: { readonly cwd?: string; readonly env?: NodeJS.ProcessEnv } = {}) {
  const { status, stdout, stderr } = spawnSync(NODE[0]!, [...NODE.slice(1), ...args], {
    encoding: "utf8",
    cwd: options.cwd,
    env: { ...process.env, ...options.env },
  });
  return { status, stdout, stderr };
}

function ok(args: readonly string[], options: Parameters<typeof shale>[1] = {}): string {
  const { status, stdout, stderr } = shale(args, options);
  assert.equal(status, 0, stderr);
  return stdout;
}

function makeSources(directory: string): void {
  makeMetadata(join(directory, "meta"));
  mkdirSync(join(directory, "upper/etc"), { recursive: true });
  writeFileSync(join(directory, "upper/etc/conf"), "changed");
  writeFileSync(join(directory, "upper/large"), noise(100_000));
  mkdirSync(join(directory, "data"));
  writeFileSync(join(directory, "data/file"), "data");
}

const SOURCES = ["--meta", "meta", "--rootfs-diff", "upper", "--volume", "vol=data"];
const TARGETS = ["--upper", "out/upper", "--bundle", "out/bundle", "--volume", "vol=out/data"];

describe("shale checkpoint", needsRoot, () => {
  test("write and restore, by a file", async () => {
    await withTemporaryDirectory((directory) => {
      makeSources(directory);
      mkdirSync(join(directory, "out"));
      const cwd = directory;
      assert.match(ok(["checkpoint", "write", "-o", "a.tar", ...SOURCES], { cwd }), /^a\.tar: \d+ kB, \d+ files; /);
      assert.equal(statSync(join(directory, "a.tar")).mode & 0o777, 0o600);
      const result = JSON.parse(ok(["checkpoint", "restore", "a.tar", ...TARGETS, "--json"], { cwd }));
      assert.equal(result.container, "c0ffee");
      assert.deepEqual(result.volumes, ["vol"]);
      assert.deepEqual(describeTree(join(directory, "out/upper")), describeTree(join(directory, "upper")));
      assert.equal(readFileSync(join(directory, "out/data/file"), "utf8"), "data");
      const again = shale(["checkpoint", "restore", "a.tar", ...TARGETS], { cwd });
      assert.equal(again.status, 1);
      assert.match(again.stderr, /it is there and not empty/);
    });
  });

  test("write and restore, through pipes and any compressor", async () => {
    await withTemporaryDirectory((directory) => {
      makeSources(directory);
      const quoted = NODE.map((word) => `'${word}'`).join(" ");
      for (const [compress, filter] of [
        ["none", "cat"],
        ["none", "xz -0"],
        ["none", "bzip2 -1"],
        ["zstd", "cat"],
        ["gzip", "cat"],
      ]) {
        execFileSync("rm", ["-rf", join(directory, "out")]);
        mkdirSync(join(directory, "out"));
        const write = `${quoted} checkpoint write -o - --compress ${compress} ${SOURCES.join(" ")}`;
        const restore = `${quoted} checkpoint restore - ${TARGETS.join(" ")}`;
        execFileSync("bash", ["-o", "pipefail", "-ec", `${write} | ${filter} | ${restore}`], { cwd: directory });
        assert.deepEqual(describeTree(join(directory, "out/upper")), describeTree(join(directory, "upper")), filter);
      }
    });
  });

  test("takes an exported tar, and aligns what is in it", async () => {
    await withTemporaryDirectory((directory) => {
      makeSources(directory);
      const cwd = directory;
      ok(["checkpoint", "write", "-o", "first.tar", "--align", "512", ...SOURCES], { cwd });
      ok(["checkpoint", "write", "-o", "second.tar", "--meta", "first.tar", "--rootfs-diff", "upper"], { cwd });
      const list = execFileSync("tar", ["-tf", "second.tar"], { cwd, encoding: "utf8" });
      assert.deepEqual(list.trim().split("\n"), [
        ...["config.dump", "spec.dump", "network.status", "checkpoint/", "checkpoint/inventory.img"],
        ...["checkpoint/pages-1.img", "volumes/vol.tar", "rootfs-diff.tar", "shale.json"],
      ]);
      mkdirSync(join(directory, "out"));
      ok(["checkpoint", "restore", "second.tar", ...TARGETS], { cwd });
      assert.equal(readFileSync(join(directory, "out/data/file"), "utf8"), "data");
      execFileSync("gzip", ["-k", "first.tar"], { cwd });
      const packed = shale(["checkpoint", "write", "-o", "x.tar", "--meta", "first.tar.gz"], { cwd });
      assert.match(packed.stderr, /compressed with gzip[\s\S]*--compress=none/);
    });
  });

  for (const [args, says] of [
    [["write", "-o", "x"], /--meta is missing/],
    [["write", "--meta", "meta"], /--output is missing/],
    [["write", "-o", "x", "--meta", "meta", "--align", "big"], /big is no size/],
    [["write", "-o", "x", "--meta", "meta", "--volume", "data"], /NAME=DIR/],
    [["restore", "x"], /no place for it/],
    [["restore", "x", "--upper", "u", "--run", "sh"], /no runtime/],
    [["restore", "x", "--bundle", "b", "--run", "crun"], /--run needs/],
    [["save", "c"], /--output is missing/],
  ] as const) {
    test(`${args.join(" ")} is a mistake on the command line`, () => {
      const { status, stderr } = shale(["checkpoint", ...args]);
      assert.equal(status, 2, stderr);
      assert.match(stderr, says);
    });
  }
});

/** Programs that answer as the engines do; the real ones are in podman.lab.ts. */
function makeEngine(directory: string, name: string, script: string): string {
  const path = join(directory, name);
  writeFileSync(path, `#!/bin/sh\nset -e\necho "$0 $*" >> '${directory}/calls'\n${script}`);
  chmodSync(path, 0o755);
  return path;
}

/** Finds --image-path, and writes an image there. */
const DUMP = `while [ "$1" != --image-path ]; do shift; done; echo image > "$2/inventory.img"; head -c 50000 /dev/zero | tr '\\0' x > "$2/pages-1.img"`;

describe("shale checkpoint save", needsRoot, () => {
  test("asks ctr for the overlay of a containerd container, and writes its metadata", async () => {
    await withTemporaryDirectory((directory) => {
      makeSources(directory);
      mkdirSync(join(directory, "lower"));
      const info = {
        ID: "web",
        Image: "img",
        Runtime: { Name: "io.containerd.runc.v2" },
        SnapshotKey: "key",
        Snapshotter: "native",
        Spec: { root: { path: "rootfs" } },
      };
      const program = makeEngine(
        directory,
        "ctr",
        `case "$*" in
        *"containers info web"*) echo '${JSON.stringify(info)}' ;;
        *"tasks ls"*) printf 'TASK PID STATUS\\nweb 12 RUNNING\\n' ;;
        *"snapshots --snapshotter native mounts / key"*) echo "mount -t overlay overlay / -o index=off,workdir=/w,upperdir=${directory}/upper,lowerdir=${directory}/lower:${directory}/lower" ;;
        *"tasks checkpoint --exit"*) ${DUMP} ;;
        *) echo "container not found" >&2; exit 1 ;;
        esac`,
      );
      const archive = join(directory, "web.tar");
      const save = [
        "checkpoint",
        "save",
        "web",
        "-o",
        archive,
        "--engine",
        "containerd",
        "--program",
        program,
        "-n",
        "k8s.io",
      ];
      ok(save);
      const list = execFileSync("tar", ["-tf", archive], { encoding: "utf8" }).trim().split("\n");
      assert.deepEqual(list, [
        ...["config.dump", "spec.dump", "checkpoint/", "checkpoint/inventory.img", "checkpoint/pages-1.img"],
        ...["rootfs-diff.tar", "shale.json"],
      ]);
      const config = JSON.parse(execFileSync("tar", ["-xOf", archive, "config.dump"], { encoding: "utf8" }));
      assert.deepEqual([config.id, config.rootfsImageName], ["web", "img"]);
      assert.match(readFileSync(join(directory, "calls"), "utf8"), /-n k8s\.io tasks checkpoint --exit/);
      assert.deepEqual(
        readdirSync(directory).filter((name) => name.startsWith(".")),
        [],
      );
      const none = shale(["checkpoint", "save", "none", "-o", archive, "--engine", "containerd", "--program", program]);
      assert.match(none.stderr, /Cannot find container none: container not found/);
    });
  });

  test("keeps the images of a container that has ended when they can't be written", async () => {
    await withTemporaryDirectory((directory) => {
      makeSources(directory);
      const info = { ID: "web", SnapshotKey: "key", Snapshotter: "s" };
      const program = makeEngine(
        directory,
        "ctr",
        `case "$*" in
        *"containers info"*) echo '${JSON.stringify(info)}' ;;
        *"tasks ls"*) echo "web 12 RUNNING" ;;
        *mounts*) echo "mount -t overlay overlay / -o upperdir=${directory}/missing,lowerdir=${directory}/data" ;;
        *) ${DUMP} ;;
        esac`,
      );
      const archive = join(directory, "web.tar");
      const { status, stderr } = shale([
        "checkpoint",
        "save",
        "web",
        "-o",
        archive,
        "--engine",
        "containerd",
        "--program",
        program,
      ]);
      assert.equal(status, 1);
      const images = /its images are in (\S+),/.exec(stderr)?.[1];
      assert.ok(images !== undefined && existsSync(join(images, "checkpoint/pages-1.img")), stderr);
      assert.equal(statSync(images).mode & 0o777, 0o700);
      assert.ok(!existsSync(archive));
    });
  });

  test("says that a container does not run, or that there is no such engine, before anything is done", async () => {
    await withTemporaryDirectory((directory) => {
      const archive = join(directory, "web.tar");
      const podman = makeEngine(directory, "podman", `echo '[{"Id":"x","State":{"Running":false}}]'`);
      const stopped = shale(["checkpoint", "save", "web", "-o", archive, "--program", podman]);
      assert.match(stopped.stderr, /Cannot checkpoint web: it is not running/);
      const none = shale(["checkpoint", "save", "web", "-o", archive, "--program", join(directory, "none")]);
      assert.match(none.stderr, /Cannot run .*none/);
      const runc = makeEngine(directory, "runc", `echo '{"status":"running","bundle":"${directory}"}'`);
      writeFileSync(join(directory, "config.json"), '{"root":{"path":"/"}}');
      const root = shale(["checkpoint", "save", "web", "-o", archive, "--engine", "runc", "--program", runc]);
      assert.match(root.stderr, /is no overlay mount|no overlay with an upper directory/);
      assert.deepEqual(readdirSync(directory).sort(), ["calls", "config.json", "podman", "runc"]);
    });
  });
});
