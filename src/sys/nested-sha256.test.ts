/** That both ways give the digests of node:crypto, wherever contents lie, and that the fast one is what this machine gets. */
import assert from "node:assert/strict";
import { createHash, hash, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { arch } from "node:process";
import { describe, test } from "node:test";
import { type NestedSha256, OneByOne, openNestedSha256 } from "./nested-sha256.ts";

const ROUNDS = 300;

for (const [name, open] of [
  ["openNestedSha256()", openNestedSha256],
  ["OneByOne", () => new OneByOne()],
] as const) {
  describe(name, () => {
    test("of streams that are cut anywhere, with contents anywhere in them, before them, and elsewhere", () => {
      let seed = randomBytes(4).readUInt32LE();
      const first = seed;
      const below = (limit: number) => {
        seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
        return Math.floor((seed / 2 ** 32) * limit);
      };
      for (let round = 0; round < ROUNDS; round++) {
        const data = Buffer.from(randomBytes(1 + below(20_000)));
        const elsewhere = randomBytes(1 + below(3000));
        const nested = open();
        // Cut where tars are, or anywhere.
        const grain = below(2) === 0 ? 1 : 64;
        for (let at = 0; at < data.length; ) {
          const end = Math.min(data.length, at + grain * below(6000 / grain));
          nested.give(data.subarray(at, end));
          for (let contents = below(4); contents > 0; contents--) {
            const source = below(8) === 0 ? elsewhere : data;
            const from = below(Math.min(source.length, end));
            const content = source.subarray(from, from + below(source.length - from));
            assert.equal(contentDigest(nested, content, below), sha256(content), `seed ${first}, round ${round}`);
          }
          if (below(3) === 0) nested.settle();
          at = end;
        }
        assert.equal(nested.digest().toString("hex"), sha256(data), `seed ${first}, round ${round}`);
      }
    });

    test("of memory that is used again once it was settled", () => {
      const nested = open();
      const expected = createHash("sha256");
      const piece = Buffer.alloc(4096);
      for (let i = 0; i < 5; i++) {
        randomBytes(piece.length).copy(piece);
        expected.update(piece);
        nested.give(piece.subarray(0, 4000 + i));
        nested.hash(piece.subarray(512, 1024));
        nested.settle();
        const rest = Buffer.from(piece.subarray(4000 + i));
        piece.fill(0);
        nested.give(rest);
        nested.settle();
      }
      assert.equal(nested.digest().toString("hex"), expected.digest("hex"));
    });

    test("of arrays that V8 keeps in its own heap, of shared memory, and of more than 512 MiB", () => {
      const nested = open();
      const small = Uint8Array.of(...Array.from({ length: 64 }, (_, i) => i));
      const shared = Buffer.from(new SharedArrayBuffer(1000)).fill("shared");
      nested.give(small);
      assert.equal(nested.hash(small).toString("hex"), sha256(small));
      nested.give(shared);
      assert.equal(nested.hash(shared).toString("hex"), sha256(shared));
      assert.equal(nested.digest().toString("hex"), sha256(Buffer.concat([small, shared])));
      const large = open();
      const piece = Buffer.alloc(2 ** 24, "large");
      const expected = createHash("sha256");
      for (let i = 0; i < 33; i++) {
        large.give(piece);
        expected.update(piece);
      }
      assert.equal(large.digest().toString("hex"), expected.digest("hex"));
    });

    test("of nothing", () => {
      const nested = open();
      assert.equal(nested.hash(new Uint8Array(0)).toString("hex"), sha256(new Uint8Array(0)));
      assert.equal(nested.open().digest().toString("hex"), sha256(new Uint8Array(0)));
      assert.equal(nested.digest().toString("hex"), sha256(new Uint8Array(0)));
    });
  });
}

test("is not one by one where the processor has SHA instructions and Node is the pinned one", () => {
  const has = arch === "x64" && /\bsha_ni\b/.test(readFileSync("/proc/cpuinfo", "latin1"));
  assert.equal(openNestedSha256() instanceof OneByOne, !has);
});

/** Whole, or in pieces. */
function contentDigest(nested: NestedSha256, content: Uint8Array, below: (limit: number) => number): string {
  if (below(2) === 0) return nested.hash(content).toString("hex");
  const part = nested.open();
  for (let at = 0; at < content.length; ) {
    const end = Math.min(content.length, at + 1 + below(1500));
    part.update(content.subarray(at, end));
    at = end;
  }
  return part.digest().toString("hex");
}

function sha256(bytes: Uint8Array): string {
  return hash("sha256", bytes, "hex");
}
