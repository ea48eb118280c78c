/** eStargz layers pulled in parts: the tree of a whole pull under an identity of its own, which nothing else is found by. */
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { readVector } from "../../formats/toc/testing.ts";
import { type DiffId, parseDiffId, parseReference } from "../../oci/index.ts";
import type { RegistryClient } from "../../registry/index.ts";
import { type ScriptedServer, startScriptedServer, status } from "../../registry/testing/scripted-server.ts";
import { isTocIdentity, type Store, tocIdentity } from "../../store/index.ts";
import {
  assertSound,
  assertTars,
  check,
  collect,
  type Files,
  noise,
  pull as pullLayout,
  tar,
  withStore,
} from "../../store/testing/fixtures.ts";
import { withTemporaryDirectory } from "../../sys/testing/filesystems.ts";
import { completeManifests } from "../complete.ts";
import { LayerFetcher } from "../layer-fetcher.ts";
import { openOrigin } from "../origin.ts";
import { silentProgress } from "../progress.ts";
import { repairStore } from "../repair.ts";
import { saveImages } from "../save.ts";
import {
  type ChunkedLayer,
  estargzBlob,
  estargzLayer,
  layerIndexOf,
  publish,
  pullFrom,
  testClient,
  type TocJson,
  treeIndexOf,
  withToc,
} from "./testing/images.ts";

const COMMON: Files = {
  "./": { type: "directory", mode: 0o711 },
  "bin/": "",
  "bin/tool": { content: noise(600_000, "tool"), mode: 0o4755, uid: 3, gid: 70_000 },
  "bin/link": { type: "symlink", linkTarget: "tool" },
  "bin/same": { type: "hardlink", linkTarget: "bin/tool" },
  "etc/": "",
  "etc/small": noise(900, "small"),
  empty: "",
};
const FIRST: Files = { ...COMMON, first: noise(150_000, "first") };
const SECOND: Files = {
  ...COMMON,
  second: noise(100_000, "second"),
  "etc/.wh.gone": "",
  "etc/changed": { content: Buffer.from("changed"), mtimeSeconds: 1_600_000_001 },
  null: { type: "character", rdevMajor: 1, rdevMinor: 3 },
  queue: { type: "fifo" },
};

interface Fixture {
  readonly root: string;
  readonly directory: string;
  readonly server: ScriptedServer;
}

/** A store that has "first", and "second" on the server. */
async function withSecond(use: (store: Store, fixture: Fixture) => Promise<void>): Promise<void> {
  await withTemporaryDirectory(async (directory) => {
    const root = join(directory, "store");
    await using server = await startScriptedServer();
    publish(server, "first", [await estargzLayer(tar(FIRST))]);
    publish(server, "second", [await estargzLayer(tar(SECOND))]);
    await withStore(root, async (store) => {
      await pullFrom(store, server, "first");
      await use(store, { root, directory, server });
    });
  });
}

/** Overwrites bytes of a file where `needle` is. */
function damageAt(path: string, needle: Buffer): void {
  const bytes = readFileSync(path);
  const at = bytes.indexOf(needle);
  assert.ok(at >= 0);
  bytes.fill(0x21, at, at + 16);
  writeFileSync(path, bytes);
}

/** Of a line of `treeIndexOf`: ctr-remote rounds times to seconds. */
function withoutFraction(line: string): string {
  return line.replace(
    /^(.* \d+ \d+ \d+ \d+ \d+ )(-?\d+) (\d+)( \d+ \d+ )/,
    (_, before, seconds, nanoseconds, after) =>
      `${before}${Math.round(Number(seconds) + Number(nanoseconds) / 1e9)}${after}`,
  );
}

const layerOf = (store: Store, name: string): DiffId => store.manifestsOf(name)[0]!.layers[0]!.diffId;

describe("an eStargz layer", () => {
  test("comes in parts where the store has some of it, with the tree of a whole pull", () =>
    withSecond(async (store, { directory, server }) => {
      const [layer] = (await pullFrom(store, server, "second")).layers;
      assert.ok(layer!.parts, "it was pulled whole");
      assert.equal(layer!.parts.referredFiles, 1);
      assert.ok(layer!.received < 130_000, `${layer!.received} bytes`);
      assert.ok(isTocIdentity(layerOf(store, "second")));
      const { findings, layersByToc } = await check(store);
      assert.deepEqual(findings, []);
      assert.equal(layersByToc, 1);
      const found = layerIndexOf(store, "second");
      await withStore(join(directory, "whole"), async (other) => {
        const [whole] = (await pullFrom(other, server, "second")).layers;
        assert.equal(whole!.parts, undefined);
        assert.equal(layerOf(other, "second"), layer!.diffId);
        assert.deepEqual(found, layerIndexOf(other, "second"));
      });
    }));

  test("is found by no diffId, and an image gets the verified one as soon as the store has it", () =>
    withSecond(async (store, { server }) => {
      const [layer] = (await pullFrom(store, server, "second")).layers;
      assert.equal(store.findLayer(layer!.diffId), undefined);
      const identity = layerOf(store, "second");
      assert.throws(() => parseDiffId(identity));
      assert.deepEqual(store.diffIdsOfBlob(layer!.digest!), []);
      await pullFrom(store, server, "second"); // present
      assert.equal(layerOf(store, "second"), identity);
      await pullFrom(store, server, "second", { whole: true });
      assert.equal(layerOf(store, "second"), layer!.diffId);
      assertTars(store, "second");
      const { items } = collect(store);
      assert.ok(items.some(({ kind, id }) => kind === "layer" && id === identity));
      await assertSound(store);
    }));
});

describe("an eStargz layer that is verified by its TOC", () => {
  const complete = (store: Store, registry?: () => Promise<RegistryClient>) => {
    using operation = store.begin("complete");
    const records = store.manifestsOf("second");
    return completeManifests(store, operation, "second", records, registry === undefined ? {} : { registry });
  };

  test("is completed by the registry when its tar is needed, bit for bit, and once", () =>
    withSecond(async (store, { directory, server }) => {
      const [layer] = (await pullFrom(store, server, "second")).layers;
      await using client = testClient();
      const registry = async () => client;
      const output = join(directory, "layout/");
      await saveImages(store, ["second"], { output, registry });
      assert.equal(layerOf(store, "second"), layer!.diffId);
      assertTars(store, "second");
      // what was saved has the image id and the tar that were pushed
      await withStore(join(directory, "other"), async (other) => {
        await pullLayout(other, output, "latest");
        assert.equal(layerOf(other, "latest"), layer!.diffId);
        assert.equal(other.manifestsOf("latest")[0]!.config, store.manifestsOf("second")[0]!.config);
      });
      const asked = server.requests.length;
      await saveImages(store, ["second"], { output: join(directory, "again/"), registry });
      assert.equal(server.requests.length, asked);
      collect(store);
      await assertSound(store);
    }));

  test("can't be completed without a registry, and the error says what to do", () =>
    withSecond(async (store, { server }) => {
      await pullFrom(store, server, "second");
      await assert.rejects(complete(store), { code: "FAILED_PRECONDITION", hint: /pull --whole/ });
      const { digest } = store.manifestsOf("second")[0]!.layers[0]!;
      server.on(`GET /v2/app/blobs/${digest}`, status(404));
      await using client = testClient();
      await assert.rejects(
        complete(store, async () => client),
        { code: "NOT_FOUND", hint: /pull --whole/ },
      );
      assert.ok(isTocIdentity(layerOf(store, "second")));
      using operation = store.begin("read");
      const layer = operation.getLayer(layerOf(store, "second"));
      assert.throws(() => operation.openTar(layer), { code: "FAILED_PRECONDITION" });
      await assertSound(store);
    }));

  test("is fetched again in parts by a repair, under the same identity", () =>
    withSecond(async (store, { root, server }) => {
      await pullFrom(store, server, "second");
      const before = layerIndexOf(store, "second");
      const identity = layerOf(store, "second");
      const { id } = store.findLayer(identity)!;
      damageAt(join(root, "blobs", id), noise(100_000, "second").subarray(50_000, 50_064));
      const report = await check(store);
      assert.ok(report.findings.some((finding) => finding.kind === "layer" && finding.diffId === identity));
      await using client = testClient();
      const repaired = await repairStore(store, report, { registry: async () => client });
      assert.deepEqual(
        repaired.map(({ diffId, failures }) => ({ diffId, failures })),
        [{ diffId: identity, failures: [] }],
      );
      assert.notEqual(store.findLayer(identity)!.id, id);
      assert.deepEqual(layerIndexOf(store, "second"), before);
      collect(store);
      await assertSound(store);
    }));
});

describe("an image that claims the diffId of another one's layer with a TOC of its own", () => {
  const EVIL: Files = { ...COMMON, "bin/": "", "bin/sh": "evil", evil: noise(100_000, "evil") };

  test("leaves the real image its real layer, pulled afterwards", () =>
    withSecond(async (store, { server }) => {
      const evil = await estargzLayer(tar(EVIL));
      const real = await estargzLayer(tar(SECOND));
      publish(server, "evil", [{ ...evil, diffId: real.diffId }]);
      const [claimed] = (await pullFrom(store, server, "evil")).layers;
      assert.ok(claimed!.parts, "it was pulled whole");
      assert.equal(store.findLayer(real.diffId as DiffId), undefined);
      const wrong = layerIndexOf(store, "evil");
      await pullFrom(store, server, "second", { whole: true });
      assert.equal(layerOf(store, "second"), real.diffId);
      assertTars(store, "second");
      assert.notDeepEqual(layerIndexOf(store, "second"), wrong);
      // completing finds that its tar is not what it claims
      await using client = testClient();
      using operation = store.begin("complete");
      const [record] = store.manifestsOf("evil");
      assert.ok(isTocIdentity(record!.layers[0]!.diffId));
      const [complete] = await completeManifests(store, operation, "evil", [record!], { registry: async () => client });
      assert.equal(complete!.layers[0]!.diffId, real.diffId); // the layer that it claims, which is what a whole pull gives
      await assertSound(store);
    }));

  test("gets the real layer where that is here already, and is refused when completed where it is not", () =>
    withSecond(async (store, { server }) => {
      const evil = await estargzLayer(tar(EVIL));
      const real = await estargzLayer(tar(SECOND));
      publish(server, "evil", [{ ...evil, diffId: real.diffId }]);
      await pullFrom(store, server, "evil");
      await using client = testClient();
      using operation = store.begin("complete");
      await assert.rejects(
        completeManifests(store, operation, "evil", store.manifestsOf("evil"), { registry: async () => client }),
        { code: "DATA_LOSS" },
      );
      assert.equal(store.findLayer(real.diffId as DiffId), undefined);
      await pullFrom(store, server, "second", { whole: true });
      await pullFrom(store, server, "evil");
      assert.equal(layerOf(store, "evil"), real.diffId);
      assertTars(store, "evil");
      await assertSound(store);
    }));
});

describe("an eStargz layer whose TOC lies", () => {
  /** The layer of SECOND with a TOC that the publisher has changed: digest, position and footer are right again. */
  async function lying(change: (entries: TocJson[]) => void): Promise<ChunkedLayer> {
    const layer = await estargzLayer(tar(SECOND));
    return withToc(layer, change);
  }
  const of = (entries: TocJson[], name: string) => entries.find((entry) => entry.name === name)!;
  const CASES: readonly { readonly name: string; readonly change: (entries: TocJson[]) => void }[] = [
    {
      name: "about the digest of a file whose chunks are right",
      change: (entries) => {
        of(entries, "second").digest = `sha256:${"1".repeat(64)}`;
      },
    },
    {
      name: "about the chunk of a file that is here",
      change: (entries) => {
        const tool = of(entries, "bin/tool");
        const second = { ...tool, type: "chunk", chunkOffset: 300_000, chunkDigest: `sha256:${"2".repeat(64)}` };
        tool.chunkSize = 300_000;
        entries.splice(entries.indexOf(tool) + 1, 0, second);
      },
    },
    {
      name: "about the length of a file",
      change: (entries) => {
        of(entries, "second").size = 200_000;
      },
    },
    {
      name: "with content that has no place in a layer",
      change: (entries) => {
        of(entries, "second").name = "../../second";
      },
    },
    {
      name: "about where a file is",
      change: (entries) => {
        of(entries, "second").offset = 1e12;
      },
    },
    {
      name: "about what comes before a file in its member",
      change: (entries) => {
        of(entries, "second").innerOffset = 2 ** 52;
      },
    },
  ];
  for (const { name, change } of CASES) {
    test(`${name} comes whole`, () =>
      withSecond(async (store, { server }) => {
        const layer = await lying(change);
        publish(server, "second", [layer]);
        const [pulled] = (await pullFrom(store, server, "second")).layers;
        assert.equal(pulled!.parts, undefined);
        assert.equal(layerOf(store, "second"), layer.diffId);
        assertTars(store, "second");
        await assertSound(store);
      }));
  }
});

test("an eStargz layer is pulled whole for containerd", () =>
  withSecond(async (store, { server }) => {
    await using client = testClient();
    const reference = parseReference(`${server.host}/app:second`);
    const origin = await openOrigin({ kind: "registry", reference }, { registry: async () => client });
    const { layers } = await origin.open(await origin.resolve(undefined), undefined);
    using operation = store.begin("fetch for containerd");
    const fetcher = new LayerFetcher(operation, silentProgress);
    const pulled = await fetcher.fetch(layers[0]!, new AbortController().signal);
    assert.equal(pulled.parts, undefined);
    assert.equal(pulled.record.diffId, layers[0]!.diffId);
  }));

test("an eStargz layer that ctr-remote made comes in parts, with the tree of a whole pull but for fractions of seconds", () =>
  withTemporaryDirectory(async (directory) => {
    const { blob, annotations, diffId } = readVector("ctr-remote.estargz");
    const layer = estargzBlob(blob, annotations, diffId);
    await using server = await startScriptedServer();
    publish(server, "vector", [layer]);
    const whole = await withStore(join(directory, "whole"), async (store) => {
      await pullFrom(store, server, "vector");
      return layerIndexOf(store, "vector");
    });
    await withStore(join(directory, "store"), async (store) => {
      await using client = testClient();
      const reference = parseReference(`${server.host}/app:vector`);
      const origin = await openOrigin({ kind: "registry", reference }, { registry: async () => client });
      const { layers } = await origin.open(await origin.resolve(undefined), undefined);
      using operation = store.begin("pull in parts");
      const fetcher = new LayerFetcher(operation, silentProgress);
      const identity = tocIdentity(
        Buffer.from(
          Object.values(annotations)
            .find((one) => /^sha256:/.test(one))!
            .slice(7),
          "hex",
        ),
      );
      await fetcher.fetchByToc({ ...layers[0]!, diffId: identity }, new AbortController().signal);
      const found = treeIndexOf(operation, identity);
      assert.deepEqual(found.map(withoutFraction), whole[0]!.map(withoutFraction));
      await assertSound(store);
    });
  }));
