/** `./shale` and scripts/bundle.ts together on a few made-up sources: what runs after an edit, a kill, a failure, and beside another. */
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, test } from "node:test";
import { promisify } from "node:util";
import { makeRepository } from "./repository.ts";

/** Print where they run from and what they were; one loads another late, starts a thread, and reads a file beside it. */
const SOURCES = {
  "cli/main.ts": `import { word } from "../deep/word.ts";
import { early } from "../early.ts";
const where: string = import.meta.url.endsWith(".ts") ? "sources" : "build";
if (process.argv[2] === "wait") await new Promise((resolve) => process.stdin.once("data", resolve));
const { late } = await import("../late.ts");
console.log(JSON.stringify({ where, early, late, ...(await word()) }));
process.exit();
`,
  "early.ts": `export const early = 1;\n`,
  "late.ts": `export const late = 1;\n`,
  "deep/word.ts": `import { once } from "node:events";
import { readFileSync } from "node:fs";
import { Worker } from "node:worker_threads";
export async function word(): Promise<{ readonly thread: unknown; readonly proto: string }> {
  const worker = new Worker(new URL(import.meta.url.endsWith(".ts") ? "./thread.ts" : "./thread.js", import.meta.url));
  const [thread] = await once(worker, "message");
  return { thread, proto: readFileSync(new URL("proto/x.proto", import.meta.url), "utf8") };
}
`,
  "deep/thread.ts": `import { parentPort } from "node:worker_threads";
import { early } from "../early.ts";
parentPort!.postMessage(early);
`,
  "deep/proto/x.proto": "proto 1",
};

interface Said {
  readonly where: "sources" | "build";
  readonly early: number;
  readonly late: number;
  readonly thread: number;
  readonly proto: string;
}

describe("shale (launcher) with scripts/bundle.ts", () => {
  let base: string;
  let repository: string;
  const at = (path: string) => join(repository, path);
  const cache = (path = "") => join(repository, "node_modules/.cache/shale", path);
  const current = () => readFileSync(cache("current"), "utf8").trim();
  const builds = () => readdirSync(cache()).filter((name) => name !== "current");
  const environment = () => ({ PATH: process.env.PATH, HOME: base });
  const edit = (name: keyof typeof SOURCES, value: number) =>
    writeFileSync(at(`src/${name}`), SOURCES[name].replace("1", String(value)));

  async function run(stderr = /^$/): Promise<Said> {
    const ended = await promisify(execFile)(at("shale"), { env: environment() });
    assert.match(ended.stderr, stderr);
    return JSON.parse(ended.stdout) as Said;
  }

  beforeEach(() => {
    base = mkdtempSync(join(tmpdir(), "shale-bundle-"));
    repository = join(base, "repository");
    makeRepository(repository, SOURCES);
  });
  afterEach(() => rmSync(base, { recursive: true, force: true }));

  test("runs what the sources say, from the first start and after each edit", async () => {
    const expected = { where: "build", early: 1, late: 1, thread: 1, proto: "proto 1" };
    assert.deepEqual(await run(), expected);
    assert.deepEqual(await run(), expected);
    assert.equal(builds().length, 1);
    assert.ok(existsSync(cache(`${current()}/compiled`)), "V8's code cache goes with the build");
    assert.deepEqual(readdirSync(base), ["repository"]);
    edit("early.ts", 2);
    assert.partialDeepStrictEqual(await run(), { early: 2, thread: 2 });
    edit("late.ts", 3);
    assert.partialDeepStrictEqual(await run(), { early: 2, late: 3 });
    edit("deep/proto/x.proto", 4);
    assert.partialDeepStrictEqual(await run(), { proto: "proto 4" });
    rmSync(at("src/early.ts"));
    await assert.rejects(run(), /compiling them failed: .*early\.ts/);
  });

  test("a process that runs from a build goes on with that one", async () => {
    await run();
    const child = spawn(at("shale"), ["wait"], { env: environment(), stdio: ["pipe", "pipe", "inherit"] });
    try {
      const output = Array.fromAsync(child.stdout, String);
      await new Promise((resolve) => child.once("spawn", resolve));
      const old = current();
      while (!readFileSync(`/proc/${child.pid}/cmdline`, "latin1").includes(old)) await new Promise(setImmediate);
      edit("early.ts", 2);
      edit("late.ts", 2);
      await run();
      assert.notEqual(current(), old);
      utimesSync(cache(old), 0, 0);
      edit("late.ts", 3);
      await run();
      child.stdin.end("go on\n");
      assert.partialDeepStrictEqual(JSON.parse((await output).join("")), {
        early: 1,
        late: 1,
        thread: 1,
        where: "build",
      });
    } finally {
      child.kill("SIGKILL");
    }
  });

  test("removes builds that are older than a day and from which nothing runs", async () => {
    await run();
    const first = current();
    for (const name of ["old", "new"]) mkdirSync(cache(name));
    for (const name of ["old", first]) utimesSync(cache(name), 0, 0);
    edit("late.ts", 2);
    await run();
    // `first` was the current one until now, however old it is.
    assert.deepEqual(builds().sort(), [first, "new", current()].sort());
    utimesSync(cache(first), 0, 0);
    edit("late.ts", 3);
    await run();
    assert.equal(existsSync(cache(first)), false);
  });

  test("a build that was killed at any point is not used", async () => {
    edit("late.ts", 2);
    for (const afterMs of [20, 40, 60, 80, 100, 150, 200, 300]) {
      const child = spawn(process.execPath, [at("scripts/bundle.ts"), repository], { stdio: "ignore" });
      const ended = new Promise((resolve) => child.once("close", resolve));
      setTimeout(() => child.kill("SIGKILL"), afterMs);
      await ended;
      if (existsSync(cache("current"))) assert.ok(existsSync(cache(`${current()}/src/main.js`)));
      edit("late.ts", afterMs);
      assert.partialDeepStrictEqual(await run(), { late: afterMs });
    }
  });

  test("several at once, with edits between them, never run what is not the sources", async () => {
    for (const value of [2, 3, 4]) {
      edit("late.ts", value);
      edit("early.ts", value);
      // Without the launcher's lock, too.
      const direct = promisify(execFile)(process.execPath, [at("scripts/bundle.ts"), repository]);
      for (const said of await Promise.all([run(), run(), run()])) {
        assert.partialDeepStrictEqual(said, { early: value, late: value, thread: value });
      }
      await direct;
    }
    assert.equal((await run()).where, "build");
  });

  test("tells on one line what is wrong, and runs the sources, without esbuild and with a source that can't be compiled", async () => {
    rmSync(at("node_modules/esbuild"));
    const missing =
      /^shale: running the sources as they are, since compiling them failed: Cannot find module 'esbuild'.*\n$/;
    assert.equal((await run(missing)).where, "sources");
    makeUnknown();
    assert.equal((await run(/^shale: .*: src\/other\.ts starts a thread, but not with .*\n$/)).where, "sources");
    assert.deepEqual(existsSync(cache()) ? readdirSync(cache()) : [], []);
  });

  function makeUnknown(): void {
    writeFileSync(at("src/other.ts"), `new Worker(new URL("./thread.ts", import.meta.url));\n`);
  }
});
