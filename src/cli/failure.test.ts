import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { ShaleError } from "../errors/index.ts";
import { formatFailure, formatFailureJson } from "./failure.ts";
import { systemError } from "../sys/system-error.ts";
import { createLog, formatLogJson, formatLogText, type LogLevel } from "../log/index.ts";

const NESTED = new ShaleError("UNAVAILABLE", "Cannot pull x: registry does not answer", {
  hint: "try again",
  cause: new Error("connect ECONNREFUSED", { cause: "the last" }),
});

describe("formatFailure()", () => {
  test("shows the message, the causes and the hint", () => {
    assert.equal(
      formatFailure(NESTED, { stack: false }),
      "shale: Cannot pull x: registry does not answer\n  because: connect ECONNREFUSED\n  because: the last\nhint: try again\n",
    );
  });
  test("leaves out a cause that the message quotes", () => {
    const error = new ShaleError("NOT_FOUND", "Cannot read a: no such file", { cause: new Error("no such file") });
    assert.equal(formatFailure(error, { stack: false }), "shale: Cannot read a: no such file\n");
  });
  test("takes the hint of a cause where the error has none", () => {
    assert.match(
      formatFailure(new ShaleError("ABORTED", "Cannot do it", { cause: NESTED }), { stack: false }),
      /hint: try again\n$/,
    );
  });
  test("shows a mistake of ours with its stack, and asks to report it", () => {
    const text = formatFailure(new TypeError("x is undefined"), { stack: false });
    assert.match(text, /^shale: internal error: TypeError: x is undefined\nhint: .*report.*\nTypeError: x[\s\S]*at /);
  });
  test("does not take what the machine or the caller's rights say for a mistake of ours", () => {
    const denied = systemError("EACCES", "open", "/a, b/index.json");
    assert.equal(formatFailure(denied, { stack: false }), "shale: Cannot open /a, b/index.json: permission denied\n");
    const full = systemError("ENOSPC", "write");
    assert.equal(formatFailure(full, { stack: false }), "shale: Cannot write a file: no space left on device\n");
    assert.match(formatFailure(full, { stack: true }), /\n.*at .*failure\.test\.ts/);
    assert.match(formatFailure(systemError("EBADF", "read"), { stack: false }), /^shale: internal error: /);
  });
  test("shows the stack of any error on request", () => {
    assert.match(formatFailure(NESTED, { stack: true }), /failure\.test\.ts/);
  });
  test("lets no control character through", () => {
    const text = formatFailure(new ShaleError("NOT_FOUND", "a\u001b[2Jb\nc"), { stack: false });
    assert.equal(text, "shale: a\\x1b[2Jb\\x0ac\n");
  });
  test("ends for an error that is its own cause", () => {
    const error = new Error("round");
    error.cause = error;
    assert.ok(formatFailure(new ShaleError("INTERNAL", "Cannot", { cause: error }), { stack: false }).length < 200);
  });
});

describe("formatFailureJson()", () => {
  test("is one line with code, message, causes and hint", () => {
    const text = formatFailureJson(NESTED);
    assert.equal(text.indexOf("\n"), text.length - 1);
    assert.deepEqual(JSON.parse(text), {
      error: {
        code: "UNAVAILABLE",
        message: "Cannot pull x: registry does not answer",
        causes: ["connect ECONNREFUSED", "the last"],
        hint: "try again",
      },
    });
  });
  test("gives what the machine says its code", () => {
    const { error } = JSON.parse(formatFailureJson(systemError("EROFS", "mkdir", "/x")));
    assert.deepEqual(error, { code: "PERMISSION_DENIED", message: "Cannot mkdir /x: read-only file system" });
  });
  test("calls a mistake of ours INTERNAL", () => {
    assert.equal(JSON.parse(formatFailureJson(new RangeError("x"))).error.code, "INTERNAL");
  });
});

describe("log", () => {
  const written = (level: LogLevel) => {
    const lines: string[] = [];
    const log = createLog({ level, json: false, write: (line) => lines.push(line), now: () => new Date(0) });
    log.error("e");
    log.warn("w");
    log.info("i");
    log.debug("d");
    return lines;
  };
  for (const [level, count] of [
    ["error", 1],
    ["warn", 2],
    ["info", 3],
    ["debug", 4],
  ] as const) {
    test(`createLog() at ${level} writes ${count} of the four levels`, () => {
      const all = ["shale: error: e", "shale: warning: w", "shale: i", "shale: debug: d"];
      assert.deepEqual(written(level), all.slice(0, count));
    });
  }
  test("formatLogText() quotes fields that need it and stays on one line", () => {
    assert.equal(
      formatLogText("warn", "Mirror\nfailed", { host: "m.example", why: "no route", none: undefined, tries: 2 }),
      'shale: warning: Mirror\\x0afailed host=m.example why="no route" tries=2',
    );
  });
  test("formatLogJson() carries time, level, message and fields, which can't replace them", () => {
    assert.deepEqual(JSON.parse(formatLogJson("info", "m", { host: "h", level: "fake" }, new Date(0))), {
      time: "1970-01-01T00:00:00.000Z",
      level: "info",
      message: "m",
      host: "h",
    });
  });
});
