/**
 * eStargz images in a real registry, made by shale and by ctr-remote: pulled in parts into a store with a similar image, they are
 * for the kernel what a whole pull gives, and leave the store with the tars that were pushed.
 */
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { cpSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { openOciLayout } from "../src/archives/index.ts";
import { convertImage } from "../src/images/convert.ts";
import { decodeImageConfig, decodeManifest, type Manifest, parseReference } from "../src/oci/index.ts";
import { estargzLayer, publish, withToc } from "../src/images/partial/testing/images.ts";
import { startDockerRegistry } from "../src/registry/testing/docker-registry.ts";
import { testClient } from "../src/registry/testing/fixtures.ts";
import { startScriptedServer } from "../src/registry/testing/scripted-server.ts";
import { isTocIdentity } from "../src/store/index.ts";
import {
  assertSound,
  type Files,
  noise,
  pull,
  sha256,
  tar,
  withStore,
  writeImage,
} from "../src/store/testing/fixtures.ts";
import { isRoot } from "../src/sys/index.ts";
import { withTemporaryDirectory } from "../src/sys/testing/filesystems.ts";
import { type Description, describeMounts } from "./export/mounts.ts";
import { startContainerd } from "./peers/containerd.ts";

const run = promisify(execFile);
const MAIN = join(import.meta.dirname, "../src/cli/main.ts");

const COMMON: Files = {
  "bin/": { type: "directory", mode: 0o751 },
  "bin/tool": { content: noise(900_000, "tool"), mode: 0o4755, uid: 3, gid: 70_000 },
  "bin/link": { type: "symlink", linkTarget: "tool", uid: 7 },
  "bin/hard": { type: "hardlink", linkTarget: "bin/tool" },
  "etc/": "",
  "etc/small": { content: noise(900, "small"), mtimeSeconds: 1_700_000_001 },
  "etc/empty": "",
  "etc/capable": {
    content: noise(300, "capable"),
    xattrs: [{ name: "user.kept", value: "value" }],
  },
  "dev/null": { type: "character", rdevMajor: 1, rdevMinor: 3, mode: 0o666 },
  queue: { type: "fifo" },
  sparse: Buffer.concat([noise(5000, "a"), Buffer.alloc(400_000), noise(5000, "b")]),
};
const ABOVE: Files = { "opt/": "", "opt/data": noise(400_000, "data") };
/** Lowest first. */
const IMAGES: Readonly<Record<"v1" | "v2", readonly Files[]>> = {
  v1: [COMMON, { ...ABOVE, "opt/first": noise(90_000, "first") }],
  v2: [
    { ...COMMON, "bin/new": noise(70_000, "new") },
    { ...ABOVE, "etc/.wh.small": "", "opt/.wh..wh..opq": "", "opt/second": noise(80_000, "second") },
  ],
};

interface World {
  readonly host: string;
  path(name: string): string;
}

/** Each puts eStargz images of the layout "source" into the registry, as HOST/team/app:v1 and v2. */
const MAKERS: Readonly<Record<string, (world: World) => Promise<void>>> = {
  "shale convert": async ({ host, path }) => {
    await using one = testClient();
    await withStore(path("origin"), async (store) => {
      for (const tag of ["v1", "v2"]) {
        await pull(store, path("source"), tag);
        const reference = parseReference(`${host}/team/app:${tag}`);
        const client = async () => one.client;
        await convertImage(store, tag, { to: "estargz", output: { kind: "registry", reference, client } });
      }
    });
  },
  "ctr-remote": async ({ host, path }) => {
    await using containerd = await startContainerd(path("containerd"));
    const policy = ["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"];
    for (const tag of ["v1", "v2"]) {
      const plain = `${host}/team/plain:${tag}`;
      const converted = `${host}/team/app:${tag}`;
      await run("skopeo", [...policy, `oci:${path("source")}:${tag}`, `docker://${plain}`]);
      await containerd.ctr("content", "fetch", "--plain-http", plain);
      await containerd.ctr("images", "convert", "--estargz", "--oci", plain, converted);
      await containerd.ctr("images", "push", "--plain-http", converted);
    }
  },
};

const shale = async (root: string, ...args: string[]) =>
  (await run(process.execPath, [MAIN, "--root", root, ...args], { maxBuffer: 1 << 26 })).stdout;

/** The diffIds that the image's config in the registry names: what its tars have to be. */
async function pushedDiffIds(ref: string): Promise<readonly string[]> {
  await using one = testClient();
  const reference = parseReference(ref);
  const { descriptor, bytes } = await one.client.resolve(reference);
  const manifest = decodeManifest(bytes, descriptor.mediaType) as Manifest;
  return decodeImageConfig(await one.client.fetchConfig(reference, manifest.config)).diffIds;
}

async function shown(root: string, name: string): Promise<Description> {
  return await withStore(root, (store) => {
    using operation = store.begin("mount");
    const diffIds = store.manifestsOf(name)[0]!.layers.map(({ diffId }) => diffId);
    const { image, devices } = operation.mergedFiles(diffIds);
    return describeMounts([{ kind: "erofs", source: image, devices }])[0]!;
  });
}

/** Runs `use` with the URL of a `shale serve` of this store. */
async function whileServing<T>(
  root: string,
  args: readonly string[],
  use: (url: string) => Promise<T>,
  onLog: (text: string) => void = () => undefined,
): Promise<T> {
  const words = [MAIN, "--root", root, "--json", "serve", "--addr", "127.0.0.1:0", ...args];
  const server = spawn(process.execPath, words, { stdio: ["ignore", "pipe", "pipe"] });
  server.stderr.on("data", (chunk: Buffer) => onLog(String(chunk)));
  const exited = once(server, "exit");
  try {
    let text = "";
    for await (const chunk of server.stdout) {
      text += String(chunk);
      if (text.endsWith("}\n")) break;
    }
    const { url } = JSON.parse(text) as { url: string };
    return await use(url);
  } finally {
    server.kill("SIGTERM");
    await exited;
  }
}

/** The digests of the layers that a registry gives for a tag, computed here. */
async function servedLayers(url: string, repository: string, tag: string): Promise<string[]> {
  const answer = await fetch(`${url}/v2/${repository}/manifests/${tag}`);
  const text = await answer.text();
  assert.equal(answer.status, 200, text);
  const { layers } = JSON.parse(text) as { layers: { digest: string }[] };
  const digests: string[] = [];
  for (const { digest } of layers) {
    const blob = await fetch(`${url}/v2/${repository}/blobs/${digest}`);
    digests.push(`sha256:${sha256(Buffer.from(await blob.arrayBuffer()))}`);
  }
  return digests;
}

for (const [maker, make] of Object.entries(MAKERS)) {
  test(`an image that ${maker} made comes in parts from docker-registry, mounts like a whole pull, and leaves bit for bit`, async () => {
    const directory = mkdtempSync(join(tmpdir(), "shale-estargz-"));
    const path = (name: string) => join(directory, name);
    try {
      await using registry = await startDockerRegistry(path("registry"));
      const { host } = registry;
      for (const [tag, layers] of Object.entries(IMAGES)) writeImage(path("source"), tag, layers.map(tar));
      await make({ host, path });
      const ref = `${host}/team/app:v2`;
      const diffIds = await pushedDiffIds(ref);

      await shale(path("store"), "pull", `${host}/team/app:v1`);
      const pulled = await shale(path("store"), "pull", ref);
      assert.match(pulled, /2 layers fetched in parts/);
      await shale(path("whole"), "pull", ref);
      await withStore(path("store"), async (store) => {
        assert.ok(store.manifestsOf(ref)[0]!.layers.every(({ diffId }) => isTocIdentity(diffId)));
        await assertSound(store);
      });
      await withStore(path("whole"), (store) => {
        assert.deepEqual(
          store.manifestsOf(ref)[0]!.layers.map(({ diffId }) => diffId),
          diffIds,
        );
      });
      if (isRoot()) assert.deepEqual(await shown(path("store"), ref), await shown(path("whole"), ref));

      cpSync(path("store"), path("serving"), { recursive: true });
      await shale(path("store"), "save", ref, "-o", path("saved/"));
      const layout = openOciLayout(path("saved"));
      const { manifest } = layout.readManifest(layout.get(ref));
      assert.ok(manifest.kind === "manifest");
      const saved = manifest.layers.map(({ digest }) => readFileSync(path(`saved/blobs/sha256/${digest.slice(7)}`)));
      assert.deepEqual(
        saved.map((bytes) => `sha256:${sha256(bytes)}`),
        diffIds,
      );
      const served = await whileServing(path("serving"), [], (url) => servedLayers(url, "team/app", "v2"));
      assert.deepEqual(served, diffIds);
      for (const root of ["store", "serving"]) {
        await withStore(path(root), async (store) => {
          assert.deepEqual(
            store.manifestsOf(ref)[0]!.layers.map(({ diffId }) => diffId),
            diffIds,
          );
          await assertSound(store);
        });
      }
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  });
}

test("shale serve --tls-verify=false completes what is pulled while it serves, also from a registry that it has not met", () =>
  withTemporaryDirectory(async (directory) => {
    const root = join(directory, "store");
    await using one = await startScriptedServer();
    await using other = await startScriptedServer();
    const layers = await Promise.all(
      ["one", "two", "three"].map((name) => estargzLayer(tar({ ...COMMON, [name]: noise(90_000, name) }))),
    );
    publish(one, "first", [layers[0]!]);
    publish(one, "second", [layers[1]!]);
    publish(other, "third", [layers[2]!], { repository: "other" });
    // By this name it is no loopback address, of which http is expected anyway.
    const host = other.host.replace("127.0.0.1", "0.0.0.0");
    await shale(root, "pull", `${one.host}/app:first`);
    await shale(root, "pull", `${one.host}/app:second`);
    await whileServing(root, ["--tls-verify=false"], async (url) => {
      assert.deepEqual(await servedLayers(url, "app", "second"), [layers[1]!.diffId]);
      const pulled = await shale(root, "pull", "--tls-verify=false", `${host}/other:third`);
      assert.match(pulled, /1 layer fetched in parts/);
      assert.deepEqual(await servedLayers(url, "other", "third"), [layers[2]!.diffId]);
    });
  }));

test("what completes an image warns when the tar is not what the table of contents said", () =>
  withTemporaryDirectory(async (directory) => {
    const path = (name: string) => join(directory, name);
    await using server = await startScriptedServer();
    publish(server, "first", [await estargzLayer(tar(COMMON))]);
    const honest = await estargzLayer(tar({ ...COMMON, own: noise(90_000, "own") }));
    const layer = withToc(honest, (entries) => {
      entries.find(({ name }) => name === "etc/small")!.mode = 0o4755;
    });
    publish(server, "second", [layer]);
    const ref = `${server.host}/app:second`;
    await shale(path("store"), "pull", `${server.host}/app:first`, ref);
    const isWarning = (text: string) => {
      assert.match(text, /is not what its table of contents said: etc\/small has mode 104755 /);
      assert.ok(text.includes(layer.diffId) && text.includes(ref), text);
    };
    for (const [command, ...args] of [
      ["save", ref, "-o", path("saved/")],
      ["convert", "--to", "zstd:chunked", ref, "-o", path("converted/")],
      ["export", "--format", "tar", "--layer", "0", ref, "-o", path("exported.tar")],
    ]) {
      const root = path(`store-${command}`);
      cpSync(path("store"), root, { recursive: true });
      const words = [MAIN, "--root", root, command!, ...args];
      isWarning((await run(process.execPath, words)).stderr);
      assert.doesNotMatch((await run(process.execPath, words)).stderr, /table of contents said/, "once");
    }
    let log = "";
    const onLog = (text: string) => {
      log += text;
    };
    const served = await whileServing(path("store"), [], (url) => servedLayers(url, "app", "second"), onLog);
    assert.deepEqual(served, [layer.diffId]);
    isWarning(log);
  }));
