import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { ShaleError } from "../../errors/index.ts";
import type { RegistryOptions } from "../../registry/index.ts";
import { testClient } from "../../registry/testing/fixtures.ts";
import {
  ok,
  ranges,
  type ScriptedServer,
  type Step,
  silence,
  startScriptedServer,
  status,
} from "../../registry/testing/scripted-server.ts";
import { Store } from "../../store/index.ts";
import { assertSound, collect, noise, tar } from "../../store/testing/fixtures.ts";
import { DiskBudget, RegistryLayers, type RemoteEvent, type RemoteLimits } from "./index.ts";
import { requestFor, serveImage } from "./testing/remote.ts";

const TARS = [0, 1, 2].map((seed) => tar({ "d/": "", [`d/file${seed}`]: noise(200_000, seed), small: `${seed}` }));
const REPOSITORY = "team/app";

interface Setup extends AsyncDisposable {
  readonly store: Store;
  readonly server: ScriptedServer;
  readonly layers: RegistryLayers;
  readonly events: RemoteEvent[];
}

async function setUp(
  options: {
    readonly limits?: Partial<RemoteLimits>;
    readonly lingerMs?: number;
    readonly disk?: DiskBudget;
    readonly client?: RegistryOptions;
  } = {},
): Promise<Setup> {
  const root = mkdtempSync(join(tmpdir(), "shale-remote-"));
  const store = Store.open(join(root, "store"), { create: true });
  const server = await startScriptedServer();
  const { client } = testClient({ stallTimeoutMs: 5_000, ...options.client });
  const events: RemoteEvent[] = [];
  const layers = new RegistryLayers({
    store,
    client,
    disk: options.disk ?? new DiskBudget({ root: store.root, highMark: 1, collect: () => Promise.resolve() }),
    lingerMs: options.lingerMs ?? 10_000,
    onEvent: (event) => events.push(event),
    ...(options.limits === undefined ? {} : { limits: options.limits }),
  });
  return {
    store,
    server,
    layers,
    events,
    async [Symbol.asyncDispose]() {
      await layers.close();
      await client[Symbol.asyncDispose]();
      await server[Symbol.asyncDispose]();
      await store.close();
      rmSync(root, { recursive: true });
    },
  };
}

/** What a snapshotter does with a layer, as far as these tests look: the layer must be there, under the lease. */
const use = (operation: { getLayer(diffId: never): { readonly diffId: string } }, diffId: string) =>
  operation.getLayer(diffId as never).diffId;

const blobRequests = (server: ScriptedServer) => server.requests.filter((one) => one.url.includes("/blobs/")).length;

/** Answers when told to. */
function held(step: Step): { readonly step: Step; readonly asked: Promise<void>; release(): void } {
  const asked = Promise.withResolvers<void>();
  const opened = Promise.withResolvers<void>();
  return {
    step: (request, response) => {
      asked.resolve();
      void opened.promise.then(() => step(request, response));
    },
    asked: asked.promise,
    release: () => opened.resolve(),
  };
}

test("fetch() brings every layer of an image with one manifest and one request a blob", async () => {
  await using setup = await setUp();
  const { server, layers, store } = setup;
  const image = serveImage(server, REPOSITORY, TARS);
  for (const at of [0, 1, 2]) {
    assert.equal(await layers.fetch(requestFor(server, REPOSITORY, image, at), use), image.diffIds[at]);
  }
  assert.equal(server.requests.filter((one) => one.url.includes("/manifests/")).length, 1);
  assert.equal(blobRequests(server), 4, "three layers and the config");
  await assertSound(store);
});

test("fetch() starts all layers with the first question, and waits for its own only", async () => {
  await using setup = await setUp();
  const { server, layers } = setup;
  const blobs = TARS.map((_, at) => serveImage(server, REPOSITORY, TARS).layers[at]!.blob);
  const second = held(ranges(blobs[1]!));
  const third = held(ranges(blobs[2]!));
  const image = serveImage(server, REPOSITORY, TARS, { 1: [second.step], 2: [third.step] });
  assert.equal(await layers.fetch(requestFor(server, REPOSITORY, image, 0), use), image.diffIds[0]);
  await Promise.all([second.asked, third.asked]);
  third.release();
  assert.equal(await layers.fetch(requestFor(server, REPOSITORY, image, 2), use), image.diffIds[2]);
  second.release();
  assert.equal(await layers.fetch(requestFor(server, REPOSITORY, image, 1), use), image.diffIds[1]);
});

test("fetch() of a layer that the store has asks nobody, also after a restart", async () => {
  await using setup = await setUp();
  const { server, layers, store, events } = setup;
  const image = serveImage(server, REPOSITORY, TARS);
  for (const at of [0, 1, 2]) await layers.fetch(requestFor(server, REPOSITORY, image, at), use);
  const before = server.requests.length;
  events.length = 0;
  await using fresh = new RegistryLayers({
    store,
    client: testClient().client,
    disk: new DiskBudget({ root: store.root, collect: () => Promise.resolve() }),
    onEvent: (event) => events.push(event),
  });
  for (const at of [0, 1, 2]) {
    assert.equal(await fresh.fetch(requestFor(server, REPOSITORY, image, at), use), image.diffIds[at]);
  }
  // Whatever image it comes by.
  assert.equal(await fresh.fetch(requestFor(server, "other/name", image, 0), use), image.diffIds[0]);
  assert.equal(server.requests.length, before);
  assert.equal(events.filter((event) => event.kind === "layer" && event.state === "known").length, 4);
});

test("fetch() of a layer that is there starts those above that are not", async () => {
  await using setup = await setUp();
  const { server, layers } = setup;
  const base = serveImage(server, "base/image", TARS.slice(0, 1));
  await layers.fetch(requestFor(server, "base/image", base, 0), use);
  const blob = serveImage(server, REPOSITORY, TARS).layers[2]!.blob;
  const third = held(ranges(blob));
  const image = serveImage(server, REPOSITORY, TARS, { 2: [third.step] });
  assert.equal(await layers.fetch(requestFor(server, REPOSITORY, image, 0), use), image.diffIds[0]);
  await third.asked;
  third.release();
  assert.equal(await layers.fetch(requestFor(server, REPOSITORY, image, 1), use), image.diffIds[1]);
  assert.equal(await layers.fetch(requestFor(server, REPOSITORY, image, 2), use), image.diffIds[2]);
});

test("fetch() shares one transfer among 50 calls", async () => {
  await using setup = await setUp();
  const { server, layers } = setup;
  const image = serveImage(server, REPOSITORY, TARS);
  const request = requestFor(server, REPOSITORY, image, 0);
  const found = await Promise.all(Array.from({ length: 50 }, () => layers.fetch(request, use)));
  assert.deepEqual(new Set(found), new Set([image.diffIds[0]]));
  assert.equal(server.requestsTo(`/v2/${REPOSITORY}/blobs/${image.layers[0]!.digest}`).length, 1);
});

test("fetch() takes the labels of stargz's clients, and resolves their tag", async () => {
  await using setup = await setUp();
  const { server, layers } = setup;
  const image = serveImage(server, REPOSITORY, TARS);
  const stargz = (at: number) => ({
    "containerd.io/snapshot/remote/stargz.reference": `${server.host}/${REPOSITORY}:v1`,
    "containerd.io/snapshot/remote/stargz.digest": image.layers[at]!.digest,
    "containerd.io/snapshot/remote/stargz.layers": `${image.layers
      .slice(at)
      .map((layer) => layer.digest)
      .join(",")},`,
  });
  for (const at of [0, 1, 2]) {
    const request = requestFor(server, REPOSITORY, image, at, { labels: stargz(at) });
    assert.equal(await layers.fetch(request, use), image.diffIds[at]);
  }
});

test("fetch() chooses this machine's platform from an index", async () => {
  await using setup = await setUp();
  const { server, layers } = setup;
  const image = serveImage(server, REPOSITORY, TARS.slice(0, 1));
  const architecture = process.arch === "arm64" ? "arm64" : "amd64";
  const entry = (platform: object) => ({
    mediaType: "application/vnd.oci.image.manifest.v1+json",
    digest: image.manifest.digest,
    size: image.manifest.bytes.length,
    platform,
  });
  server.manifest(REPOSITORY, "multi", {
    schemaVersion: 2,
    mediaType: "application/vnd.oci.image.index.v1+json",
    manifests: [entry({ os: "linux", architecture })],
  });
  const labels = { "containerd.io/snapshot/remote/stargz.reference": `${server.host}/${REPOSITORY}:multi` };
  const request = requestFor(server, REPOSITORY, image, 0, { labels });
  assert.equal(await layers.fetch(request, use), image.diffIds[0]);
});

const LEFT: readonly {
  readonly name: string;
  readonly more?: Readonly<Record<string, string>>;
  readonly labels?: Readonly<Record<string, string>>;
  readonly chainId?: string;
  readonly silent?: true;
}[] = [
  { name: "without an image reference", labels: { "containerd.io/snapshot.ref": "x" }, silent: true },
  { name: "with a chain id that is none", chainId: "sha256:xyz", silent: true },
  { name: "with a chain id of another image", chainId: `sha256:${"1".repeat(64)}` },
  {
    name: "with a reference that can't be parsed",
    more: { "containerd.io/snapshot/cri.image-ref": "Not A Reference" },
  },
  { name: "with a digest that is none", more: { "containerd.io/snapshot/cri.layer-digest": "sha256:../../etc" } },
  { name: "with a label over the limit", more: { "containerd.io/snapshot/cri.image-layers": "x".repeat(5000) } },
  {
    name: "with a manifest that is not there",
    more: { "containerd.io/snapshot/cri.manifest-digest": `sha256:${"2".repeat(64)}` },
  },
];
for (const { name, more, labels, chainId, silent } of LEFT) {
  test(`fetch() leaves a layer ${name} to containerd`, async () => {
    await using setup = await setUp();
    const { server, layers, events, store } = setup;
    const image = serveImage(server, REPOSITORY, TARS);
    const request = requestFor(server, REPOSITORY, image, 0, {
      ...(more && { more }),
      ...(labels && { labels }),
      ...(chainId && { chainId }),
    });
    assert.equal(await layers.fetch(request, use), undefined);
    assert.equal(events.filter((event) => event.kind === "left").length, silent ? 0 : 1);
    await layers.close();
    await assertSound(store);
  });
}

test("fetch() refuses a layer whose chain is not that of the parent", async () => {
  await using setup = await setUp();
  const { server, layers, events } = setup;
  const image = serveImage(server, REPOSITORY, TARS);
  const wrong = requestFor(server, REPOSITORY, image, 1, { parentDiffIds: [image.diffIds[2]!] });
  assert.equal(await layers.fetch(wrong, use), undefined);
  const left = events.find((event) => event.kind === "left");
  assert.match(String(left?.error), /none of its layers makes that chain/);
});

test("fetch() finds a layer on top of a plain directory by the parent's name", async () => {
  await using setup = await setUp();
  const { server, layers } = setup;
  const image = serveImage(server, REPOSITORY, TARS);
  for (let round = 0; round < 2; round++) {
    const request = requestFor(server, REPOSITORY, image, 1, { parentDiffIds: undefined });
    assert.equal(await layers.fetch(request, use), image.diffIds[1]);
  }
  assert.equal(server.requestsTo(`/v2/${REPOSITORY}/blobs/${image.layers[1]!.digest}`).length, 1);
});

test("fetch() leaves a lying registry's layer to containerd, and the store has nothing of it", async () => {
  await using setup = await setUp();
  const { server, layers, store, events } = setup;
  const wrong = serveImage(server, REPOSITORY, TARS);
  const image = serveImage(server, REPOSITORY, TARS, { 1: [ok(Buffer.alloc(wrong.layers[1]!.blob.length))] });
  assert.equal(await layers.fetch(requestFor(server, REPOSITORY, image, 0), use), image.diffIds[0]);
  assert.equal(await layers.fetch(requestFor(server, REPOSITORY, image, 1), use), undefined);
  assert.equal(await layers.fetch(requestFor(server, REPOSITORY, image, 2), use), image.diffIds[2]);
  assert.ok(events.some((event) => event.kind === "failed" && ShaleError.is(event.error, "DATA_LOSS")));
  assert.equal(store.findLayer(image.diffIds[1]!), undefined);
  await assertSound(store);
});

test("fetch() leaves a config that lies about a layer to containerd", async () => {
  await using setup = await setUp();
  const { server, layers, store } = setup;
  const lie = `sha256:${"3".repeat(64)}`;
  const image = serveImage(server, REPOSITORY, TARS.slice(0, 1), {}, { diffIds: [lie] });
  const request = requestFor(server, REPOSITORY, image, 0, { chainId: lie });
  assert.equal(await layers.fetch(request, use), undefined);
  await layers.close();
  assert.deepEqual(store.listLayers(), []);
});

test("fetch() leaves everything to containerd while the registry is down, and asks it once for one pull", async () => {
  await using setup = await setUp({ client: { retry: { attempts: 2 } } });
  const { server, layers } = setup;
  const image = serveImage(server, REPOSITORY, TARS);
  server.on(`GET /v2/${REPOSITORY}/manifests/${image.manifest.digest}`, status(503));
  for (const at of [0, 1, 2]) {
    assert.equal(await layers.fetch(requestFor(server, REPOSITORY, image, at), use), undefined);
  }
  assert.equal(server.requests.length, 2, "one call of two attempts, not one a layer");
});

test("fetch() tries a layer again that failed before", async () => {
  await using setup = await setUp({ client: { retry: { attempts: 1 } } });
  const { server, layers } = setup;
  const { blob } = serveImage(server, REPOSITORY, TARS.slice(0, 1)).layers[0]!;
  const image = serveImage(server, REPOSITORY, TARS.slice(0, 1), { 0: [status(500), ranges(blob)] });
  const request = requestFor(server, REPOSITORY, image, 0);
  assert.equal(await layers.fetch(request, use), undefined);
  assert.equal(await layers.fetch(request, use), image.diffIds[0]);
});

test("fetch() that is cancelled is CANCELLED, and the others get their layer", async () => {
  await using setup = await setUp();
  const { server, layers } = setup;
  const { blob } = serveImage(server, REPOSITORY, TARS.slice(0, 1)).layers[0]!;
  const first = held(ranges(blob));
  const image = serveImage(server, REPOSITORY, TARS.slice(0, 1), { 0: [first.step] });
  const controller = new AbortController();
  const stopped = layers.fetch(requestFor(server, REPOSITORY, image, 0, { signal: controller.signal }), use);
  const other = layers.fetch(requestFor(server, REPOSITORY, image, 0), use);
  await first.asked;
  controller.abort();
  await assert.rejects(stopped, { code: "CANCELLED" });
  first.release();
  assert.equal(await other, image.diffIds[0]);
});

test("a fetch that nobody asks for any more stops, and its lease ends", async () => {
  await using setup = await setUp({ lingerMs: 1 });
  const { server, layers, store } = setup;
  const image = serveImage(server, REPOSITORY, TARS, { 2: [silence()] });
  assert.equal(await layers.fetch(requestFor(server, REPOSITORY, image, 0), use), image.diffIds[0]);
  // The third layer never comes; gc frees the others only when no lease is left.
  while (store.listLayers().length > 0) {
    collect(store);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
});

test("the lease of a fetch keeps its layers from the collector until they are used", async () => {
  await using setup = await setUp();
  const { server, layers, store } = setup;
  const image = serveImage(server, REPOSITORY, TARS);
  await layers.fetch(requestFor(server, REPOSITORY, image, 0), use);
  while (store.listLayers().length < 3) await new Promise((resolve) => setTimeout(resolve, 5));
  collect(store);
  assert.equal(store.listLayers().length, 3);
  await layers.fetch(requestFor(server, REPOSITORY, image, 1), use);
  await layers.fetch(requestFor(server, REPOSITORY, image, 2), use);
  await layers.close();
  collect(store);
  assert.equal(store.listLayers().length, 0, "all were handed out, and nobody recorded a snapshot");
});

test("close() ends calls that wait with CANCELLED, and leaves later ones to containerd", async () => {
  await using setup = await setUp();
  const { server, layers } = setup;
  const image = serveImage(server, REPOSITORY, TARS, { 0: [silence()] });
  const request = requestFor(server, REPOSITORY, image, 0);
  const waiting = layers.fetch(request, use);
  while (blobRequests(server) < 2) await new Promise((resolve) => setTimeout(resolve, 5));
  const rejected = assert.rejects(waiting, { code: "CANCELLED" });
  await layers.close();
  await rejected;
  assert.equal(await layers.fetch(request, use), undefined);
});

test("limits bound the layers of one image, of all, and their bytes", async () => {
  await using setup = await setUp({ limits: { layers: 2, layersOfImage: 1, bytesInFlight: 300_000 } });
  const { server, layers } = setup;
  let running = 0;
  let most = 0;
  const counting = (step: Step): Step => {
    return (request, response) => {
      running++;
      most = Math.max(most, running);
      response.on("close", () => running--);
      setTimeout(() => step(request, response), 10);
    };
  };
  const images = ["a/x", "b/x", "c/x"].map((repository, at) => {
    const tars = [0, 1, 2].map((seed) => tar({ f: noise(200_000, `${at} ${seed}`) }));
    const { layers: blobs } = serveImage(server, repository, tars);
    const steps = Object.fromEntries(blobs.map(({ blob }, i) => [i, [counting(ranges(blob))]]));
    return { repository, image: serveImage(server, repository, tars, steps) };
  });
  await Promise.all(
    images.flatMap(({ repository, image }) =>
      [0, 1, 2].map(async (at) => {
        assert.equal(await layers.fetch(requestFor(server, repository, image, at), use), image.diffIds[at]);
      }),
    ),
  );
  assert.equal(most, 1, "two of 200,000 bytes are over 300,000");
});

test("above the high mark garbage is collected, then fetch() is RESOURCE_EXHAUSTED and the store sound", async () => {
  let used = 0.96;
  let collected = 0;
  const disk = new DiskBudget({
    root: "/",
    highMark: 0.95,
    usedShare: () => used,
    collect: async () => void collected++,
  });
  await using setup = await setUp({ disk });
  const { server, layers, store } = setup;
  const image = serveImage(server, REPOSITORY, TARS);
  await assert.rejects(layers.fetch(requestFor(server, REPOSITORY, image, 0), use), {
    code: "RESOURCE_EXHAUSTED",
    message: /^Cannot fetch layer sha256:[0-9a-f]+ of .*: the disk of \/ is 96\.0% full, the mark is at 95%/,
  });
  assert.equal(collected, 1);
  used = 0.95;
  assert.equal(await layers.fetch(requestFor(server, REPOSITORY, image, 0), use), image.diffIds[0]);
  assert.equal(collected, 1, "below the mark nobody collects");
  await assertSound(store);
});

test("what `use` throws reaches the caller unchanged", async () => {
  await using setup = await setUp();
  const { server, layers } = setup;
  const image = serveImage(server, REPOSITORY, TARS);
  const taken = new ShaleError("ALREADY_EXISTS", "x: already exists");
  for (let round = 0; round < 2; round++) {
    await assert.rejects(
      layers.fetch(requestFor(server, REPOSITORY, image, 0), () => {
        throw taken;
      }),
      (error) => error === taken,
    );
  }
});
