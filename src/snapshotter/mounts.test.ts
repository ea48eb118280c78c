/** What containers see: mounts as a client performs them, whatever a chain is made of, and whatever became of our mounts. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { describe, test } from "node:test";
import { collect, type Files, noise } from "../store/testing/fixtures.ts";
import { unmount } from "../sys/index.ts";
import { VOLATILE_LABEL } from "./index.ts";
import { type Bench, mountsBelow, withBench } from "./testing/fixtures.ts";

/** Every path with what stat(1) says of it, and a sum of the files. */
function treeOf(directory: string): string {
  const script = `find . -printf '%P %y %m %U:%G %l\\n' | sort; find . -type f -print0 | sort -z | xargs -0 -r sha256sum`;
  return execFileSync("sh", ["-c", script], { cwd: directory, encoding: "utf8" });
}

const lowers = (bench: Bench, options: readonly string[]) =>
  options
    .find((option) => option.startsWith("lowerdir="))!
    .slice("lowerdir=".length)
    .split(":")
    .map((path) => path.slice(bench.root.length + 1));

const LAYERS: readonly Files[] = [
  {
    "./": { type: "directory", mode: 0o751, uid: 3, gid: 4 },
    "etc/": { type: "directory", mode: 0o755 },
    "etc/passwd": "root",
    "etc/gone": "x",
    "etc/.wh.never-there": "",
    "empty/.wh.never-there": "",
    "lib/": { type: "directory", mode: 0o755 },
    "lib/big": noise(70_000, "big"),
    "lib/old": "old",
  },
  { "etc/.wh.gone": "", "etc/new": "new", "bin/": { type: "directory", mode: 0o700 }, "bin/sh": noise(9000, "sh") },
  {
    "./": { type: "directory", mode: 0o711 },
    "lib/.wh..wh..opq": "",
    "lib/": { type: "directory", mode: 0o755 },
    "lib/only": "o",
  },
];

describe("mounts", () => {
  test("show the same tree merged and stacked, as layers, as directories and mixed", () =>
    withBench(async (bench) => {
      const trees = new Map<string, string>();
      const plain = (files: Files) => (directory: string) => {
        // What the walking differ writes: into the mount, where whiteouts are removals.
        for (const [path, what] of Object.entries(files)) {
          const place = join(directory, path);
          if (path.endsWith(".wh..wh..opq")) {
            for (const name of readdirSync(join(place, ".."))) rmSync(join(place, "..", name), { recursive: true });
          } else if (path.includes(".wh.")) {
            mkdirSync(join(place, ".."), { recursive: true });
            rmSync(place.replace(".wh.", ""), { recursive: true, force: true });
          } else if (typeof what === "string" || Buffer.isBuffer(what)) writeFileSync(place, what, { mode: 0o644 });
          else {
            mkdirSync(place, { recursive: true });
            chownSync(place, what.uid ?? 0, what.gid ?? 0);
            chmodSync(place, what.mode ?? 0o755);
          }
        }
      };
      for (const kinds of ["lll", "ppp", "lpl", "pll", "llp", "plp"]) {
        let parent = "";
        for (const [at, files] of LAYERS.entries()) {
          const name = `${kinds}-${at}`;
          if (kinds[at] === "l") await bench.commitLayer(name, parent, files);
          else await bench.commitPlain(name, parent, plain(files));
          parent = name;
        }
        for (const mode of ["merged", "stacked"] as const) {
          await bench.restart({ mode });
          for (const kind of ["prepare", "view"] as const) {
            const key = `${kinds} ${mode} ${kind}`;
            const mounts = await bench.snapshotter[kind](key, parent, {});
            trees.set(key, bench.mounted(mounts, treeOf));
          }
        }
      }
      const [expected] = trees.values();
      assert.match(expected!, /^ d 711 0:0 $/m);
      assert.match(expected!, /^lib\/only f/m);
      for (const [what, tree] of trees) assert.equal(tree, expected, what);
    }));

  test("of a merged chain stand on one mount, which all snapshots of it share", () =>
    withBench(async (bench) => {
      for (const [at, files] of LAYERS.entries()) await bench.commitLayer(`${at}`, at === 0 ? "" : `${at - 1}`, files);
      const seen = new Set<string>();
      for (let at = 0; at < 3; at++) {
        const [mount] = await bench.snapshotter.prepare(`c${at}`, "2", {});
        for (const lower of lowers(bench, mount!.options)) seen.add(lower);
      }
      assert.equal(seen.size, 1);
      await bench.snapshotter.cleanup();
      assert.equal(mountsBelow(join(bench.root, "mounts")).length, 1, "those of the unpacking are gone");
    }));

  test("of a view can't be written to, of an active snapshot always can", () =>
    withBench(async (bench) => {
      await bench.commitLayer("one", "", { a: "a" });
      await bench.commitLayer("two", "one", { b: "b" });
      for (const parent of ["", "one", "two"]) {
        const view = await bench.snapshotter.view(`view ${parent}`, parent, {});
        bench.mounted(view, (directory) =>
          assert.throws(() => writeFileSync(join(directory, "x"), ""), { code: "EROFS" }),
        );
        const active = await bench.snapshotter.prepare(`active ${parent}`, parent, {});
        bench.mounted(active, (directory) => writeFileSync(join(directory, "x"), ""));
      }
    }));

  test("with 130 layers are performed by mount(8), merged or stacked", () =>
    withBench(async (bench) => {
      for (let at = 0; at < 130; at++) {
        await bench.commitLayer(`${at}`, at === 0 ? "" : `${at - 1}`, { [`f${at}`]: `${at}` });
      }
      const merged = await bench.snapshotter.prepare("merged", "129", {});
      assert.equal(lowers(bench, merged[0]!.options).length, 1);
      bench.mounted(merged, (directory) => assert.equal(readdirSync(directory).length, 130));
      // containerd shortens what is longer than a page by changing its directory; mount(8) does not.
      const stacked = await bench.snapshotter.prepare("extract-stacked", "127", {});
      const paths = lowers(bench, stacked[0]!.options);
      assert.equal(paths.length, 128);
      assert.ok(paths.join(":").length < 4096 - 512);
    }));

  test("are made again when they are gone, the same list", () =>
    withBench(async (bench) => {
      await bench.commitLayer("one", "", { a: "a" });
      await bench.commitLayer("two", "one", { b: "b" });
      const active = await bench.snapshotter.prepare("a", "two", {});
      const view = await bench.snapshotter.view("v", "two", {});
      // As after a reboot: the directories are there, mounts are not; and one directory less.
      const gone = mountsBelow(join(bench.root, "mounts"));
      assert.ok(gone.length > 0);
      for (const path of gone) unmount(path);
      rmSync(gone[0]!, { recursive: true });
      await bench.restart();
      assert.deepEqual(await bench.snapshotter.mounts("a"), active);
      bench.mounted(active, (directory) => assert.deepEqual(readdirSync(directory).sort(), ["a", "b"]));
      assert.deepEqual(await bench.snapshotter.mounts("v"), view);
      bench.mounted(view, (directory) => assert.deepEqual(readdirSync(directory).sort(), ["a", "b"]));
    }));

  test("go on while a container runs, whatever is removed and cleaned up", () =>
    withBench(async (bench) => {
      await bench.commitLayer("one", "", { a: noise(100_000, "a") });
      await bench.commitLayer("two", "one", { b: "b" });
      const mounts = await bench.snapshotter.prepare("a", "two", {});
      await bench.mounted(mounts, async (directory) => {
        await bench.restart();
        for (const key of ["a", "two", "one"]) await bench.snapshotter.remove(key);
        await bench.snapshotter.cleanup();
        collect(bench.store);
        assert.deepEqual(readFileSync(join(directory, "a")), noise(100_000, "a"));
      });
    }));

  test("of a directory that a power cut took are there again, empty", () =>
    withBench(async (bench) => {
      await bench.commitLayer("one", "", { "./": { type: "directory", mode: 0o750 }, a: "a" });
      const mounts = await bench.snapshotter.prepare("a", "one", {});
      const id = readdirSync(join(bench.root, "snapshots")).at(-1)!;
      rmSync(join(bench.root, "snapshots", id), { recursive: true });
      assert.deepEqual(await bench.snapshotter.mounts("a"), mounts);
      bench.mounted(mounts, (directory) => {
        assert.deepEqual(readdirSync(directory), ["a"]);
        assert.equal(statSync(directory).mode & 0o7777, 0o750);
      });
    }));

  test("of a committed directory that is gone are DATA_LOSS, and it can be removed", () =>
    withBench(async (bench) => {
      await bench.commitPlain("plain", "", (directory) => writeFileSync(join(directory, "x"), ""));
      await bench.snapshotter.view("v", "plain", {});
      rmSync(join(bench.root, "snapshots/1"), { recursive: true });
      await assert.rejects(bench.snapshotter.mounts("v"), { code: "DATA_LOSS" });
      await assert.rejects(bench.snapshotter.prepare("a", "plain", {}), { code: "DATA_LOSS" });
      for (const key of ["v", "plain"]) await bench.snapshotter.remove(key);
      await bench.snapshotter.cleanup();
    }));

  test("of a directory that a power cut may have taken files from are DATA_LOSS, and it can be removed", () =>
    withBench(async (bench) => {
      await bench.commitPlain("plain", "", (directory) => writeFileSync(join(directory, "x"), ""));
      await bench.commitPlain("top", "plain", () => {});
      await bench.snapshotter.settled();
      {
        using database = new DatabaseSync(join(bench.root, "shale.db"));
        assert.equal(database.prepare("SELECT count(boot) AS n FROM snapshots").get()!.n, 0, "synced by now");
        database.exec("UPDATE snapshots SET boot = 'another' WHERE name = 'plain'");
      }
      for (const make of ["prepare", "view"] as const) {
        await assert.rejects(bench.snapshotter[make]("x", "top", {}), { code: "DATA_LOSS" });
      }
      for (const key of ["top", "plain"]) await bench.snapshotter.remove(key);
      await bench.snapshotter.cleanup();
    }));

  test("of a layer that was damaged are refused, and after a repair stand on its new files", () =>
    withBench(async (bench) => {
      const files = { a: noise(50_000, "a") };
      const diffId = await bench.commitLayer("one", "", files);
      const before = await bench.snapshotter.prepare("before", "one", {});
      {
        using database = new DatabaseSync(join(bench.root, "shale.db"));
        database.exec("UPDATE layers SET damage = 'test'");
      }
      await assert.rejects(bench.snapshotter.prepare("x", "one", {}), { code: "DATA_LOSS" });
      assert.deepEqual(await bench.snapshotter.mounts("before"), before);
      assert.equal(await bench.layer(files), diffId);
      const after = await bench.snapshotter.prepare("after", "one", {});
      assert.notDeepEqual(lowers(bench, after[0]!.options), lowers(bench, before[0]!.options));
      bench.mounted(after, (directory) => assert.deepEqual(readFileSync(join(directory, "a")), files.a));
    }));

  test("let a directory of a lower layer be renamed, and what stands on that sees it", () =>
    withBench(async (bench) => {
      await bench.commitLayer("one", "", { "dir/": "", "dir/file": "in the layer" });
      await bench.commitPlain("two", "one", (directory) => {
        renameSync(join(directory, "dir"), join(directory, "renamed"));
      });
      for (const make of ["prepare", "view"] as const) {
        bench.mounted(await bench.snapshotter[make](make, "two", {}), (directory) => {
          assert.deepEqual(readdirSync(directory), ["renamed"]);
          assert.equal(readFileSync(join(directory, "renamed/file"), "utf8"), "in the layer");
        });
      }
      await bench.restart({ convertPlain: true });
      await bench.snapshotter.settled();
      assert.ok(bench.events.some(({ kind }) => kind === "not-converted"));
    }));

  test("of the last layer are there before a container is", () =>
    withBench(async (bench) => {
      for (let at = 0; at < 4; at++) {
        await bench.commitLayer(`${at}`, at === 0 ? "" : `${at - 1}`, { [`f${at}`]: `${at}` });
      }
      await bench.snapshotter.settled();
      const merged = bench.events.flatMap((event) => (event.kind === "merged" ? [event.layers] : []));
      assert.equal(merged.at(-1), 4);
      const before = bench.events.length;
      await bench.snapshotter.prepare("container", "3", {});
      assert.equal(bench.events.length, before, "nothing had to be mounted");
    }));

  test("of a committed snapshot are FAILED_PRECONDITION, of an unknown one NOT_FOUND", () =>
    withBench(async ({ snapshotter, commitLayer }) => {
      await commitLayer("one", "", { a: "a" });
      await assert.rejects(snapshotter.mounts("one"), { code: "FAILED_PRECONDITION" });
      await assert.rejects(snapshotter.mounts("none"), { code: "NOT_FOUND" });
    }));
});

describe("a volatile snapshot", () => {
  test("is one by option or by label, and can be mounted again in the same boot", () =>
    withBench(
      async (bench) => {
        await bench.commitLayer("one", "", { a: "a" });
        const mounts = await bench.snapshotter.prepare("a", "one", {});
        assert.ok(mounts[0]!.options.includes("volatile"));
        const not = await bench.snapshotter.prepare("b", "one", { [VOLATILE_LABEL]: "false" });
        assert.ok(!not[0]!.options.includes("volatile"));
        bench.mounted(mounts, (directory) => writeFileSync(join(directory, "x"), "1"));
        assert.deepEqual(await bench.snapshotter.mounts("a"), mounts);
        bench.mounted(mounts, (directory) => assert.equal(readFileSync(join(directory, "x"), "utf8"), "1"));
        await bench.snapshotter.commit("done", "a", {});
        const view = await bench.snapshotter.view("v", "done", {});
        bench.mounted(view, (directory) => assert.ok(existsSync(join(directory, "x"))));
      },
      { volatile: true },
    ));
});

describe("id mappings", () => {
  const labels = {
    "containerd.io/snapshot/uidmapping": "0:100000:1000,1000:200000:64536",
    "containerd.io/snapshot/gidmapping": "0:300000:65536",
  };

  test("show files of layers and of directories under other ids, and new ones as the host has them", () =>
    withBench(
      async (bench) => {
        await bench.commitLayer("one", "", {
          "./": { type: "directory", mode: 0o755 },
          root: { type: "file", uid: 0, gid: 0 },
          user: { type: "file", uid: 1001, gid: 7 },
        });
        await bench.commitPlain("two", "one", (directory) => {
          writeFileSync(join(directory, "plain"), "");
          chownSync(join(directory, "plain"), 5, 6);
        });
        await bench.commitLayer("three", "two", { top: "top" });
        const mounts = await bench.snapshotter.prepare("a", "three", labels);
        const look = (directory: string) =>
          ["", "root", "user", "plain", "top"].map((name) => {
            const { uid, gid } = statSync(join(directory, name));
            return `${name} ${uid}:${gid}`;
          });
        const expected = ["100000:300000", "100000:300000", "200001:300007", "100005:300006", "100000:300000"];
        bench.mounted(mounts, (directory) => {
          assert.deepEqual(
            look(directory).map((line) => line.split(" ")[1]),
            expected,
          );
          chmodSync(join(directory, "user"), 0o600); // copied up
          assert.equal(statSync(join(directory, "user")).uid, 200_001);
        });
        const without = await bench.snapshotter.prepare("b", "three", {});
        bench.mounted(without, (directory) => assert.equal(statSync(join(directory, "user")).uid, 1001));
        for (const path of mountsBelow(join(bench.root, "mounts"))) unmount(path, { lazy: true });
        assert.deepEqual(await bench.snapshotter.mounts("a"), mounts);
        bench.mounted(mounts, (directory) => assert.equal(statSync(join(directory, "plain")).uid, 100_005));
        const [empty] = await bench.snapshotter.prepare("empty", "", labels);
        assert.equal(statSync(empty!.source).uid, 100_000);
        for (const key of ["a", "b"]) await bench.snapshotter.remove(key);
        await bench.snapshotter.cleanup();
        assert.deepEqual(mountsBelow(bench.root), []);
      },
      { remapIds: true },
    ));

  test("are UNIMPLEMENTED when switched off, INVALID_ARGUMENT when they can't be meant", () =>
    withBench(async (bench) => {
      await assert.rejects(bench.snapshotter.prepare("a", "", labels), { code: "UNIMPLEMENTED" });
      await bench.restart({ remapIds: true });
      const uid = "containerd.io/snapshot/uidmapping";
      for (const value of ["", "0:1", "0:1:0", "a:b:c", "0:4294967295:2", Array(400).fill("0:0:1").join(",")]) {
        const bad = { ...labels, [uid]: value };
        await assert.rejects(bench.snapshotter.prepare("a", "", bad), { code: "INVALID_ARGUMENT" }, value.slice(0, 20));
      }
      await assert.rejects(bench.snapshotter.prepare("a", "", { [uid]: "0:1:1" }), { code: "INVALID_ARGUMENT" });
    }));
});

describe("plain snapshots", () => {
  const fill = (directory: string) => {
    writeFileSync(join(directory, "file"), noise(20_000, "file"));
    execFileSync(
      "sh",
      [
        "-c",
        `ln file link; truncate -s 10M sparse; echo x >> sparse; mknod null c 1 3; mkfifo pipe; mkdir -m 1777 tmp
         touch -d '1969-01-01 00:00:00.123456789 UTC' old; touch -d '2020-02-02 02:02:02.987654321 UTC' new
         setfattr -n user.a -v b file; rm -f lib/old; rm -rf etc; mkdir etc; echo 1 > etc/one; chown 12:34 tmp`,
      ],
      { cwd: directory },
    );
    symlinkSync("file", join(directory, "symlink"));
    writeFileSync(Buffer.concat([Buffer.from(`${directory}/`), Buffer.of(0xff)]), "not UTF-8");
  };
  const describeTree = (directory: string) =>
    `${treeOf(directory)}${execFileSync("sh", ["-c", "find . -type d -printf '%P %T@\\n' -o -printf '%P %n %T@ %s\\n' | LC_ALL=C grep -av '^ ' | sort; getfattr -d file; stat -c '%n %t:%T' null"], { cwd: directory, encoding: "utf8" })}`;

  test("become layers when that is wanted, with everything in them; mounts given out before stay", () =>
    withBench(
      async (bench) => {
        await bench.commitLayer("one", "", LAYERS[0]!);
        await bench.commitPlain("two", "one", fill);
        const before = await bench.snapshotter.prepare("before", "two", {});
        const expected = bench.mounted(before, describeTree);
        await bench.snapshotter.settled();
        assert.ok(bench.events.some(({ kind }) => kind === "converted"));
        const after = await bench.snapshotter.view("after", "two", {});
        assert.deepEqual(await bench.snapshotter.mounts("before"), before);
        assert.equal(bench.mounted(after, describeTree), expected);
        assert.equal(bench.mounted(before, describeTree), expected);
        await bench.snapshotter.cleanup();
        assert.equal(bench.mounted(before, describeTree), expected, "its directory is in use");
        await bench.snapshotter.remove("before");
        await bench.snapshotter.cleanup();
        assert.deepEqual(readdirSync(join(bench.root, "snapshots")), []);
        collect(bench.store);
        assert.equal(bench.mounted(after, describeTree), expected);
      },
      { convertPlain: true },
    ));

  test("that a layer can't hold stay directories, and say why", () =>
    withBench(
      async (bench) => {
        await bench.commitPlain("socket", "", (directory) => {
          execFileSync("python3", ["-c", "import socket; socket.socket(socket.AF_UNIX).bind('s')"], { cwd: directory });
        });
        await bench.commitPlain("whiteout", "", (directory) => writeFileSync(join(directory, ".wh.x"), ""));
        await bench.snapshotter.settled();
        const why = bench.events.flatMap((event) => (event.kind === "not-converted" ? [event.why] : []));
        assert.equal(why.length, 2);
        const view = await bench.snapshotter.view("v", "whiteout", {});
        bench.mounted(view, (directory) => assert.deepEqual(readdirSync(directory), [".wh.x"]));
      },
      { convertPlain: true },
    ));

  test("that were not made into layers before are, by the next process", () =>
    withBench(async (bench) => {
      await bench.commitPlain("one", "", (directory) => writeFileSync(join(directory, "x"), "x"));
      await bench.restart({ convertPlain: true });
      await bench.snapshotter.settled();
      assert.equal(bench.store.listLayers().length, 1);
      collect(bench.store);
      assert.equal(bench.store.listLayers().length, 1, "a snapshot has it");
      const view = await bench.snapshotter.view("v", "one", {});
      bench.mounted(view, (directory) => assert.deepEqual(readdirSync(directory), ["x"]));
    }));
});
