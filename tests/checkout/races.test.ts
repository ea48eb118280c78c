/** Checkouts beside one another, beside garbage collection, and beside a process that puts symlinks in their way. */
import assert from "node:assert/strict";
import { existsSync, mkdirSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { assertSound, noise, pull, tar, withStore, writeImage } from "../../src/store/testing/fixtures.ts";
import { Child } from "../../src/sys/testing/child.ts";
import { needsRoot, withTemporaryDirectory } from "../../src/sys/testing/filesystems.ts";
import { runDriver } from "./harness.ts";
import { describeTree } from "./image.ts";

const TAG = "wide";
const DIRECTORIES = 40;
/** Each effect is written down, which makes a checkout take long enough to be met in the middle. */
const SLOW = { SHALE_CRASH_RECORD: "/dev/null" };
/** More than enough on a busy machine. */
const ATTEMPTS = 100;

interface Place {
  readonly scratch: string;
  readonly root: string;
  readonly layout: string;
}

/** A store with an image of many small directories. */
function withPlace(use: (place: Place) => Promise<void>): Promise<void> {
  return withTemporaryDirectory(async (scratch) => {
    const layout = join(scratch, "layout");
    const root = join(scratch, "store");
    const files = Array.from({ length: DIRECTORIES * 10 }, (_, i) => [
      `d${i % DIRECTORIES}/sub/f${i}`,
      noise(i * 30 + 1, i),
    ]);
    writeImage(layout, TAG, [tar(Object.fromEntries(files))]);
    await withStore(root, (store) => pull(store, layout, TAG));
    await use({ scratch, root, layout });
  });
}

describe("two checkouts at once", () => {
  test("to the same target: one makes it, the other is told that it exists, or replaces it", async () => {
    await withPlace(async ({ scratch, ...place }) => {
      mkdirSync(join(scratch, "parent"));
      const target = join(scratch, "parent/tree");
      const both = (replace: boolean) =>
        Promise.all([1, 2].map(() => runDriver({ ...place, tag: TAG, target, options: { replace } })));
      const refused = (await both(false)).map(({ code, result }) => [code, result?.code]);
      assert.deepEqual(refused.sort(), [
        [0, undefined],
        [1, "ALREADY_EXISTS"],
      ]);
      const before = describeTree(target);
      for (const { code, stderr } of await both(true)) assert.equal(code, 0, stderr);
      assert.deepEqual(describeTree(target), before);
      assert.deepEqual(readdirSync(join(scratch, "parent")), ["tree"]);
    });
  });

  test("to different targets by hard link share every inode, whoever was first with it", async () => {
    await withPlace(async ({ scratch, ...place }) => {
      const targets = ["a", "b", "c"].map((name) => join(scratch, name));
      const ends = await Promise.all(
        targets.map((target) => runDriver({ ...place, tag: TAG, target, options: { link: "hardlink" } })),
      );
      for (const { code, stderr } of ends) assert.equal(code, 0, stderr);
      for (let i = 0; i < DIRECTORIES * 10; i++) {
        const inodes = new Set(targets.map((target) => statSync(join(target, `d${i % DIRECTORIES}/sub/f${i}`)).ino));
        assert.equal(inodes.size, 1, `f${i}`);
      }
    });
  });
});

describe("a checkout by hard link beside gc", () => {
  test("has all its files, whatever gc frees meanwhile", async () => {
    await withPlace(async ({ scratch, root, layout }) => {
      const collector = new Child(`
        import { Store } from ${JSON.stringify(new URL("../../src/store/index.ts", import.meta.url).href)};
        await using store = Store.open(${JSON.stringify(root)});
        let stop = false;
        process.stdin.once("data", () => { stop = true; });
        console.log("ready");
        let freed = 0;
        while (!stop) {
          using operation = store.begin("gc");
          const items = operation.collectGarbage().items.filter(({ kind }) => kind === "link sources");
          for (const { id } of items) freed += Number.parseInt(id);
          await new Promise((resolve) => setTimeout(resolve, 1));
        }
        process.stdin.destroy();
        console.log(freed);`);
      await using _ = collector;
      await collector.line();
      const wanted = join(scratch, "wanted");
      assert.equal((await runDriver({ root, layout, tag: TAG, target: wanted })).code, 0);
      const expected = describeTree(wanted, { links: false });
      for (let round = 0; round < 3; round++) {
        const targets = ["a", "b"].map((name) => join(scratch, name));
        const ends = await Promise.all(
          targets.map((target) => runDriver({ root, layout, tag: TAG, target, options: { link: "hardlink" } })),
        );
        for (const { code, stderr } of ends) assert.equal(code, 0, stderr);
        for (const target of targets) {
          assert.deepEqual(describeTree(target, { links: false }), expected);
          rmSync(target, { recursive: true });
        }
      }
      collector.send("stop\n");
      assert.ok(Number(await collector.line()) > 0, "gc has freed some between the rounds");
      await withStore(root, (store) => assertSound(store));
    });
  });
});

describe("a checkout beside a process that swaps its directories for symlinks", () => {
  test("writes nothing outside, whether it fails or not", needsRoot, async () => {
    await withPlace(async ({ scratch, root, layout }) => {
      const victim = join(scratch, "victim");
      mkdirSync(join(victim, "sub"), { recursive: true });
      writeFileSync(join(victim, "mine"), "mine");
      writeFileSync(join(victim, "sub/mine"), "mine");
      const before = describeTree(victim);
      const parent = join(scratch, "parent");
      mkdirSync(parent);
      const attacker = new Child(`
        import fs from "node:fs";
        const staging = ${JSON.stringify(join(parent, ".tree.shale-new"))};
        const victim = ${JSON.stringify(victim)};
        let stop = false;
        process.stdin.once("data", () => { stop = true; });
        console.log("ready");
        while (!stop) {
          for (let i = 0; i < ${DIRECTORIES}; i++) {
            const path = staging + "/d" + i + (i % 2 ? "" : "/sub");
            try {
              fs.renameSync(path, path + "-aside");
              fs.symlinkSync(i % 2 ? victim : victim + "/sub", path);
              fs.writeFileSync(${JSON.stringify(join(scratch, "swapped"))}, "");
            } catch (error) {
              if (!["ENOENT", "ENOTDIR", "EEXIST", "ENOTEMPTY", "EISDIR", "ELOOP"].includes(error.code)) throw error;
            }
          }
          await new Promise((resolve) => setImmediate(resolve));
        }
        process.stdin.destroy();
        console.log("stopped");`);
      await using _ = attacker;
      await attacker.line();
      const swapped = () => existsSync(join(scratch, "swapped"));
      for (let round = 0, met = 0; met < 6; round++) {
        assert.ok(round < ATTEMPTS, "no directory was swapped in time");
        await runDriver({
          root,
          layout,
          tag: TAG,
          target: join(parent, "tree"),
          options: { replace: true },
          env: SLOW,
        });
        assert.deepEqual(describeTree(victim), before, `round ${round}`);
        if (swapped()) met++;
      }
      attacker.send("stop\n");
      await attacker.line();
      const end = await runDriver({ root, layout, tag: TAG, target: join(parent, "tree"), options: { replace: true } });
      assert.equal(end.code, 0, end.stderr);
      assert.deepEqual(readdirSync(parent), ["tree"]);
      assert.deepEqual(describeTree(victim), before);
    });
  });
});

describe("SIGTERM", () => {
  test("ends a checkout as CANCELLED and leaves nothing", async () => {
    await withPlace(async ({ scratch, root, layout }) => {
      const parent = join(scratch, "parent");
      mkdirSync(parent);
      let cancelled = 0;
      for (let round = 0; round < ATTEMPTS && cancelled === 0; round++) {
        let timer: NodeJS.Timeout | undefined;
        const end = await runDriver({
          ...{ root, layout, tag: TAG, target: join(parent, "tree"), options: { replace: true } },
          env: SLOW,
          onStart(child) {
            timer = setInterval(() => {
              if (!existsSync(join(parent, ".tree.shale-new"))) return;
              clearInterval(timer);
              child.kill("SIGTERM");
            }, 1);
          },
        });
        clearInterval(timer);
        if (end.result?.code === undefined) continue; // it was faster
        assert.equal(end.result.code, "CANCELLED");
        cancelled++;
      }
      assert.ok(cancelled > 0, "every run was faster than the signal");
      assert.deepEqual(
        readdirSync(parent).filter((name) => name !== "tree"),
        [],
      );
    });
  });
});
