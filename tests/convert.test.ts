/**
 * Images leave the store as zstd:chunked and eStargz: into a layout, an archive, a registry. Judges: skopeo, zstd and gzip,
 * ctr-remote with containerd, and shale itself. What podman takes for a layer of its own is in formats/zstd-chunked: the
 * vectors there are skopeo's.
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { promisify } from "node:util";
import { gunzipSync, zstdDecompressSync } from "node:zlib";
import { OciLayoutWriter, openOciLayout } from "../src/archives/index.ts";
import { ShaleError } from "../src/errors/index.ts";
import { openToc, replay } from "../src/formats/toc/testing.ts";
import { type ConvertOptions, type ConvertResult, convertImage } from "../src/images/convert.ts";
import { loadImages } from "../src/images/load.ts";
import { openOrigin } from "../src/images/origin.ts";
import { pullImage } from "../src/images/pull.ts";
import { type Descriptor, decodeManifest, MediaType, parseReference } from "../src/oci/index.ts";
import { testClient } from "../src/registry/testing/fixtures.ts";
import { startDockerRegistry } from "../src/registry/testing/docker-registry.ts";
import { Store } from "../src/store/index.ts";
import {
  assertTars,
  contentOf,
  layoutOrigin,
  type MadeImage,
  makeImage,
  noise,
  sha256,
  tar,
  withStore,
  writeImage,
} from "../src/store/testing/fixtures.ts";
import { injectFault } from "../src/sys/index.ts";
import { startContainerd } from "./peers/containerd.ts";

const run = promisify(execFile);
const APP = "docker.io/library/app:1";
const MAIN = join(import.meta.dirname, "../src/cli/main.ts");
const ZSTD_LAYER = "application/vnd.oci.image.layer.v1.tar+zstd";
const GZIP_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip";

/** What a TOC has to tell, and a file of several chunks in both forms. */
const TARS = [
  tar({
    "etc/": "",
    "etc/hostname": "one",
    "bin/tool": noise(5_000_000, "tool"),
    "bin/link": { type: "symlink", linkTarget: "tool" },
    "bin/hard": { type: "hardlink", linkTarget: "bin/tool" },
    "dev/null": { type: "character", rdevMajor: 1, rdevMinor: 3 },
    "etc/owned": {
      uid: 1000,
      gid: 2 ** 31,
      mtimeSeconds: 5,
      mtimeNanoseconds: 7,
      mode: 0o4711,
      content: Buffer.from("x"),
    },
    zeros: Buffer.alloc(300_000),
  }),
  tar({ "etc/.wh.hostname": "", "var/data": noise(150_000, "data"), "var/small": "x" }),
];

interface World {
  readonly store: Store;
  readonly image: MadeImage;
  path(name: string): string;
}

let seed: { readonly directory: string; readonly image: MadeImage } | undefined;

before(async () => {
  const directory = mkdtempSync(join(tmpdir(), "shale-convert-"));
  const image = writeImage(join(directory, "source"), "v1", TARS);
  await withStore(join(directory, "store"), async (store) =>
    pullImage(store, await layoutOrigin(join(directory, "source"), "v1"), { name: APP }),
  );
  seed = { directory, image };
});
after(() => {
  if (seed !== undefined) rmSync(seed.directory, { recursive: true });
});

async function inWorld(body: (world: World) => Promise<void>): Promise<void> {
  assert.ok(seed);
  const directory = mkdtempSync(join(tmpdir(), "shale-convert-"));
  try {
    cpSync(seed.directory, directory, { recursive: true });
    await using store = Store.open(join(directory, "store"));
    await body({ store, image: seed.image, path: (name) => join(directory, name) });
  } finally {
    rmSync(directory, { recursive: true });
  }
}

/** skopeo without the machine's policy and credentials. */
const skopeo = async (...args: string[]) => (await run("skopeo", ["--insecure-policy", ...args])).stdout;

const blob = (directory: string, digest: string) => readFileSync(join(directory, "blobs/sha256", digest.slice(7)));

function manifestOf(
  directory: string,
  name: string,
): { readonly layers: readonly Descriptor[]; readonly config: Descriptor } {
  const { manifest } = openOciLayout(directory).readManifest(openOciLayout(directory).get(name));
  assert.ok(manifest.kind === "manifest");
  return manifest;
}

function toLayout(world: World, name: string, to: ConvertOptions["to"]): Promise<ConvertResult> {
  return convertImage(world.store, "app:1", { to, output: { kind: "layout", directory: world.path(name) } });
}

describe("convertImage() to zstd:chunked", () => {
  test("keeps tars and image id, and writes TOCs that lead back to the tars", () =>
    inWorld(async (world) => {
      const { image, path } = world;
      const result = await toLayout(world, "out", "zstd:chunked");
      assert.deepEqual(result.configs, [image.config.digest]);
      assert.deepEqual(
        result.layers.map(({ newDiffId, reason }) => [newDiffId, reason]),
        image.diffIds.map((id) => [id, undefined]),
      );
      const { layers } = manifestOf(path("out"), "1");
      for (const [position, { digest, size, mediaType, annotations }] of layers.entries()) {
        const bytes = blob(path("out"), digest);
        const original = image.layers[position]!.tar;
        assert.deepEqual([mediaType, size], [ZSTD_LAYER, bytes.length]);
        assert.ok(zstdDecompressSync(bytes).equals(original));
        assert.ok((await replay(await openToc(bytes, annotations), bytes)).tar.equals(original));
      }
    }));

  test("gives the same bytes each time, in a layout and in an archive, and skopeo reads both", () =>
    inWorld(async (world) => {
      const { store, path, image } = world;
      const first = await toLayout(world, "out", "zstd:chunked");
      const again = await toLayout(world, "out", "zstd:chunked");
      assert.equal(openOciLayout(path("out")).entries.length, 1);
      const archive = await convertImage(store, "app:1", {
        to: "zstd:chunked",
        output: { kind: "archive", path: path("app.oci") },
      });
      assert.deepEqual([again, archive], [first, first]);
      const seen = JSON.parse(await skopeo("inspect", `oci:${path("out")}:1`)) as { Layers: string[] };
      assert.deepEqual(
        seen.Layers,
        first.layers.map(({ digest }) => digest),
      );
      await skopeo("copy", `oci-archive:${path("app.oci")}:1`, `dir:${path("dir")}`);
      for (const [position, { digest }] of first.layers.entries()) {
        const { stdout } = await run("zstd", ["-dcf", join(path("dir"), digest.slice(7))], {
          encoding: "buffer",
          maxBuffer: 1e8,
        });
        assert.equal(sha256(stdout), sha256(image.layers[position]!.tar));
      }
      await loadImages(store, path("app.oci"), { name: "again:1" });
      assert.deepEqual(contentOf(store, "docker.io/library/again:1"), contentOf(store, APP));
    }));

  test("pushes to a registry, from where an empty store pulls it", () =>
    inWorld(async ({ store, image, path }) => {
      await using registry = await startDockerRegistry(path("registry"));
      await using one = testClient();
      const reference = parseReference(`${registry.host}/team/app:zc`);
      const client = async () => one.client;
      const result = await convertImage(store, "app:1", {
        to: "zstd:chunked",
        output: { kind: "registry", reference, client },
      });
      const { descriptor } = await one.client.resolve(reference);
      assert.equal(descriptor.digest, result.digest);
      await withStore(path("empty"), async (other) => {
        const origin = await openOrigin({ kind: "registry", reference }, { registry: client });
        await pullImage(other, origin, { name: APP });
        assertTars(other, APP);
        assert.deepEqual(contentOf(other, APP), contentOf(store, APP));
      });
      assert.deepEqual(result.configs, [image.config.digest]);
      const output = {
        kind: "registry",
        reference: parseReference(`${registry.host}/app@${descriptor.digest}`),
        client,
      } as const;
      await assert.rejects(convertImage(store, "app:1", { to: "estargz", output }), { code: "INVALID_ARGUMENT" });
    }));

  test("compresses a layer plainly that has no such form, and says why", () =>
    inWorld(async ({ store, path }) => {
      const twice = Buffer.concat([tar({ a: "1" }).subarray(0, 1024), tar({ "./a": "2" })]);
      const image = writeImage(path("source"), "v2", [TARS[1]!, twice]);
      await pullImage(store, await layoutOrigin(path("source"), "v2"), { name: "docker.io/library/twice:1" });
      const output = { kind: "layout", directory: path("out") } as const;
      const { layers } = await convertImage(store, "twice:1", { to: "zstd:chunked", output });
      assert.deepEqual(
        layers.map(({ reason }) => reason),
        [undefined, `"./a": it is there twice`],
      );
      const [whole, plain] = manifestOf(path("out"), "1").layers;
      assert.equal(Object.keys(whole!.annotations).length, 3);
      assert.deepEqual(Object.keys(plain!.annotations), []);
      assert.ok(zstdDecompressSync(blob(path("out"), plain!.digest)).equals(image.layers[1]!.tar));
    }));
});

describe("convertImage() remembers", () => {
  for (const to of ["zstd:chunked", "estargz"] as const) {
    test(`what a layer becomes as ${to}, and compresses it again only for a place that does not have it`, () =>
      inWorld(async ({ store, path }) => {
        const told: (string | undefined)[] = [];
        const progress = {
          start: () => ({ advance() {}, status() {}, done: (text?: string) => void told.push(text), fail() {} }),
        };
        const convert = (directory: string) =>
          convertImage(store, "app:1", { to, output: { kind: "layout", directory: path(directory) }, progress });
        const results = [await convert("one"), await convert("one"), await convert("two")];
        assert.deepEqual(told, [undefined, undefined, "already there", "already there", undefined, undefined]);
        assert.deepEqual(results[1], results[0]);
        assert.deepEqual(results[2], results[0]);
        const { layers } = manifestOf(path("two"), "1");
        for (const { digest, annotations } of layers) await openToc(blob(path("two"), digest), annotations);
        const level = { to, output: { kind: "layout", directory: path("one") }, level: 1 } as const;
        assert.notEqual((await convertImage(store, "app:1", level)).digest, results[0]!.digest);
      }));
  }

  test("that a layer has no such form", () =>
    inWorld(async ({ store, path }) => {
      const twice = Buffer.concat([tar({ a: "1" }).subarray(0, 1024), tar({ a: "2" })]);
      writeImage(path("source"), "v2", [twice]);
      await pullImage(store, await layoutOrigin(path("source"), "v2"), { name: "docker.io/library/twice:1" });
      for (const directory of [path("one"), path("one"), path("two")]) {
        const output = { kind: "layout", directory } as const;
        const { layers } = await convertImage(store, "twice:1", { to: "zstd:chunked", output });
        assert.equal(layers[0]!.reason, `"a": it is there twice`);
        assert.ok(zstdDecompressSync(blob(directory, layers[0]!.digest)).equals(twice));
      }
    }));
});

describe("convertImage() to estargz", () => {
  test("changes diffIDs and nothing else of the config", () =>
    inWorld(async (world) => {
      const { image, path } = world;
      const result = await toLayout(world, "out", "estargz");
      const { layers, config } = manifestOf(path("out"), "1");
      const tars = layers.map(({ digest }) => gunzipSync(blob(path("out"), digest)));
      const diffIds = tars.map((bytes) => `sha256:${sha256(bytes)}`);
      assert.deepEqual(
        result.layers.map(({ newDiffId }) => newDiffId),
        diffIds,
      );
      const before = JSON.parse(image.config.bytes.toString());
      before.rootfs.diff_ids = diffIds;
      assert.deepEqual(JSON.parse(blob(path("out"), config.digest).toString()), before);
      assert.deepEqual([result.configs[0], layers[0]!.mediaType], [config.digest, GZIP_LAYER]);
      for (const [position, { digest, annotations }] of layers.entries()) {
        const bytes = blob(path("out"), digest);
        const toc = await openToc(bytes, annotations);
        assert.equal(annotations["io.containers.estargz.uncompressed-size"], `${tars[position]!.length}`);
        const { entries } = await replay(toc, bytes);
        assert.deepEqual([entries[0]!.path, entries.at(-1)!.path], [".no.prefetch.landmark", "stargz.index.json"]);
      }
    }));

  test("has the TOC digest that ctr-remote finds, and containerd unpacks it", () =>
    inWorld(async (world) => {
      const { store, path } = world;
      await convertImage(store, "app:1", { to: "estargz", output: { kind: "archive", path: path("app.oci") } });
      const layout = await toLayout(world, "out", "estargz");
      await using containerd = await startContainerd(path("containerd"));
      await containerd.ctr(
        "images",
        "import",
        "--all-platforms",
        "--digests",
        "--base-name",
        "test/app",
        path("app.oci"),
      );
      const { layers } = manifestOf(path("out"), "1");
      for (const [position, { digest }] of layout.layers.entries()) {
        const found = await containerd.ctr("images", "get-toc-digest", digest);
        assert.equal(found.trim(), layers[position]!.annotations["containerd.io/snapshot/stargz/toc.digest"]);
      }
    }));
});

/** An index of two platforms whose layers are different, as the tag "multi". */
async function writeTwoPlatforms(directory: string): Promise<void> {
  using writer = await OciLayoutWriter.open(directory);
  const entries: object[] = [];
  for (const architecture of ["amd64", "arm64"]) {
    const made = makeImage(architecture, [tar({ arch: architecture })]);
    const config = Buffer.from(made.config.bytes.toString().replace(/amd64/g, architecture));
    const manifest = JSON.parse(made.manifest.bytes.toString());
    Object.assign(manifest.config, await writer.writeBlob([config]));
    for (const layer of made.layers) await writer.writeBlob([layer.blob]);
    const stored = await writer.writeBlob([Buffer.from(JSON.stringify(manifest))]);
    entries.push({ mediaType: MediaType.OCI_MANIFEST, ...stored, platform: { os: "linux", architecture } });
  }
  const index = { schemaVersion: 2, mediaType: MediaType.OCI_INDEX, manifests: entries, annotations: { kept: "yes" } };
  const stored = await writer.writeBlob([Buffer.from(JSON.stringify(index))]);
  writer.addImage({ ...stored, mediaType: MediaType.OCI_INDEX, annotations: {}, urls: [] }, { tag: "multi" });
  writer.commit();
}

describe("convertImage() of several platforms", () => {
  for (const to of ["zstd:chunked", "estargz"] as const) {
    test(`writes an index of ${to} images, to a layout, an archive and a registry`, () =>
      inWorld(async ({ store, path }) => {
        await writeTwoPlatforms(path("source"));
        const name = "docker.io/library/multi:1";
        await pullImage(store, await layoutOrigin(path("source"), "multi"), { name, allPlatforms: true });
        await using registry = await startDockerRegistry(path("registry"));
        await using one = testClient();
        const reference = parseReference(`${registry.host}/multi:1`);
        const outputs: readonly ConvertOptions["output"][] = [
          { kind: "layout", directory: path("out") },
          { kind: "archive", path: path("multi.oci") },
          { kind: "registry", reference, client: async () => one.client },
        ];
        const digests: string[] = [];
        for (const output of outputs) {
          const { digest, configs, layers } = await convertImage(store, name, { to, output });
          assert.deepEqual([configs.length, layers.length], [2, 2]);
          digests.push(digest);
        }
        digests.push((await one.client.resolve(reference)).descriptor.digest);
        assert.equal(new Set(digests).size, 1);
        const index = JSON.parse(blob(path("out"), digests[0]!).toString());
        assert.deepEqual(index.annotations, { kept: "yes" });
        assert.deepEqual(
          index.manifests.map((entry: { platform: { architecture: string } }) => entry.platform.architecture),
          ["amd64", "arm64"],
        );
        await skopeo(
          "copy",
          "--all",
          "--src-tls-verify=false",
          `docker://${registry.host}/multi:1`,
          `oci:${path("copy")}:1`,
        );
        const single = await convertImage(store, name, { to, output: outputs[0]!, platform: "linux/arm64" });
        assert.equal(single.digest, index.manifests[1].digest);
      }));
  }
});

describe("convertImage()", () => {
  for (const to of ["zstd:chunked", "estargz"] as const) {
    test(`to ${to} publishes nothing of a damaged layer`, () =>
      inWorld(async ({ store, path }) => {
        const blobs = readdirSync(path("store/blobs")).map((name) => path(`store/blobs/${name}`));
        for (const file of blobs) {
          const bytes = readFileSync(file);
          if (bytes.length > 2_000_000) writeFileSync(file, bytes.fill(1, 1_000_000, 1_000_010));
        }
        const outputs = [
          { kind: "layout", directory: path("out") },
          { kind: "archive", path: path("app.oci") },
        ] as const;
        for (const output of outputs) {
          await assert.rejects(convertImage(store, "app:1", { to, output }), { code: "DATA_LOSS" });
        }
        assert.ok(
          !existsSync(path("out/index.json")) && !existsSync(path("app.oci")) && !existsSync(path("app.oci.partial")),
        );
      }));

    test(`to ${to} ends when it is told to, and leaves nothing`, () =>
      inWorld(async ({ store, path }) => {
        const stop = new AbortController();
        const progress = {
          start: () => ({ advance: () => stop.abort(), status() {}, done() {}, fail() {} }),
        };
        const options = {
          to,
          output: { kind: "archive", path: path("app.oci") },
          signal: stop.signal,
          progress,
        } as const;
        await assert.rejects(convertImage(store, "app:1", options), (error) => ShaleError.is(error, "CANCELLED"));
        assert.ok(!existsSync(path("app.oci")) && !existsSync(path("app.oci.partial")));
      }));
  }

  test("says that the disk is full, of the archive and of the temporary file", () =>
    inWorld(async ({ store, path }) => {
      for (const name of [/app\.oci/, /shale-[0-9a-f-]{36}/]) {
        using _ = injectFault({ kind: "write", path: name, errno: "ENOSPC" });
        await assert.rejects(
          convertImage(store, "app:1", { to: "zstd:chunked", output: { kind: "archive", path: path("app.oci") } }),
          { code: "RESOURCE_EXHAUSTED" },
        );
      }
    }));

  test("refuses a level that the form does not have, and a platform that is not there", () =>
    inWorld(async ({ store, path }) => {
      const output = { kind: "layout", directory: path("out") } as const;
      await assert.rejects(convertImage(store, "app:1", { to: "estargz", output, level: 10 }), {
        code: "INVALID_ARGUMENT",
      });
      const platform = "linux/s390x";
      await assert.rejects(convertImage(store, "app:1", { to: "estargz", output, platform }), { code: "NOT_FOUND" });
    }));
});

test("shale convert writes what it says, and warns of a layer without a table", () =>
  inWorld(async ({ image, path }) => {
    const shale = (...args: string[]) =>
      run(process.execPath, [MAIN, "--root", path("store"), "convert", "app:1", ...args]);
    const { stdout } = await shale("-o", `oci:${path("out")}:tagged`, "--json");
    const told = JSON.parse(stdout) as ConvertResult & { to: string };
    assert.equal(told.to, "zstd:chunked");
    assert.deepEqual(told.configs, [image.config.digest]);
    assert.equal(manifestOf(path("out"), "tagged").layers.length, 2);
    const archive = await shale("--to", "estargz", "-o", path("app.oci"));
    assert.match(archive.stdout, /app\.oci: app:1 as estargz \([0-9a-f]{12}\); 2 layers, [\d.]+ MB of [\d.]+ MB\n$/);
    assert.equal(
      decodeManifest(Buffer.from(await skopeo("inspect", "--raw", `oci-archive:${path("app.oci")}`)), "").kind,
      "manifest",
    );
    await assert.rejects(shale("-o", "-"), { code: 2 });
    await assert.rejects(shale(), { code: 2 });
  }));
