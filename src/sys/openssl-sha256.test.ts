import assert from "node:assert/strict";
import { hash, randomBytes } from "node:crypto";
import { describe, test } from "node:test";
import { BlockHasher } from "../formats/verity/index.ts";
import { loadBlockDigests } from "./openssl-sha256.ts";

describe("loadBlockDigests()", () => {
  test("finds OpenSSL in the pinned Node, and the same each time", () => {
    assert.ok(loadBlockDigests());
    assert.equal(loadBlockDigests(), loadBlockDigests());
  });

  test("gives the digests of node:crypto, into shared memory too", () => {
    const digests = loadBlockDigests()!;
    for (const saltSize of [0, 1, 32, 63, 64, 65, 256]) {
      for (const blockSize of [512, 1024, 4096]) {
        const salt = randomBytes(saltSize);
        const data = randomBytes(3 * blockSize);
        const expected = [0, 1, 2].map((block) =>
          hash("sha256", Buffer.concat([salt, data.subarray(block * blockSize, (block + 1) * blockSize)]), "hex"),
        );
        const target = Buffer.from(new SharedArrayBuffer(3 * 32 + 2));
        digests.open(blockSize, salt)(data, 0, 3, target, 1);
        assert.equal(target.toString("hex"), `00${expected.join("")}00`);
      }
    }
  });

  test("touches nothing outside of the blocks and digests that it is given", () => {
    const digest = loadBlockDigests()!.open(512, new Uint8Array(0));
    const target = Buffer.alloc(64);
    for (const [offset, count, at] of [
      [1, 2, 0],
      [-1, 1, 0],
      [0, 2, 1],
      [0, 1, -1],
      [0, -1, 0],
    ] as const) {
      assert.throws(() => digest(Buffer.alloc(1024), offset, count, target, at), RangeError);
    }
    assert.deepEqual(target, Buffer.alloc(64));
  });

  test("makes no difference to a BlockHasher, zeros between the blocks included", () => {
    const data = Buffer.concat([randomBytes(1024), Buffer.alloc(1024), randomBytes(512), Buffer.alloc(512)]);
    const salt = randomBytes(32);
    const [own, node] = [new BlockHasher(512, salt, loadBlockDigests()), new BlockHasher(512, salt)].map((hasher) => {
      const target = Buffer.alloc(6 * 32);
      hasher.hashBlocks(data, target, 0);
      return target.toString("hex");
    });
    assert.equal(own, node);
  });
});
