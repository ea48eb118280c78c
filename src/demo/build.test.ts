import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { gunzipSync } from "node:zlib";
import { type OciLayout, openOciLayout } from "../archives/index.ts";
import { ShaleError } from "../errors/index.ts";
import { TarDecoder, type TarEntry } from "../formats/tar/index.ts";
import { checkLayerCount, decodeImageConfig, digestOf, type Manifest } from "../oci/index.ts";
import { buildDemoImage, type DemoImage } from "./index.ts";
import { type BuiltEntry, stackLayers } from "./tree.ts";

const size = { files: 400, bytes: 2 << 20, programs: ["ls", "cat"] };

async function inDirectory(run: (directory: string) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "shale-demo-"));
  try {
    await run(directory);
  } finally {
    rmSync(directory, { recursive: true });
  }
}

function imageManifest(layout: OciLayout, tag: string): Manifest {
  const { manifest } = layout.readManifest(layout.get(tag));
  assert.ok(manifest.kind === "manifest");
  return manifest;
}

/** The entries of a layer as another reader sees them: the tar decoder over the decompressed blob. */
function readEntries(tar: Uint8Array): BuiltEntry[] {
  const entries: BuiltEntry[] = [];
  let current: TarEntry | undefined;
  let hash = createHash("sha256");
  const decoder = new TarDecoder({
    raw: () => undefined,
    entry: (entry) => {
      current = entry;
      hash = createHash("sha256");
    },
    payload: (bytes) => void hash.update(bytes),
    endEntry: () => {
      const { segments: _, headerOffset: _offset, ignoredRecords: _ignored, ...header } = current!;
      const entry = { ...header, path: header.path.replace(/\/$/, "") };
      entries.push(entry.type === "file" ? { ...entry, sha256: hash.digest("hex") } : entry);
    },
  });
  decoder.write(tar);
  decoder.end();
  return entries;
}

test("buildDemoImage() makes two images whose tars hold what their trees say, and the same again", () =>
  inDirectory(async (directory) => {
    const target = join(directory, "one");
    const reports: [number, number][] = [];
    const images = await buildDemoImage({
      targetLayoutDir: target,
      size,
      progress: (done, total) => reports.push([done, total]),
    });
    const layout = openOciLayout(target);
    assert.deepEqual(layout.listNames(), ["v1", "v2"]);
    for (const image of [images.v1, images.v2]) checkImage(layout, image);
    assert.ok(
      reports.length > 0 && reports.every(([done, total], i) => done <= total && done > (reports[i - 1]?.[0] ?? 0)),
    );

    // Most files of the rebuilt layer are those of version 1; some are changed, removed, added.
    const shared = [...images.v2.tree].filter(([path, entry]) => images.v1.tree.get(path)?.sha256 === entry.sha256);
    assert.ok(shared.length > images.v2.tree.size * 0.9);
    const layers = (image: DemoImage) => image.layers.map((layer) => layer.descriptor.digest);
    assert.equal(layers(images.v2)[0], layers(images.v1)[0]);
    assert.notEqual(layers(images.v2)[1], layers(images.v1)[1]);
    assert.equal(images.v2.layers.at(-1)?.name, "changes");
    for (const gone of ["app/removed", "app/legacy/deep/file", "app/cache/old", "app/becomes-file/inside"]) {
      assert.ok(images.v1.tree.has(gone) && !images.v2.tree.has(gone), gone);
    }

    const again = await buildDemoImage({ targetLayoutDir: join(directory, "two"), size });
    assert.equal(again.v1.manifest.digest, images.v1.manifest.digest);
    assert.equal(again.v2.manifest.digest, images.v2.manifest.digest);
  }));

function checkImage(layout: OciLayout, image: DemoImage): void {
  const manifest = imageManifest(layout, image.tag);
  const config = decodeImageConfig(layout.readBlob(manifest.config, 1 << 20));
  checkLayerCount(manifest, config);
  assert.equal(config.history.length, manifest.layers.length);
  const layers = manifest.layers.map((descriptor, i) => {
    const tar = gunzipSync(readFileSync(layout.getBlob(descriptor).path));
    assert.equal(digestOf(tar), config.diffIds[i]);
    const entries = readEntries(tar);
    assert.equal(entries.length, image.layers[i]!.entries);
    return entries;
  });
  assert.deepEqual(stackLayers(layers), image.tree);
  for (const path of image.tree.keys()) {
    if (path !== ".") assert.equal(image.tree.get(path.replace(/\/?[^/]*$/, "") || ".")?.type, "directory", path);
  }
}

const needsRoot = process.getuid?.() !== 0 && "chroot needs root";

test("A program of buildDemoImage() runs in a chroot of what GNU tar extracts", { skip: needsRoot }, () =>
  inDirectory(async (directory) => {
    const target = join(directory, "layout");
    await buildDemoImage({ targetLayoutDir: target, size });
    const layout = openOciLayout(target);
    const root = join(directory, "root");
    mkdirSync(root);
    for (const layer of imageManifest(layout, "v1").layers) {
      execFileSync("tar", ["-xzf", layout.getBlob(layer).path, "-C", root], { stdio: ["ignore", "ignore", "ignore"] });
    }
    const said = execFileSync("chroot", [root, "/app/hello-again"]).toString();
    assert.match(said, /^Hello from version 1, /);
    assert.match(execFileSync("chroot", [root, "/bin/ls", "/app/data"]).toString(), /^000\.txt\n/);
  }),
);

test("buildDemoImage() stops by its signal and leaves no image", () =>
  inDirectory(async (directory) => {
    const stop = new AbortController();
    const building = buildDemoImage({
      ...{ targetLayoutDir: directory, size, signal: stop.signal },
      progress: () => stop.abort(),
    });
    await assert.rejects(building, (error) => ShaleError.is(error, "CANCELLED"));
    assert.throws(
      () => openOciLayout(directory),
      (error) => ShaleError.is(error, "NOT_FOUND"),
    );
  }));
