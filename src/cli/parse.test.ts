import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { GLOBAL_OPTIONS, type OptionTable } from "./command.ts";
import { checkPositionals, parseOptions, splitCommand } from "./parse.ts";
import { editDistance, nearest, UsageError } from "./usage.ts";

const TABLE = {
  force: { type: "flag", short: "f", help: "h" },
  "tls-verify": { type: "boolean", default: true, help: "h" },
  output: { type: "string", short: "o", value: "PATH", help: "h" },
  level: { type: "string", value: "LEVEL", choices: ["low", "high"], default: "low", env: "X_LEVEL", help: "h" },
  label: { type: "string", value: "K=V", multiple: true, help: "h" },
  jobs: { type: "number", short: "j", value: "N", minimum: 1, maximum: 8, help: "h" },
} as const satisfies OptionTable;

const DEFAULTS = { force: false, "tls-verify": true, output: undefined, level: "low", label: [], jobs: undefined };

describe("parseOptions()", () => {
  const ACCEPTED: readonly {
    readonly args: string;
    readonly env?: Record<string, string>;
    readonly values?: object;
    readonly positionals?: readonly string[];
  }[] = [
    { args: "" },
    { args: "a b", positionals: ["a", "b"] },
    { args: "-f a --output x", values: { force: true, output: "x" }, positionals: ["a"] },
    { args: "-fo x", values: { force: true, output: "x" } },
    { args: "-ox", values: { output: "x" } },
    { args: "--output=-", values: { output: "-" } },
    { args: "--output -", values: { output: "-" } },
    { args: "--output=--force", values: { output: "--force" } },
    { args: "--tls-verify=false", values: { "tls-verify": false } },
    { args: "--tls-verify=true", values: { "tls-verify": true } },
    { args: "--tls-verify a", values: { "tls-verify": true }, positionals: ["a"] },
    { args: "--level high", values: { level: "high" } },
    { args: "", env: { X_LEVEL: "high" }, values: { level: "high" } },
    { args: "", env: { X_LEVEL: "" }, values: { level: "low" } },
    { args: "--level low", env: { X_LEVEL: "high" }, values: { level: "low" } },
    { args: "--label a=1 --label b=2", values: { label: ["a=1", "b=2"] } },
    { args: "-j 8", values: { jobs: 8 } },
    { args: "-f -- --output", values: { force: true }, positionals: ["--output"] },
    { args: "-f -f", values: { force: true } },
  ];
  for (const { args, env = {}, values = {}, positionals = [] } of ACCEPTED) {
    test(`accepts "${args}"${Object.keys(env).length > 0 ? ` with ${JSON.stringify(env)}` : ""}`, () => {
      const parsed = parseOptions(args.split(" ").filter(Boolean), TABLE, env);
      assert.deepEqual(parsed, { values: { ...DEFAULTS, ...values }, positionals });
    });
  }

  const REFUSED: readonly {
    readonly args: string;
    readonly env?: Record<string, string>;
    readonly says: RegExp;
    readonly hint: RegExp;
  }[] = [
    { args: "--ouput x", says: /--ouput: there is no such option/, hint: /did you mean --output\?/ },
    { args: "--out x", says: /--out: there is no such option/, hint: /did you mean --output\?/ },
    { args: "-x", says: /-x: there is no such option/, hint: /--help/ },
    { args: "--constructor", says: /--constructor: there is no such option/, hint: /--help/ },
    { args: "--output", says: /--output: its value is missing/, hint: /--output PATH/ },
    { args: "--output=", says: /--output: its value is missing/, hint: /--output PATH/ },
    { args: "--output --force", says: /--output: its value is missing/, hint: /write --output=--force/ },
    { args: "-o a -o b", says: /--output: it is given twice/, hint: /once/ },
    { args: "--force=yes", says: /--force=yes: it takes no value/, hint: /write --force/ },
    { args: "--tls-verify=no", says: /no.*neither true nor false/, hint: /--tls-verify=false/ },
    { args: "--level hihg", says: /hihg is not one of low, high/, hint: /did you mean high\?/ },
    { args: "--level medium", says: /medium is not one of/, hint: /choose one of low, high/ },
    {
      args: "",
      env: { X_LEVEL: "medium" },
      says: /environment variable X_LEVEL: medium is not/,
      hint: /choose one of/,
    },
    { args: "--jobs 0", says: /0 is not a whole number from 1 to 8/, hint: /--jobs 1/ },
    { args: "--jobs 9", says: /9 is not a whole number/, hint: /--jobs/ },
    { args: "--jobs 1e1", says: /1e1 is not a whole number/, hint: /--jobs/ },
    { args: "--jobs 1.5", says: /1\.5 is not a whole number/, hint: /--jobs/ },
    { args: "--jobs", says: /nothing is not a whole number/, hint: /--jobs/ },
  ];
  for (const { args, env = {}, says, hint } of REFUSED) {
    test(`refuses "${args}"${Object.keys(env).length > 0 ? ` with ${JSON.stringify(env)}` : ""} with a hint`, () => {
      assert.throws(
        () => parseOptions(args.split(" ").filter(Boolean), TABLE, env),
        (error: unknown) => {
          assert.ok(error instanceof UsageError);
          assert.match(error.message, says);
          assert.match(error.hint ?? "", hint);
          return true;
        },
      );
    });
  }

  test("returns or throws UsageError for any arguments", () => {
    const word = fc.oneof(
      fc.string(),
      fc.constantFrom("-f", "--", "-", "--output", "--tls-verify=", "-j", "=", "--=x"),
    );
    fc.assert(
      fc.property(fc.array(word), (args) => {
        try {
          parseOptions(args, TABLE, {});
        } catch (error) {
          assert.ok(error instanceof UsageError, String(error));
        }
      }),
    );
  });
});

describe("splitCommand()", () => {
  for (const { args, name, rest } of [
    { args: "images", name: "images", rest: "" },
    { args: "--root /x images --json", name: "images", rest: "--root /x --json" },
    { args: "--root=/x -q pull a", name: "pull", rest: "--root=/x -q a" },
    { args: "pull --unknown a", name: "pull", rest: "--unknown a" },
    { args: "pull pull", name: "pull", rest: "pull" },
    { args: "--help", name: undefined, rest: "--help" },
    { args: "", name: undefined, rest: "" },
  ]) {
    test(`finds ${name ?? "none"} in "${args}"`, () => {
      assert.deepEqual(splitCommand(args.split(" ").filter(Boolean), GLOBAL_OPTIONS), {
        name,
        rest: rest.split(" ").filter(Boolean),
      });
    });
  }

  test("refuses an unknown option before the command", () => {
    assert.throws(
      () => splitCommand(["--rot", "/x", "images"], GLOBAL_OPTIONS),
      /--rot: there is no such option before/,
    );
  });
});

describe("checkPositionals()", () => {
  const ONE = [{ name: "REF", help: "h" }] as const;
  const MANY = [{ name: "REF", help: "h", repeated: true }] as const;
  const OPTIONAL = [
    { name: "REF", help: "h", optional: true },
    { name: "DIR", help: "h", optional: true },
  ] as const;
  test("accepts what the arguments allow", () => {
    checkPositionals(["a"], ONE, "c");
    checkPositionals(["a", "b", "c"], MANY, "c");
    checkPositionals([], OPTIONAL, "c");
    checkPositionals(["a", "b"], OPTIONAL, "c");
  });
  test("names what is missing or too many", () => {
    assert.throws(() => checkPositionals([], ONE, "pull"), /Cannot run pull: REF is missing/);
    assert.throws(() => checkPositionals([], MANY, "pull"), /REF is missing/);
    assert.throws(() => checkPositionals(["a", "b"], ONE, "pull"), /b is one argument too many/);
    assert.throws(() => checkPositionals(["a"], [], "gc"), /a is one argument too many/);
  });
});

describe("nearest()", () => {
  const NAMES = ["pull", "pin", "images", "inspect", "mount", "umount", "ls", "rm"];
  for (const [typed, expected] of [
    ["pul", "pull"],
    ["plul", "pull"],
    ["image", "images"],
    ["unmount", "umount"],
    ["inspct", "inspect"],
    ["ins", "inspect"],
    ["xyzzy", undefined],
    ["q", undefined],
  ] as const) {
    test(`${typed} means ${expected ?? "nothing"}`, () => assert.equal(nearest(typed, NAMES), expected));
  }

  test("editDistance() is symmetric, and zero for equal words only", () => {
    const word = fc.stringMatching(/^[ab]{0,6}$/);
    fc.assert(
      fc.property(word, word, (a, b) => {
        assert.equal(editDistance(a, b), editDistance(b, a));
        assert.equal(editDistance(a, b) === 0, a === b);
        assert.ok(editDistance(a, b) <= Math.max(a.length, b.length));
      }),
    );
  });
});
