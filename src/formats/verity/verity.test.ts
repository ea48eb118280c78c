/** Judges: veritysetup 2.6.1 and fsverity 1.5 of Debian 12, where installed; their known answers everywhere. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import fc from "fast-check";
import { toHex } from "../../bytes/index.ts";
import { ShaleError } from "../../errors/index.ts";
import {
  BlockHasher,
  buildUpperLevels,
  checkUpperLevels,
  decodeVeritySuperblock,
  encodeVeritySuperblock,
  FsVerityHasher,
  type FsVerityOptions,
  fsVerityDigest,
  planTree,
  type VerityBlocks,
} from "./index.ts";

const veritysetup = spawnSync("veritysetup", ["--version"], { env: withSbin() }).status === 0;
const fsverity = spawnSync("fsverity", ["--version"]).status === 0;
const UUID = Uint8Array.from({ length: 16 }, (_, i) => i + 1);

function withSbin() {
  return { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` };
}

function noise(length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let state = length + 1;
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    bytes[i] = state >>> 24;
  }
  return bytes;
}

/** The whole tree, the plain way. */
function buildTree(data: Uint8Array, blocks: VerityBlocks, salt: Uint8Array) {
  const shape = planTree(blocks);
  const leaf = Buffer.alloc((shape.levels[0]?.blocks ?? 0) * shape.hashBlockSize);
  const digests = Buffer.alloc(Math.max(1, shape.levels[0]?.blocks ?? 0) * 32);
  const upperHasher = new BlockHasher(shape.hashBlockSize, salt);
  const dataHasher = new BlockHasher(shape.dataBlockSize, salt);
  if (shape.levels.length === 0) dataHasher.hashBlocks(data, digests, 0);
  else {
    dataHasher.hashBlocks(data, leaf, 0);
    upperHasher.hashBlocks(leaf, digests, 0);
  }
  const { rootHash, bytes } = buildUpperLevels(shape, upperHasher, digests);
  return { shape, rootHash, tree: Buffer.concat([bytes, leaf]), digests, upper: bytes, hasher: upperHasher };
}

describe("dm-verity", () => {
  const CASES: readonly {
    readonly blocks: number;
    readonly data: number;
    readonly hash: number;
    readonly salt: string;
  }[] = [
    { blocks: 1, data: 4096, hash: 4096, salt: "" },
    { blocks: 2, data: 4096, hash: 4096, salt: "ab".repeat(32) },
    { blocks: 128, data: 512, hash: 4096, salt: "" },
    { blocks: 129, data: 512, hash: 4096, salt: "" },
    { blocks: 16384, data: 512, hash: 4096, salt: "" },
    { blocks: 16385, data: 512, hash: 4096, salt: "00".repeat(256) },
    { blocks: 300, data: 4096, hash: 512, salt: "01" },
    { blocks: 33, data: 1024, hash: 1024, salt: "0102030405" },
  ];
  for (const { blocks, data: dataBlockSize, hash: hashBlockSize, salt } of CASES) {
    const name = `${blocks} blocks of ${dataBlockSize}, hash blocks of ${hashBlockSize}, salt of ${salt.length / 2} bytes`;
    test(`the tree is that of veritysetup: ${name}`, { skip: !veritysetup && "needs veritysetup" }, () => {
      const directory = mkdtempSync(join(tmpdir(), "verity-"));
      try {
        const bytes = noise(blocks * dataBlockSize);
        const dataFile = join(directory, "data");
        const hashFile = join(directory, "hash");
        writeFileSync(dataFile, bytes);
        const words = ["format", dataFile, hashFile, `--salt=${salt === "" ? "-" : salt}`];
        words.push(`--data-block-size=${dataBlockSize}`, `--hash-block-size=${hashBlockSize}`);
        words.push("--uuid=01020304-0506-0708-090a-0b0c0d0e0f10");
        const run = spawnSync("veritysetup", words, { encoding: "utf8", env: withSbin() });
        assert.equal(run.status, 0, run.stderr);
        const saltBytes = Buffer.from(salt, "hex");
        const { shape, rootHash, tree } = buildTree(
          bytes,
          { dataBlocks: blocks, dataBlockSize, hashBlockSize },
          saltBytes,
        );
        assert.equal(toHex(rootHash), /Root hash:\s+([0-9a-f]+)/.exec(run.stdout)![1]);
        const superblock = Buffer.alloc(Math.ceil(512 / hashBlockSize) * hashBlockSize);
        superblock.set(encodeVeritySuperblock({ ...shape, uuid: UUID, salt: saltBytes }));
        const expected = readFileSync(hashFile);
        assert.deepEqual(Buffer.concat([superblock, tree]).subarray(0, expected.length), expected);
      } finally {
        rmSync(directory, { recursive: true, force: true });
      }
    });
  }

  test("planTree() puts the top first and the leaves last", () => {
    const { levels, size } = planTree({ dataBlocks: 16_385, dataBlockSize: 512, hashBlockSize: 4096 });
    assert.deepEqual(levels, [
      { offset: 3 * 4096, blocks: 129 },
      { offset: 4096, blocks: 2 },
      { offset: 0, blocks: 1 },
    ]);
    assert.equal(size, 132 * 4096);
    assert.deepEqual(planTree({ dataBlocks: 1, dataBlockSize: 512, hashBlockSize: 4096 }).levels, []);
  });

  test("planTree() reaches 2 TiB of 512-byte blocks and refuses one block more", () => {
    const sizes = { dataBlockSize: 512, hashBlockSize: 4096 };
    assert.equal(planTree({ ...sizes, dataBlocks: 2 ** 32 - 1 }).levels[0]!.blocks, 2 ** 25);
    assert.throws(
      () => planTree({ ...sizes, dataBlocks: 2 ** 32 }),
      (error) => ShaleError.is(error, "RESOURCE_EXHAUSTED") && /limit 4294967295/.test(error.message) && !!error.hint,
    );
  });

  for (const sizes of [
    { dataBlocks: 0, dataBlockSize: 4096, hashBlockSize: 4096 },
    { dataBlocks: 1, dataBlockSize: 500, hashBlockSize: 4096 },
    { dataBlocks: 1, dataBlockSize: 4096, hashBlockSize: 256 },
    { dataBlocks: 1, dataBlockSize: 2 ** 20, hashBlockSize: 4096 },
    { dataBlocks: 1.5, dataBlockSize: 4096, hashBlockSize: 4096 },
  ]) {
    test(`planTree() refuses ${JSON.stringify(sizes)}`, () => {
      assert.throws(
        () => planTree(sizes),
        (error) => ShaleError.is(error, "INVALID_ARGUMENT"),
      );
    });
  }

  test("hashBlocks() gives a block of zeros the digest that hashing gives", () => {
    const hasher = new BlockHasher(512, Uint8Array.of(1, 2));
    const almost = new Uint8Array(1024);
    almost[700] = 1;
    const digests = Buffer.alloc(64);
    hasher.hashBlocks(almost, digests, 0);
    assert.equal(
      digests.toString("hex", 0, 32),
      spawnSync("sha256sum", {
        input: Buffer.concat([Uint8Array.of(1, 2), Buffer.alloc(512)]),
        encoding: "utf8",
      }).stdout.slice(0, 64),
    );
    assert.notDeepEqual(digests.subarray(0, 32), digests.subarray(32));
  });

  test("checkUpperLevels() finds one flipped bit anywhere in the upper levels", () => {
    const blocks = { dataBlocks: 5000, dataBlockSize: 512, hashBlockSize: 512 };
    const { shape, rootHash, digests, upper, hasher } = buildTree(noise(5000 * 512), blocks, new Uint8Array(0));
    assert.deepEqual(checkUpperLevels(shape, hasher, digests, upper), { rootHash, damage: undefined });
    fc.assert(
      fc.property(fc.nat(upper.length * 8 - 1), (bit) => {
        const damaged = Buffer.from(upper);
        damaged[bit >> 3]! ^= 1 << (bit & 7);
        const found = checkUpperLevels(shape, hasher, digests, damaged);
        assert.ok(found.damage !== undefined || Buffer.compare(found.rootHash, rootHash) !== 0);
      }),
      { numRuns: 100 },
    );
  });

  test("decodeVeritySuperblock() reads what encodeVeritySuperblock() writes", () => {
    const written = { uuid: UUID, salt: noise(32), dataBlocks: 2 ** 32 - 1, dataBlockSize: 512, hashBlockSize: 4096 };
    assert.deepEqual(decodeVeritySuperblock(encodeVeritySuperblock(written)), written);
  });

  const GOOD = encodeVeritySuperblock({
    uuid: UUID,
    salt: noise(32),
    dataBlocks: 9,
    dataBlockSize: 512,
    hashBlockSize: 4096,
  });
  const damaged = (at: number, value: number) => {
    const bytes = Uint8Array.from(GOOD);
    bytes[at] = value;
    return bytes;
  };
  for (const { name, bytes, code } of [
    { name: "a short one", bytes: GOOD.subarray(0, 511), code: "INVALID_ARGUMENT" },
    { name: "another signature", bytes: damaged(0, 0x56), code: "INVALID_ARGUMENT" },
    { name: "another version", bytes: damaged(8, 2), code: "INVALID_ARGUMENT" },
    { name: "hash type 0", bytes: damaged(12, 0), code: "UNIMPLEMENTED" },
    { name: "another algorithm", bytes: damaged(35, 0x35), code: "UNIMPLEMENTED" },
    { name: "a salt over 256 bytes", bytes: damaged(81, 2), code: "INVALID_ARGUMENT" },
    { name: "a block size of 513", bytes: damaged(64, 1), code: "INVALID_ARGUMENT" },
    { name: "2^56 blocks", bytes: damaged(79, 1), code: "INVALID_ARGUMENT" },
  ] as const) {
    test(`decodeVeritySuperblock() refuses ${name}`, () => {
      assert.throws(
        () => decodeVeritySuperblock(bytes),
        (error) => ShaleError.is(error, code),
      );
    });
  }
});

describe("fs-verity", () => {
  // fsverity digest of fsverity-utils 1.5
  test("fsVerityDigest() of nothing is the known one", () => {
    const empty = "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95";
    assert.equal(toHex(fsVerityDigest(new Uint8Array(0))), empty);
  });

  const SIZES = [0, 1, 4095, 4096, 4097, 8192, 128 * 4096, 128 * 4096 + 1, 130 * 4096, 3_000_000];
  const OPTIONS: readonly { readonly options: FsVerityOptions; readonly words: readonly string[] }[] = [
    { options: {}, words: [] },
    {
      options: { algorithm: "sha512", salt: Uint8Array.from([1, 2, 3]) },
      words: ["--hash-alg=sha512", "--salt=010203"],
    },
    { options: { blockSize: 1024 }, words: ["--block-size=1024"] },
  ];
  for (const { options, words } of OPTIONS) {
    test(`digests are those of fsverity digest ${words.join(" ")}`, { skip: !fsverity && "needs fsverity" }, () => {
      const directory = mkdtempSync(join(tmpdir(), "fsverity-"));
      try {
        const files = SIZES.map((size) => {
          writeFileSync(join(directory, `${size}`), noise(size));
          return join(directory, `${size}`);
        });
        const run = spawnSync("fsverity", ["digest", "--compact", ...words, ...files], { encoding: "utf8" });
        assert.equal(run.status, 0, run.stderr);
        const expected = run.stdout.trim().split("\n");
        assert.deepEqual(
          SIZES.map((size) => toHex(fsVerityDigest(noise(size), options))),
          expected.map((line) => line.split(" ")[0]),
        );
      } finally {
        rmSync(directory, { recursive: true, force: true });
      }
    });
  }

  test("FsVerityHasher gives the same digest however the content is cut", () => {
    const data = noise(20_000);
    const whole = toHex(fsVerityDigest(data));
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 9000 }), { maxLength: 12 }), (cuts) => {
        const hasher = new FsVerityHasher();
        let at = 0;
        for (const cut of cuts) {
          hasher.update(data.subarray(at, at + cut));
          at = Math.min(data.length, at + cut);
        }
        hasher.update(data.subarray(at));
        assert.equal(toHex(hasher.digest()), whole);
      }),
      { numRuns: 50 },
    );
  });
});
