import assert from "node:assert/strict";
import { test } from "node:test";
import { accepts, matchesNone, rangeApplies } from "./negotiation.ts";

const INDEX = "application/vnd.oci.image.index.v1+json";

const acceptCases: readonly (readonly [string | undefined, boolean])[] = [
  [undefined, true],
  ["", true],
  ["*/*", true],
  ["application/*", true],
  [INDEX, true],
  [`application/json, ${INDEX.toUpperCase()};q=0.5`, true],
  ["application/vnd.oci.image.manifest.v1+json", false],
  ["text/*", false],
  [`${INDEX};q=0, */*`, false], // the more specific range decides
  [`*/*;q=0, ${INDEX}`, true],
  [`${INDEX};q=nonsense`, false],
];
for (const [header, expected] of acceptCases) {
  test(`accepts() says ${expected} for an index and Accept ${header}`, () => {
    assert.equal(accepts(header, INDEX), expected);
  });
}

const tag = '"sha256:ab"';
for (const [header, expected] of [
  [undefined, false],
  ["*", true],
  [tag, true],
  [`"x", W/${tag}`, true],
  ['"sha256:abc"', false],
] as const) {
  test(`matchesNone() says ${expected} for If-None-Match ${header}`, () => {
    assert.equal(matchesNone(header, tag), expected);
  });
}

test("rangeApplies() needs the exact strong tag, and takes no date", () => {
  assert.equal(rangeApplies(undefined, tag), true);
  assert.equal(rangeApplies(tag, tag), true);
  assert.equal(rangeApplies(`W/${tag}`, tag), false);
  assert.equal(rangeApplies("Wed, 21 Oct 2015 07:28:00 GMT", tag), false);
});
