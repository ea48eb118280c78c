/**
 * What a checkout is compared with: the kernel's EROFS mount of the same image, entry by entry, on every file system that a target
 * may be on; an overlay of the layers' checkouts; what umoci and GNU tar unpack.
 */
import assert from "node:assert/strict";
import { chmodSync, chownSync, existsSync, mkdirSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { type CheckoutOptions, type CheckoutResult, checkoutImage, Crew } from "../../src/checkout/index.ts";
import { TAR_END } from "../../src/formats/tar/index.ts";
import { entryBytes } from "../../src/formats/tar/testing.ts";
import { findImage } from "../../src/images/find.ts";
import type { Store } from "../../src/store/index.ts";
import { pull, withStore, writeImage } from "../../src/store/testing/fixtures.ts";
import { mountOverlay, run } from "../../src/sys/index.ts";
import { setXattr } from "../../src/sys/libc.ts";
import {
  needsRoot,
  unmountBelow,
  withLoopFilesystem,
  withTemporaryDirectory,
} from "../../src/sys/testing/filesystems.ts";
import { describeMounted, runDriver } from "./harness.ts";
import { describeTree, LAYERS, TAG, writeLayout } from "./image.ts";

async function checkOut(store: Store, target: string, options: CheckoutOptions = {}): Promise<CheckoutResult> {
  await using crew = new Crew(3);
  using operation = store.begin("checkout");
  return await checkoutImage(operation, findImage(store, TAG).manifest, target, crew, options);
}

/** A store below `place` that has the image. */
async function withImage<T>(place: string, use: (store: Store, layout: string) => Promise<T>): Promise<T> {
  const layout = join(place, "layout");
  writeLayout(layout);
  return await withStore(join(place, "store"), async (store) => {
    await pull(store, layout, TAG);
    return await use(store, layout);
  });
}

const NOTHING_LOST = { owner: 0, "set-id bit": 0, xattr: 0, device: 0, symlink: 0 };
/** Longer than XFS takes. */
const LONG_LINK = "lib/long";

/** u::rwx, u:1000:rwx, g::rwx, m::rwx, o::r-x: include/uapi/linux/posix_acl_xattr.h, version 2. */
const DEFAULT_ACL = Buffer.from(
  [
    [1, 7, -1],
    [2, 7, 1000],
    [4, 7, -1],
    [0x10, 7, -1],
    [0x20, 5, -1],
  ].reduce(
    (bytes, [tag, permissions, id]) => {
      const entry = Buffer.alloc(8);
      entry.writeUInt16LE(tag!, 0);
      entry.writeUInt16LE(permissions!, 2);
      entry.writeInt32LE(id!, 4);
      return Buffer.concat([bytes, entry]);
    },
    Buffer.from([2, 0, 0, 0]),
  ),
);

/** Nothing but the checkout stands beside it. */
function assertClean(directory: string): void {
  assert.deepEqual(
    readdirSync(directory).filter((name) => name.includes(".shale-")),
    [],
  );
}

describe("a checkout is what the kernel's EROFS shows", needsRoot, () => {
  for (const type of ["ext4", "xfs", "btrfs"] as const) {
    test(`on ${type}, by every --link`, async () => {
      await withLoopFilesystem(type, { size: 400 << 20 }, (place) =>
        withImage(place, async (store) => {
          const without = (name: string) => type === "xfs" && name === LONG_LINK;
          const wanted = describeMounted(store, place, { without });
          for (const link of ["copy", "reflink", "auto", "reflink"] as const) {
            const target = join(place, `${link}-${readdirSync(place).length}`);
            const result = await checkOut(store, target, { link });
            assert.deepEqual(describeTree(target), wanted, `${type} ${link}`);
            assert.deepEqual(result.losses, { ...NOTHING_LOST, symlink: type === "xfs" ? 1 : 0 });
            assert.equal(result.reflinked > 0, link !== "copy" && type !== "ext4");
            assert.deepEqual(result.fallbacks.length > 0, link === "reflink" && type === "ext4");
          }
          const unlinked = describeMounted(store, place, { links: false, without });
          for (const name of ["one", "two"]) {
            const result = await checkOut(store, join(place, name), { link: "hardlink" });
            assert.deepEqual(describeTree(join(place, name), { links: false }), unlinked, `${type} hardlink ${name}`);
            assert.equal(result.sharesInodes, true);
            if (name === "two") assert.equal(result.copied + result.reflinked, 0);
          }
          assert.equal(statSync(join(place, "one/bin/sudo")).ino, statSync(join(place, "two/bin/sudo")).ino);
          assertClean(place);
        }),
      );
    });
  }

  test("on tmpfs and overlayfs, with a store elsewhere: hardlink falls back to a copy", async () => {
    await withTemporaryDirectory((scratch) =>
      withImage(scratch, async (store) => {
        const wanted = describeMounted(store, scratch);
        const tmpfs = join(scratch, "tmpfs");
        const overlay = join(scratch, "overlay");
        for (const path of [tmpfs, overlay]) mkdirSync(path);
        await run("mount", ["-t", "tmpfs", "tmpfs", tmpfs]);
        for (const name of ["lower", "upper", "work"]) mkdirSync(join(tmpfs, name));
        mountOverlay({
          lower: [join(tmpfs, "lower")],
          upper: join(tmpfs, "upper"),
          work: join(tmpfs, "work"),
          target: overlay,
        });
        for (const place of [tmpfs, overlay]) {
          const result = await checkOut(store, join(place, "tree"), { link: "hardlink" });
          assert.deepEqual(result.fallbacks, ["hardlink: EXDEV"], place);
          assert.equal(result.sharesInodes, false);
          assert.deepEqual(describeTree(join(place, "tree")), wanted, place);
          assertClean(place);
        }
      }),
    );
  });

  test("also in a directory that hands down a group and a default ACL, with any umask", async () => {
    await withTemporaryDirectory((scratch) =>
      withImage(scratch, async (store, layout) => {
        const wanted = describeMounted(store, scratch);
        const place = join(scratch, "inherited");
        mkdirSync(place);
        chownSync(place, 0, 1234);
        chmodSync(place, 0o2777);
        setXattr(place, "system.posix_acl_default", DEFAULT_ACL);
        const root = store.root;
        for (const umask of [0o000, 0o077]) {
          const before = process.umask(umask);
          try {
            const target = join(place, umask.toString(8));
            const end = await runDriver({ root, layout, target });
            assert.equal(end.code, 0, end.stderr);
            assert.deepEqual(describeTree(target), wanted);
          } finally {
            process.umask(before);
          }
        }
      }),
    );
  });

  test("holes stay holes", async () => {
    await withTemporaryDirectory((scratch) =>
      withImage(scratch, async (store) => {
        await checkOut(store, join(scratch, "tree"), { link: "copy" });
        const { size, blocks } = statSync(join(scratch, "tree/sparse/data"));
        assert.ok(size > 3_200_000 && blocks * 512 < 200_000, `${blocks * 512} bytes on disk of ${size}`);
        assert.ok(statSync(join(scratch, "tree/sparse/zeros")).blocks * 512 <= 4096);
      }),
    );
  });
});

describe("checkouts of layers", needsRoot, () => {
  test("under overlayfs are the merged image, implied directories and all", async () => {
    await withTemporaryDirectory((scratch) =>
      withImage(scratch, async (store) => {
        const { layers } = await checkOut(store, join(scratch, "layers"), { layers: true });
        assert.deepEqual(
          layers,
          [0, 1, 2].map((number) => join(scratch, "layers", String(number))),
        );
        const merged = join(scratch, "merged");
        mkdirSync(merged);
        mountOverlay({ lower: [...layers].reverse(), target: merged });
        const withLinks = { links: false };
        assert.deepEqual(describeTree(merged, withLinks), describeMounted(store, scratch, withLinks));
        unmountBelow(merged);
      }),
    );
  });

  test("of a layer with few inodes, by a thread that has filled many directories of another, are no circle", async () => {
    await withTemporaryDirectory(async (scratch) => {
      const directories = Array.from({ length: 40 }, (_, at) => entryBytes({ path: `d${at}/`, type: "directory" }));
      const small = Buffer.concat([entryBytes({ path: "file" }, "content"), TAR_END]);
      writeImage(join(scratch, "layout"), TAG, [small, Buffer.concat([...directories, TAR_END])]);
      await withStore(join(scratch, "store"), async (store) => {
        await pull(store, join(scratch, "layout"), TAG);
        await using crew = new Crew(1); // gets the upper layer first
        using operation = store.begin("checkout");
        const { manifest } = findImage(store, TAG);
        const { layers } = await checkoutImage(operation, manifest, join(scratch, "layers"), crew, { layers: true });
        assert.deepEqual(
          layers.map((layer) => readdirSync(layer).length),
          [1, 40],
        );
      });
    });
  });

  test("of an unprivileged user carry marks for userxattr, and whiteouts", async () => {
    await withTemporaryDirectory(async (scratch) => {
      chmodSync(scratch, 0o777);
      writeLayout(join(scratch, "layout"));
      const target = join(scratch, "layers");
      const end = await runDriver({
        ...{ root: join(scratch, "store"), layout: join(scratch, "layout"), target, as: 65_534 },
        options: { layers: true },
      });
      assert.equal(end.code, 0, end.stderr);
      assert.ok(end.result?.code === undefined && end.result?.userXattrs);
      const merged = join(scratch, "merged");
      mkdirSync(merged);
      mountOverlay({
        lower: [...end.result.layers].reverse(),
        target: merged,
        options: { userxattr: true },
      });
      assert.deepEqual(readdirSync(join(merged, "opaque")).sort(), ["more", "new"]);
      assert.equal(existsSync(join(merged, "etc/removed")), false);
      unmountBelow(merged);
    });
  });
});

describe("an unprivileged checkout", needsRoot, () => {
  test("has all content and names every loss", async () => {
    await withTemporaryDirectory(async (scratch) => {
      chmodSync(scratch, 0o777);
      writeLayout(join(scratch, "layout"));
      const target = join(scratch, "tree");
      const root = join(scratch, "store");
      const end = await runDriver({ root, layout: join(scratch, "layout"), target, as: 65_534 });
      assert.equal(end.code, 0, end.stderr);
      const result = end.result!;
      assert.ok(result.code === undefined);
      const named = (kind: string) =>
        result.lost.filter((loss) => loss.kind === kind).map(({ path, detail }) => `${path} ${detail}`);
      assert.deepEqual(named("device"), ["dev/loop 7:300", "dev/null 1:3"]);
      assert.deepEqual(named("set-id bit"), ["bin/sudo 4755", "bin/wall 2755", "etc/changed 4711"]);
      assert.deepEqual(named("xattr"), ["bin/ping security.capability", "home/user/note trusted.secret"]);
      assert.ok(result.losses.owner > 200);
      const there = describeTree(target);
      await withStore(root, (store) => {
        for (const [path, wanted] of Object.entries(describeMounted(store, scratch))) {
          if (path.startsWith("dev/")) continue;
          const [mode, , ...rest] = wanted.split(" ");
          const lost = ["bin/sudo", "bin/wall", "etc/changed"].includes(path) ? 0o7000 : 0;
          const expected = [(Number.parseInt(mode!, 8) & ~lost).toString(8), "65534:65534", ...rest];
          const kept = expected.filter((word) => !/^(security|trusted)\./.test(word));
          assert.equal(there[path], kept.join(" "), path);
        }
      });
      const again = await runDriver({
        root,
        layout: "",
        target,
        as: 65_534,
        options: { replace: true, link: "hardlink" },
      });
      assert.equal(again.code, 0, `${again.stderr}: closed directories of the old tree are in nobody's way`);
    });
  });
});

describe("a checkout is what others unpack", needsRoot, () => {
  test("umoci, and GNU tar layer by layer", async () => {
    await withTemporaryDirectory((scratch) =>
      withImage(scratch, async (store, layout) => {
        await checkOut(store, join(scratch, "tree"));
        const umoci = await run("umoci", ["raw", "unpack", "--image", `${layout}:${TAG}`, join(scratch, "umoci")]);
        assert.equal(umoci.code, 0, umoci.stderr.toString());
        // umoci 0.4.7 gives the parents of whiteouts the time of unpacking, and forgets who owns implied directories' looks.
        const own = describeTree(join(scratch, "tree"));
        const theirs = describeTree(join(scratch, "umoci"));
        assert.deepEqual(Object.keys(theirs), Object.keys(own));
        const differ = Object.keys(own).filter((path) => own[path] !== theirs[path]);
        assert.deepEqual(
          differ.filter((path) => !own[path]!.startsWith("4")),
          [],
          "files that differ",
        );
        mkdirSync(join(scratch, "tar"));
        const xattrs = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "-p"];
        const unpacked = await run("tar", ["-x", ...xattrs, "-C", join(scratch, "tar")], { input: LAYERS[0]! });
        assert.equal(unpacked.code, 0, unpacked.stderr.toString());
        await checkOut(store, join(scratch, "layers"), { layers: true });
        // Directories that the tar does not list have the time of unpacking there.
        const implied = ["lib", "links", "other", "run", "size", "sparse", "zz"];
        const without = (name: string) => implied.includes(name);
        assert.deepEqual(
          describeTree(join(scratch, "layers/0"), { without }),
          describeTree(join(scratch, "tar"), { without }),
        );
      }),
    );
  });
});
