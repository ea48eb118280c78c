/** Judge: veritysetup of Debian 12, where installed. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import fc from "fast-check";
import { toHex } from "../bytes/index.ts";
import { ShaleError } from "../errors/index.ts";
import { planTree } from "../formats/verity/index.ts";
import { injectFault } from "../sys/index.ts";
import { checkVerityTree, makeVerityTree } from "./verity-tree.ts";

const ENVIRONMENT = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` };
const veritysetup = spawnSync("veritysetup", ["--version"], { env: ENVIRONMENT }).status === 0;

async function withFile(size: number, use: (path: string, file: number) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "verity-tree-"));
  const path = join(directory, "file");
  const bytes = Buffer.alloc(size);
  for (let i = 0; i < size; i += 509) bytes[i] = (i * 31) >> 3;
  writeFileSync(path, bytes);
  const file = openSync(path, "r+");
  try {
    await use(path, file);
  } finally {
    closeSync(file);
    rmSync(directory, { recursive: true, force: true });
  }
}

const SALT = Buffer.from("5a".repeat(32), "hex");

describe("makeVerityTree()", () => {
  for (const { dataBlockSize, size } of [
    { dataBlockSize: 4096, size: 13 * 1024 * 1024 + 4096 },
    { dataBlockSize: 512, size: 9 * 1024 * 1024 + 512 },
    { dataBlockSize: 4096, size: 4096 },
    { dataBlockSize: 512, size: 1024 },
  ]) {
    test(
      `appends the tree of veritysetup: ${size} bytes in blocks of ${dataBlockSize}`,
      { skip: !veritysetup && "needs veritysetup" },
      () =>
        withFile(size, async (path, file) => {
          const dataBlocks = size / dataBlockSize;
          const offset = Math.ceil(size / 4096) * 4096;
          const options = { file, salt: SALT, dataBlocks, dataBlockSize, hashBlockSize: 4096 };
          const { rootHash } = await makeVerityTree({ ...options, jobs: 3 }, { file, offset });
          const words = [
            path,
            path,
            "--no-superblock",
            "--format=1",
            `--salt=${SALT.toString("hex")}`,
            "--hash=sha256",
          ];
          words.push(`--data-block-size=${dataBlockSize}`, "--hash-block-size=4096", `--data-blocks=${dataBlocks}`);
          words.push(`--hash-offset=${offset}`);
          const accept = () =>
            spawnSync("veritysetup", ["verify", ...words, toHex(rootHash)], { env: ENVIRONMENT }).status;
          if (dataBlocks > 1) assert.equal(accept(), 0); // veritysetup refuses a tree of no blocks at the end of a file
          await checkVerityTree({ ...options, rootHash }, { file, offset });
          const appended = readFileSync(path);
          const run = spawnSync("veritysetup", ["format", ...words], { encoding: "utf8", env: ENVIRONMENT });
          assert.equal(run.status, 0, run.stderr);
          assert.equal(/Root hash:\s+([0-9a-f]+)/.exec(run.stdout)![1], toHex(rootHash));
          assert.deepEqual(readFileSync(path).subarray(0, appended.length), appended);
        }),
    );
  }

  test("gives the same tree with any number of threads, and tells all bytes", () =>
    withFile(17 * 1024 * 1024, async (path, file) => {
      const trees: string[] = [];
      for (const jobs of [1, 2, 5]) {
        let told = 0;
        const options = { file, salt: SALT, dataBlocks: 4352, dataBlockSize: 4096, hashBlockSize: 4096, jobs };
        const onHashed = (bytes: number) => {
          told += bytes;
        };
        const { rootHash, shape } = await makeVerityTree({ ...options, onHashed }, { file, offset: 17 << 20 });
        trees.push(
          toHex(rootHash) +
            readFileSync(path)
              .subarray(17 << 20, (17 << 20) + shape.size)
              .toString("hex"),
        );
        assert.equal(told, 17 << 20);
      }
      assert.deepEqual(new Set(trees).size, 1);
    }));

  test("gives the same tree when the start of the data is written meanwhile", () =>
    withFile(17 * 1024 * 1024, async (path, file) => {
      const options = { file, salt: SALT, dataBlocks: 4352, dataBlockSize: 4096, hashBlockSize: 4096 };
      const { rootHash } = await makeVerityTree(options);
      const sound = readFileSync(path);
      for (const size of [4096, 5 << 20, 17 << 20]) {
        writeFileSync(path, Buffer.concat([Buffer.alloc(size, 0xee), sound.subarray(size)]));
        const head = {
          size,
          async write() {
            await new Promise((resolve) => setImmediate(resolve));
            writeFileSync(path, sound);
          },
        };
        const made = await makeVerityTree({ ...options, head, jobs: 3 });
        assert.deepEqual(made.rootHash, rootHash, `${size}`);
      }
    }));

  test("ends with the error of who writes the start of the data, while threads wait for it", () =>
    withFile(9 << 20, async (_, file) => {
      const options = { file, salt: SALT, dataBlocks: 2304, dataBlockSize: 4096, hashBlockSize: 4096 };
      for (const jobs of [1, 3]) {
        const head = { size: 9 << 20, write: () => Promise.reject(new ShaleError("RESOURCE_EXHAUSTED", "full")) };
        await assert.rejects(makeVerityTree({ ...options, head, jobs }), (e) => ShaleError.is(e, "RESOURCE_EXHAUSTED"));
      }
    }));

  test("computes only the root hash without a place", () =>
    withFile(1 << 20, async (path, file) => {
      const options = { file, salt: SALT, dataBlocks: 256, dataBlockSize: 4096, hashBlockSize: 4096 };
      const before = readFileSync(path);
      const { rootHash } = await makeVerityTree(options);
      assert.deepEqual(readFileSync(path), before);
      assert.deepEqual((await makeVerityTree(options, { file, offset: 1 << 20 })).rootHash, rootHash);
    }));

  test("ends with DATA_LOSS when the data is shorter than said, in whatever thread", () =>
    withFile(9 << 20, async (path, file) => {
      truncateSync(path, (9 << 20) - 1);
      for (const jobs of [1, 3]) {
        const options = { file, salt: SALT, dataBlocks: 2304, dataBlockSize: 4096, hashBlockSize: 4096, jobs };
        await assert.rejects(makeVerityTree(options), (error) => ShaleError.is(error, "DATA_LOSS"));
      }
    }));

  test("ends with the system's error when the disk is full", () =>
    withFile(1 << 20, async (_, file) => {
      using _fault = injectFault({ kind: "write", errno: "ENOSPC" });
      const options = { file, salt: SALT, dataBlocks: 256, dataBlockSize: 4096, hashBlockSize: 4096, jobs: 1 };
      await assert.rejects(makeVerityTree(options, { file, offset: 1 << 20 }), { code: "ENOSPC" });
    }));

  test("stops when its signal is aborted, before and while it works", () =>
    withFile(40 << 20, async (_, file) => {
      const options = { file, salt: SALT, dataBlocks: 10_240, dataBlockSize: 4096, hashBlockSize: 4096 };
      await assert.rejects(makeVerityTree({ ...options, signal: AbortSignal.abort() }), (e) =>
        ShaleError.is(e, "CANCELLED"),
      );
      const stop = new AbortController();
      setImmediate(() => stop.abort());
      await assert.rejects(makeVerityTree({ ...options, signal: stop.signal, jobs: 2 }), (e) =>
        ShaleError.is(e, "CANCELLED"),
      );
    }));
});

describe("checkVerityTree()", () => {
  test("refuses one flipped bit anywhere in data or tree, a truncated tree and another root hash", () =>
    withFile(800 * 512, async (path, file) => {
      const sizes = { dataBlocks: 800, dataBlockSize: 512, hashBlockSize: 4096 };
      const options = { file, salt: SALT, ...sizes, jobs: 1 };
      const place = { file, offset: 409_600 };
      const { rootHash } = await makeVerityTree(options, place);
      const check = () => checkVerityTree({ ...options, rootHash }, place);
      const isRefused = (error: unknown) => ShaleError.is(error, "DATA_LOSS");
      await check();
      const sound = readFileSync(path);
      await fc.assert(
        fc.asyncProperty(fc.nat(sound.length * 8 - 1), async (bit) => {
          const damaged = Buffer.from(sound);
          damaged[bit >> 3]! ^= 1 << (bit & 7);
          writeFileSync(path, damaged);
          await assert.rejects(check(), isRefused);
        }),
        { numRuns: 60, examples: [[0], [sound.length * 8 - 1], [409_600 * 8], [409_600 * 8 - 1]] },
      );
      writeFileSync(path, sound);
      await check();
      const other = Uint8Array.from(rootHash);
      other[31]! ^= 1;
      await assert.rejects(checkVerityTree({ ...options, rootHash: other }, place), /the root hash is/);
      truncateSync(path, 409_600 + planTree(sizes).size - 1);
      await assert.rejects(check(), isRefused);
      truncateSync(path, 409_600 + 100);
      await assert.rejects(check(), isRefused);
    }));

  test("names the first block of data that is wrong", () =>
    withFile(9 << 20, async (path, file) => {
      const options = { file, salt: SALT, dataBlocks: 2304, dataBlockSize: 4096, hashBlockSize: 4096 };
      const place = { file, offset: 9 << 20 };
      const { rootHash } = await makeVerityTree(options, place);
      const damaged = readFileSync(path);
      for (const block of [2200, 1500, 77]) damaged[block * 4096 + 5]! ^= 1;
      writeFileSync(path, damaged);
      await assert.rejects(
        checkVerityTree({ ...options, rootHash, jobs: 3 }, place),
        /block 77 \(bytes 315392 to 319487\)/,
      );
    }));

  test("accepts a tree whose unused slots are not zero, as nydus writes it", () =>
    withFile(3 * 4096, async (path, file) => {
      const options = { file, salt: SALT, dataBlocks: 3, dataBlockSize: 4096, hashBlockSize: 4096 };
      const place = { file, offset: 3 * 4096 };
      await makeVerityTree(options, place);
      const bytes = readFileSync(path);
      bytes.fill(0xad, 3 * 4096 + 96, 4 * 4096);
      writeFileSync(path, bytes);
      const root = spawnSync("sha256sum", { input: Buffer.concat([SALT, bytes.subarray(3 * 4096)]), encoding: "utf8" });
      const rootHash = Buffer.from(root.stdout.slice(0, 64), "hex");
      await checkVerityTree({ ...options, rootHash }, place);
    }));
});
