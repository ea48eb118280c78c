import assert from "node:assert/strict";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { ShaleError } from "../errors/index.ts";
import { injectFault } from "./effects.ts";
import * as files from "./files.ts";
import { isOpenElsewhere } from "./in-use.ts";
import { mknod } from "./libc.ts";
import { attachLoop } from "./loop.ts";
import { findMount, isMountPoint, mountInfo, mountNamespaceId, parseMountInfo } from "./mount-info.ts";
import * as mounts from "./mounts.ts";
import { run } from "./process.ts";
import { Child, moduleUrl } from "./testing/child.ts";
import { type ErofsImage, makeErofsImage } from "./testing/erofs-image.ts";
import { needsRoot, withLoopFilesystem, withTemporaryDirectory } from "./testing/filesystems.ts";

interface Fixture extends ErofsImage {
  readonly directory: string;
  /** A new empty directory. */
  place(): string;
}

function withImage(use: (fixture: Fixture) => void | Promise<void>) {
  return () =>
    withTemporaryDirectory(async (directory) => {
      let places = 0;
      const place = (): string => {
        const path = join(directory, `place${places++}`);
        mkdirSync(path);
        return path;
      };
      await use({ ...(await makeErofsImage(directory)), directory, place });
    });
}

/** Loop devices that have a file below `directory`. */
async function loopsOf(directory: string): Promise<string[]> {
  const { stdout } = await run("losetup", ["--list", "--noheadings", "--output", "BACK-FILE"]);
  return stdout
    .toString()
    .split("\n")
    .filter((line) => line.includes(directory));
}

for (const [backing, directIo, expected] of [
  ["auto", false, "file"],
  ["file", true, "file"],
  ["loop", false, "loop"],
  ["loop", true, "loop"],
] as const) {
  test(
    `mountErofs() with backing ${backing}, directIo ${directIo}: content is right, nothing stays behind`,
    needsRoot,
    withImage(async ({ directory, source, device, big, place }) => {
      const target = place();
      assert.equal(mounts.mountErofs({ source, devices: [device], target, backing, directIo }), expected);
      assert.ok(readFileSync(join(target, "big")).equals(big));
      assert.deepEqual(readdirSync(target).sort(), ["big", "dir"]);
      const entry = findMount(target);
      assert.deepEqual([entry?.type, entry?.options.includes("ro")], ["erofs", true]);
      assert.equal(entry?.superOptions.includes("directio"), directIo && backing !== "loop");
      if (expected === "file") assert.equal(entry?.source, source);
      assert.throws(() => writeFileSync(join(target, "new"), ""), { code: "EROFS" });
      assert.equal((await loopsOf(directory)).length, expected === "loop" ? 2 : 0);
      assert.equal(mounts.unmount(target), true);
      assert.equal(mounts.unmount(target), false);
      assert.deepEqual(await loopsOf(directory), []);
    }),
  );
}

test(
  "mountErofs() takes paths of any length with any characters",
  needsRoot,
  withImage(({ directory, source, device, big }) => {
    const long = join(directory, "x".repeat(250), "y".repeat(250), "a b,c:d\\e\nf'\"");
    mkdirSync(join(long, "target"), { recursive: true });
    files.rename(source, join(long, "meta"));
    files.rename(device, join(long, "blob"));
    const target = join(long, "target");
    mounts.mountErofs({ source: join(long, "meta"), devices: [join(long, "blob")], target });
    assert.ok(readFileSync(join(target, "big")).equals(big));
    assert.equal(findMount(target)?.mountPoint, target);
    assert.equal(mounts.unmount(target), true);
  }),
);

test(
  "mountErofs() falls back to loop devices for all files where the image is on overlayfs",
  needsRoot,
  withImage(({ source, device, big, place }) => {
    const [lower, upper, work, merged, target] = [place(), place(), place(), place(), place()];
    mounts.mountOverlay({ lower: [lower], upper, work, target: merged });
    for (const path of [source, device])
      writeFileSync(join(merged, path === source ? "meta" : "blob"), readFileSync(path));
    const image = { source: join(merged, "meta"), devices: [join(merged, "blob")] };
    assert.equal(mounts.supportsErofsFileBacked(join(merged, "blob")), false);
    assert.throws(() => mounts.openErofs({ ...image, backing: "file" }), {
      code: "FAILED_PRECONDITION",
      message: /ENOTBLK/,
    });
    assert.equal(mounts.mountErofs({ ...image, target }), "loop");
    assert.ok(readFileSync(join(target, "big")).equals(big));
    assert.equal(mounts.unmount(target), true);
  }),
);

test(
  "supportsErofsFileBacked() is true on this kernel and file system",
  needsRoot,
  withImage(({ device }) => assert.equal(mounts.supportsErofsFileBacked(device), true)),
);

test(
  "mountErofs() fails with what is wrong, and leaves neither mount nor loop device",
  needsRoot,
  withImage(async ({ directory, source, device, place }) => {
    const target = place();
    const failures = [
      [{ source: join(directory, "absent"), target }, "NOT_FOUND"],
      [{ source, devices: [join(directory, "absent")], target }, "NOT_FOUND"],
      [{ source: device, target }, "FAILED_PRECONDITION"], // not an image
      [{ source, devices: [device, device], target }, "FAILED_PRECONDITION"], // too many devices
      [{ source, devices: [device], target: join(directory, "absent") }, "NOT_FOUND"],
    ] as const;
    for (const [options, code] of failures) {
      for (const backing of ["file", "loop"] as const) {
        assert.throws(
          () => mounts.mountErofs({ ...options, backing }),
          (error) => ShaleError.is(error, code) && error.message.startsWith("Cannot "),
          `${JSON.stringify(options)} by ${backing}`,
        );
      }
    }
    using _fault = injectFault({ kind: "mount", errno: "EPERM" });
    assert.throws(() => mounts.mountErofs({ source, devices: [device], target, backing: "loop" }), {
      code: "PERMISSION_DENIED",
    });
    assert.equal(
      mountInfo().some((entry) => entry.mountPoint.startsWith(directory)),
      false,
    );
    assert.deepEqual(await loopsOf(directory), []);
  }),
);

test(
  "openErofs() without attach leaves no mount; the same detached mount may go to its place later",
  needsRoot,
  withImage(({ source, device, place }) => {
    const target = place();
    {
      using mount = mounts.openErofs({ source, devices: [device] });
      assert.equal(isMountPoint(target), false);
      assert.equal(isOpenElsewhere(source), true);
      assert.ok(mount.fd > 2);
    }
    assert.equal(isOpenElsewhere(source), false);
    using mount = mounts.openErofs({ source, devices: [device] });
    mount.attach(target);
    mount.close();
    mount.close();
    assert.deepEqual(readdirSync(target).sort(), ["big", "dir"]);
    assert.equal(mounts.unmount(target), true);
  }),
);

test(
  "mountOverlay() over EROFS is writable, in the upper directory only; without one it is read-only",
  needsRoot,
  withImage(({ source, device, place }) => {
    const [lower, upper, work, target, frozen] = [place(), place(), place(), place(), place()];
    mounts.mountErofs({ source, devices: [device], target: lower });
    mounts.mountOverlay({ lower: [lower], upper, work, target, options: { metacopy: "off" } });
    writeFileSync(join(target, "dir/new"), "x");
    files.unlink(join(target, "big"));
    assert.deepEqual(readdirSync(target), ["dir"]);
    assert.deepEqual(readdirSync(upper).sort(), ["big", "dir"]);
    assert.equal(files.statFile(join(upper, "big")).kind, "other"); // a whiteout
    mounts.mountOverlay({ lower: [upper, lower], target: frozen });
    assert.equal(readFileSync(join(frozen, "dir/new"), "utf8"), "x");
    assert.throws(() => writeFileSync(join(frozen, "y"), ""), { code: "EROFS" });
    for (const place of [frozen, target, lower]) assert.equal(mounts.unmount(place), true);
  }),
);

for (const [joinLower, count] of [
  [false, 60],
  [true, 12],
] as const) {
  test(
    `mountOverlay() with joinLower ${joinLower} takes ${count} layers with long and odd paths, uppermost first`,
    needsRoot,
    () =>
      withTemporaryDirectory((directory) => {
        const base = join(directory, "x".repeat(200), "a:b,c\\d");
        const lower = Array.from({ length: count }, (_, i) => join(base, String(i)));
        for (const [i, path] of lower.entries()) {
          mkdirSync(path, { recursive: true });
          writeFileSync(join(path, "which"), String(i));
          writeFileSync(join(path, `only${i}`), "");
        }
        const [upper, work, target] = ["u", "w", "t"].map((name) => join(base, name)) as [string, string, string];
        for (const path of [upper, work, target]) mkdirSync(path);
        mounts.mountOverlay({ lower, upper, work, target, joinLower });
        assert.equal(readFileSync(join(target, "which"), "utf8"), "0");
        assert.equal(readdirSync(target).length, count + 1);
        writeFileSync(join(target, "new"), "");
        assert.deepEqual(readdirSync(upper), ["new"]);
        assert.equal(mounts.unmount(target), true);
      }),
  );
}

test("openOverlay() with joinLower says so when the layers are too many for one string", needsRoot, () => {
  assert.throws(() => mounts.openOverlay({ lower: Array<string>(60).fill("/usr"), joinLower: true }), {
    code: "FAILED_PRECONDITION",
    message: "Cannot stack 60 layers: their paths are too long for this kernel",
  });
});

test("device nodes in EROFS and overlay mounts open no device", needsRoot, () =>
  withTemporaryDirectory(async (directory) => {
    const [tree, target] = [join(directory, "tree"), join(directory, "target")];
    for (const path of [tree, target]) mkdirSync(path);
    mknod(join(tree, "null"), 0o020666, 1, 3);
    const image = join(directory, "image");
    assert.equal((await run("mkfs.erofs", [image, tree])).code, 0);
    mounts.mountErofs({ source: image, target });
    assert.throws(() => readFileSync(join(target, "null")), { code: "EACCES" });
    mounts.mountOverlay({ lower: [target, directory], target });
    assert.throws(() => readFileSync(join(target, "null")), { code: "EACCES" });
  }),
);

test("openOverlay() repeats what the kernel says of a wrong option", needsRoot, () => {
  assert.throws(() => mounts.openOverlay({ lower: ["/tmp", "/usr"], options: { nonsense: true } }), {
    code: "FAILED_PRECONDITION",
    message: "Cannot mount overlay (overlay): overlay: Unknown parameter 'nonsense'",
  });
});

test("bindMount() shows a directory elsewhere; read-only there alone", needsRoot, () =>
  withTemporaryDirectory((directory) => {
    const [source, target] = [join(directory, "a"), join(directory, "b")];
    mkdirSync(source);
    mkdirSync(target);
    mounts.bindMount(source, target, { readOnly: true });
    writeFileSync(join(source, "file"), "x");
    assert.equal(readFileSync(join(target, "file"), "utf8"), "x");
    assert.throws(() => writeFileSync(join(target, "new"), ""), { code: "EROFS" });
    assert.equal(mounts.unmount(target), true);
    assert.throws(() => mounts.bindMount(join(directory, "absent"), target), { code: "NOT_FOUND" });
  }),
);

test(
  "unmount() refuses what is in use, unless lazy; then the content stays good for its user",
  needsRoot,
  withImage(({ source, device, big, place }) => {
    const target = place();
    mounts.mountErofs({ source, devices: [device], target });
    const fd = files.openFile(join(target, "big"));
    assert.throws(() => mounts.unmount(target), {
      code: "FAILED_PRECONDITION",
      message: `Cannot unmount ${target}: it is in use`,
    });
    assert.equal(mounts.unmount(target, { lazy: true }), true);
    assert.equal(isMountPoint(target), false);
    const bytes = Buffer.alloc(big.length);
    files.readAt(fd, bytes, 0);
    assert.ok(bytes.equals(big));
    assert.equal(isOpenElsewhere(device), true); // out of sight, and still in use
    files.closeFile(fd);
  }),
);

for (const type of ["ext4", "xfs", "btrfs"] as const) {
  test(
    `isOpenElsewhere() on ${type}: true while mounted as image, device or loop file or open, false otherwise`,
    needsRoot,
    () =>
      withLoopFilesystem(type, {}, async (directory) => {
        const { source, device } = await makeErofsImage(directory);
        const target = join(directory, "target");
        mkdirSync(target);
        const both = () => [isOpenElsewhere(source), isOpenElsewhere(device)];
        assert.deepEqual(both(), [false, false]);
        for (const options of [{ directIo: false }, { directIo: true }, { backing: "loop" as const }]) {
          mounts.mountErofs({ source, devices: [device], target, ...options });
          assert.deepEqual(both(), [true, true], JSON.stringify(options));
          mounts.unmount(target);
          assert.deepEqual(both(), [false, false], JSON.stringify(options));
        }
        for (const mode of ["read", "read-write"] as const) {
          const fd = files.openFile(device, mode);
          assert.deepEqual(both(), [false, true], mode);
          files.closeFile(fd);
        }
      }),
  );
}

test(
  "isOpenElsewhere() is true for a mount in another mount namespace, which mountInfo() does not show",
  needsRoot,
  withImage(async ({ source, device, place }) => {
    const target = place();
    const text = JSON.stringify({ source, devices: [device], target });
    const child = new Child(
      `import { mountErofs, mountNamespaceId } from ${moduleUrl("index.ts")};
       mountErofs(${text}); console.log(mountNamespaceId()); setInterval(() => {}, 1000);`,
      {},
      ["unshare", "--mount", "--propagation", "private"],
    );
    {
      await using _ends = child;
      assert.notEqual(await child.line(), mountNamespaceId());
      assert.equal(isMountPoint(target), false);
      assert.deepEqual([isOpenElsewhere(source), isOpenElsewhere(device)], [true, true]);
    }
    assert.deepEqual([isOpenElsewhere(source), isOpenElsewhere(device)], [false, false]); // the namespace died with its process
  }),
);

test("isOpenElsewhere() does not end a process whose file is opened by another during the question", () =>
  withTemporaryDirectory(async (directory) => {
    const path = join(directory, "a");
    writeFileSync(path, "");
    await using other = new Child(`
      import { closeSync, openSync } from "node:fs";
      console.log("ready");
      for (;;) closeSync(openSync(${JSON.stringify(path)}));`);
    assert.equal(await other.line(), "ready");
    const answers = new Set<boolean | undefined>();
    for (let i = 0; i < 5000; i++) answers.add(isOpenElsewhere(path));
    answers.delete(true);
    answers.delete(false);
    assert.equal(answers.size, 0); // never "unknown", and this process is still here (SIGIO would have ended it)
  }));

test("attachLoop() gives the file as a block device, and frees it on close", needsRoot, () =>
  withTemporaryDirectory(async (directory) => {
    const path = join(directory, "a");
    writeFileSync(path, Buffer.alloc(65536, 5));
    const loop = attachLoop(path);
    assert.match(loop.path, /^\/dev\/loop\d+$/);
    assert.deepEqual(await loopsOf(directory), [path]);
    assert.ok(readFileSync(loop.path).equals(Buffer.alloc(65536, 5)));
    loop.close();
    loop.close();
    assert.deepEqual(await loopsOf(directory), []);
    assert.throws(() => attachLoop(join(directory, "absent")), { code: "ENOENT" });
  }),
);

test("parseMountInfo() reads optional fields, escapes and empty options", () => {
  const text = [
    "36 35 98:0 /mnt1 /mnt\\0402\\134x rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue",
    "42 27 0:39 / /tmp/\\303\\244\\011 ro - erofs none ",
    "",
  ].join("\n");
  assert.deepEqual(parseMountInfo(Buffer.from(text)), [
    {
      id: 36,
      parentId: 35,
      device: "98:0",
      root: "/mnt1",
      mountPoint: "/mnt 2\\x",
      options: ["rw", "noatime"],
      propagation: ["master:1", "shared:2"],
      type: "ext3",
      source: "/dev/root",
      superOptions: ["rw", "errors=continue"],
    },
    {
      id: 42,
      parentId: 27,
      device: "0:39",
      root: "/",
      mountPoint: "/tmp/ä\t",
      options: ["ro"],
      propagation: [],
      type: "erofs",
      source: "none",
      superOptions: [""],
    },
  ]);
  assert.throws(() => parseMountInfo(Buffer.from("36 35 98:0 / / rw")), RangeError);
});
