/** Files that checkouts share by hard link: what was written to is never handed on, and what nobody has is freed. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import {
  appendFileSync,
  chmodSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { type CheckoutOptions, type CheckoutResult, checkoutImage, Crew } from "../../src/checkout/index.ts";
import { entryBytes } from "../../src/formats/tar/testing.ts";
import { findImage } from "../../src/images/find.ts";
import type { Store } from "../../src/store/index.ts";
import { check, collect, noise, pull, tar, withStore, writeImage } from "../../src/store/testing/fixtures.ts";
import { mountErofs } from "../../src/sys/index.ts";
import { setTimes } from "../../src/sys/libc.ts";
import {
  needsRoot,
  unmountBelow,
  withLoopFilesystem,
  withTemporaryDirectory,
} from "../../src/sys/testing/filesystems.ts";
import { runDriver } from "./harness.ts";
import { describeTree } from "./image.ts";

const ORIGINAL = { changed: "as it was", truncated: noise(9000, "t"), mode: "mode", hidden: "hidden", plain: "plain" };

interface Place {
  readonly store: Store;
  readonly layout: string;
  readonly at: (name: string) => string;
  readonly checkOut: (name: string, options?: CheckoutOptions, tag?: string) => Promise<CheckoutResult>;
}

const withPlace = (use: (place: Place) => Promise<void>): Promise<void> =>
  withTemporaryDirectory((scratch) => withPlaceIn(scratch, use));

async function withPlaceIn(scratch: string, use: (place: Place) => Promise<void>): Promise<void> {
  const layout = join(scratch, "layout");
  writeImage(layout, "image", [tar(ORIGINAL)]);
  writeImage(layout, "other", [tar({ ...ORIGINAL, plain: "other" })]);
  await withStore(join(scratch, "store"), async (store) => {
    for (const tag of ["image", "other"]) await pull(store, layout, tag);
    const at = (name: string) => join(scratch, name);
    await use({
      store,
      layout,
      at,
      async checkOut(name, options = {}, tag = "image") {
        await using crew = new Crew(2);
        using operation = store.begin("checkout");
        const { manifest } = findImage(store, tag);
        return await checkoutImage(operation, manifest, at(name), crew, { link: "hardlink", ...options });
      },
    });
  });
}

const inode = (path: string) => statSync(path).ino;

describe("link sources", () => {
  test("are shared between checkouts, also of another image", async () => {
    await withPlace(async ({ at, checkOut }) => {
      for (const [name, tag] of [["a"], ["b"], ["c", "other"]]) await checkOut(name!, {}, tag);
      assert.equal(inode(at("a/plain")), inode(at("b/plain")));
      assert.equal(inode(at("a/truncated")), inode(at("c/truncated")));
      assert.notEqual(inode(at("a/plain")), inode(at("c/plain")));
    });
  });

  test("that were written to are noticed, dropped and made anew", async () => {
    await withPlace(async ({ store, at, checkOut }) => {
      await checkOut("a");
      writeFileSync(at("a/changed"), "as it is!"); // the same size
      truncateSync(at("a/truncated"), 100);
      chmodSync(at("a/mode"), 0o600);
      const second = await checkOut("b");
      assert.equal(second.replaced, 3);
      assert.equal(readFileSync(at("b/changed"), "utf8"), ORIGINAL.changed);
      assert.deepEqual(readFileSync(at("b/truncated")), ORIGINAL.truncated);
      assert.equal(statSync(at("b/mode")).mode & 0o777, 0o644);
      assert.equal(
        readFileSync(at("a/changed"), "utf8"),
        "as it is!",
        "the first checkout keeps what was written to it",
      );
      assert.equal((await checkOut("c")).replaced, 0);
      assert.equal(inode(at("b/changed")), inode(at("c/changed")));
      assert.deepEqual((await check(store)).findings, []);
    });
  });

  test("whose change hides its time are found by --verify and by check", async () => {
    await withPlace(async ({ store, at, checkOut }) => {
      await checkOut("a");
      const hide = (path: string) => {
        const { mtime } = statSync(path);
        writeFileSync(path, "HIDDEN");
        utimesSync(path, mtime, mtime);
        setTimes(path, { seconds: 0, nanoseconds: 0 }, { seconds: mtime.getTime() / 1000, nanoseconds: 0 });
      };
      hide(at("a/hidden"));
      const { findings } = await check(store);
      assert.deepEqual(
        findings.map(({ kind }) => kind),
        ["link source"],
      );
      assert.equal((await checkOut("b", { verify: true })).replaced, 1);
      assert.equal(readFileSync(at("b/hidden"), "utf8"), "hidden");
      hide(at("b/hidden"));
      using operation = store.begin("check");
      operation.quarantineDamage(await operation.check());
      assert.equal((await checkOut("c")).replaced, 0);
      assert.equal(readFileSync(at("c/hidden"), "utf8"), "hidden");
    });
  });

  test("are freed when no checkout has them, and counted until then", async () => {
    await withPlace(async ({ store, at, checkOut }) => {
      await checkOut("a");
      await checkOut("b", {}, "other");
      const { links } = store.measureUsage();
      assert.equal(links.count, 6);
      assert.equal(links.unusedBytes, 0);
      assert.equal(
        collect(store).items.some(({ kind }) => kind === "link sources"),
        false,
      );
      rmSync(at("a"), { recursive: true });
      assert.ok(store.measureUsage().links.unusedBytes > 0);
      const dry = collect(store, { dryRun: true }).items.find(({ kind }) => kind === "link sources");
      const freed = collect(store).items.find(({ kind }) => kind === "link sources");
      assert.equal(freed?.id, "1 files");
      assert.deepEqual(dry, freed);
      rmSync(at("b"), { recursive: true });
      collect(store);
      assert.equal(store.measureUsage().links.count, 0);
    });
  });

  test("of an interrupted checkout are dropped after a power cut, and kept after a crash", async () => {
    await withPlace(async ({ store, at, checkOut }) => {
      await checkOut("a");
      const mark = join(store.root, "links/unsynced-1-0123456789ab");
      writeFileSync(mark, readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim());
      await checkOut("b");
      assert.equal(inode(at("a/plain")), inode(at("b/plain")));
      assert.equal(existsSync(mark), false);
      writeFileSync(mark, "another boot");
      await checkOut("c");
      assert.notEqual(inode(at("a/plain")), inode(at("c/plain")));
      assert.equal(existsSync(mark), false);
      assert.deepEqual(
        readdirSync(join(store.root, "links")).filter((name) => name.startsWith("unsynced")),
        [],
      );
    });
  });

  test("with as many names as the file system takes: a copy is made (EMLINK)", async () => {
    await withPlace(async ({ store, layout, at, checkOut }) => {
      await checkOut("a");
      const end = await runDriver({
        ...{ root: store.root, layout, tag: "image", target: at("b") },
        options: { link: "hardlink" },
        env: { SHALE_FAULT: "link@/links/:1+:EMLINK" },
      });
      assert.equal(end.code, 0, end.stderr);
      assert.ok(end.result?.code === undefined);
      assert.deepEqual(end.result?.fallbacks, ["hardlink: EMLINK"]);
      assert.deepEqual(describeTree(at("b"), { links: false }), describeTree(at("a"), { links: false }));
      assert.notEqual(inode(at("a/plain")), inode(at("b/plain")));
    });
  });

  test("that another checkout made meanwhile, and that can't be linked: the file is made once more", async () => {
    await withPlace(async ({ store, layout, at, checkOut }) => {
      await checkOut("a");
      for (const errno of ["EPERM", "EXDEV", "EMLINK"]) {
        const target = `after-${errno}`;
        const end = await runDriver({
          ...{ root: store.root, layout, tag: "image", target: at(target) },
          options: { link: "hardlink" },
          // The first source that is looked for, the third look into links/, is not seen, so that its file is published:
          // that name is taken, and then the link fails.
          env: { SHALE_FAULT: `stat@/links:3:ENOENT,link@/links/:2:${errno}` },
        });
        assert.equal(end.code, 0, end.stderr);
        assert.ok(end.result?.code === undefined);
        const { fallbacks, linked, published } = end.result!;
        const others = Object.keys(ORIGINAL).length - 1;
        assert.deepEqual(
          { fallbacks, linked, published },
          {
            fallbacks: [`hardlink: ${errno}`],
            linked: errno === "EMLINK" ? others : 0, // which is about one source, the others are about all
            published: 0,
          },
        );
        assert.deepEqual(describeTree(at(target), { links: false }), describeTree(at("a"), { links: false }), errno);
      }
    });
  });
});

describe("link sources that the kernel refuses to link (EPERM)", needsRoot, () => {
  /** Checks out "a", makes what `choose` answers immutable, checks out "b"; on a file system that knows the attribute. */
  const withImmutable = (
    choose: (links: string) => readonly string[],
    use: (place: Place & { readonly fallbacks: readonly string[] }) => void,
  ) =>
    withLoopFilesystem("ext4", {}, (scratch) =>
      withPlaceIn(scratch, async (place) => {
        await place.checkOut("a");
        const chosen = choose(join(place.store.root, "links"));
        assert.ok(chosen.length > 0);
        execFileSync("chattr", ["+i", ...chosen]);
        try {
          const { fallbacks } = await place.checkOut("b");
          use({ ...place, fallbacks });
          assert.deepEqual(
            describeTree(place.at("b"), { links: false }),
            describeTree(place.at("a"), { links: false }),
          );
        } finally {
          execFileSync("chattr", ["-i", ...chosen]);
        }
      }),
    );
  const below = (directory: string) => readdirSync(directory, { recursive: true, withFileTypes: true });

  test("since they are immutable: copies are made, and the reason is told", () =>
    withImmutable(
      (links) =>
        below(links)
          .filter((entry) => entry.isFile())
          .map(({ parentPath, name }) => join(parentPath, name)),
      ({ at, fallbacks }) => {
        assert.deepEqual(fallbacks, ["hardlink: EPERM"]);
        for (const name of Object.keys(ORIGINAL)) {
          assert.notEqual(inode(at(`a/${name}`)), inode(at(`b/${name}`)), name);
          assert.equal(statSync(at(`b/${name}`)).nlink, 1);
        }
      },
    ));

  test("since their directory takes no names: the files stay as they were made", () =>
    withImmutable(
      (links) => {
        const groups = below(links).filter((entry) => entry.isDirectory());
        for (const { parentPath, name } of groups) {
          for (const source of readdirSync(join(parentPath, name))) rmSync(join(parentPath, name, source));
        }
        return groups.map(({ parentPath, name }) => join(parentPath, name));
      },
      ({ at, fallbacks }) => {
        assert.deepEqual(fallbacks, ["hardlink: EPERM"]);
        assert.equal(statSync(at("b/plain")).nlink, 1);
      },
    ));
});

describe("a file that could not get all that it should have", needsRoot, () => {
  test("is no link source: an xattr that ext4 has no room for is lost, and told each time", async () => {
    await withLoopFilesystem("ext4", {}, async (scratch) => {
      const xattrs = [{ name: "user.large", value: "x".repeat(60_000) }];
      const large = Buffer.concat([entryBytes({ path: "large", xattrs }, "with content"), tar({ small: "small" })]);
      writeImage(join(scratch, "layout"), "image", [large]);
      await withStore(join(scratch, "store"), async (store) => {
        await pull(store, join(scratch, "layout"), "image");
        for (const name of ["a", "b"]) {
          await using crew = new Crew(1);
          using operation = store.begin("checkout");
          const { manifest } = findImage(store, "image");
          const result = await checkoutImage(operation, manifest, join(scratch, name), crew, { link: "hardlink" });
          assert.deepEqual(
            result.lost.map(({ kind, path }) => `${kind} ${path}`),
            ["xattr large"],
          );
          assert.equal(result.replaced, 0);
        }
        assert.equal(store.measureUsage().links.count, 1);
        assert.deepEqual((await check(store)).findings, []);
      });
    });
  });
});

describe("clones", needsRoot, () => {
  test("go with their image", async () => {
    await withLoopFilesystem("xfs", {}, async (scratch) => {
      writeImage(join(scratch, "layout"), "image", [tar({ file: noise(20_000, 1) })]);
      await withStore(join(scratch, "store"), async (store) => {
        await pull(store, join(scratch, "layout"), "image");
        {
          await using crew = new Crew(1);
          using operation = store.begin("checkout");
          await checkoutImage(operation, findImage(store, "image").manifest, join(scratch, "tree"), crew);
        }
        assert.equal(store.measureUsage().clones.count, 1);
        assert.equal(collect(store).items.length, 0);
        store.removeImage("image");
        const dry = collect(store, { dryRun: true }).items.map(({ kind }) => kind);
        assert.ok(dry.includes("clones"), dry.join());
        assert.ok(collect(store).items.some(({ kind }) => kind === "clones"));
        assert.deepEqual(readdirSync(join(store.root, "clones")), []);
        assert.deepEqual(readFileSync(join(scratch, "tree/file")), noise(20_000, 1));
      });
    });
  });
});

describe("a target", () => {
  test("that exists is refused, also as a file, a symlink, a mount, or the store", async () => {
    await withPlace(async ({ store, at, checkOut }) => {
      const refused = (name: string, code: string, options: CheckoutOptions = {}) =>
        assert.rejects(checkOut(name, options), { code }, name);
      mkdirSync(at("empty"));
      await refused("empty", "ALREADY_EXISTS");
      writeFileSync(at("file"), "mine");
      await refused("file", "ALREADY_EXISTS", { replace: true });
      await refused("missing/parent", "NOT_FOUND");
      await refused("store/inside", "INVALID_ARGUMENT");
      await refused("store", "INVALID_ARGUMENT", { replace: true });
      await refused(".", "INVALID_ARGUMENT", { replace: true });
      assert.equal(readFileSync(at("file"), "utf8"), "mine");
      await checkOut("tree");
      appendFileSync(at("tree/mine"), "added");
      await checkOut("tree", { replace: true });
      assert.equal(existsSync(at("tree/mine")), false);
      assert.deepEqual(
        readdirSync(at(".")).filter((name) => name.includes(".shale-")),
        [],
      );
      assert.equal(store.listImages().length, 2);
    });
  });

  test("with something mounted in it is not replaced", needsRoot, async () => {
    await withPlace(async ({ store, at, checkOut }) => {
      await checkOut("tree");
      mkdirSync(at("tree/inside"));
      using operation = store.begin("mount");
      const { image, devices } = operation.mergedFiles(
        findImage(store, "image").manifest.layers.map(({ diffId }) => diffId),
      );
      mountErofs({ source: image, devices, target: at("tree/inside") });
      try {
        await assert.rejects(checkOut("tree", { replace: true }), {
          code: "FAILED_PRECONDITION",
          message: /is mounted/,
        });
      } finally {
        unmountBelow(at("tree"));
      }
    });
  });

  test("whose old tree is in use is replaced, and the old tree goes with the next checkout", async () => {
    await withPlace(async ({ store, layout, at, checkOut }) => {
      await checkOut("tree");
      writeFileSync(at("tree/mine"), "mine");
      const end = await runDriver({
        ...{ root: store.root, layout, tag: "image", target: at("tree"), options: { replace: true } },
        env: { SHALE_FAULT: "unlink@.tree.shale-new:2:EBUSY" }, // the first looks for what a killed checkout left
      });
      assert.equal(end.code, 0, end.stderr);
      assert.ok(end.result?.code === undefined);
      assert.equal(end.result?.leftOver, at(".tree.shale-new"));
      assert.equal(readFileSync(at(".tree.shale-new/mine"), "utf8"), "mine");
      assert.equal(existsSync(at("tree/mine")), false);
      await checkOut("tree", { replace: true });
      assert.equal(existsSync(at(".tree.shale-new")), false);
    });
  });

  test("whose name is as long as names are", async () => {
    await withPlace(async ({ at, checkOut }) => {
      await checkOut("n".repeat(255));
      assert.equal(readFileSync(at(`${"n".repeat(255)}/plain`), "utf8"), "plain");
    });
  });

  test("on a full disk: RESOURCE_EXHAUSTED, and everything given back", needsRoot, async () => {
    await withLoopFilesystem("ext4", { size: 16 << 20 }, async (small) => {
      await withTemporaryDirectory(async (scratch) => {
        writeImage(join(scratch, "layout"), "big", [
          tar(Object.fromEntries(Array.from({ length: 60 }, (_, i) => [`d${i % 7}/f${i}`, noise(400_000, i)]))),
        ]);
        await withStore(join(scratch, "store"), async (store) => {
          await pull(store, join(scratch, "layout"), "big");
          await using crew = new Crew(2);
          using operation = store.begin("checkout");
          const { manifest } = findImage(store, "big");
          const before = readdirSync(small);
          await assert.rejects(checkoutImage(operation, manifest, join(small, "tree"), crew), {
            code: "RESOURCE_EXHAUSTED",
          });
          assert.deepEqual(readdirSync(small), before);
          // The same crew goes on to work.
          await checkoutImage(operation, manifest, join(scratch, "tree"), crew);
          assert.deepEqual(readFileSync(join(scratch, "tree/d3/f3")), noise(400_000, 3));
        });
      });
    });
  });
});
