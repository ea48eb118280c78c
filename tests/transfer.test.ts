/**
 * Images leave the store and come back: save, load and serve, with skopeo as the judge of what we write and as the writer of
 * what we read. Images are small and made here; each layer is compared byte by byte with the tar that it was made from.
 */
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { promisify } from "node:util";
import { gzipSync, zstdCompressSync, zstdDecompressSync } from "node:zlib";
import { OciLayoutWriter, openOciLayout } from "../src/archives/index.ts";
import { type ErrorCode, ShaleError } from "../src/errors/index.ts";
import { loadImages } from "../src/images/load.ts";
import { openOrigin } from "../src/images/origin.ts";
import { pullImage } from "../src/images/pull.ts";
import { repairStore } from "../src/images/repair.ts";
import { saveImages } from "../src/images/save.ts";
import { type ServeOptions, storeProvider } from "../src/images/serve.ts";
import { type Descriptor, decodeManifest, MediaType, type Platform, parseReference } from "../src/oci/index.ts";
import { RegistryClient } from "../src/registry/index.ts";
import { type Registry, startRegistry } from "../src/server/index.ts";
import { Store } from "../src/store/index.ts";
import {
  assertTars,
  check,
  collect,
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

const APP = "docker.io/library/app:1";
const MAIN = join(import.meta.dirname, "../src/cli/main.ts");
const run = promisify(execFile);

/** Two layers: payloads in a blob (large, shared, sparse), payloads inline, links, a whiteout, a tape's padding. */
function tars(seed: string): Buffer[] {
  const below = tar({
    "etc/": "",
    "etc/hostname": seed,
    "bin/tool": noise(3_000_000, `${seed} tool`),
    "bin/link": { type: "symlink", linkTarget: "tool" },
    "bin/hard": { type: "hardlink", linkTarget: "bin/tool" },
    zeros: Buffer.alloc(300_000),
  });
  const above = tar({ "etc/.wh.hostname": "", "var/data": noise(150_000, `${seed} data`), "var/small": "x" });
  return [below, Buffer.concat([above, Buffer.alloc(7 * 512)])];
}

interface World {
  readonly directory: string;
  readonly store: Store;
  readonly image: MadeImage;
  path(name: string): string;
}

let seed: { readonly directory: string; readonly image: MadeImage } | undefined;

/** Made once and copied for each test: a pull costs a second of worker threads, a copy some milliseconds. */
async function makeSeed(): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "shale-transfer-"));
  const image = writeImage(join(directory, "source"), "v1", tars("one"));
  await withStore(join(directory, "store"), async (store) =>
    pullImage(store, await layoutOrigin(join(directory, "source"), "v1"), { name: APP }),
  );
  seed = { directory, image };
}

before(makeSeed);
after(() => {
  if (seed !== undefined) rmSync(seed.directory, { recursive: true });
});

/** A store with one image, called APP, that came as gzip from the layout "source". */
async function inWorld(body: (world: World) => Promise<void>): Promise<void> {
  assert.ok(seed);
  const directory = mkdtempSync(join(tmpdir(), "shale-transfer-"));
  const path = (name: string) => join(directory, name);
  try {
    cpSync(seed.directory, directory, { recursive: true });
    await using store = Store.open(path("store"));
    await body({ directory, store, image: seed.image, path });
  } finally {
    rmSync(directory, { recursive: true });
  }
}

function failsWith(code: ErrorCode, text: RegExp) {
  return (error: unknown) => {
    assert.ok(ShaleError.is(error, code), String(error));
    assert.match(error.message, text);
    return true;
  };
}

const blob = (directory: string, digest: string) => readFileSync(join(directory, "blobs/sha256", digest.slice(7)));

/** skopeo without the machine's policy and credentials. */
const skopeo = async (...args: string[]) => (await run("skopeo", ["--insecure-policy", ...args])).stdout;

/** What `skopeo copy ... dir:` left: each layer decompressed, lowest first. */
function layersOfDir(directory: string): Buffer[] {
  const manifest = JSON.parse(readFileSync(join(directory, "manifest.json"), "utf8")) as { layers: Descriptor[] };
  return manifest.layers.map(({ digest, mediaType }) => {
    const bytes = readFileSync(join(directory, digest.slice(7)));
    return mediaType.endsWith("zstd") ? zstdDecompressSync(bytes) : bytes;
  });
}

function diffIdsOf(store: Store, name: string): string[] {
  return store.manifestsOf(name).flatMap((manifest) => manifest.layers.map((layer) => layer.diffId));
}

/** Overwrites bytes in the middle of the store's largest blob file. */
function damage(root: string): void {
  const files = readdirSync(join(root, "blobs")).map((name) => join(root, "blobs", name));
  const largest = files.sort((a, b) => statSync(b).size - statSync(a).size)[0]!;
  const bytes = readFileSync(largest);
  bytes.write("damaged", 1_000_000);
  writeFileSync(largest, bytes);
}

describe("save", () => {
  test("saveImages() writes a layout whose layers are the original tars, and skopeo copies it", () =>
    inWorld(async ({ store, image, path }) => {
      const result = await saveImages(store, ["app:1"], { output: path("layout/") });
      assert.equal(result.format, "oci");
      assert.equal(result.layersWritten, 2);
      const layout = openOciLayout(path("layout"));
      const { manifest } = layout.readManifest(layout.get("1"));
      assert.equal(layout.get(APP).digest, result.images[0]!.digest);
      assert.ok(manifest.kind === "manifest");
      assert.equal(manifest.config.digest, image.config.digest);
      assert.deepEqual(blob(path("layout"), image.config.digest), image.config.bytes);
      assert.deepEqual(
        manifest.layers.map(({ digest, size, mediaType }) => ({ digest, size, mediaType })),
        image.layers.map(({ diffId, tar: { length } }) => ({
          ...{ digest: diffId, size: length, mediaType: MediaType.OCI_LAYER },
        })),
      );
      for (const layer of image.layers) assert.ok(blob(path("layout"), layer.diffId).equals(layer.tar));

      const seen = JSON.parse(await skopeo("inspect", `oci:${path("layout")}:1`)) as { Layers: string[] };
      assert.deepEqual(seen.Layers, image.diffIds);
      await skopeo("copy", `oci:${path("layout")}:1`, `dir:${path("dir")}`);
      assert.deepEqual(
        layersOfDir(path("dir")).map(sha256),
        image.layers.map((layer) => sha256(layer.tar)),
      );
    }));

  test("saveImages() with zstd gives the same bytes each time, and writes no layer twice", () =>
    inWorld(async ({ store, image, path }) => {
      const output = path("layout/");
      const first = await saveImages(store, ["app:1"], { output, compression: "zstd" });
      const again = await saveImages(store, ["app:1"], { output, compression: "zstd" });
      const other = await saveImages(store, ["app:1"], { output: path("other/"), compression: "zstd" });
      assert.deepEqual([first.layersWritten, again.layersWritten, again.layersPresent], [2, 0, 2]);
      assert.equal(again.images[0]!.digest, first.images[0]!.digest);
      assert.equal(other.images[0]!.digest, first.images[0]!.digest);
      assert.equal(openOciLayout(output).entries.length, 1);
      const { manifest } = openOciLayout(output).readManifest(openOciLayout(output).get("1"));
      assert.ok(manifest.kind === "manifest");
      for (const [position, layer] of manifest.layers.entries()) {
        assert.equal(layer.mediaType, MediaType.OCI_LAYER_ZSTD);
        assert.ok(zstdDecompressSync(blob(output, layer.digest)).equals(image.layers[position]!.tar));
      }
      await skopeo("copy", `oci:${path("layout")}:1`, `dir:${path("dir")}`);
      assert.deepEqual(
        layersOfDir(path("dir")).map(sha256),
        image.layers.map((layer) => sha256(layer.tar)),
      );
    }));

  test("saveImages() writes a docker archive that skopeo and GNU tar read, the same bytes each time", () =>
    inWorld(async ({ store, image, path }) => {
      await pullImage(store, await layoutOrigin(path("source"), "v1"), { name: "quay.io/team/app:2" });
      const refs = ["app:1", "quay.io/team/app:2"];
      const result = await saveImages(store, refs, { output: path("app.tar") });
      assert.equal(result.format, "docker");
      assert.equal(result.size, statSync(path("app.tar")).size);
      const parts: Uint8Array[] = [];
      await saveImages(store, refs, { output: (bytes) => void parts.push(Buffer.from(bytes)) });
      assert.ok(Buffer.concat(parts).equals(readFileSync(path("app.tar"))));

      mkdirSync(path("unpacked"));
      await run("tar", ["-xf", path("app.tar"), "-C", path("unpacked")]);
      const [entry, more] = JSON.parse(readFileSync(path("unpacked/manifest.json"), "utf8")) as {
        Config: string;
        RepoTags: string[];
        Layers: string[];
      }[];
      assert.equal(more, undefined);
      assert.deepEqual(entry!.RepoTags, ["app:1", "quay.io/team/app:2"]);
      assert.deepEqual(readFileSync(path(`unpacked/${entry!.Config}`)), image.config.bytes);
      for (const [position, name] of entry!.Layers.entries()) {
        assert.ok(readFileSync(path(`unpacked/${name}`)).equals(image.layers[position]!.tar));
      }
      const config = await skopeo("inspect", "--config", "--raw", `docker-archive:${path("app.tar")}:app:1`);
      assert.equal(`sha256:${sha256(Buffer.from(config))}`, image.config.digest);
    }));

  test("saveImages() keeps a manifest byte for byte where its layers were plain tars", () =>
    inWorld(async ({ store, path }) => {
      await saveImages(store, ["app:1"], { output: path("plain/") });
      const { digest } = openOciLayout(path("plain")).get("1");
      await loadImages(store, path("plain"), { name: "plain:1" });
      const again = await saveImages(store, ["plain:1"], { output: path("again/") });
      assert.equal(again.images[0]!.digest, digest);
      assert.deepEqual(blob(path("again"), digest), blob(path("plain"), digest));
    }));

  test("saveImages() keeps the annotations of a rewritten manifest, and drops those of replaced layers", () =>
    inWorld(async ({ store, image, path }) => {
      const manifest = JSON.parse(image.manifest.bytes.toString()) as { layers: object[] };
      const annotated = Buffer.from(
        JSON.stringify({
          ...manifest,
          layers: manifest.layers.map((layer) => ({ ...layer, annotations: { "toc.digest": "of the gzip form" } })),
          annotations: { "org.example.kept": "yes", z: "1", a: "2" },
        }),
      );
      await addManifest(path("source"), "annotated", annotated);
      await pullImage(store, await layoutOrigin(path("source"), "annotated"), { name: "annotated:1" });
      await saveImages(store, ["annotated:1"], { output: path("layout/") });
      const layout = openOciLayout(path("layout"));
      const saved = layout.readManifest(layout.get("1")).manifest;
      assert.ok(saved.kind === "manifest");
      assert.deepEqual(Object.entries(saved.annotations), [
        ["org.example.kept", "yes"],
        ["z", "1"],
        ["a", "2"],
      ]);
      for (const layer of saved.layers) assert.deepEqual(Object.keys(layer.annotations), []);
    }));

  test("saveImages() adds to a layout, replaces an older image of a name, and keeps equal tags of other images apart", () =>
    inWorld(async ({ store, path }) => {
      const output = path("layout/");
      writeImage(path("source"), "v2", tars("two"));
      await pullImage(store, await layoutOrigin(path("source"), "v2"), { name: "docker.io/library/web:1" });
      await saveImages(store, ["app:1"], { output });
      const before = openOciLayout(output).get(APP).digest;
      await saveImages(store, ["web:1"], { output });
      assert.deepEqual(openOciLayout(output).listNames(), ["1", "docker.io/library/web:1"]);
      assert.equal(openOciLayout(output).get(APP).digest, before);
      await pullImage(store, await layoutOrigin(path("source"), "v2"), { name: APP });
      await saveImages(store, ["app:1", "web:1"], { output });
      const after = openOciLayout(output);
      assert.deepEqual(after.listNames().toSorted(), ["1", "docker.io/library/web:1"]);
      assert.notEqual(after.get(APP).digest, before);
      assert.equal(after.get(APP).digest, after.get("docker.io/library/web:1").digest);
    }));

  const REFUSED: readonly {
    readonly name: string;
    readonly code: ErrorCode;
    readonly says: RegExp;
    readonly options: (path: (name: string) => string) => Parameters<typeof saveImages>[2];
  }[] = [
    {
      name: "a layout on stdout",
      code: "INVALID_ARGUMENT",
      says: /stdout: it is a directory/,
      options: () => ({ output: () => undefined, format: "oci" }),
    },
    {
      name: "compressed layers in a docker archive",
      code: "INVALID_ARGUMENT",
      says: /with zstd layers/,
      options: (path) => ({ output: path("x.tar"), compression: "zstd" }),
    },
    {
      name: "a docker archive in place of a directory",
      code: "FAILED_PRECONDITION",
      says: /it is a directory/,
      options: (path) => ({ output: path("source"), format: "docker" }),
    },
    {
      name: "an archive in place of a device",
      code: "FAILED_PRECONDITION",
      says: /not a regular file/,
      options: () => ({ output: "/dev/null" }),
    },
    {
      name: "a file in a directory that does not exist",
      code: "NOT_FOUND",
      says: /its directory does not exist/,
      options: (path) => ({ output: path("absent/x.tar") }),
    },
    {
      name: "a platform that the store does not have",
      code: "NOT_FOUND",
      says: /linux\/s390x/,
      options: (path) => ({ output: path("x/"), platform: "linux/s390x" }),
    },
  ];
  for (const { name, code, says, options } of REFUSED) {
    test(`saveImages() refuses ${name} with ${code}`, () =>
      inWorld(({ store, path }) => assert.rejects(saveImages(store, ["app:1"], options(path)), failsWith(code, says))));
  }

  test("saveImages() publishes nothing of a damaged layer, and leaves what was there", () =>
    inWorld(async ({ store, path }) => {
      writeImage(path("source"), "v2", [tar({ file: "sound" })]);
      await pullImage(store, await layoutOrigin(path("source"), "v2"), { name: "sound:1" });
      await saveImages(store, ["sound:1"], { output: path("layout/") });
      await saveImages(store, ["sound:1"], { output: path("app.tar") });
      const index = readFileSync(path("layout/index.json"));
      const archive = readFileSync(path("app.tar"));
      const blobs = readdirSync(path("layout/blobs/sha256"));
      damage(path("store"));
      for (const compression of ["none", "zstd"] as const) {
        const saved = saveImages(store, ["app:1"], { output: path("layout/"), compression });
        await assert.rejects(saved, failsWith("DATA_LOSS", /Cannot rebuild layer sha256:/));
      }
      await assert.rejects(
        saveImages(store, ["app:1"], { output: path("app.tar") }),
        failsWith("DATA_LOSS", /Cannot rebuild layer/),
      );
      assert.deepEqual(readFileSync(path("layout/index.json")), index);
      assert.deepEqual(readFileSync(path("app.tar")), archive);
      assert.deepEqual(readdirSync(path("layout")).toSorted(), ["blobs", "index.json", "oci-layout"]);
      const added = readdirSync(path("layout/blobs/sha256")).filter((name) => !blobs.includes(name));
      for (const name of added) assert.equal(sha256(readFileSync(path(`layout/blobs/sha256/${name}`))), name);
      assert.equal(existsSync(path("app.tar.partial")), false);
    }));

  for (const [what, output, format] of [
    ["an archive", "app.tar", "docker"],
    ["a layout", "layout", "oci"],
  ] as const) {
    test(`saveImages() says that the disk is full, and leaves nothing of ${what}`, () =>
      inWorld(async ({ store, path, directory }) => {
        using _ = injectFault({ kind: "write", path: /app\.tar|layout/, nth: 3, persistent: true, errno: "ENOSPC" });
        const saved = saveImages(store, ["app:1"], { output: path(output), format });
        await assert.rejects(saved, failsWith("RESOURCE_EXHAUSTED", /the disk is full/));
        if (format === "docker") assert.deepEqual(readdirSync(directory).toSorted(), ["source", "store"]);
        else assert.equal(existsSync(path("layout/index.json")), false);
      }));
  }

  test("saveImages() stops by its signal and leaves nothing", () =>
    inWorld(async ({ store, path, directory }) => {
      const stop = new AbortController();
      const progress = {
        start: () => ({
          advance: () => stop.abort(),
          status: () => undefined,
          done: () => undefined,
          fail: () => undefined,
        }),
      };
      const saved = saveImages(store, ["app:1"], { output: path("app.tar"), signal: stop.signal, progress });
      await assert.rejects(saved, failsWith("CANCELLED", /./));
      assert.deepEqual(readdirSync(directory).toSorted(), ["source", "store"]);
    }));

  for (const point of ["datasync", "rename"] as const) {
    test(`a save that is killed before its ${point} leaves the old file, and the next one removes what it left`, () =>
      inWorld(async ({ store, image, path }) => {
        writeFileSync(path("app.tar"), "older");
        const args = [MAIN, "--root", path("store"), "-q", "save", "app:1", "-o", path("app.tar")];
        const child = spawn(process.execPath, args, { env: { ...process.env, SHALE_CRASH_AT: point } });
        const signal = await new Promise((resolve) => child.on("close", (_, by) => resolve(by)));
        assert.equal(signal, "SIGKILL");
        assert.equal(readFileSync(path("app.tar"), "utf8"), "older");
        assert.ok(existsSync(path("app.tar.partial")));
        await saveImages(store, ["app:1"], { output: path("app.tar") });
        assert.equal(existsSync(path("app.tar.partial")), false);
        const [loaded] = await withStore(path("other"), (other) => loadImages(other, path("app.tar")));
        assert.deepEqual(
          loaded!.layers.map((layer) => layer.diffId),
          image.diffIds,
        );
      }));
  }
});

/** Adds a manifest to a layout that has its blobs. */
async function addManifest(directory: string, tag: string, bytes: Buffer, platform?: Platform): Promise<Descriptor> {
  using writer = await OciLayoutWriter.open(directory);
  const { mediaType } = decodeManifest(bytes);
  const descriptor: Descriptor = {
    ...(await writer.writeBlob([bytes])),
    ...{ mediaType, annotations: {}, urls: [] },
    ...(platform === undefined ? {} : { platform }),
  };
  writer.addImage(descriptor, { tag });
  writer.commit();
  return descriptor;
}

const PLATFORMS = ["amd64", "arm64", "riscv64"] as const;

/** An index of three platforms with an annotation, in a layout; the layers share a file. */
async function writeMultiPlatform(directory: string): Promise<void> {
  const entries: object[] = [];
  for (const architecture of PLATFORMS) {
    const made = makeImage(architecture, [tar({ arch: architecture, shared: noise(50_000, "shared") })]);
    const config = Buffer.from(made.config.bytes.toString().replace("amd64", architecture));
    const manifest = made.manifest.bytes
      .toString()
      .replace(made.config.digest, `sha256:${sha256(config)}`)
      .replace(`"size":${made.config.bytes.length}`, `"size":${config.length}`);
    using writer = await OciLayoutWriter.open(directory);
    await writer.writeBlob([config]);
    for (const layer of made.layers) await writer.writeBlob([layer.blob]);
    const stored = await writer.writeBlob([Buffer.from(manifest)]);
    entries.push({ mediaType: MediaType.OCI_MANIFEST, ...stored, platform: { os: "linux", architecture } });
  }
  const attestation = { ...entries[0], platform: { os: "unknown", architecture: "unknown" } };
  const index = {
    ...{ schemaVersion: 2, mediaType: MediaType.OCI_INDEX, manifests: [...entries, attestation] },
    annotations: { "org.example.index": "kept" },
  };
  await addManifest(directory, "multi", Buffer.from(JSON.stringify(index)));
}

describe("several platforms", () => {
  test("saveImages() writes an index of the platforms that are in the store, or one of them", () =>
    inWorld(async ({ store, path }) => {
      await writeMultiPlatform(path("source"));
      await pullImage(store, await layoutOrigin(path("source"), "multi"), { name: "multi:1", allPlatforms: true });
      const [found] = store.findImage("multi:1") === undefined ? [] : store.manifestsOf("multi:1");
      assert.ok(found);
      const saved = await saveImages(store, ["multi:1"], { output: path("layout/") });
      assert.equal(saved.images[0]!.configs.length, 3);
      const layout = openOciLayout(path("layout"));
      const { manifest } = layout.readManifest(layout.entries[0]!);
      assert.ok(manifest.kind === "index");
      assert.deepEqual(
        manifest.manifests.map((entry) => entry.platform?.architecture),
        PLATFORMS,
      );
      assert.equal(manifest.annotations["org.example.index"], "kept");
      const one = await saveImages(store, ["multi:1"], { output: path("one/"), platform: "linux/riscv64" });
      assert.equal(openOciLayout(path("one")).get().platform?.architecture, "riscv64");
      assert.equal(one.images[0]!.configs.length, 1);

      await withStore(path("other"), async (other) => {
        await loadImages(other, path("layout"), { name: "all:1", allPlatforms: true });
        assert.deepEqual(
          other.manifestsOf("docker.io/library/all:1").map((one) => one.platform),
          PLATFORMS.map((architecture) => `linux/${architecture}`),
        );
      });
    }));

  test("storeProvider() serves an index of those in the store, also of a single one", () =>
    inWorld(async ({ store, path }) => {
      await writeMultiPlatform(path("source"));
      const platform = { os: "linux", architecture: "arm64" };
      const origin = await layoutOrigin(path("source"), "multi");
      await pullImage(store, origin, { name: "docker.io/library/multi:1", platform });
      await serving(store, {}, async (registry) => {
        const index = (await (await fetch(`${registry.url}/v2/library/multi/manifests/1`)).json()) as {
          manifests: { platform: { architecture: string } }[];
        };
        assert.deepEqual(
          index.manifests.map((entry) => entry.platform.architecture),
          ["arm64"],
        );
        await withStore(path("other"), async (other) => {
          const wrong = pullFrom(other, registry, "library/multi:1", { os: "linux", architecture: "s390x" });
          await assert.rejects(wrong, failsWith("NOT_FOUND", /the index has linux\/arm64/));
          await pullFrom(other, registry, "library/multi:1", platform);
        });
      });
    }));
});

describe("load", () => {
  const FORMS = [
    ["docker-archive", "app.tar", (bytes: Buffer) => bytes],
    ["oci-archive", "app.tar", (bytes: Buffer) => bytes],
    ["oci-archive", "app.tar.gz", (bytes: Buffer) => gzipSync(bytes)],
    ["docker-archive", "app.tar.zst", (bytes: Buffer) => zstdCompressSync(bytes)],
  ] as const;
  test("loadImages() reads what skopeo writes as docker-archive and oci-archive, also compressed", () =>
    inWorld(async ({ image, path }) => {
      await withStore(path("other"), async (other) => {
        for (const [form, file, compress] of FORMS) {
          const target = `${form}:${path(`${form}-${file}`)}:docker.io/library/their:3`;
          await skopeo("copy", `oci:${path("source")}:v1`, target);
          writeFileSync(path(file), compress(readFileSync(path(`${form}-${file}`))));
          const [loaded, more] = await loadImages(other, path(file));
          assert.equal(more, undefined);
          assert.equal(loaded!.name, "docker.io/library/their:3", form);
          assert.deepEqual(diffIdsOf(other, loaded!.name), image.diffIds);
          assert.equal(other.manifestsOf(loaded!.name)[0]!.config, image.config.digest);
          assert.deepEqual(readdirSync(path("other/staging")), [], `after ${file}`);
          await saveImages(other, ["their:3"], { output: path(`from-${form}-${file}/`) });
          for (const layer of image.layers) {
            assert.ok(blob(path(`from-${form}-${file}`), layer.diffId).equals(layer.tar), file);
          }
          other.removeImage(loaded!.name);
          collect(other);
          assert.deepEqual(other.listLayers(), []);
        }
      });
    }));

  test("loadImages() loads every image of an archive and of a layout under the names that save gave them", () =>
    inWorld(async ({ store, path }) => {
      writeImage(path("source"), "v2", tars("two"));
      await pullImage(store, await layoutOrigin(path("source"), "v2"), { name: "quay.io/team/web:1" });
      const names = [APP, "quay.io/team/web:1"];
      await saveImages(store, names, { output: path("both.tar") });
      await saveImages(store, names, { output: path("both/") });
      await run("tar", ["-cf", path("layout.tar"), "-C", path("both"), "."]);
      await withStore(path("other"), async (other) => {
        for (const source of ["both.tar", "both", "layout.tar"]) {
          await loadImages(other, path(source));
          assert.deepEqual(
            other.listImages().map((one) => one.name),
            names,
          );
          for (const name of names) assert.deepEqual(diffIdsOf(other, name), diffIdsOf(store, name));
          await assert.rejects(
            loadImages(other, path(source), { name: "one:1" }),
            failsWith("INVALID_ARGUMENT", /Cannot name 2 images/),
          );
          for (const name of names) other.removeImage(name);
          collect(other);
          assert.deepEqual(other.listLayers(), []);
        }
      });
    }));

  test("loadImages() names what has no name by where it came from or its digest, unless told", () =>
    inWorld(async ({ image, path }) => {
      await run("tar", ["-cf", path("source.tar"), "-C", path("source"), "."]);
      const names = await withStore(path("other"), async (other) => [
        (await loadImages(other, path("source")))[0]!.name,
        (await loadImages(other, path("source.tar")))[0]!.name,
        (await loadImages(other, path("source.tar"), { name: "mine" }))[0]!.name,
      ]);
      assert.deepEqual(names, [
        `oci:${path("source")}:v1`,
        `oci-archive:${path("source.tar")}:v1`,
        "docker.io/library/mine:latest",
      ]);
      await skopeo("copy", `oci:${path("source")}:v1`, `oci-archive:${path("nameless.tar")}`);
      const [nameless] = await withStore(path("other"), (other) => loadImages(other, path("nameless.tar")));
      assert.equal(nameless!.name, nameless!.digest);
      assert.deepEqual(
        nameless!.layers.map((layer) => layer.diffId),
        image.diffIds,
      );
    }));

  test("repairStore() takes a damaged layer from the archive that it was loaded from", () =>
    inWorld(async ({ store, image, path }) => {
      await saveImages(store, ["app:1"], { output: path("app.tar") });
      await run("tar", ["-czf", path("source.tar.gz"), "-C", path("source"), "."]);
      for (const source of ["app.tar", "source.tar.gz"]) {
        store.removeImage(store.listImages()[0]!.name);
        collect(store);
        const [loaded] = await loadImages(store, path(source));
        damage(path("store"));
        const [repaired, more] = await repairStore(store, await check(store), {
          registry: () => Promise.reject(new Error("this test has no registry")),
        });
        assert.equal(more, undefined);
        assert.match(repaired!.from ?? repaired!.failures.join(), new RegExp(`-archive:${path(source)}$`));
        assert.deepEqual(diffIdsOf(store, loaded!.name), image.diffIds);
        assertTars(store, loaded!.name);
      }
    }));

  test("loadImages() follows a symlink, and tells what is missing or no archive", () =>
    inWorld(async ({ image, path }) => {
      symlinkSync(path("source"), path("link"));
      writeFileSync(path("text.tar"), "no tar at all".repeat(100));
      writeFileSync(path("other.tar"), tar({ file: "of something else" }));
      await withStore(path("other"), async (other) => {
        const [loaded] = await loadImages(other, path("link"));
        assert.deepEqual(diffIdsOf(other, loaded!.name), image.diffIds);
        await assert.rejects(loadImages(other, path("absent")), failsWith("NOT_FOUND", /no such file or directory/));
        await assert.rejects(loadImages(other, path("text.tar")), failsWith("INVALID_ARGUMENT", /Cannot read tar/));
        await assert.rejects(
          loadImages(other, path("other.tar")),
          failsWith("INVALID_ARGUMENT", /manifest\.json: is missing/),
        );
        assert.deepEqual(readdirSync(path("other/staging")), []);
      });
    }));

  test("loadImages() refuses a layer that is not what its digest says, and stores nothing of it", () =>
    inWorld(async ({ image, path }) => {
      const file = path(`source/blobs/sha256/${image.layers[0]!.digest.slice(7)}`);
      const bytes = readFileSync(file);
      bytes[bytes.length - 9]! ^= 1; // in the deflate data or its checksum
      writeFileSync(file, bytes);
      await withStore(path("other"), async (other) => {
        await assert.rejects(loadImages(other, path("source")), ShaleError);
        assert.deepEqual(other.listImages(), []);
        assert.equal(other.findLayer(image.diffIds[0]!), undefined);
      });
    }));
});

/** Runs `body` with the store served on a free port of the loopback interface. */
async function serving(
  store: Store,
  options: ServeOptions,
  body: (registry: Registry, errors: unknown[]) => Promise<void>,
): Promise<void> {
  const errors: unknown[] = [];
  await using provider = storeProvider(store, options);
  await using registry = await startRegistry(provider, {
    log: ({ error }) => void (error !== undefined && errors.push(error)),
  });
  await body(registry, errors);
}

/** Pulls over HTTP under the name "pulled". */
async function pullFrom(store: Store, registry: Registry, ref: string, platform?: Platform): Promise<void> {
  const host = `${registry.host}:${registry.port}`;
  await using client = new RegistryClient({ insecure: [host], hostsDirs: [], retry: { attempts: 1 } });
  const source = { kind: "registry", reference: parseReference(`${host}/${ref}`) } as const;
  const origin = await openOrigin(source, { registry: async () => client });
  await pullImage(store, origin, { name: "pulled", ...(platform === undefined ? {} : { platform }) });
}

describe("serve", () => {
  for (const compression of ["none", "zstd"] as const) {
    test(`storeProvider() gives a second store and skopeo the same layers, with compression ${compression}`, () =>
      inWorld(async ({ store, image, path }) => {
        await serving(store, { compression }, async (registry, errors) => {
          await withStore(path("other"), async (other) => {
            await pullFrom(other, registry, "docker.io/library/app:1");
            assert.deepEqual(diffIdsOf(other, "pulled"), image.diffIds);
            const [theirs] = other.manifestsOf("pulled");
            const [ours] = store.manifestsOf(APP);
            assert.equal(theirs!.chainId, ours!.chainId);
            assert.equal(theirs!.config, ours!.config);
          });
          const source = `docker://127.0.0.1:${registry.port}/library/app:1`;
          await skopeo("copy", "--src-tls-verify=false", source, `dir:${path("dir")}`);
          assert.deepEqual(
            layersOfDir(path("dir")).map(sha256),
            image.layers.map((layer) => sha256(layer.tar)),
          );
          const listed = (await (await fetch(`${registry.url}/v2/library/app/tags/list`)).json()) as { tags: string[] };
          assert.deepEqual(listed.tags, ["1"]);
          assert.deepEqual(errors, []);
        });
        assert.deepEqual(readdirSync(path("store/leases")), []);
      }));

    test(`storeProvider() answers ranges of layers, with compression ${compression}`, () =>
      inWorld(async ({ store, image }) => {
        await serving(store, { compression }, async ({ url }) => {
          const manifest = (await (await fetch(`${url}/v2/library/app/manifests/1`)).json()) as {
            layers: { digest: string; size: number }[];
          };
          const { digest, size } = manifest.layers[0]!;
          const address = `${url}/v2/library/app/blobs/${digest}`;
          const whole = Buffer.from(await (await fetch(address)).arrayBuffer());
          assert.equal(`sha256:${sha256(whole)}`, digest);
          assert.ok((compression === "none" ? whole : zstdDecompressSync(whole)).equals(image.layers[0]!.tar));
          for (const [start, end] of [
            [0, 1],
            [511, 513],
            [1_000_000, 2_500_000],
            [size - 1, size],
            [700, size],
          ] as const) {
            const answer = await fetch(address, { headers: { range: `bytes=${start}-${end - 1}` } });
            assert.equal(answer.status, 206);
            const bytes = Buffer.from(await answer.arrayBuffer());
            assert.ok(bytes.equals(whole.subarray(start, end)), `bytes ${start} to ${end}`);
          }
          const head = await fetch(address, { method: "HEAD" });
          assert.equal(head.headers.get("content-length"), String(size));
        });
      }));

    test(`storeProvider() breaks the connection before the end of a damaged layer, with compression ${compression}`, () =>
      inWorld(async ({ store, path }) => {
        await serving(store, { compression }, async (registry, errors) => {
          const manifests = `${registry.url}/v2/library/app/manifests/1`;
          const { layers } = (await (await fetch(manifests)).json()) as { layers: { digest: string }[] };
          damage(path("store"));
          const answer = await fetch(`${registry.url}/v2/library/app/blobs/${layers[0]!.digest}`);
          assert.equal(answer.status, 200);
          await assert.rejects(answer.arrayBuffer());
          assert.ok(ShaleError.is(errors[0], "DATA_LOSS"), String(errors[0]));
          await withStore(path("other"), async (other) => {
            await assert.rejects(pullFrom(other, registry, "library/app:1"), ShaleError);
            assert.deepEqual(other.listImages(), []);
          });
          assert.deepEqual(readdirSync(path("store/leases")), []);
        });
      }));
  }

  test("storeProvider() finds manifests by the digest that it gives them, also in a new process", () =>
    inWorld(async ({ store, image }) => {
      for (const compression of ["none", "zstd"] as const) {
        let digest = "";
        await serving(store, { compression }, async ({ url }) => {
          const answer = await fetch(`${url}/v2/library/app/manifests/1`);
          digest = answer.headers.get("docker-content-digest")!;
          assert.equal(`sha256:${sha256(Buffer.from(await answer.arrayBuffer()))}`, digest);
        });
        await serving(store, { compression }, async ({ url }) => {
          assert.equal((await fetch(`${url}/v2/library/app/manifests/${digest}`)).status, 200);
          // as it was pulled, with gzip layers, which are gone
          assert.equal((await fetch(`${url}/v2/library/app/manifests/${image.manifest.digest}`)).status, 404);
        });
      }
    }));

  test("storeProvider() serves a manifest of plain tars under the digest that it was pulled by", () =>
    inWorld(async ({ store, path }) => {
      await saveImages(store, ["app:1"], { output: path("plain/") });
      const { digest } = openOciLayout(path("plain")).get("1");
      await loadImages(store, path("plain"), { name: `docker.io/library/plain@${digest}` });
      await serving(store, {}, async ({ url }) => {
        const answer = await fetch(`${url}/v2/library/plain/manifests/${digest}`);
        assert.deepEqual(Buffer.from(await answer.arrayBuffer()), blob(path("plain"), digest));
      });
    }));

  test("storeProvider() sees images that come and go, and answers 404 for what is gone", () =>
    inWorld(async ({ store, image, path }) => {
      await serving(store, {}, async ({ url }) => {
        const status = async (path: string) => (await fetch(`${url}/v2/${path}`)).status;
        const layer = `blobs/${image.diffIds[0]}`;
        assert.equal(await status("library/web/manifests/1"), 404);
        await pullImage(store, await layoutOrigin(path("source"), "v1"), { name: "docker.io/library/web:1" });
        assert.equal(await status("library/web/manifests/1"), 200);
        assert.equal(await status(`library/web/${layer}`), 200);
        store.removeImage("docker.io/library/web:1");
        store.removeImage(APP);
        assert.equal(await status("library/web/manifests/1"), 404);
        assert.equal(await status(`library/web/${layer}`), 404);
      });
    }));

  test("storeProvider() keeps a layer that is about to be sent when its image is removed and collected", () =>
    inWorld(async ({ store, image, path }) => {
      await using provider = storeProvider(store);
      const served = await provider.openBlob("library/app", image.layers[0]!.diffId as string as Descriptor["digest"], {
        signal: new AbortController().signal,
      });
      assert.ok(served);
      store.removeImage(APP);
      collect(store);
      assert.equal(store.findLayer(image.diffIds[0]!), undefined);
      const parts: Uint8Array[] = [];
      for await (const piece of served.read(0, served.size, { signal: new AbortController().signal }))
        parts.push(piece);
      assert.ok(Buffer.concat(parts).equals(image.layers[0]!.tar));
      await served.close?.();
      collect(store);
      assert.deepEqual(readdirSync(path("store/layers")), []);
    }));

  test("storeProvider() lets other requests through while a layer is rebuilt", () =>
    inWorld(async ({ store, image }) => {
      await using provider = storeProvider(store);
      const signal = new AbortController().signal;
      const served = await provider.openBlob("library/app", image.layers[0]!.diffId as string as Descriptor["digest"], {
        signal,
      });
      let turns = 0;
      const count = () => {
        turns++;
        immediate = setImmediate(count);
      };
      let immediate = setImmediate(count);
      for await (const _ of served!.read(0, served!.size, { signal })); // the socket takes everything at once
      clearImmediate(immediate);
      await served!.close?.();
      assert.ok(turns >= 2, `${turns} turns in ${served!.size} bytes`);
    }));
});

describe("command line", () => {
  const shale = (root: string, ...args: string[]) =>
    run(process.execPath, [MAIN, "--root", root, ...args], { encoding: "utf8" });

  test("save, load and serve print what they did, as text and as JSON, and serve ends by SIGTERM with 0", () =>
    inWorld(async ({ path, image }) => {
      const saved = await shale(path("store"), "-q", "save", "app:1", "-o", path("app.tar"));
      assert.match(saved.stdout, /app\.tar: app:1 as a docker archive; 2 layers written \(3\.\d+ MB\)\n$/);
      const loaded = await shale(path("other"), "-q", "--json", "load", path("app.tar"));
      const { images } = JSON.parse(loaded.stdout) as { images: { name: string; layers: { diffId: string }[] }[] };
      assert.equal(images[0]!.name, APP);
      assert.deepEqual(
        images[0]!.layers.map((layer) => layer.diffId),
        image.diffIds,
      );

      const args = [MAIN, "--root", path("other"), "--json", "serve", "--addr", "127.0.0.1:0"];
      const server = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
      const ended = new Promise((resolve) => server.on("close", resolve));
      try {
        let text = "";
        for await (const chunk of server.stdout) {
          text += String(chunk);
          if (text.endsWith("}\n")) break;
        }
        const { url } = JSON.parse(text) as { url: string };
        assert.equal((await fetch(`${url}/v2/library/app/manifests/1`)).status, 200);
      } finally {
        server.kill("SIGTERM");
      }
      assert.equal(await ended, 0);
    }));

  test("save refuses to run without an output, and with a wrong address serve does", () =>
    inWorld(async ({ path }) => {
      const wrong = [
        [["save", "app:1"], /--output is missing/],
        [["serve", "--addr", "nowhere"], /is not HOST:PORT/],
        [["serve", "--addr", "127.0.0.1:99999"], /is not HOST:PORT/],
      ] as const;
      for (const [args, says] of wrong) {
        await assert.rejects(shale(path("store"), ...args), (error: { code: number; stderr: string }) => {
          assert.equal(error.code, 2);
          assert.match(error.stderr, says);
          return true;
        });
      }
    }));
});
