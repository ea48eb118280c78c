import assert from "node:assert/strict";
import { test } from "node:test";
import { shownValue } from "./index.ts";

test("shownValue() shows any value of a document, short and printable, and never throws", () => {
  const cases: [unknown, string][] = [
    [undefined, "missing"],
    [null, "null"],
    ["1.0", '"1.0"'],
    ["\u001b[2J\n", '"\\u001b[2J\\n"'],
    ["\u009b2Jé", '"?2J?"'],
    [7, "7"],
    [Number.NaN, "NaN"],
    [7n, "7"],
    [true, "true"],
    [[7n], "a list"],
    [{ toString: [], valueOf: 1 }, "an object"],
    [JSON.parse("[".repeat(200_000) + "]".repeat(200_000)), "a list"],
    ["x".repeat(50), `"${"x".repeat(40)}"...`],
  ];
  for (const [value, shown] of cases) assert.equal(shownValue(value), shown);
  assert.equal(shownValue("x".repeat(50), 80), `"${"x".repeat(50)}"`);
});
