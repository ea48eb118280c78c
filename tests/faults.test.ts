/**
 * Faults of the machine and of the registry: a full disk at many levels, errors injected at each kind of operation, syncs
 * that fail, transfers that break or lie. Nothing half-done is ever in sight, and the next try succeeds.
 */
import assert from "node:assert/strict";
import { readdirSync, statfsSync, unlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { mapConcurrent } from "../src/async/index.ts";
import { ShaleError } from "../src/errors/index.ts";
import { findImage } from "../src/images/find.ts";
import { mountImage } from "../src/images/mount.ts";
import { openOrigin, type Origin } from "../src/images/origin.ts";
import { pullImage } from "../src/images/pull.ts";
import type { Progress } from "../src/images/progress.ts";
import { manifestOf, referenceTo, testClient } from "../src/registry/testing/fixtures.ts";
import {
  breakAfter,
  ok,
  ranges,
  type ScriptedServer,
  type Stored,
  stallAfter,
  startScriptedServer,
  type Step,
} from "../src/registry/testing/scripted-server.ts";
import { Store } from "../src/store/index.ts";
import {
  assertSound,
  assertTars,
  CONFIG_TYPE,
  collect,
  contentOf,
  makeImage,
  noise,
  pull,
  tar,
  withStore,
  writeImage,
} from "../src/store/testing/fixtures.ts";
import { storeProcess } from "../src/store/testing/processes.ts";
import { needsRoot, withLoopFilesystem, withTemporaryDirectory } from "../src/sys/testing/filesystems.ts";
import { assertRecovers, runDriver, stateOf } from "./crash/harness.ts";
import { runSteps, writeImages } from "./crash/steps.ts";

const KiB = 1024;

/** Takes all room of the file system but about `free` bytes. */
function fill(directory: string, free: number): string {
  const path = join(directory, "filler");
  const { bavail, bsize } = statfsSync(directory);
  const size = Math.max(0, bavail * bsize - free);
  try {
    writeFileSync(path, Buffer.alloc(size, 1));
  } catch (error) {
    if (!(error instanceof Error && "code" in error && error.code === "ENOSPC")) throw error;
  }
  return path;
}

describe("full disk (F1, G11)", () => {
  test(
    "at any level, a pull succeeds or leaves nothing; the store is readable, and rm with gc makes room",
    needsRoot,
    () =>
      withTemporaryDirectory((scratch) =>
        withLoopFilesystem("ext4", { size: 24 << 20 }, async (disk) => {
          const layout = join(scratch, "layout");
          const root = join(disk, "store");
          writeImage(layout, "one", [tar({ "./": "", one: noise(1500 * KiB, "one"), small: "one" })]);
          writeImage(layout, "two", [
            tar({ "./": "", two: noise(700 * KiB, "two"), same: noise(1500 * KiB, "one"), small: "two" }),
            tar({ more: noise(900 * KiB, "more") }),
          ]);
          await withStore(root, (store) => pull(store, layout, "one"));
          let failed = 0;
          let succeeded = 0;
          for (const free of [0, 4, 16, 64, 128, 256, 512, 768, 1024, 1400, 1800, 2400, 4000].map((n) => n * KiB)) {
            const filler = fill(disk, free);
            await withStore(root, async (store) => {
              try {
                await pull(store, layout, "two");
                succeeded++;
              } catch (error) {
                assert.ok(ShaleError.is(error, "RESOURCE_EXHAUSTED"), `${free} bytes free: ${String(error)}`);
                failed++;
              }
              assert.deepEqual(readdirSync(join(root, "staging")), [], `${free} bytes free`);
              assert.equal(Object.keys(contentOf(store, "one")).length, 2);
              await assertSound(store, `${free} bytes free`);
            });
            fill(disk, 0);
            await withStore(root, async (store) => {
              for (const { name } of store.listImages()) if (name === "two") store.removeImage(name);
              collect(store);
              await assertSound(store, `after gc, ${free} bytes free`);
            });
            unlinkSync(filler);
            await withStore(root, async (store) => {
              await pull(store, layout, "two");
              assertTars(store, "two");
              store.removeImage("two");
              collect(store);
            });
          }
          assert.ok(failed >= 5 && succeeded >= 1, `${failed} pulls failed, ${succeeded} succeeded`);
        }),
      ),
  );

  test(
    "no room for the merged image: said so, by the pull that makes it and by the mount; the image is there",
    needsRoot,
    () =>
      withTemporaryDirectory((scratch) =>
        withLoopFilesystem("ext4", { size: 24 << 20 }, async (disk) => {
          const layout = join(scratch, "layout");
          const root = join(disk, "store");
          const files = Object.fromEntries(Array.from({ length: 5000 }, (_, i) => [`file-${i}`, "same"]));
          writeImage(layout, "two", [tar({ "./": "", ...files }), tar({ more: "more" })]);
          await withStore(root, (store) => pull(store, layout, "two"));
          const filler = fill(disk, 200 * KiB);
          const expected = {
            code: "RESOURCE_EXHAUSTED",
            message: "Cannot merge the layers of two:latest: the disk is full",
            hint: "The image itself is here: remove others, run shale gc, then mount it",
          };
          await withStore(root, async (store) => {
            await assert.rejects(pull(store, layout, "two", { merge: true }), expected);
            await assert.rejects(mountImage(store, findImage(store, "two"), scratch), expected);
            assert.deepEqual(store.listMounts(), []);
            assert.equal(store.listImages().length, 1);
          });
          assert.deepEqual(readdirSync(join(root, "merged")), []);
          assert.deepEqual(readdirSync(join(root, "staging")), []);
          unlinkSync(filler);
          await withStore(root, async (store) => {
            await pull(store, layout, "two", { merge: true });
            await assertSound(store);
          });
          assert.equal(readdirSync(join(root, "merged")).length, 1);
        }),
      ),
  );

  test("rm and gc of the only image on a disk without a free block give its room back", needsRoot, () =>
    withTemporaryDirectory((scratch) =>
      withLoopFilesystem("ext4", { size: 24 << 20 }, async (disk) => {
        const layout = join(scratch, "layout");
        const root = join(disk, "store");
        writeImage(layout, "one", [tar({ "./": "", one: noise(3000 * KiB, "one") })]);
        await withStore(root, (store) => pull(store, layout, "one"));
        for (let time = 0; time < 3; time++) {
          fill(disk, 0);
          fill(join(disk, "store/downloads"), 0);
          await withStore(root, (store) => assert.equal(store.listImages().length, 1));
        }
        await withStore(root, (store) => store.removeImage("one"));
        const { freed } = await withStore(root, (store) => collect(store));
        assert.ok(freed > 3000 * KiB);
        await withStore(root, async (store) => {
          await pull(store, layout, "one");
          await assertSound(store);
        });
      }),
    ),
  );
});

describe("injected errors (F1, F2)", () => {
  const KINDS = [
    "create",
    "write",
    "truncate",
    "datasync",
    "syncDirectory",
    "mkdir",
    "rmdir",
    "rename",
    "unlink",
    "punch",
  ];
  const READS = ["open", "read", "stat", "list", "lock"];
  const faults = [
    ...KINDS.flatMap((kind) => [`${kind}:1:EIO`, `${kind}:4:ENOSPC`]),
    ...READS.flatMap((kind) => [`${kind}:3:EIO`, `${kind}:20:EMFILE`]),
    "write@/blob:1:ENOSPC",
    "write@meta.erofs:2:EIO",
    "rename@/layers/:1:EIO",
    "rename@/merged/:1:ENOSPC",
    "create:12+:EMFILE",
    "write:15+:ENOSPC",
  ];

  test("at each kind of operation: an error or success, never damage, and the next run succeeds", async () => {
    await withTemporaryDirectory(async (scratch) => {
      const layout = join(scratch, "layout");
      writeImages(layout);
      const expected = await withStore(join(scratch, "quiet"), async (store) => {
        await runSteps(store, layout);
        return stateOf(store);
      });
      let failed = 0;
      await mapConcurrent(faults, 2, async (fault, number) => {
        const root = join(scratch, String(number));
        const end = await runDriver([root, layout], { SHALE_FAULT: fault });
        assert.equal(end.signal, null, fault);
        if (end.code !== 0) {
          failed++;
          const errno = fault.slice(fault.lastIndexOf(":") + 1);
          assert.match(end.stderr, new RegExp(`${errno}|RESOURCE_EXHAUSTED`), `${fault}: ${end.stderr}`);
        }
        await assertRecovers(root, layout, expected, fault);
      });
      assert.ok(failed > faults.length / 2, `${failed} of ${faults.length} faults made the driver fail`);
    });
  });

  for (const path of ["/blob", "meta.erofs", "tar.headers"]) {
    test(`a sync of ${path} that fails once is never taken for durable: nothing is committed`, async () => {
      await withTemporaryDirectory(async (scratch) => {
        writeImages(join(scratch, "layout"));
        const root = join(scratch, "store");
        const end = await runDriver([root, join(scratch, "layout")], { SHALE_FAULT: `datasync@${path}:1:EIO` });
        assert.notEqual(end.code, 0);
        assert.match(end.stderr, /EIO/);
        await withStore(root, async (store) => {
          assert.deepEqual(store.listImages(), []);
          await assertSound(store);
        });
      });
    });
  }

  for (const directory of ["/blobs", "/layers", "/merged"]) {
    test(`a sync of ${directory} that fails commits nothing that stands on it`, async () => {
      await withTemporaryDirectory(async (scratch) => {
        writeImages(join(scratch, "layout"));
        const root = join(scratch, "store");
        await Store.open(root, { create: true }).close();
        const fault = `syncDirectory@store${directory}:1:EIO`;
        const end = await runDriver([root, join(scratch, "layout")], { SHALE_FAULT: fault });
        assert.notEqual(end.code, 0);
        await withStore(root, async (store) => {
          if (directory !== "/merged") assert.deepEqual(store.listImages(), []);
          assert.deepEqual(readdirSync(join(root, "merged")), []);
          await assertSound(store);
        });
      });
    });
  }
});

interface Hub {
  readonly server: ScriptedServer;
  readonly layer: Stored;
  readonly layerPath: string;
  readonly store: Store;
  /** Pulls through a client of its own. */
  pull(progress?: Progress): Promise<unknown>;
  /** What the server does with requests for the layer. */
  steps(...steps: readonly Step[]): void;
}

/** A registry with one image of one layer that compresses badly, and an empty store. */
async function withHub(use: (hub: Hub) => Promise<void>): Promise<void> {
  const image = makeImage("app", [tar({ "./": "", data: noise(1_500_000, "data") })]);
  await using server = await startScriptedServer();
  const layer = server.blob("app", image.layers[0]!.blob, "application/vnd.oci.image.layer.v1.tar+gzip");
  const config = server.blob("app", image.config.bytes, CONFIG_TYPE);
  server.manifest("app", "1", manifestOf(config, [layer]));
  const layerPath = `/v2/app/blobs/${layer.digest}`;
  await withTemporaryDirectory((directory) =>
    withStore(join(directory, "store"), async (store) => {
      await use({
        server,
        layer,
        layerPath,
        store,
        async pull(progress) {
          await using made = testClient();
          const reference = referenceTo(server, "app:1");
          const origin: Origin = await openOrigin(
            { kind: "registry", reference },
            { registry: async () => made.client },
          );
          return await pullImage(store, origin, { name: "app", ...(progress ? { progress } : {}) });
        },
        steps: (...steps) => server.on(`GET ${layerPath}`, ...steps),
      });
      await assertSound(store);
    }),
  );
}

describe("registry (F4, G13)", () => {
  test("a process killed in mid-transfer: the next one fetches the rest only", () =>
    withHub(async ({ server, store, layer, layerPath, steps, pull: pullApp }) => {
      const arrived = 600_000;
      steps(stallAfter(layer.bytes, arrived));
      {
        await using child = storeProcess(
          `
          import { pullImage } from ${JSON.stringify(new URL("../src/images/pull.ts", import.meta.url).href)};
          import { openOrigin } from ${JSON.stringify(new URL("../src/images/origin.ts", import.meta.url).href)};
          import { testClient } from ${JSON.stringify(new URL("../src/registry/testing/fixtures.ts", import.meta.url).href)};
          import { parseReference } from ${JSON.stringify(new URL("../src/oci/index.ts", import.meta.url).href)};
          const store = Store.open(args.root);
          const { client } = testClient({ stallTimeoutMs: 600_000 });
          const source = { kind: "registry", reference: parseReference(args.host + "/app:1") };
          const origin = await openOrigin(source, { registry: async () => client });
          let sum = 0;
          const task = { advance: (n) => { sum += n; if (sum >= args.arrived) say("arrived"); }, status() {}, done() {}, fail() {} };
          await pullImage(store, origin, { name: "app", progress: { start: () => task } });`,
          { root: store.root, host: server.host, arrived },
        );
        assert.equal(await child.line(), "arrived");
        child.kill("SIGKILL");
        await child.ended;
      }
      const before = server.requestsTo(layerPath).length;
      steps(ranges(layer.bytes));
      await pullApp();
      const asked = server.requestsTo(layerPath).slice(before);
      assert.deepEqual(
        asked.map((request) => request.headers.range),
        [`bytes=${arrived}-${layer.size - 1}`],
      );
      assertTars(store, "app");
    }));

  test("a connection that is reset is continued, not begun again", () =>
    withHub(async ({ server, store, layer, layerPath, steps, pull: pullApp }) => {
      steps(breakAfter(layer.bytes, 200_000), breakAfter(layer.bytes, 300_000), ranges(layer.bytes));
      await pullApp();
      const starts = server
        .requestsTo(layerPath)
        .map(({ headers }) => Number(/=(\d+)-/.exec(headers.range ?? "=0-")![1]));
      assert.equal(starts.length, 3);
      assert.ok(starts[1]! > 0 && starts[2]! > starts[1]!, starts.join());
      assertTars(store, "app");
    }));

  const wrong = (right: Uint8Array) => {
    const bytes = Buffer.from(right);
    bytes[bytes.length >> 1]! ^= 1;
    return bytes;
  };

  test("wrong bytes of the right length are fetched once more", () =>
    withHub(async ({ server, store, layer, layerPath, steps, pull: pullApp }) => {
      steps(ok(wrong(layer.bytes)), ranges(layer.bytes));
      await pullApp();
      assert.equal(server.requestsTo(layerPath).length, 2);
      assertTars(store, "app");
    }));

  test("wrong bytes twice are an error that names both digests, and nothing is stored", () =>
    withHub(async ({ server, store, layer, layerPath, steps, pull: pullApp }) => {
      steps(ok(wrong(layer.bytes)));
      await assert.rejects(pullApp(), (error) => {
        assert.ok(ShaleError.is(error, "DATA_LOSS"), String(error));
        assert.match(
          error.message,
          new RegExp(`^Cannot store layer ${layer.digest}: the bytes that arrived are sha256:`),
        );
        return true;
      });
      assert.equal(server.requestsTo(layerPath).length, 2);
      assert.deepEqual(store.listLayers(), []);
      for (const directory of ["blobs", "layers", "downloads", "staging"]) {
        assert.deepEqual(readdirSync(join(store.root, directory)), [], directory);
      }
    }));

  test("bytes that a power cut spoilt on disk are fetched again", () =>
    withHub(async ({ server, store, layer, layerPath, pull: pullApp }) => {
      writeFileSync(join(store.root, "downloads", layer.digest.replace(":", "-")), Buffer.alloc(400_000));
      await pullApp();
      assert.deepEqual(
        server.requestsTo(layerPath).map(({ headers }) => headers.range),
        [`bytes=400000-${layer.size - 1}`, undefined],
      );
      assertTars(store, "app");
    }));
});
