import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { rootDirectory, run } from "./run.ts";
import { leavingReader, TEST_COMMANDS, testHost } from "./testing/commands.ts";

async function shale(line: string, options: Parameters<typeof testHost>[1] = {}) {
  const { host, written } = testHost(line.split(" ").filter(Boolean), options);
  const code = await run(host, TEST_COMMANDS);
  return { code, ...written };
}

describe("run()", () => {
  test("gives the command typed values, its arguments and the store's directory", async () => {
    const { code, stdout } = await shale("--root sub show --size 7 x y --kind=b");
    assert.equal(code, 0);
    assert.deepEqual(JSON.parse(stdout), { size: 7, kind: "b", positionals: ["x", "y"], root: "/work/sub" });
  });

  test("writes results to stdout and all else to stderr", async () => {
    const { stdout, stderr } = await shale("show");
    assert.match(stdout, /^\{.*\}\n$/);
    assert.match(stderr, /^work: started\nwork: done\nshale: running\n$/);
  });

  test("--quiet leaves neither progress nor messages", async () => {
    assert.equal((await shale("show --quiet")).stderr, "");
  });

  test("--json prints an indented value on stdout and JSON lines on stderr, without progress", async () => {
    const { stdout, stderr } = await shale("show --json");
    assert.match(stdout, /^\{\n {2}"size": 3,/);
    assert.deepEqual(
      stderr
        .trim()
        .split("\n")
        .map((line) => JSON.parse(line).message),
      ["running"],
    );
  });

  test("the environment gives what options don't", async () => {
    const { stdout, stderr } = await shale("show", { env: { SHALE_ROOT: "/other", SHALE_LOG_LEVEL: "error" } });
    assert.equal(JSON.parse(stdout).root, "/other");
    assert.doesNotMatch(stderr, /running/);
  });

  for (const { line, code, stderr } of [
    { line: "fail answer", code: 1, stderr: /^$/ },
    { line: "fail x", code: 1, stderr: /^shale: Cannot find it: it is absent\nhint: look elsewhere\n$/ },
    { line: "fail x --json", code: 1, stderr: /^\{"error":\{"code":"NOT_FOUND",.*"hint":"look elsewhere"\}\}\n$/ },
    { line: "fail mistake", code: 1, stderr: /^shale: internal error: TypeError: x is undefined\n/ },
    { line: "fail x --log-level debug", code: 1, stderr: /\n {4}at / },
    { line: "fial x", code: 2, stderr: /Cannot run fial: there is no such command\nhint: did you mean fail\?\n$/ },
    { line: "fail", code: 2, stderr: /HOW is missing/ },
    { line: "fail a b", code: 2, stderr: /b is one argument too many/ },
    { line: "show --sise 3", code: 2, stderr: /did you mean --size\?/ },
    { line: "--sise show", code: 2, stderr: /there is no such option before a command/ },
    { line: "show --nope --json", code: 2, stderr: /^\{"error":\{"code":"INVALID_ARGUMENT"/ },
    { line: "help nope", code: 2, stderr: /no such command/ },
  ]) {
    test(`"${line}" ends with ${code} and says why`, async () => {
      const result = await shale(line);
      assert.equal(result.code, code);
      assert.match(result.stderr, stderr);
      assert.equal(result.stdout, "");
    });
  }

  test("a reader that leaves is success, and quiet", async () => {
    const { code, stderr } = await shale("fail pipe", { stdout: leavingReader(3) });
    assert.equal(code, 0);
    assert.equal(stderr, "");
  });

  for (const line of ["", "--help", "help", "-h"]) {
    test(`"${line}" shows the overview on stdout`, async () => {
      const { code, stdout } = await shale(line);
      assert.equal(code, 0);
      assert.match(
        stdout,
        /^Usage: shale \[OPTIONS\] COMMAND[\s\S]*Tests:\n {2}show {2}Show the context\.\n[\s\S]*--root DIR/,
      );
    });
  }

  for (const line of ["show --help", "help show", "--help show", "show -h"]) {
    test(`"${line}" shows the command's help`, async () => {
      const { code, stdout } = await shale(line);
      assert.equal(code, 0);
      assert.match(
        stdout,
        /^Usage: shale show \[OPTIONS\] \[WORD\.\.\.\]\n\nShow the context\.\n\nFirst paragraph\.\n\nSecond paragraph\./,
      );
      assert.match(stdout, /-s, --size N {2}A size \(default: 3\)\.\n {2}--kind KIND {3}A kind \(one of a, b\)\./);
      assert.match(stdout, /Examples:\n {2}One word:\n {4}shale show x\n$/);
    });
  }

  test("help is wrapped to the terminal, and to 80 columns where there is none", async () => {
    const widest = (text: string) => Math.max(...text.split("\n").map((each) => each.length));
    assert.ok(widest((await shale("--help")).stdout) <= 80);
    const { host, written } = testHost(["--help"]);
    await run({ ...host, stdout: { ...host.stdout, columns: 60 } }, TEST_COMMANDS);
    assert.ok(widest(written.stdout) <= 60);
  });
});

describe("rootDirectory()", () => {
  const user = { env: {}, uid: 1000, home: "/home/u", cwd: "/cwd" };
  for (const { name, given, host, expected } of [
    { name: "root", given: undefined, host: { ...user, uid: 0 }, expected: "/var/lib/shale" },
    { name: "a user", given: undefined, host: user, expected: "/home/u/.local/share/shale" },
    {
      name: "a user with XDG_DATA_HOME",
      given: undefined,
      host: { ...user, env: { XDG_DATA_HOME: "/data" } },
      expected: "/data/shale",
    },
    {
      name: "a relative XDG_DATA_HOME, which is to be ignored",
      given: undefined,
      host: { ...user, env: { XDG_DATA_HOME: "data" } },
      expected: "/home/u/.local/share/shale",
    },
    { name: "a relative --root", given: "x/../y", host: user, expected: "/cwd/y" },
  ]) {
    test(`is ${expected} for ${name}`, () => assert.equal(rootDirectory(given, host), expected));
  }
});
