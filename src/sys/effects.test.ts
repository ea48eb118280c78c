import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { crashPoint, injectFault } from "./effects.ts";
import { closeFile, createFile, readFile, unlink, writeAt, writeFileDurably } from "./files.ts";
import { Child, moduleUrl } from "./testing/child.ts";
import { withTemporaryDirectory } from "./testing/filesystems.ts";
import { readEffectsLog } from "./testing/power-loss.ts";

const BYTES = Buffer.from("content");

const write = (path: string) => `
  import { writeFileDurably } from ${moduleUrl("files.ts")};
  import { crashPoint } from ${moduleUrl("effects.ts")};
  writeFileDurably(${JSON.stringify(path)}, Buffer.from("content"));
  crashPoint("done");
  console.log("end");`;

test("injectFault() fails the nth matching operation without running it, and no other", () =>
  withTemporaryDirectory((directory) => {
    const path = join(directory, "a");
    {
      using _fault = injectFault({ kind: "datasync", path: /\/a\.tmp$/, nth: 2, errno: "EIO" });
      writeFileDurably(join(directory, "b"), BYTES); // its path does not match
      writeFileDurably(path, BYTES);
      assert.throws(() => writeFileDurably(path, Buffer.from("new")), {
        code: "EIO",
        errno: -5,
        syscall: "datasync",
        path: `${path}.tmp`,
      });
      assert.equal(readFile(path, 100).toString(), "content");
      writeFileDurably(path, Buffer.from("new"));
    }
    assert.equal(readFile(path, 100).toString(), "new");
  }));

test("injectFault() with persistent fails every later one too, until it is disposed of", () =>
  withTemporaryDirectory((directory) => {
    const fd = createFile(join(directory, "a"));
    const fault = injectFault({ kind: "write", nth: 2, persistent: true, errno: "ENOSPC" });
    writeAt(fd, BYTES, 0);
    for (let i = 0; i < 3; i++) assert.throws(() => writeAt(fd, BYTES, 0), { code: "ENOSPC" });
    fault[Symbol.dispose]();
    writeAt(fd, BYTES, 0);
    closeFile(fd);
  }));

for (const [kind, run] of [
  ["open", (path: string) => readFile(path, 10)],
  ["read", (path: string) => readFile(path, 10)],
  ["unlink", (path: string) => unlink(path)],
  ["create", (path: string) => createFile(`${path}2`)],
] as const) {
  test(`injectFault() reaches "${kind}"`, () =>
    withTemporaryDirectory((directory) => {
      const path = join(directory, "a");
      writeFileDurably(path, BYTES);
      using _fault = injectFault({ kind, errno: "EMFILE" });
      assert.throws(() => run(path), { code: "EMFILE" });
      assert.equal(existsSync(path), true);
    }));
}

test("SHALE_FAULT fails an operation of a child process", () =>
  withTemporaryDirectory(async (directory) => {
    await using child = new Child(write(join(directory, "a")), { SHALE_FAULT: "stat:1:EIO,rename@/a:1+:EROFS" });
    const { code, stderr } = await child.ended;
    assert.equal(code, 1);
    assert.match(stderr, /EROFS: read-only file system, rename '.*a\.tmp' -> '.*a'/);
  }));

test("SHALE_FAULT that can't be read ends the process instead of injecting nothing", async () => {
  await using child = new Child(write("/nowhere"), { SHALE_FAULT: "datasync:EIO" });
  assert.match((await child.ended).stderr, /TypeError: SHALE_FAULT: "datasync:EIO" is not KIND/);
});

test("SHALE_CRASH_RECORD names the crash points in order, and SHALE_CRASH_AT kills before each", () =>
  withTemporaryDirectory(async (directory) => {
    const record = join(directory, "points");
    const path = join(directory, "a");
    {
      await using child = new Child(write(path), { SHALE_CRASH_RECORD: record });
      assert.equal((await child.ended).code, 0);
    }
    const points = readFileSync(record, "utf8")
      .trimEnd()
      .split("\n")
      .map((line) => line.split("\t")[0]);
    assert.deepEqual(points, ["unlink", "create", "write", "datasync", "rename", "syncDirectory", "done"]);
    for (const [at, renamed] of [
      ["5", false],
      ["rename", false],
      ["6", true],
      ["syncDirectory#1", true],
      ["done", true],
    ] as const) {
      unlink(path);
      await using child = new Child(write(path), { SHALE_CRASH_AT: at });
      const { signal, code } = await child.ended;
      assert.deepEqual({ at, signal, code, renamed: existsSync(path) }, { at, signal: "SIGKILL", code: null, renamed });
    }
  }));

test("SHALE_EFFECTS_LOG records a process up to its SIGKILL", () =>
  withTemporaryDirectory(async (directory) => {
    const log = join(directory, "log");
    const env = { SHALE_EFFECTS_LOG: log, SHALE_CRASH_AT: "syncDirectory" };
    await using child = new Child(write(join(directory, "a")), env);
    assert.equal((await child.ended).signal, "SIGKILL");
    const effects = readEffectsLog(log);
    assert.deepEqual(
      effects.map(({ kind, path, to }) => [kind, path.slice(directory.length), to?.slice(directory.length)]),
      [
        ["create", "/a.tmp", undefined],
        ["write", "/a.tmp", undefined],
        ["datasync", "/a.tmp", undefined],
        ["rename", "/a.tmp", "/a"],
      ],
    );
    assert.equal(Buffer.from(effects[1]!.data).toString(), "content");
    assert.ok(effects[0]!.ino !== undefined && effects[0]!.ino === effects[2]!.ino);
  }));

test("SHALE_CRASH_AT counts over the threads of a process", () =>
  withTemporaryDirectory(async (directory) => {
    const worker = `
      import { crashPoint } from ${moduleUrl("effects.ts")};
      import { writeSync } from "node:fs";
      for (const name of ["a", "b"]) { crashPoint(name); writeSync(1, name + "\\n"); }`;
    const source = `
      import { Worker } from "node:worker_threads";
      import { once } from "node:events";
      import { crashPoint } from ${moduleUrl("effects.ts")};
      crashPoint("main");
      const url = new URL("data:text/javascript," + encodeURIComponent(${JSON.stringify(worker)}));
      for (let i = 0; i < 2; i++) await once(new Worker(url), "exit");`;
    const record = join(directory, "points");
    await using child = new Child(source, { SHALE_CRASH_AT: "5", SHALE_CRASH_RECORD: record });
    const seen = [await child.line(), await child.line(), await child.line()];
    assert.deepEqual(seen, ["a", "b", "a"]);
    assert.equal((await child.ended).signal, "SIGKILL");
    assert.equal(readFileSync(record, "utf8"), "main\t\na\t\nb\t\na\t\nb\t\n");
  }));

test("SHALE_CRASH_FROM: points before the file is there are neither recorded nor counted", () =>
  withTemporaryDirectory(async (directory) => {
    const [from, record] = [join(directory, "from"), join(directory, "points")];
    const source = `
      import { crashPoint } from ${moduleUrl("effects.ts")};
      import { writeFileSync, writeSync } from "node:fs";
      for (const name of ["start", "a", "a"]) crashPoint(name);
      writeFileSync(${JSON.stringify(from)}, "");
      crashPoint("a");
      writeSync(1, "past the first\\n");
      crashPoint("a");`;
    const env = { SHALE_CRASH_FROM: from, SHALE_CRASH_RECORD: record, SHALE_CRASH_AT: "a#2" };
    await using child = new Child(source, env);
    assert.equal(await child.line(), "past the first");
    assert.equal((await child.ended).signal, "SIGKILL");
    assert.equal(readFileSync(record, "utf8"), "a\t\na\t\n");
  }));

test("crashPoint() does nothing when nothing is switched on", () => {
  crashPoint("nothing");
});
