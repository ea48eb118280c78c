/** One layer on its way in, through a real worker thread. */
import assert from "node:assert/strict";
import { createHash, hash } from "node:crypto";
import { readdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { ShaleError } from "../../errors/index.ts";
import { TAR_END } from "../../formats/tar/index.ts";
import { block, entryBytes, GNU_MAGIC, meta, padded, records } from "../../formats/tar/testing.ts";
import type { DiffId, Digest } from "../../oci/index.ts";
import { withTemporaryDirectory } from "../../sys/testing/filesystems.ts";
import type { LayerRecord, Store, StoreOperation } from "../index.ts";
import { type Files, ingest, noise, sha256, tar, withStore } from "../testing/fixtures.ts";

interface Bench {
  readonly store: Store;
  readonly operation: StoreOperation;
  /** Ingests and commits. */
  put(bytes: Buffer): Promise<LayerRecord>;
}

const diffIdOf = (bytes: Uint8Array) => `sha256:${sha256(bytes)}` as DiffId;
const digestOf = (bytes: Uint8Array) => `sha256:${sha256(bytes)}` as Digest;

async function withBench(use: (bench: Bench) => Promise<void>): Promise<void> {
  await withTemporaryDirectory((directory) =>
    withStore(join(directory, "store"), async (store) => {
      using operation = store.begin("test");
      let number = 0;
      await use({
        store,
        operation,
        async put(bytes) {
          const expected = { diffId: diffIdOf(bytes) };
          operation.commitLayers([await ingest(operation, join(directory, `tar${number++}`), bytes, expected)]);
          operation.indexLayers();
          return operation.getLayer(expected.diffId);
        },
      });
    }),
  );
}

function rebuilt(operation: StoreOperation, layer: LayerRecord): string {
  using source = operation.openTar(layer);
  const hasher = createHash("sha256");
  for (const piece of source.read()) hasher.update(piece);
  return `sha256:${hasher.digest("hex")}`;
}

/** What the layer says about one file. */
function payloadOf(operation: StoreOperation, layer: LayerRecord, path: string) {
  using tree = operation.openLayer(layer);
  const inode = tree.reader.resolve(path);
  const bytes = Buffer.from(tree.reader.read(inode, 0, inode.size));
  return { size: inode.size, bytes, payload: inode.size === 0 ? undefined : tree.payload(inode) };
}

describe("StoreOperation.ingest()", () => {
  const pax = (path: string, map: string, size: number, data: Buffer) =>
    Buffer.concat([
      meta(
        "x",
        records(
          ["GNU.sparse.major", "1"],
          ["GNU.sparse.minor", "0"],
          ["GNU.sparse.name", path],
          ["GNU.sparse.realsize", `${size}`],
        ),
      ),
      block({ name: path, size: padded(map).length + data.length }),
      padded(map),
      padded(data),
    ]);
  const layers: Readonly<Record<string, Buffer>> = {
    "of nothing": tar({}),
    "without its last padding (umoci insert)": tar({ a: noise(5000, "a"), b: noise(5001, "b") }).subarray(
      0,
      512 + 5120 + 512 + 5001,
    ),
    "of empty files only": tar({ a: "", b: Buffer.alloc(0) }),
    "of one empty file after inline ones that fill a piece": tar({
      ...Object.fromEntries(Array.from({ length: 512 }, (_, i) => [`f${i}`, noise(2048, i)])),
      last: "",
    }),
    "with trailing zero blocks, as GNU tar pads": Buffer.concat([tar({ a: "1" }), Buffer.alloc(8192)]),
    "with duplicates, of which the last wins": Buffer.concat([
      entryBytes({ path: "a" }, "first, inline"),
      entryBytes({ path: "a" }, noise(5000, "second").toString("latin1")),
      entryBytes({ path: "a" }, noise(6000, "third").toString("latin1")),
      entryBytes({ path: "d", type: "directory" }),
      entryBytes({ path: "d/x" }, noise(7000, "x").toString("latin1")),
      entryBytes({ path: "d" }, noise(8000, "a file now").toString("latin1")),
      TAR_END,
    ]),
    "with a sparse file": Buffer.concat([
      pax("sparse", "2\n4096\n5000\n100000\n10\n", 300_000, noise(5010, "data")),
      entryBytes({ path: "after" }, "x"),
      TAR_END,
    ]),
    "with a small sparse file, kept inline": Buffer.concat([pax("s", "1\n1000\n5\n", 2000, noise(5, "s")), TAR_END]),
    "in old GNU dialect": Buffer.concat([
      block({ name: "old", size: 3000, magic: GNU_MAGIC }),
      padded(noise(3000, "old")),
      TAR_END,
    ]),
    "with whiteouts and links": tar({
      "d/": "",
      "d/.wh..wh..opq": "",
      ".wh.gone": "",
      f: noise(10_000, "f"),
      hard: { type: "hardlink", linkTarget: "f" },
      soft: { type: "symlink", linkTarget: "f" },
    }),
  };
  test("takes a layer, and its tar comes back bit for bit:", (t) =>
    withBench(async ({ operation, put }) => {
      for (const [name, bytes] of Object.entries(layers)) {
        await t.test(name, async () => {
          const layer = await put(bytes);
          assert.equal(layer.tarSize, bytes.length);
          assert.equal(rebuilt(operation, layer), layer.diffId);
          assert.equal(layer.contentBytes, layer.ownBytes + layer.sharedBytes + layer.inlineBytes);
          assert.deepEqual((await operation.check()).findings, []);
        });
      }
    }));

  test("keeps payloads up to 2048 bytes inline and gives larger ones a place of their own", () =>
    withBench(async ({ operation, put }) => {
      const sizes = [1, 2047, 2048, 2049, 4095, 4096, 4097];
      const layer = await put(tar(Object.fromEntries(sizes.map((size) => [`f${size}`, noise(size, size)]))));
      for (const size of sizes) {
        const { bytes, payload } = payloadOf(operation, layer, `f${size}`);
        assert.ok(bytes.equals(noise(size, size)), `${size} bytes`);
        if (size <= 2048) assert.equal(payload, "inline");
        else {
          assert.ok(typeof payload === "object");
          assert.equal(payload.offset % 4096, 0);
          assert.deepEqual(Buffer.from(payload.digest), hash("sha256", noise(size, size), "buffer"));
        }
      }
      assert.equal(layer.inlineBytes, 1 + 2047 + 2048);
      assert.equal(layer.ownBytes, 2049 + 4095 + 4096 + 4097);
    }));

  test("stores equal payloads once: in a layer, across layers, also when one was written before it was known", () =>
    withBench(async ({ store, operation, put }) => {
      const large = noise(5 << 20, "large"); // more than a write of the blob holds
      const base = await put(tar({ a: noise(5000, "a"), twin: noise(5000, "a"), large }));
      assert.equal(base.sharedBytes, 5000);
      const top = await put(tar({ elsewhere: noise(5000, "a"), copy: large, own: noise(3000, "own") }));
      assert.equal(top.ownBytes, 3000);
      assert.equal(top.sharedBytes, 5000 + large.length);
      const [a, copy] = [payloadOf(operation, top, "elsewhere"), payloadOf(operation, top, "copy")];
      assert.ok(typeof a.payload === "object" && a.payload.blob === base.id);
      assert.ok(copy.bytes.equals(large));
      assert.equal(statSync(join(store.root, "blobs", top.id)).size, 4096 + 48 + 64);
      assert.deepEqual(operation.layerFiles(top).devices.length, 2);
      const nothing = await put(tar({ again: noise(5000, "a") }));
      assert.deepEqual(readdirSync(join(store.root, "blobs")).sort(), [base.id, top.id].sort());
      assert.equal(rebuilt(operation, nothing), nothing.diffId);
    }));

  test("refers to nothing else with deduplicate: false", () =>
    withBench(async ({ store, operation, put }) => {
      await put(tar({ a: noise(5000, "a") }));
      const bytes = tar({ b: noise(5000, "a") });
      const path = join(store.root, "..", "again");
      const result = await ingest(operation, path, bytes, { diffId: diffIdOf(bytes) }, { deduplicate: false });
      assert.equal(result.ownBytes, 5000);
    }));

  test("knows whether a layer stands alone", () =>
    withBench(async ({ put }) => {
      const cases: readonly (readonly [Files, boolean])[] = [
        [{ "./": "", "d/": "", "d/f": "x" }, true],
        [{ "./": "", "d/f": "x" }, false], // what d is, a layer below may say
        [{ "./": "", "d/": "", ".wh.x": "" }, false],
        [{ "./": "", "d/": "", "d/.wh..wh..opq": "" }, false],
      ];
      for (const [files, standalone] of cases) assert.equal((await put(tar(files))).standalone, standalone);
    }));

  const good = tar({ a: noise(200_000, "good"), b: "small" });
  const other = diffIdOf(Buffer.from("other"));
  const gzip = gzipSync(good);
  const zstd = zstdCompressSync(good);
  const flipped = (bytes: Buffer, at: number) => {
    const copy = Buffer.from(bytes);
    copy[at]! ^= 1;
    return copy;
  };
  const bad = flipped(tar({ a: noise(1000, "a"), b: noise(7_000_000, "b") }), 512 + 1024 + 3);
  const refused: readonly {
    readonly name: string;
    readonly bytes: Buffer;
    readonly expected?: { readonly digest?: Digest; readonly diffId?: DiffId };
    readonly code: string;
    readonly message: RegExp;
  }[] = [
    {
      name: "other bytes than the digest says",
      bytes: gzip,
      expected: { digest: other as string as Digest },
      code: "DATA_LOSS",
      message: /the bytes that arrived are sha256:/,
    },
    {
      name: "another tar than the diffId says",
      bytes: gzip,
      expected: { digest: digestOf(gzip), diffId: other },
      code: "DATA_LOSS",
      message: /the image's config says/,
    },
    {
      name: "a truncated gzip stream of the right digest",
      bytes: gzip.subarray(0, -9),
      code: "INVALID_ARGUMENT",
      message: /gzip/,
    },
    {
      name: "a truncated zstd stream of the right digest",
      bytes: zstd.subarray(0, -5),
      code: "INVALID_ARGUMENT",
      message: /zstd/,
    },
    { name: "a truncated tar", bytes: good.subarray(0, 100_000), code: "INVALID_ARGUMENT", message: /tar/ },
    {
      name: "damage in transfer, as a loss and not as a format error",
      bytes: flipped(gzip, 1000),
      expected: { digest: digestOf(gzip) },
      code: "DATA_LOSS",
      message: /the bytes that arrived are/,
    },
    {
      name: "a truncated transfer, as a loss",
      bytes: gzip.subarray(0, 5000),
      expected: { digest: digestOf(gzip) },
      code: "DATA_LOSS",
      message: /the bytes that arrived are/,
    },
    // Large, so that more was read ahead than was looked at when the tar turned out to be none.
    ...[bad, gzipSync(bad)].flatMap((bytes, i) => [
      {
        name: `a large tar with a bad header, of the right digest${i === 0 ? "" : ", compressed"}`,
        bytes,
        expected: { digest: digestOf(bytes) },
        code: "INVALID_ARGUMENT",
        message: /tar/,
      },
      {
        name: `the same, of another digest: as a loss${i === 0 ? "" : ", compressed"}`,
        bytes,
        expected: { digest: other as string as Digest },
        code: "DATA_LOSS",
        message: /the bytes that arrived are/,
      },
    ]),
    { name: "what is no tar", bytes: noise(10_000, "no tar"), code: "INVALID_ARGUMENT", message: /tar/ },
    {
      name: "a path that leads outside",
      bytes: tar({ "../../etc/passwd": "x" }),
      code: "INVALID_ARGUMENT",
      message: /\.\./,
    },
    {
      name: "a hard link to outside",
      bytes: tar({ a: { type: "hardlink", linkTarget: "../../../etc/shadow" } }),
      code: "INVALID_ARGUMENT",
      message: /leaves the root/,
    },
    {
      name: "a sparse map that claims more than the limit",
      bytes: Buffer.concat([pax("huge", "1\n0\n5\n", 2 ** 41, noise(5, 1)), TAR_END]),
      code: "RESOURCE_EXHAUSTED",
      message: /larger than/,
    },
  ];
  test("refuses, and stores nothing of it:", (t) =>
    withBench(async ({ store, put }) => {
      const before = await put(tar({ x: noise(5000, "before") }));
      const staging = readdirSync(join(store.root, "staging"));
      const path = join(store.root, "..", "hostile");
      for (const { name, bytes, expected, code, message } of refused) {
        await t.test(name, async () => {
          {
            using operation = store.begin("hostile");
            await assert.rejects(ingest(operation, path, bytes, expected), (error) => {
              assert.ok(ShaleError.is(error), String(error));
              assert.equal(error.code, code, error.message);
              assert.match(error.message, message);
              return true;
            });
          }
          assert.deepEqual(
            store.listLayers().map((layer) => layer.id),
            [before.id],
          );
          assert.deepEqual(readdirSync(join(store.root, "blobs")), [before.id]);
          assert.deepEqual(readdirSync(join(store.root, "staging")), staging);
        });
      }
    }));

  test("settles with CANCELLED after its work has stopped, and the next one works", () =>
    withBench(async ({ store, put }) => {
      const controller = new AbortController();
      const path = join(store.root, "..", "large");
      writeFileSync(path, tar({ large: Buffer.alloc(30 << 20, noise(4096, "large")) }));
      {
        using operation = store.begin("aborted");
        let told = 0;
        const running = operation.ingest(
          { path, offset: 0, length: 31 << 20 },
          {},
          { signal: controller.signal, onConsumed: () => told++ },
        );
        controller.abort();
        await assert.rejects(running, (error) => ShaleError.is(error, "CANCELLED"));
        assert.ok(told > 0);
      }
      assert.deepEqual(readdirSync(join(store.root, "staging")), []);
      await put(good);
    }));

  test("commitLayers() of a layer that is there already is success, and leaves one", () =>
    withBench(async ({ store, operation, put }) => {
      const bytes = tar({ a: noise(5000, "a") });
      const path = join(store.root, "..", "again");
      const rival = await ingest(operation, path, bytes, {}, { deduplicate: false });
      const first = await put(bytes);
      operation.commitLayers([rival]);
      assert.equal(operation.getLayer(first.diffId).id, first.id);
      for (const directory of ["layers", "blobs"])
        assert.deepEqual(readdirSync(join(store.root, directory)), [first.id]);
    }));
});

test("Store.rest() ends idle threads, and the next ingest starts others", () =>
  withBench(async ({ store, put }) => {
    const first = await put(tar({ a: noise(5000, 1) }));
    await store.rest();
    await store.rest();
    const second = await put(tar({ b: noise(5000, 1) }));
    assert.equal(first.ownBytes, 5000);
    assert.deepEqual([second.ownBytes, second.sharedBytes], [0, 5000]);
  }));
