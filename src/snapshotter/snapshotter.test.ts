/** containerd's contract, call by call: what its callers see. Mounts are in mounts.test.ts, crashes in crash.test.ts. */
import assert from "node:assert/strict";
import { existsSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { delay } from "../async/index.ts";
import { type ErrorCode, ShaleError } from "../errors/index.ts";
import { chainIdOf, type DiffId } from "../oci/index.ts";
import { collect, noise } from "../store/testing/fixtures.ts";
import { wallClockNs } from "../sys/index.ts";
import { withBench } from "./testing/fixtures.ts";
import type { RemoteLayers } from "./types.ts";

const REF = "containerd.io/snapshot.ref";

/** The code, and how containerd's own messages end. */
async function fails(code: ErrorCode, end: string, run: () => unknown): Promise<void> {
  await assert.rejects(
    async () => await run(),
    (error) => {
      assert.ok(ShaleError.is(error, code), `${error}`);
      assert.ok(error.message.endsWith(`: ${end}`), error.message);
      return true;
    },
  );
}

const names = (infos: Iterable<{ readonly name: string }>) => [...infos].map(({ name }) => name).sort();

describe("prepare() and view()", () => {
  test("make one key each, in one space with names; a second one of the key is ALREADY_EXISTS", () =>
    withBench(async ({ snapshotter }) => {
      await snapshotter.prepare("a", "", {});
      await fails("ALREADY_EXISTS", "already exists", () => snapshotter.prepare("a", "", {}));
      await fails("ALREADY_EXISTS", "already exists", () => snapshotter.view("a", "", {}));
      await snapshotter.commit("c", "a", {});
      await fails("ALREADY_EXISTS", "already exists", () => snapshotter.prepare("c", "", {}));
      await snapshotter.prepare("a", "c", {});
      assert.equal(snapshotter.stat("a").parent, "c");
    }));

  test("want a parent that is there and committed", () =>
    withBench(async ({ snapshotter }) => {
      await snapshotter.prepare("active", "", {});
      await snapshotter.view("view", "", {});
      for (const make of ["prepare", "view"] as const) {
        await fails("NOT_FOUND", "not found", () => snapshotter[make]("x", "none", {}));
        await fails("INVALID_ARGUMENT", "invalid argument", () => snapshotter[make]("x", "active", {}));
        await fails("INVALID_ARGUMENT", "invalid argument", () => snapshotter[make]("x", "view", {}));
      }
    }));

  test("keep labels as they come, and refuse those over the limits", () =>
    withBench(async ({ snapshotter }) => {
      const labels = { "containerd.io/gc.root": "x", "a.b/c": "", ["k".repeat(100)]: "v".repeat(3996), __proto: "p" };
      await snapshotter.prepare("a", "", labels);
      assert.deepEqual(snapshotter.stat("a").labels, labels);
      await fails("INVALID_ARGUMENT", "invalid argument", () => snapshotter.prepare("b", "", { k: "v".repeat(4096) }));
      await fails("INVALID_ARGUMENT", "invalid argument", () => snapshotter.prepare("b", "", { "": "v" }));
      await fails("INVALID_ARGUMENT", "invalid argument", () => snapshotter.prepare("", "", {}));
      await fails("INVALID_ARGUMENT", "invalid argument", () => snapshotter.prepare("k".repeat(5000), "", {}));
    }));

  test("have the time of the call, in nanoseconds, created and updated the same", () =>
    withBench(async ({ snapshotter }) => {
      const before = wallClockNs();
      await snapshotter.prepare("a", "", {});
      const { createdAt, updatedAt } = snapshotter.stat("a");
      assert.ok(before <= createdAt && createdAt <= wallClockNs());
      assert.equal(updatedAt, createdAt);
    }));

  test("do nothing when they are cancelled", () =>
    withBench(async ({ snapshotter, root }) => {
      const signal = AbortSignal.abort();
      for (const make of ["prepare", "view"] as const) {
        await assert.rejects(snapshotter[make]("a", "", {}, { signal }), { code: "CANCELLED" });
      }
      assert.deepEqual(names(snapshotter.list([])), []);
      assert.deepEqual(readdirSync(join(root, "snapshots")), []);
    }));

  test("with many at once for one key, make one", () =>
    withBench(async ({ snapshotter, commitLayer, root }) => {
      await commitLayer("base", "", { a: "a" });
      const made = await Promise.allSettled(Array.from({ length: 8 }, () => snapshotter.prepare("same", "base", {})));
      assert.equal(made.filter(({ status }) => status === "fulfilled").length, 1);
      await snapshotter.cleanup();
      assert.equal(readdirSync(join(root, "snapshots")).length, 1, "the directories of the others");
    }));
});

describe("commit()", () => {
  test("replaces the labels, keeps the parent, ends the key, begins anew in time", () =>
    withBench(async ({ snapshotter }) => {
      await snapshotter.prepare("a", "", { old: "1" });
      await snapshotter.commit("base", "a", {});
      await snapshotter.prepare("b", "base", { old: "1" });
      const prepared = snapshotter.stat("b").createdAt;
      await snapshotter.commit("top", "b", { new: "2" });
      const { createdAt, updatedAt, ...rest } = snapshotter.stat("top");
      assert.deepEqual(rest, { name: "top", parent: "base", kind: "committed", labels: { new: "2" } });
      assert.ok(createdAt > prepared && createdAt === updatedAt);
      await fails("NOT_FOUND", "not found", () => snapshotter.stat("b"));
    }));

  test("of a name in use leaves the active one as it was", () =>
    withBench(async ({ snapshotter, mounted }) => {
      await snapshotter.prepare("a", "", {});
      await snapshotter.commit("base", "a", {});
      const mounts = await snapshotter.prepare("b", "base", { l: "1" });
      await fails("ALREADY_EXISTS", "already exists", () => snapshotter.commit("base", "b", {}));
      await fails("ALREADY_EXISTS", "already exists", () => snapshotter.commit("b", "b", {}));
      assert.deepEqual(await snapshotter.mounts("b"), mounts);
      assert.deepEqual(snapshotter.stat("b").labels, { l: "1" });
      mounted(mounts, (directory) => writeFileSync(join(directory, "file"), "x"));
    }));

  test("wants an active one", () =>
    withBench(async ({ snapshotter }) => {
      await snapshotter.view("view", "", {});
      await snapshotter.prepare("a", "", {});
      await snapshotter.commit("base", "a", {});
      await fails("NOT_FOUND", "not found", () => snapshotter.commit("x", "none", {}));
      await fails("FAILED_PRECONDITION", "failed precondition", () => snapshotter.commit("x", "view", {}));
      await fails("FAILED_PRECONDITION", "failed precondition", () => snapshotter.commit("x", "base", {}));
    }));

  test("gives a parent to one that has none (containerd 2.2's parallel unpack)", () =>
    withBench(async ({ snapshotter }) => {
      for (const name of ["one", "two"]) {
        await snapshotter.prepare(`extract-${name}`, "", {});
        await snapshotter.commit(name, `extract-${name}`, {});
      }
      await snapshotter.prepare("a", "", {});
      await fails("NOT_FOUND", "not found", () => snapshotter.commit("x", "a", {}, { parent: "none" }));
      await snapshotter.prepare("active", "", {});
      await fails("FAILED_PRECONDITION", "failed precondition", () =>
        snapshotter.commit("x", "a", {}, { parent: "active" }),
      );
      await snapshotter.commit("top", "a", {}, { parent: "one" });
      assert.equal(snapshotter.stat("top").parent, "one");
      await snapshotter.prepare("b", "one", {});
      await fails("INVALID_ARGUMENT", "invalid argument", () => snapshotter.commit("x", "b", {}, { parent: "two" }));
      await snapshotter.commit("x", "b", {}, { parent: "one" });
      await fails("FAILED_PRECONDITION", "failed precondition", () => snapshotter.remove("one"));
    }));

  test("works while the snapshot is mounted, and again after that", () =>
    withBench(async ({ snapshotter, mounted }) => {
      const mounts = await snapshotter.prepare("a", "", {});
      await mounted(mounts, async (directory) => {
        writeFileSync(join(directory, "file"), "x");
        await snapshotter.commit("base", "a", {});
      });
      const view = await snapshotter.view("v", "base", {});
      mounted(view, (directory) => assert.deepEqual(readdirSync(directory), ["file"]));
    }));
});

describe("remove() and cleanup()", () => {
  test("refuse a parent, take children first, and leave nothing", () =>
    withBench(async ({ snapshotter, root, commitLayer, commitPlain, store }) => {
      await commitLayer("one", "", { a: "a" });
      await commitPlain("two", "one", (directory) => writeFileSync(join(directory, "b"), "b"));
      await snapshotter.prepare("active", "two", {});
      await snapshotter.view("view", "one", {});
      await fails("FAILED_PRECONDITION", "failed precondition", () => snapshotter.remove("two"));
      await fails("NOT_FOUND", "not found", () => snapshotter.remove("none"));
      for (const key of ["active", "view", "two", "one"]) await snapshotter.remove(key);
      await fails("NOT_FOUND", "not found", () => snapshotter.remove("one"));
      await snapshotter.cleanup();
      assert.deepEqual(readdirSync(join(root, "snapshots")), []);
      assert.deepEqual(readdirSync(join(root, "mounts")), []);
      collect(store);
      assert.deepEqual([readdirSync(join(root, "layers")), readdirSync(join(root, "blobs"))], [[], []]);
    }));

  test("remove what is half there: a directory that is gone, and more", () =>
    withBench(async ({ snapshotter, root }) => {
      const [mount] = await snapshotter.prepare("a", "", {});
      for (const name of readdirSync(join(root, "snapshots"))) {
        const { rmSync } = await import("node:fs");
        rmSync(join(root, "snapshots", name), { recursive: true });
      }
      assert.ok(mount);
      await snapshotter.remove("a");
      await snapshotter.cleanup();
      assert.deepEqual(names(snapshotter.list([])), []);
    }));

  test("a second cleanup at the same time waits for the first, and finds what came after it", () =>
    withBench(async ({ snapshotter, root }) => {
      for (let at = 0; at < 20; at++) {
        await snapshotter.prepare(`${at}`, "", {});
        await snapshotter.remove(`${at}`);
      }
      await Promise.all([snapshotter.cleanup(), snapshotter.cleanup()]);
      assert.deepEqual(readdirSync(join(root, "snapshots")), []);
    }));
});

describe("update()", () => {
  test("replaces all labels, or one by one, and says when", () =>
    withBench(async ({ snapshotter }) => {
      await snapshotter.prepare("a", "", { a: "1", "b.c": "2" });
      const { createdAt } = snapshotter.stat("a");
      const set = (labels: Record<string, string>, ...paths: string[]) =>
        snapshotter.update({ name: "a", labels }, paths);
      assert.deepEqual(set({ "b.c": "3", a: "9" }, "labels.b.c").labels, { a: "1", "b.c": "3" });
      assert.deepEqual(set({ d: "4", e: "5" }, "labels.d", "labels.e").labels, { a: "1", "b.c": "3", d: "4", e: "5" });
      assert.deepEqual(set({ d: "" }, "labels.d", "labels.a").labels, { "b.c": "3", e: "5" });
      assert.deepEqual(set({ x: "1" }, "labels").labels, { x: "1" });
      const { labels, updatedAt } = set({ y: "1" });
      assert.deepEqual(labels, { y: "1" });
      assert.ok(updatedAt > createdAt);
      assert.equal(snapshotter.stat("a").createdAt, createdAt);
    }));

  test("refuses every other field, and changes nothing then", () =>
    withBench(async ({ snapshotter }) => {
      await snapshotter.prepare("a", "", { a: "1" });
      const before = snapshotter.stat("a");
      for (const paths of [["name"], ["labels.a", "kind"], ["labels."], ["labels", "parent"], [""]]) {
        await fails("INVALID_ARGUMENT", "invalid argument", () => snapshotter.update({ name: "a", labels: {} }, paths));
      }
      await fails("INVALID_ARGUMENT", "invalid argument", () =>
        snapshotter.update({ name: "a", labels: { k: "v".repeat(5000) } }, []),
      );
      await fails("NOT_FOUND", "not found", () => snapshotter.update({ name: "b", labels: {} }, []));
      assert.deepEqual(snapshotter.stat("a"), before);
    }));
});

describe("list()", () => {
  test("answers with filters as containerd's does, and stat() works meanwhile", () =>
    withBench(async ({ snapshotter }) => {
      assert.deepEqual(names(snapshotter.list([])), []);
      await snapshotter.prepare("x", "", {});
      await snapshotter.commit("base", "x", { [REF]: "sha256:1" });
      await snapshotter.prepare("a", "base", { kind: "of" });
      await snapshotter.view("v", "base", { [REF]: "sha256:1" });
      assert.deepEqual(names(snapshotter.list([])), ["a", "base", "v"]);
      assert.deepEqual(names(snapshotter.list(["kind==active", "kind==committed"])), ["a", "base"]);
      assert.deepEqual(names(snapshotter.list([`labels."${REF}"==sha256:1,parent==""`])), ["base"]);
      assert.deepEqual(names(snapshotter.list([`labels."${REF}"==sha256:1`, "name==v"])), ["base", "v"]);
      assert.deepEqual(names(snapshotter.list(["parent==base"])), ["a", "v"]);
      assert.deepEqual(names(snapshotter.list(["parent==none"])), []);
      assert.deepEqual(names(snapshotter.list(["labels.kind~=/^o/"])), ["a"]);
      assert.throws(() => snapshotter.list(["kind="]), { code: "INVALID_ARGUMENT" });
      for (const { name } of snapshotter.list([])) assert.equal(snapshotter.stat(name).name, name);
      assert.deepEqual(snapshotter.counts(), { active: 1, view: 1, committed: 1 });
    }));

  test("goes on over what is removed and added meanwhile, and has what stays once", () =>
    withBench(async ({ snapshotter }) => {
      for (let at = 0; at < 600; at++) await snapshotter.prepare(`k${at}`, "", {});
      const seen: string[] = [];
      for (const { name } of snapshotter.list([])) {
        if (seen.push(name) === 10) {
          for (let at = 300; at < 310; at++) await snapshotter.remove(`k${at}`);
          await snapshotter.prepare("late", "", {});
        }
      }
      const stayed = Array.from({ length: 600 }, (_, at) => `k${at}`).filter((_, at) => at < 300 || at >= 310);
      assert.deepEqual(seen.filter((name) => stayed.includes(name)).sort(), stayed.sort());
    }));
});

describe("usage()", () => {
  test("counts what a snapshot has of its own: active, committed, layer, view", () =>
    withBench(async ({ snapshotter, mounted, commitLayer, store }) => {
      const diffId = await commitLayer("layer", "", { big: Buffer.alloc(100_000, 7) });
      const { ownBytes, metadataBytes } = store.findLayer(diffId)!;
      assert.deepEqual(await snapshotter.usage("layer"), { size: ownBytes + metadataBytes, inodes: 4 });

      const mounts = await snapshotter.prepare("a", "layer", {});
      const empty = await snapshotter.usage("a");
      assert.equal(empty.inodes, 1);
      mounted(mounts, (directory) => writeFileSync(join(directory, "file"), Buffer.alloc(50_000, 1)));
      // A number may be as old as ten times what it took to find, which on a machine that stalls is more than nothing (ADR 0012).
      let written = await snapshotter.usage("a");
      for (let tries = 0; written.inodes === 1 && tries < 500; tries++) {
        await delay(10);
        written = await snapshotter.usage("a");
      }
      assert.equal(written.inodes, 2);
      assert.ok(written.size >= empty.size + 50_000 && written.size < empty.size + 60_000);
      await snapshotter.commit("committed", "a", {});
      assert.deepEqual(await snapshotter.usage("committed"), written);

      await snapshotter.view("v", "committed", {});
      assert.deepEqual(await snapshotter.usage("v"), { size: 0, inodes: 0 });
      await fails("NOT_FOUND", "not found", () => snapshotter.usage("none"));
    }));
});

describe("a remote snapshot", () => {
  const remote = (
    layers: Record<string, () => Promise<DiffId>>,
    bench: () => { begin(what: string): Disposable },
  ): RemoteLayers => ({
    async fetch({ chainId }, use) {
      const layer = layers[chainId];
      if (layer === undefined) return undefined;
      const diffId = await layer();
      using operation = bench().begin("fetch");
      return use(operation as never, diffId);
    },
  });

  test("is committed with the labels of the call and answered with ALREADY_EXISTS; the second one costs nothing", () =>
    withBench(async (bench) => {
      const one = await bench.layer({ a: "a" });
      const two = await bench.layer({ b: "b" });
      const [low, high] = [chainIdOf([one]) as string, chainIdOf([one, two]) as string];
      let fetches = 0;
      const counted = (diffId: DiffId) => async () => {
        fetches++;
        return diffId;
      };
      await bench.restart({ remote: remote({ [low]: counted(one), [high]: counted(two) }, () => bench.store) });
      const { snapshotter } = bench;
      const labels = { [REF]: low, "containerd.io/snapshot/x": "y" };
      await fails("ALREADY_EXISTS", "already exists", () => snapshotter.prepare("extract-1 x", "", labels));
      const [found] = snapshotter.list([`labels."${REF}"==${low},parent==""`]);
      assert.equal(found?.kind, "committed");
      assert.deepEqual(found?.labels, labels);
      await fails("ALREADY_EXISTS", "already exists", () => snapshotter.prepare("extract-2 x", "", labels));
      assert.equal(fetches, 1);
      await fails("ALREADY_EXISTS", "already exists", () =>
        snapshotter.prepare("extract-3 x", found!.name, { [REF]: high }),
      );
      assert.equal(snapshotter.counts().committed, 2);
      // Another namespace has a parent of its own for the same chain.
      await snapshotter.prepare("own", "", {});
      await snapshotter.commit("own base", "own", {});
      await fails("ALREADY_EXISTS", "already exists", () =>
        snapshotter.prepare("extract-4 x", "own base", { [REF]: high }),
      );
      assert.equal(snapshotter.counts().committed, 4);
    }));

  test("that nobody can fetch becomes an active one; a layer that is not of the chain is refused", () =>
    withBench(async (bench) => {
      const one = await bench.layer({ a: "a" });
      const wrong = `sha256:${"0".repeat(64)}`;
      await bench.restart({ remote: remote({ [wrong]: async () => one }, () => bench.store) });
      const { snapshotter } = bench;
      await assert.rejects(snapshotter.prepare("extract-1 x", "", { [REF]: wrong }), { code: "DATA_LOSS" });
      const mounts = await snapshotter.prepare("extract-2 x", "", { [REF]: `sha256:${"1".repeat(64)}` });
      assert.equal(mounts.length, 1);
      assert.deepEqual(snapshotter.counts(), { active: 1, view: 0, committed: 0 });
    }));

  test("keeps its layer in the store for as long as it is there", () =>
    withBench(async (bench) => {
      const one = await bench.layer({ a: "a" });
      await bench.restart({ remote: remote({ [one]: async () => one }, () => bench.store) });
      const { snapshotter, store } = bench;
      await assert.rejects(snapshotter.prepare("extract-1 x", "", { [REF]: one }), { code: "ALREADY_EXISTS" });
      collect(store);
      assert.ok(store.findLayer(one));
      const [{ name } = { name: "" }] = snapshotter.list([]);
      await snapshotter.remove(name);
      collect(store);
      assert.equal(store.findLayer(one), undefined);
    }));
});

describe("findActive() and attachLayer()", () => {
  test("find an active one by its mounts, and no other", () =>
    withBench(async ({ snapshotter, commitLayer }) => {
      await commitLayer("base", "", { a: "a" });
      const mounts = await snapshotter.prepare("default/3/extract-12 sha256:ab", "base", { l: "1" });
      const expected = { key: "default/3/extract-12 sha256:ab", parent: "base", labels: { l: "1" }, unpack: true };
      assert.deepEqual(snapshotter.findActive(mounts), expected);
      const reversed = mounts.map((mount) => ({ ...mount, target: "", options: [...mount.options].reverse() }));
      assert.deepEqual(snapshotter.findActive(reversed), expected);
      assert.equal(snapshotter.findActive(await snapshotter.prepare("c", "base", {}))?.unpack, false);
      const [mount] = mounts;
      for (const other of [
        [],
        [...mounts, ...mounts],
        [{ ...mount!, type: "bind" }],
        [{ ...mount!, options: mount!.options.slice(1) }],
        await snapshotter.view("v", "base", {}),
        [{ type: "bind", source: "/", options: ["rw"] }],
      ]) {
        assert.equal(snapshotter.findActive(other), undefined);
      }
      await snapshotter.commit("done", "default/3/extract-12 sha256:ab", {});
      assert.equal(snapshotter.findActive(mounts), undefined);
    }));

  test("refuse what runs, what has files, and a second layer", () =>
    withBench(async ({ snapshotter, layer, store, mounted }) => {
      const [one, two] = [await layer({ a: "a" }), await layer({ b: "b" })];
      using operation = store.begin("apply");
      const attach = (key: string, diffId: DiffId) => async () => snapshotter.attachLayer(key, operation, diffId);
      await snapshotter.prepare("container", "", {});
      await fails("FAILED_PRECONDITION", "failed precondition", attach("container", one));
      const mounts = await snapshotter.prepare("extract-1", "", {});
      mounted(mounts, (directory) => writeFileSync(join(directory, "file"), ""));
      await fails("FAILED_PRECONDITION", "failed precondition", attach("extract-1", one));
      await snapshotter.prepare("extract-2", "", {});
      snapshotter.attachLayer("extract-2", operation, one);
      snapshotter.attachLayer("extract-2", operation, one);
      await fails("FAILED_PRECONDITION", "failed precondition", attach("extract-2", two));
      await fails("NOT_FOUND", "not found", attach("none", one));
    }));

  test("count what was written on top of the layer all the same", () =>
    withBench(async ({ snapshotter, layer, store, mounted }) => {
      const one = await layer({ a: noise(9000, "a") });
      const mounts = await snapshotter.prepare("extract-1", "", {});
      using operation = store.begin("apply");
      snapshotter.attachLayer("extract-1", operation, one);
      mounted(mounts, (directory) => writeFileSync(join(directory, "b"), noise(9000, "b")));
      await snapshotter.commit("both", "extract-1", {});
      mounted(await snapshotter.view("v", "both", {}), (directory) =>
        assert.deepEqual(readdirSync(directory), ["a", "b"]),
      );
      const { ownBytes, metadataBytes } = store.findLayer(one)!;
      const { size, inodes } = await snapshotter.usage("both");
      assert.ok(size >= ownBytes + metadataBytes + 9000);
      assert.equal(inodes, 4 + 2);
      await snapshotter.prepare("extract-2", "both", {});
    }));

  test("keep the layer from then on, restarts included, and lose it with the snapshot", () =>
    withBench(async (bench) => {
      const one = await bench.layer({ a: "a" });
      await bench.snapshotter.prepare("extract-1", "", {});
      {
        using operation = bench.store.begin("apply");
        bench.snapshotter.attachLayer("extract-1", operation, one);
      }
      await bench.restart();
      collect(bench.store);
      await bench.snapshotter.commit("base", "extract-1", {});
      const view = await bench.snapshotter.view("v", "base", {});
      bench.mounted(view, (directory) => assert.deepEqual(readdirSync(directory), ["a"]));
      for (const key of ["v", "base"]) await bench.snapshotter.remove(key);
      await bench.snapshotter.cleanup();
      collect(bench.store);
      assert.equal(bench.store.findLayer(one), undefined);
    }));
});

describe("openSnapshotter()", () => {
  test("refuses a second one on the same root, naming the process", () =>
    withBench(async ({ store }) => {
      const { openSnapshotter } = await import("./index.ts");
      await assert.rejects(openSnapshotter(store), (error) => {
        assert.ok(ShaleError.is(error, "FAILED_PRECONDITION"));
        assert.match(error.message, new RegExp(`process ${process.pid} `));
        return true;
      });
    }));

  test("finds everything again as it was", () =>
    withBench(async (bench) => {
      await bench.commitLayer("one", "", { a: "a" });
      await bench.commitPlain("two", "one", (directory) => writeFileSync(join(directory, "b"), "b"));
      const mounts = await bench.snapshotter.prepare("a", "two", { l: "1" });
      await bench.snapshotter.view("v", "two", {});
      const before = [...bench.snapshotter.list([])];
      await bench.restart();
      assert.deepEqual([...bench.snapshotter.list([])], before);
      assert.deepEqual(await bench.snapshotter.mounts("a"), mounts);
      bench.mounted(mounts, (directory) => assert.deepEqual(readdirSync(directory).sort(), ["a", "b"]));
    }));

  test("takes directories without a snapshot for what they are, and leaves others' files alone", () =>
    withBench(async (bench) => {
      await bench.snapshotter.prepare("a", "", {});
      const { mkdirSync } = await import("node:fs");
      mkdirSync(join(bench.root, "snapshots/7/fs"), { recursive: true });
      mkdirSync(join(bench.root, "snapshots/not-ours"));
      await bench.restart();
      await bench.snapshotter.cleanup();
      assert.deepEqual(readdirSync(join(bench.root, "snapshots")).sort(), ["1", "not-ours"]);
      await bench.snapshotter.prepare("b", "", {});
      assert.ok(!existsSync(join(bench.root, "snapshots/7")), "a number is used once");
    }));

  test("refuses a root that mount options can't hold", async () => {
    const { checkRoot } = await import("./mount-lists.ts");
    for (const root of ["/a:b", "/a,b", "/a b", "/a\\b", '/a"b']) {
      assert.throws(() => checkRoot(root), { code: "FAILED_PRECONDITION" });
    }
    checkRoot("/var/lib/shale-1.0_x");
  });

  test("makes the root directory of a snapshot without parent 0755, whatever the umask", () =>
    withBench(async ({ snapshotter }) => {
      const umask = process.umask(0o077);
      try {
        const [mount] = await snapshotter.prepare("a", "", {});
        assert.equal(statSync(mount!.source).mode & 0o7777, 0o755);
      } finally {
        process.umask(umask);
      }
    }));
});
