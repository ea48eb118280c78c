import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import {
  createFileAt,
  exchangeAt,
  findAt,
  isStill,
  makeDirectoryAt,
  openDirectory,
  openDirectoryBeneath,
  openFileBeneath,
  openItselfAt,
  removeTreeAt,
  readXattrsAt,
  renameNoReplaceAt,
  setModifiedTime,
  setModifiedTimeAt,
  setXattrOfHandle,
  statDescriptor,
} from "./beneath.ts";
import { closeFile } from "./files.ts";
import { getXattr, setXattr } from "./libc.ts";
import { parseRights, processRights } from "./rights.ts";
import { Child } from "./testing/child.ts";
import { needsRoot, withTemporaryDirectory } from "./testing/filesystems.ts";

/** A new directory, its descriptor, and a place outside of it. */
function withDirectory(use: (directory: number, path: string, outside: string) => void | Promise<void>): Promise<void> {
  return withTemporaryDirectory(async (scratch) => {
    const path = join(scratch, "inside");
    const outside = join(scratch, "outside");
    for (const one of [path, outside, join(outside, "sub")]) fs.mkdirSync(one);
    fs.writeFileSync(join(outside, "file"), "kept");
    const directory = openDirectory(path);
    try {
      await use(directory, path, outside);
    } finally {
      closeFile(directory);
    }
    assert.equal(fs.readFileSync(join(outside, "file"), "utf8"), "kept");
  });
}

describe("openDirectoryBeneath()", () => {
  test("follows no symlink, and leaves the directory by no path", async () => {
    await withDirectory((directory, path, outside) => {
      fs.symlinkSync(outside, join(path, "link"));
      fs.symlinkSync("real", join(path, "relative"));
      fs.mkdirSync(join(path, "real/deep"), { recursive: true });
      fs.writeFileSync(join(path, "file"), "");
      for (const bad of [
        "link",
        "link/sub",
        "relative",
        "relative/deep",
        "..",
        "real/../..",
        "../outside",
        outside,
        "file",
      ]) {
        assert.throws(() => openDirectoryBeneath(directory, bad), { code: /^(ELOOP|EXDEV|ENOTDIR)$/ }, bad);
      }
      for (const bad of ["link/file", "../outside/file", join(outside, "file"), "link"]) {
        assert.throws(() => openFileBeneath(directory, bad), { code: /^(ELOOP|EXDEV)$/ }, bad);
      }
      closeFile(openFileBeneath(directory, "file"));
      for (const [good, real] of [
        ["", "."],
        ["real", "real"],
        ["real/deep", "real/deep"],
      ] as const) {
        const fd = openDirectoryBeneath(directory, good);
        assert.equal(statDescriptor(fd).ino, fs.statSync(join(path, real), { bigint: true }).ino);
        closeFile(fd);
      }
    });
  });

  test("walks paths that are longer than a system call takes, and removeTreeAt() removes them", async () => {
    await withDirectory((directory, path) => {
      const name = "n".repeat(200);
      const parts: string[] = [];
      for (let depth = 0; depth < 50; depth++) {
        const parent = openDirectoryBeneath(directory, parts.join("/"));
        makeDirectoryAt(parent, name);
        closeFile(createFileAt(parent, "file", 0o600));
        closeFile(parent);
        parts.push(name);
      }
      const deepest = openDirectoryBeneath(directory, parts.join("/"));
      assert.equal(fs.readdirSync(`/proc/self/fd/${deepest}`).length, 0);
      closeFile(deepest);
      assert.equal(removeTreeAt(directory, name), true);
      assert.deepEqual(fs.readdirSync(path), ["file"]);
    });
  });
});

describe("names", () => {
  test("that are no name of one thing are refused", async () => {
    await withDirectory((directory) => {
      for (const bad of ["", ".", "..", "a/b", "/etc/x", "../x"]) {
        assert.throws(() => createFileAt(directory, bad, 0o600), { code: "EINVAL" }, bad);
        assert.throws(() => makeDirectoryAt(directory, bad), { code: "EINVAL" }, bad);
      }
      assert.throws(() => makeDirectoryAt(directory, "a\0b"), { code: "EINVAL" });
    });
  });

  test("that are taken by a symlink are not followed by createFileAt()", async () => {
    await withDirectory((directory, path, outside) => {
      fs.symlinkSync(join(outside, "new"), join(path, "link"));
      assert.throws(() => createFileAt(directory, "link", 0o600), { code: "EEXIST" });
      assert.equal(fs.existsSync(join(outside, "new")), false);
    });
  });

  test("any byte but NUL and slash is kept", async () => {
    await withDirectory((directory, path) => {
      const name = String.fromCharCode(...Array.from({ length: 255 }, (_, i) => i + 1).filter((byte) => byte !== 0x2f));
      closeFile(createFileAt(directory, name, 0o600));
      assert.deepEqual(fs.readdirSync(path, { encoding: "latin1" as BufferEncoding }), [name]);
    });
  });
});

describe("removeTreeAt()", () => {
  test("removes symlinks, not what they lead to; says whether there was something", async () => {
    await withDirectory((directory, path, outside) => {
      fs.mkdirSync(join(path, "tree/sub"), { recursive: true });
      fs.symlinkSync(outside, join(path, "tree/link"));
      fs.symlinkSync(outside, join(path, "tree/sub/link"));
      fs.symlinkSync(outside, join(path, "alone"));
      assert.equal(removeTreeAt(directory, "tree"), true);
      assert.equal(removeTreeAt(directory, "alone"), true);
      assert.equal(removeTreeAt(directory, "nothing"), false);
      assert.deepEqual(fs.readdirSync(path), []);
    });
  });

  test("leaves what is outside alone while another process swaps directories for symlinks", async () => {
    await withDirectory(async (directory, path, outside) => {
      await using attacker = new Child(`
        import fs from "node:fs";
        let stop = false;
        process.stdin.once("data", () => { stop = true; });
        console.log("ready");
        while (!stop) {
          const trees = fs.readdirSync(${JSON.stringify(path)});
          for (let i = 0; i < 200 && trees.length > 0; i++) {
            const one = ${JSON.stringify(path)} + "/" + trees.at(-1) + "/d" + i;
            try { fs.renameSync(one, one + "x"); fs.symlinkSync(${JSON.stringify(outside)}, one); } catch {}
          }
          await new Promise((resolve) => setImmediate(resolve));
        }
        process.stdin.destroy();`);
      await attacker.line();
      for (let round = 0; round < 10; round++) {
        for (let i = 0; i < 200; i++) fs.mkdirSync(join(path, `tree${round}/d${i}/sub`), { recursive: true });
        try {
          removeTreeAt(directory, `tree${round}`);
        } catch (error) {
          assert.ok(error instanceof Error && "code" in error);
          assert.match(String(error.code), /^(ENOTEMPTY|ELOOP|ENOTDIR|ENOENT|EXDEV)$/);
        }
        assert.deepEqual(fs.readdirSync(outside), ["file", "sub"], `round ${round}`);
      }
      attacker.send("stop\n");
    });
  });
});

describe("renaming", () => {
  test("renameNoReplaceAt() takes no name that is taken; exchangeAt() swaps", async () => {
    await withDirectory((directory, path) => {
      fs.mkdirSync(join(path, "one/first"), { recursive: true });
      fs.mkdirSync(join(path, "two"));
      assert.equal(renameNoReplaceAt(directory, "one", "two"), false);
      exchangeAt(directory, "one", "two");
      assert.deepEqual(fs.readdirSync(join(path, "two")), ["first"]);
      assert.equal(renameNoReplaceAt(directory, "one", "three"), true);
      assert.equal(findAt(directory, "one"), undefined);
    });
  });
});

describe("attributes", () => {
  test("times keep their nanoseconds before 1970 and after 2038, of symlinks too", async () => {
    await withDirectory((directory, path) => {
      fs.symlinkSync("x", join(path, "link"));
      for (const [seconds, nanoseconds] of [
        [-1, 999_999_999],
        [0, 1],
        [2 ** 31, 5],
        [2 ** 33, 7],
      ] as const) {
        setModifiedTimeAt(directory, "link", seconds, nanoseconds);
        const status = findAt(directory, "link")!;
        assert.deepEqual([status.mtimeSeconds, status.mtimeNanoseconds], [seconds, nanoseconds]);
      }
    });
  });

  test("setXattrOfHandle() sets those of a symlink itself", needsRoot, async () => {
    await withDirectory((directory, path, outside) => {
      fs.symlinkSync(join(outside, "file"), join(path, "link"));
      const handle = openItselfAt(directory, "link");
      setXattrOfHandle(handle, "trusted.test", Buffer.from("value"));
      closeFile(handle);
      assert.equal(getXattr(join(path, "link"), "trusted.test").toString(), "value");
      assert.throws(() => getXattr(join(outside, "file"), "trusted.test"), { code: "ENODATA" });
    });
  });
});

describe("readXattrsAt()", () => {
  /** A file with attributes, a plain one, a symlink with one of its own, and the directory itself. */
  function makeFiles(path: string): void {
    fs.writeFileSync(join(path, "file"), "");
    fs.writeFileSync(join(path, "plain"), "");
    fs.symlinkSync("file", join(path, "link"));
    for (const name of ["user.b", "trusted.a", "user.\xff"])
      setXattr(join(path, "file"), Buffer.from(name, "latin1"), Buffer.from(`of ${name}`));
    setXattr(join(path, "link"), "trusted.link", Buffer.from("its own"));
    setXattr(path, "user.directory", Buffer.alloc(0));
  }
  const expected = {
    file: [
      { name: "trusted.a", value: "of trusted.a" },
      { name: "user.b", value: "of user.b" },
      { name: "user.\xff", value: "of user.\xc3\xbf" },
    ],
    plain: [],
    link: [{ name: "trusted.link", value: "its own" }],
    "": [{ name: "user.directory", value: "" }],
  };

  test("gives those of the name itself, of a symlink too, and of the directory", needsRoot, async () => {
    await withDirectory((directory, path) => {
      makeFiles(path);
      for (const [name, xattrs] of Object.entries(expected))
        assert.deepEqual(readXattrsAt(directory, name), xattrs, name);
      assert.throws(() => readXattrsAt(directory, "none"), { code: "ENOENT" });
      assert.throws(() => readXattrsAt(directory, "../outside/file"), { code: "EINVAL" });
    });
  });

  for (const [what, errno] of [
    ["a kernel that lacks listxattrat", 38],
    ["a filter that forbids it", 1],
  ] as const) {
    test(`gives the same with ${what}`, needsRoot, async () => {
      await withDirectory((_, path) => {
        makeFiles(path);
        const source = (name: string) => JSON.stringify(join(import.meta.dirname, name));
        const script = `import { denyCall } from ${source("testing/deny-call.ts")};
          import { openDirectory, readXattrsAt } from ${source("index.ts")};
          denyCall(465, ${errno});
          const directory = openDirectory(process.argv[1]);
          console.log(JSON.stringify(${JSON.stringify(Object.keys(expected))}.map((name) => readXattrsAt(directory, name))));`;
        const args = ["--disable-warning=ExperimentalWarning", "--input-type=module", "-e", script, path];
        assert.deepEqual(JSON.parse(execFileSync(process.execPath, args).toString()), Object.values(expected));
      });
    });
  }
});

describe("isStill()", () => {
  test("notices another size, another time to the nanosecond, and another file", async () => {
    await withDirectory((directory, path) => {
      const file = join(path, "file");
      fs.writeFileSync(file, "1");
      const fd = fs.openSync(file, "r+");
      setModifiedTime(fd, 5, 7);
      const before = findAt(directory, "file")!;
      assert.ok(isStill(fd, before));
      setModifiedTime(fd, 5, 8);
      assert.ok(!isStill(fd, before));
      setModifiedTime(fd, 6, 7);
      assert.ok(!isStill(fd, before));
      setModifiedTime(fd, 5, 7);
      assert.ok(isStill(fd, before));
      fs.writeSync(fd, "2", 1);
      setModifiedTime(fd, 5, 7);
      assert.ok(!isStill(fd, before));
      assert.ok(isStill(fd, findAt(directory, "file")!));
      assert.ok(!isStill(fd, { ...before, size: 2, ino: before.ino + 1n }));
      fs.closeSync(fd);
    });
  });
});

describe("processRights()", () => {
  test("knows this process", () => {
    const { uid, gid, umask } = processRights();
    assert.deepEqual([uid, gid], [process.geteuid?.(), process.getegid?.()]);
    assert.equal(umask, process.umask());
  });

  const STATUS = "Umask:\t0027\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nCapEff:\t";
  for (const { name, capabilities, map, privileged, trusted } of [
    { name: "root", capabilities: "000001ffffffffff", map: " 0 0 4294967295\n", privileged: true, trusted: true },
    {
      name: "root of a user namespace",
      capabilities: "000001ffffffffff",
      map: " 0 1000 1\n",
      privileged: true,
      trusted: false,
    },
    { name: "nobody", capabilities: "0000000000000000", map: " 0 0 4294967295\n", privileged: false, trusted: false },
  ]) {
    test(`parseRights() of ${name}`, () => {
      assert.deepEqual(parseRights(`${STATUS}${capabilities}\n`, map), {
        uid: 4,
        gid: 8,
        umask: 0o027,
        privileged,
        trusted,
      });
    });
  }
});
