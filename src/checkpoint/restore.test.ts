import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import fc from "fast-check";
import { ShaleError } from "../errors/index.ts";
import { getXattr, mknod, setXattr } from "../sys/libc.ts";
import { needsRoot, withTemporaryDirectory } from "../sys/testing/filesystems.ts";
import { openArchive, openArchiveStream } from "./archive/index.ts";
import { type RestoreTargets, restoreCheckpoint } from "./restore.ts";
import { archiveOf, makeMetadata, noise, type TarFileSpec, tarOf } from "./testing/samples.ts";
import { describeTree, writeExtents } from "./testing/trees.ts";
import { writeCheckpoint } from "./write.ts";

const OPAQUE = "trusted.overlay.opaque";

async function restoreBytes(directory: string, bytes: Uint8Array, targets: Partial<RestoreTargets> = {}) {
  const path = join(directory, "archive.tar");
  writeFileSync(path, bytes);
  await using archive = await openArchive(path);
  const all = { upper: join(directory, "upper"), bundle: join(directory, "bundle"), ...targets };
  return await restoreCheckpoint(archive, all);
}

function isWhiteout(path: string): boolean {
  const status = lstatSync(path);
  return status.isCharacterDevice() && status.rdev === 0;
}

/** Lower layers as of an image: etc/ with owner, mode and time of its own. */
function makeLower(directory: string): string {
  const lower = join(directory, "lower");
  mkdirSync(join(lower, "etc/sub"), { recursive: true });
  writeFileSync(join(lower, "etc/gone"), "x");
  execFileSync("chown", ["12:34", join(lower, "etc")]);
  execFileSync("chmod", ["2751", join(lower, "etc")]);
  execFileSync("chmod", ["555", lower]);
  execFileSync("touch", ["-d", "2001-02-03 04:05:06.123456789", join(lower, "etc")]);
  return lower;
}

describe("restoreCheckpoint()", needsRoot, () => {
  for (const [where, archiveWith] of [
    ["in a nested tar", (files: TarFileSpec[]) => archiveOf(tarOf(...files))],
    [
      "as members",
      (files: TarFileSpec[]) =>
        tarOf(
          ...files.map(({ header, content = Buffer.alloc(0) }) => ({
            header: { ...header, path: `rootfs-diff/${header.path}` },
            content,
          })),
        ),
    ],
  ] as const) {
    test(`hears a signal while all bytes are at hand, and leaves nothing: files ${where}`, async () => {
      await withTemporaryDirectory(async (directory) => {
        const files = Array.from({ length: 2000 }, (_, i) => ({
          header: { path: `f${i}` },
          content: Buffer.from("x"),
        }));
        writeFileSync(join(directory, "archive.tar"), archiveWith(files));
        const stop = new AbortController();
        await using archive = await openArchive(join(directory, "archive.tar"), { signal: stop.signal });
        const timer = setInterval(() => {
          const staged = join(directory, ".upper.restoring");
          if (existsSync(staged) && readdirSync(staged).length > 0) stop.abort();
        }, 0);
        try {
          const targets = { upper: join(directory, "upper"), bundle: join(directory, "bundle") };
          const restoring = restoreCheckpoint(archive, targets, { signal: stop.signal });
          await assert.rejects(restoring, { code: "CANCELLED" });
        } finally {
          clearInterval(timer);
        }
        assert.deepEqual(readdirSync(directory), ["archive.tar"]);
      });
    });
  }

  test("makes parents as the lower directories have them, the root's mode too", async () => {
    await withTemporaryDirectory(async (directory) => {
      const lower = makeLower(directory);
      const rootfs = tarOf({ header: { path: "etc/sub/new" }, content: Buffer.from("new") });
      await restoreBytes(directory, archiveOf(rootfs), { lower: [lower] });
      const [root, etc] = [
        statSync(join(directory, "upper")),
        statSync(join(directory, "upper/etc"), { bigint: true }),
      ];
      assert.equal(root.mode & 0o7777, 0o555);
      assert.deepEqual([etc.uid, etc.gid, etc.mode & 0o7777n], [12n, 34n, 0o2751n]);
      assert.equal(etc.mtimeNs % 1_000_000_000n, 123_456_789n);
      assert.throws(() => getXattr(join(directory, "upper/etc"), OPAQUE), { code: "ENODATA" });
    });
  });

  test("reads podman's removed and made again directory as opaque, where podman would remove it", async () => {
    await withTemporaryDirectory(async (directory) => {
      const rootfs = tarOf(
        { header: { path: "d", type: "directory", mode: 0o755 } },
        { header: { path: "d/new" }, content: Buffer.from("new") },
      );
      const deleted = {
        header: { path: "deleted.files" },
        content: Buffer.from('["/d","/d/old","/gone","/gone/below"]'),
      };
      for (const members of [
        archiveOf(rootfs, deleted),
        tarOf(deleted, { header: { path: "rootfs-diff.tar" }, content: rootfs }),
      ]) {
        const upper = join(directory, "upper");
        const result = await restoreBytes(directory, members, { upper });
        assert.equal(readFileSync(join(upper, "d/new"), "utf8"), "new");
        assert.equal(getXattr(join(upper, "d"), OPAQUE).toString(), "y");
        assert.ok(isWhiteout(join(upper, "gone")));
        assert.deepEqual(readdirSync(join(upper, "d")), ["new"]);
        assert.equal(result.whiteouts, 1);
        execFileSync("rm", ["-rf", upper, join(directory, "bundle")]);
      }
    });
  });

  test("reads containerd's compressed layer, its whiteouts and its opaque mark", async () => {
    await withTemporaryDirectory(async (directory) => {
      const layer = tarOf(
        { header: { path: "etc/", type: "directory", mode: 0o755 } },
        { header: { path: "etc/.wh.gone" } },
        { header: { path: "data/.wh..wh..opq" } },
        { header: { path: "data/big" }, content: noise(100_000) },
        { header: { path: ".wh..wh.aufs" } },
      );
      const gz = execFileSync("gzip", ["-1"], { input: layer });
      const status = { header: { path: "status.dump" }, content: Buffer.from("{}") };
      await restoreBytes(directory, archiveOf(gz, status));
      const upper = join(directory, "upper");
      assert.ok(isWhiteout(join(upper, "etc/gone")));
      assert.equal(getXattr(join(upper, "data"), OPAQUE).toString(), "y");
      assert.ok(readFileSync(join(upper, "data/big")).equals(noise(100_000)));
      assert.deepEqual(readdirSync(upper).sort(), ["data", "etc"]);
      assert.equal(readFileSync(join(directory, "bundle/status.dump"), "utf8"), "{}");
    });
  });

  test("keeps a file named .wh.x of a podman archive as a file", async () => {
    await withTemporaryDirectory(async (directory) => {
      await restoreBytes(directory, archiveOf(tarOf({ header: { path: ".wh.x" }, content: Buffer.from("y") })));
      assert.equal(readFileSync(join(directory, "upper/.wh.x"), "utf8"), "y");
    });
  });

  test("reads inline changes, and makes sources of CRI-O's bind mounts", async () => {
    await withTemporaryDirectory(async (directory) => {
      const missing = join(directory, "missing");
      const spec = {
        mounts: [
          { destination: "/conf", type: "bind", source: missing },
          { destination: "/etc/hosts", type: "bind", source: missing },
        ],
      };
      const archive = tarOf(
        { header: { path: "spec.dump" }, content: Buffer.from(JSON.stringify(spec)) },
        { header: { path: "rootfs-diff", type: "directory", mode: 0o751 } },
        { header: { path: "rootfs-diff/etc", type: "directory", mode: 0o755 } },
        { header: { path: "rootfs-diff/etc/conf" }, content: Buffer.from("inline") },
        {
          header: { path: "bind.mounts" },
          content: Buffer.from(JSON.stringify([{ source: missing, destination: "/conf", file_type: "directory" }])),
        },
      );
      await restoreBytes(directory, archive);
      assert.equal(readFileSync(join(directory, "upper/etc/conf"), "utf8"), "inline");
      assert.equal(statSync(join(directory, "upper")).mode & 0o7777, 0o751);
      const config = JSON.parse(readFileSync(join(directory, "bundle/config.json"), "utf8"));
      assert.equal(config.root.path, "rootfs");
      assert.ok(statSync(config.mounts[0].source).isDirectory());
      assert.match(readFileSync(config.mounts[1].source, "utf8"), /localhost/);
    });
  });

  test("reads sparse files of GNU tar", async () => {
    await withTemporaryDirectory(async (directory) => {
      const source = join(directory, "source");
      mkdirSync(source);
      writeExtents(join(source, "sparse"), [20_000, 3_000_000, 20_000, 3_000_000], 3);
      for (const format of ["gnu", "pax"]) {
        const rootfs = execFileSync("tar", ["-C", source, "-S", `--format=${format}`, "-c", "sparse"], {
          maxBuffer: 1 << 30,
        });
        assert.ok(rootfs.length < 100_000);
        await restoreBytes(directory, archiveOf(rootfs));
        const restored = join(directory, "upper/sparse");
        assert.ok(readFileSync(restored).equals(readFileSync(join(source, "sparse"))));
        assert.ok(statSync(restored).blocks * 512 < 200_000);
        execFileSync("rm", ["-rf", join(directory, "upper"), join(directory, "bundle")]);
      }
    });
  });

  test("wants a place for each volume, or the order to leave it out", async () => {
    await withTemporaryDirectory(async (directory) => {
      const volume = { header: { path: "volumes/data.tar" }, content: tarOf({ header: { path: "f" } }) };
      const archive = archiveOf(tarOf(), volume);
      await assert.rejects(restoreBytes(directory, archive), { code: "FAILED_PRECONDITION", message: /volume data/ });
      assert.deepEqual(readdirSync(directory), ["archive.tar"]);
      const volumes = [{ name: "data", directory: join(directory, "data") }];
      assert.deepEqual((await restoreBytes(directory, archive, { volumes })).volumes, ["data"]);
      assert.deepEqual(readdirSync(join(directory, "data")), ["f"]);
    });
  });

  test("fills an empty directory, and refuses one that is not, or is a mount point", async () => {
    await withTemporaryDirectory(async (directory) => {
      const archive = archiveOf(tarOf({ header: { path: "f" } }));
      mkdirSync(join(directory, "upper"));
      await restoreBytes(directory, archive);
      const again = { bundle: join(directory, "other") };
      await assert.rejects(restoreBytes(directory, archive, again), { code: "ALREADY_EXISTS" });
      await assert.rejects(restoreBytes(directory, archive, { ...again, upper: "/proc" }), { code: "ALREADY_EXISTS" });
      await assert.rejects(restoreBytes(directory, archive, { ...again, upper: join(directory, "no/where") }), {
        code: "NOT_FOUND",
      });
      assert.deepEqual(readdirSync(directory).sort(), ["archive.tar", "bundle", "upper"]);
    });
  });
});

describe("restoreCheckpoint() of a hostile archive", needsRoot, () => {
  const file = (path: string, more: Partial<TarFileSpec["header"]> = {}): TarFileSpec => ({
    header: { path, ...more },
    content: Buffer.from("evil"),
  });
  const link = (path: string, linkTarget: string, type: "symlink" | "hardlink"): TarFileSpec => ({
    header: { path, linkTarget, type },
  });
  const deleted = (text: string): TarFileSpec => ({ header: { path: "deleted.files" }, content: Buffer.from(text) });
  const CASES: readonly { readonly what: string; readonly bytes: (outside: string) => Buffer }[] = [
    { what: '".." in a name', bytes: () => archiveOf(tarOf(file("../evil"))) },
    { what: "an absolute name", bytes: (outside) => archiveOf(tarOf(file(`${outside}/evil`))) },
    {
      what: "a symlink as a parent",
      bytes: (outside) => archiveOf(tarOf(link("d", outside, "symlink"), file("d/evil"))),
    },
    {
      what: "a symlink in place of a directory that is there",
      bytes: (outside) => archiveOf(tarOf(file("d/x"), link("d", outside, "symlink"), file("d/evil"))),
    },
    {
      what: "a directory in place of a symlink",
      bytes: (outside) => archiveOf(tarOf(link("d", outside, "symlink"), { header: { path: "d", type: "directory" } })),
    },
    {
      what: "a hard link to outside",
      bytes: (outside) => archiveOf(tarOf(link("l", `${outside}/secret`, "hardlink"))),
    },
    { what: 'a hard link by ".."', bytes: () => archiveOf(tarOf(link("l", "../../secret", "hardlink"))) },
    {
      what: "a hard link through a symlink",
      bytes: (outside) => archiveOf(tarOf(link("d", outside, "symlink"), link("l", "d/secret", "hardlink"))),
    },
    { what: "a hard link to itself", bytes: () => archiveOf(tarOf(link("l", "l", "hardlink"))) },
    {
      what: "a hard link to a directory",
      bytes: () => archiveOf(tarOf({ header: { path: "d", type: "directory" } }, link("l", "d", "hardlink"))),
    },
    {
      what: "a member through a symlink of the bundle",
      bytes: (outside) => tarOf(link("checkpoint", outside, "symlink"), file("checkpoint/evil")),
    },
    { what: "a deletion by ..", bytes: () => archiveOf(tarOf(), deleted('["/../../evil"]')) },
    { what: "a deletion of the root", bytes: () => archiveOf(tarOf(), deleted('["/"]')) },
    { what: "deletions that are no list", bytes: () => archiveOf(tarOf(), deleted('{"a":1}')) },
    {
      what: "a deletion through a symlink",
      bytes: (outside) => archiveOf(tarOf(link("d", outside, "symlink")), deleted('["/d/secret"]')),
    },
    {
      what: "a tar in rootfs-diff.tar that claims 8 GiB",
      bytes: () => archiveOf(tarOf({ header: { path: "f", size: 2 ** 33 } }).subarray(0, 1024)),
    },
    { what: "a size of 16 EiB in a PAX record", bytes: () => archiveOf(paxSize("18446744073709551615")) },
    { what: "a size below what is there in a PAX record", bytes: () => archiveOf(paxSize("2")) },
    {
      what: "an index that is none",
      bytes: () => archiveOf(tarOf(), { header: { path: "shale.json" }, content: Buffer.from("{}") }),
    },
    { what: "a file as the root", bytes: () => archiveOf(tarOf(file("."))) },
  ];

  /** A file of 1000 bytes whose extended header says another size. */
  function paxSize(size: string): Buffer {
    const text = ` size=${size}\n`;
    const body = `${text.length + 2}${text}`;
    const extended = tarOf({ header: { path: "PaxHeaders/f" }, content: Buffer.from(body) });
    const header = extended.subarray(0, 512);
    header[156] = 0x78; // "x"
    header.fill(0x20, 148, 156);
    const sum = header.reduce((total, byte) => total + byte, 0);
    header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
    return Buffer.concat([extended.subarray(0, 1024), tarOf({ header: { path: "f" }, content: noise(1000) })]);
  }

  for (const { what, bytes } of CASES) {
    test(`refuses ${what}, and leaves nothing`, async () => {
      await withTemporaryDirectory(async (directory) => {
        const outside = join(directory, "outside");
        mkdirSync(outside);
        writeFileSync(join(outside, "secret"), "secret");
        const inside = join(directory, "inside");
        mkdirSync(inside);
        await assert.rejects(restoreBytes(inside, bytes(outside)), (error) => {
          assert.ok(ShaleError.is(error), String(error));
          return true;
        });
        assert.deepEqual(readdirSync(inside), ["archive.tar"]);
        assert.deepEqual(describeTree(outside).length, 2);
        assert.equal(readFileSync(join(outside, "secret"), "utf8"), "secret");
        assert.equal(statSync(join(outside, "secret")).nlink, 1);
        assert.ok(!existsSync(join(directory, "evil")));
      });
    });
  }

  test("escapes overlayfs's own xattrs: a container can't get a redirect into the host's image", async () => {
    await withTemporaryDirectory(async (directory) => {
      const xattrs = [{ name: "trusted.overlay.redirect", value: "/etc" }];
      await restoreBytes(directory, archiveOf(tarOf({ header: { path: "d", type: "directory", xattrs } })));
      assert.throws(() => getXattr(join(directory, "upper/d"), "trusted.overlay.redirect"), { code: "ENODATA" });
      assert.equal(getXattr(join(directory, "upper/d"), "trusted.overlay.overlay.redirect").toString(), "/etc");
    });
  });

  test("takes names with newlines, and symlinks to anywhere, as they are", async () => {
    await withTemporaryDirectory(async (directory) => {
      await restoreBytes(directory, archiveOf(tarOf(file("a\nb"), link("l", "/etc/shadow", "symlink"))));
      assert.deepEqual(readdirSync(join(directory, "upper")).sort(), ["a\nb", "l"]);
      assert.equal(readlinkSync(join(directory, "upper/l")), "/etc/shadow");
    });
  });

  test("the later one of two files of one name counts, and never through the first", async () => {
    await withTemporaryDirectory(async (directory) => {
      writeFileSync(join(directory, "outside"), "outside");
      await restoreBytes(directory, archiveOf(tarOf(link("f", join(directory, "outside"), "symlink"), file("f"))));
      assert.equal(readFileSync(join(directory, "outside"), "utf8"), "outside");
      assert.equal(readFileSync(join(directory, "upper/f"), "utf8"), "evil");
    });
  });
});

describe("restoreCheckpoint() of a changed archive of shale's", needsRoot, () => {
  async function made(directory: string, digestData: boolean): Promise<Buffer> {
    mkdirSync(join(directory, "in/upper"), { recursive: true });
    const upper = join(directory, "in/upper");
    mkdirSync(join(upper, "opaque"));
    setXattr(join(upper, "opaque"), OPAQUE, Buffer.from("y"));
    mknod(join(upper, "gone"), 0o020000, 0, 0);
    writeFileSync(join(upper, "small"), "small file");
    writeFileSync(join(upper, "large"), noise(50_000));
    const output = join(directory, "in/archive");
    const metadata = makeMetadata(join(directory, "in/meta"));
    await writeCheckpoint({ metadata, rootfsDiff: upper }, { output, digestData, writer: "test" });
    return readFileSync(output);
  }

  test("refuses it wherever it is cut, and leaves nothing", async () => {
    await withTemporaryDirectory(async (directory) => {
      const bytes = await made(directory, false);
      const out = join(directory, "out");
      mkdirSync(out);
      const cuts = [
        0,
        100,
        512,
        1024,
        9_000,
        60_000,
        200_000,
        bytes.length - 5000,
        bytes.length - 3000,
        bytes.length - 1600,
        bytes.length - 1025,
      ];
      for (const at of cuts) {
        for (const stream of [false, true]) {
          const path = join(directory, "cut");
          writeFileSync(path, bytes.subarray(0, at));
          async function* pieces() {
            yield bytes.subarray(0, at);
          }
          await using archive = stream ? await openArchiveStream(pieces(), "pipe") : await openArchive(path);
          const targets = { upper: join(out, "upper"), bundle: join(out, "bundle") };
          await assert.rejects(restoreCheckpoint(archive, targets), { name: /^(Format|Shale)Error$/ }, `cut at ${at}`);
          assert.deepEqual(readdirSync(out), []);
        }
      }
    });
  });

  for (const digestData of [false, true]) {
    test(`finds every changed byte${digestData ? "" : " that is not content of large files"}`, async () => {
      await withTemporaryDirectory(async (directory) => {
        const bytes = await made(directory, digestData);
        const out = join(directory, "out");
        mkdirSync(out);
        const large = bytes.indexOf(noise(1000));
        const pages = bytes.indexOf(noise(1000, 7));
        const isData = (at: number) => (at >= large && at < large + 50_000) || (at >= pages && at < pages + 200_000);
        // Padding behind the index and the end of the archive say nothing; all before it is covered.
        const end = bytes.lastIndexOf("\n") + 1;
        const before = describeTree(join(directory, "in/upper"));
        await fc.assert(
          fc.asyncProperty(
            fc.integer({ min: 0, max: end - 1 }),
            fc.integer({ min: 1, max: 255 }),
            async (at, change) => {
              if (!digestData && isData(at)) return;
              const changed = Buffer.from(bytes);
              changed[at] = changed[at]! ^ change;
              let accepted = false;
              try {
                await restoreBytes(out, changed);
                accepted = true;
              } catch (error) {
                assert.ok(ShaleError.is(error), String(error));
              }
              // A header that means the same in another spelling ("0644" and "644") was not changed in what it says.
              if (accepted) assert.deepEqual(describeTree(join(out, "upper")), before);
              assert.ok(!accepted, `byte ${at} changed by ${change}`);
              assert.deepEqual(readdirSync(out), ["archive.tar"]);
            },
          ),
          { numRuns: 150 },
        );
      });
    });
  }

  test("refuses members that were added, and any that were taken away", async () => {
    await withTemporaryDirectory(async (directory) => {
      const bytes = await made(directory, false);
      const out = join(directory, "out");
      mkdirSync(out);
      const extra = tarOf({ header: { path: "checkpoint/evil.img" }, content: Buffer.from("x") }).subarray(0, 1024);
      await assert.rejects(restoreBytes(out, Buffer.concat([extra, bytes])), { code: "DATA_LOSS" });
      await assert.rejects(restoreBytes(out, bytes.subarray(1024)), { code: "DATA_LOSS" });
      assert.deepEqual(readdirSync(out), ["archive.tar"]);
    });
  });
});
