import assert from "node:assert/strict";
import { test } from "node:test";
import { FormatError, ShaleError } from "../errors/index.ts";
import {
  chainIdOf,
  chainIds,
  createDigestHash,
  type DiffId,
  digestAlgorithm,
  digestHex,
  digestOf,
  formatDigest,
  isDigest,
  parseDiffId,
  parseDigest,
  verifyDigest,
} from "./index.ts";

const A = "a".repeat(64);
const B = "b".repeat(128);

test("parseDigest() accepts sha256 and sha512 and tells the parts", () => {
  assert.equal(digestHex(parseDigest(`sha256:${A}`)), A);
  assert.equal(digestHex(parseDigest(`sha512:${B}`)), B);
  assert.equal(digestAlgorithm(parseDigest(`sha512:${B}`)), "sha512");
  assert.equal(digestAlgorithm(parseDigest(`sha256:${A}`)), "sha256");
});

test("parseDigest() rejects what is not a digest", () => {
  const cases: readonly (readonly [string, string])[] = [
    ["", "INVALID_ARGUMENT"],
    ["sha256", "INVALID_ARGUMENT"],
    ["sha256:", "INVALID_ARGUMENT"],
    [`sha256:${A.slice(1)}`, "INVALID_ARGUMENT"],
    [`sha256:${A}a`, "INVALID_ARGUMENT"],
    [`sha256:${A.toUpperCase()}`, "INVALID_ARGUMENT"],
    [`sha256:${A.slice(1)}g`, "INVALID_ARGUMENT"],
    [`sha256:${A.slice(1)}\n`, "INVALID_ARGUMENT"],
    [`sha256:../../../../etc/passwd${"x".repeat(42)}`, "INVALID_ARGUMENT"],
    [`SHA256:${A}`, "INVALID_ARGUMENT"],
    [`:${A}`, "INVALID_ARGUMENT"],
    [`sha512:${A}`, "INVALID_ARGUMENT"],
    [`sha256:${"a".repeat(1 << 20)}`, "INVALID_ARGUMENT"],
    [`md5:${"0".repeat(32)}`, "UNIMPLEMENTED"],
    [`sha384:${"0".repeat(96)}`, "UNIMPLEMENTED"],
  ];
  for (const [text, code] of cases) {
    assert.throws(
      () => parseDigest(text),
      (error) => error instanceof FormatError && error.code === code && error.message.length < 300,
      text.slice(0, 80),
    );
    assert.equal(isDigest(text), false);
  }
  assert.equal(isDigest(`sha256:${A}`), true);
});

test("parseDiffId() takes sha256 only", () => {
  assert.equal(parseDiffId(`sha256:${A}`), `sha256:${A}`);
  assert.throws(() => parseDiffId(`sha512:${B}`), { code: "UNIMPLEMENTED" });
});

test("digestOf(), createDigestHash() and formatDigest() agree", () => {
  // printf abc | sha256sum; printf abc | sha512sum (coreutils 9.1)
  const sha256 = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
  const sha512 =
    "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";
  assert.equal(digestOf("abc"), sha256);
  assert.equal(digestOf(Buffer.from("abc"), "sha512"), sha512);
  assert.equal(formatDigest("sha512", createDigestHash(parseDigest(sha512)).update("abc").digest()), sha512);
  assert.throws(() => formatDigest("sha256", new Uint8Array(31)), RangeError);
});

test("verifyDigest() is DATA_LOSS for other bytes, for both algorithms", () => {
  for (const algorithm of ["sha256", "sha512"] as const) {
    const digest = digestOf("abc", algorithm);
    verifyDigest(Buffer.from("abc"), digest, "manifest");
    assert.throws(
      () => verifyDigest(Buffer.from("abd"), digest, "manifest of x"),
      (error) => ShaleError.is(error, "DATA_LOSS") && error.message.startsWith("Cannot verify manifest of x: expected"),
    );
  }
});

test("chainIds() follows config.md, Layer ChainID", () => {
  // printf 'sha256:aaa... sha256:bbb...' | sha256sum (coreutils 9.1), and once more with sha256:ccc...
  const ids = ["a", "b", "c"].map((c) => `sha256:${c.repeat(64)}` as DiffId);
  const chain = chainIds(ids);
  assert.equal(chain[0], ids[0]);
  assert.equal(chain[1], "sha256:ccd722928bd92476ba1745586fed6e45a102504185ad88cd89e01ff116fd146c");
  assert.equal(chain[2], "sha256:c1377126441fb2f5ec2c21ae2a60255331d639e830f0ee1b40a36e52d4c40588");
  assert.equal(chainIdOf(ids), chain[2]);
  assert.throws(() => chainIdOf([]), RangeError);
});
