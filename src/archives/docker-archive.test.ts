import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { gzipSync, zstdCompressSync } from "node:zlib";
import fc from "fast-check";
import { type ErrorCode, FormatError, ShaleError } from "../errors/index.ts";
import { encodeTarHeader, TAR_END, type TarHeader, tarPadding } from "../formats/tar/index.ts";
import { type DiffId, digestOf } from "../oci/index.ts";
import { cleanName } from "./docker-members.ts";
import { type DockerArchive, type DockerArchiveContent, openDockerArchive, readFileRange } from "./index.ts";
import { openOciLayout, writeDockerArchive } from "./index.ts";

async function inDirectory(run: (directory: string) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "shale-archive-"));
  try {
    await run(directory);
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

/** One member of a hand-made tar: a file with this content, or whatever the header says. */
type Part = readonly [path: string, content: string | Uint8Array, header?: Partial<TarHeader>];

function tarOf(parts: readonly Part[]): Buffer {
  const blocks: Uint8Array[] = [];
  for (const [path, content, more] of parts) {
    const bytes = Buffer.from(content);
    blocks.push(
      encodeTarHeader({
        ...{ type: "file", path, linkTarget: "", mode: 0o644, uid: 0, gid: 0, size: bytes.length },
        ...{ mtimeSeconds: 0, mtimeNanoseconds: 0, rdevMajor: 0, rdevMinor: 0, xattrs: [] },
        ...more,
      }),
      bytes,
      tarPadding(bytes.length),
    );
  }
  return Buffer.concat([...blocks, TAR_END]);
}

/** Opens a tar of these members. */
async function open(directory: string, parts: readonly Part[] | Buffer): Promise<DockerArchive> {
  const path = join(directory, "image.tar");
  writeFileSync(path, Buffer.isBuffer(parts) ? parts : tarOf(parts));
  return openDockerArchive(path);
}

const manifestPart = (config: string, layers: readonly string[], repoTags: readonly string[] | null = null): Part => [
  "manifest.json",
  JSON.stringify([{ Config: config, RepoTags: repoTags, Layers: layers }]),
];

function layerTexts(archive: DockerArchive): string[] {
  return archive.images
    .flatMap((image) => image.layers)
    .map((range) => Buffer.concat([...readFileRange(range)]).toString());
}

test("openDockerArchive() finds configs and layers as ranges of the file", () =>
  inDirectory(async (directory) => {
    const archive = await open(directory, [
      ["./", "", { type: "directory" }],
      ["repositories", "{}"],
      ["abc/layer.tar", "first"],
      ["./def/layer.tar", "x".repeat(200_000)],
      ["config.json", "{}"],
      manifestPart("config.json", ["abc/layer.tar", "def/layer.tar"], ["app:v1", "app:latest"]),
    ]);
    assert.equal(archive.images.length, 1);
    const image = archive.images[0]!;
    assert.deepEqual(image.repoTags, ["app:v1", "app:latest"]);
    assert.equal(image.configDigest, digestOf("{}"));
    assert.deepEqual(layerTexts(archive), ["first", "x".repeat(200_000)]);
  }));

test("openDockerArchive() follows symlinks and hard links between layers, as old docker wrote them", () =>
  inDirectory(async (directory) => {
    const archive = await open(directory, [
      ["a/layer.tar", "", { type: "symlink", linkTarget: "../b/layer.tar" }],
      ["b/layer.tar", "", { type: "hardlink", linkTarget: "./c/layer.tar" }],
      ["c/layer.tar", "", { type: "symlink", linkTarget: "/d.tar" }],
      ["d.tar", "content"],
      ["c.json", "{}"],
      manifestPart("c.json", ["a/layer.tar", "d.tar"]),
    ]);
    assert.deepEqual(layerTexts(archive), ["content", "content"]);
  }));

const ok: Part = ["c.json", "{}"];
const hostile: readonly (readonly [string, readonly Part[], ErrorCode, RegExp])[] = [
  ["no manifest.json", [ok], "INVALID_ARGUMENT", /manifest\.json: is missing/],
  ["a manifest that is no JSON", [["manifest.json", "["]], "INVALID_ARGUMENT", /manifest\.json: is not JSON/],
  ["a manifest that is no list", [["manifest.json", "{}"]], "INVALID_ARGUMENT", /must be a list/],
  ["an element that is no object", [["manifest.json", "[1]"]], "INVALID_ARGUMENT", /\[0\]: must be an object/],
  ["no Config", [["manifest.json", "[{}]"]], "INVALID_ARGUMENT", /\[0\]\.Config: must be a string/],
  [
    "Layers that is no list",
    [ok, ["manifest.json", '[{"Config":"c.json","Layers":{}}]']],
    "INVALID_ARGUMENT",
    /Layers: must be a list/,
  ],
  [
    "a layer that is no string",
    [ok, ["manifest.json", '[{"Config":"c.json","Layers":[1]}]']],
    "INVALID_ARGUMENT",
    /Layers\[0\]: must be a string/,
  ],
  ["too many layers", [ok, manifestPart("c.json", Array(1025).fill("l"))], "RESOURCE_EXHAUSTED", /1025 elements/],
  ["too many images", [["manifest.json", JSON.stringify(Array(1025).fill({}))]], "RESOURCE_EXHAUSTED", /1025 images/],
  ["a missing config", [manifestPart("gone.json", [])], "INVALID_ARGUMENT", /gone\.json: is missing/],
  ["a missing layer", [ok, manifestPart("c.json", ["l.tar"])], "INVALID_ARGUMENT", /l\.tar: is missing/],
  [
    "a layer outside",
    [ok, manifestPart("c.json", ["../../etc/shadow"])],
    "INVALID_ARGUMENT",
    /etc\/shadow: is missing/,
  ],
  [
    "a link to outside",
    [ok, ["l", "", { type: "symlink", linkTarget: "../../etc/shadow" }], manifestPart("c.json", ["l"])],
    "INVALID_ARGUMENT",
    /outside of the archive/,
  ],
  [
    "a link to nothing",
    [ok, ["l", "", { type: "symlink", linkTarget: "gone" }], manifestPart("c.json", ["l"])],
    "INVALID_ARGUMENT",
    /l: is a link to gone, which is missing/,
  ],
  [
    "a circle of links",
    [ok, ["l", "", { type: "symlink", linkTarget: "l" }], manifestPart("c.json", ["l"])],
    "INVALID_ARGUMENT",
    /over more than 16/,
  ],
  [
    "a layer that is a directory",
    [ok, ["l", "", { type: "directory" }], manifestPart("c.json", ["l"])],
    "INVALID_ARGUMENT",
    /it is a directory/,
  ],
  [
    "a layer that is there twice",
    [ok, ["l", "1"], ["./l", "2"], manifestPart("c.json", ["l"])],
    "INVALID_ARGUMENT",
    /more than once/,
  ],
  ["a member that leaves the archive", [["a/../../b", ""]], "INVALID_ARGUMENT", /a\/\.\.\/\.\.\/b.*leads out/],
  [
    "a config over 8 MiB",
    [["c.json", " ".repeat((8 << 20) + 1)], manifestPart("c.json", [])],
    "RESOURCE_EXHAUSTED",
    /c\.json: has 8388609 bytes/,
  ],
  [
    "a manifest over 4 MiB",
    [["manifest.json", " ".repeat((4 << 20) + 1)]],
    "RESOURCE_EXHAUSTED",
    /manifest\.json: has/,
  ],
  [
    "a config that is not what its name says",
    [[`${"0".repeat(64)}.json`, "{}"], manifestPart(`${"0".repeat(64)}.json`, [])],
    "DATA_LOSS",
    /Cannot verify the image config/,
  ],
];

for (const [name, parts, code, text] of hostile) {
  test(`openDockerArchive() refuses ${name}`, () =>
    inDirectory((directory) => assert.rejects(open(directory, parts), failsWith(code, text))));
}

test("openDockerArchive() names the member in which an archive is cut off", () =>
  inDirectory(async (directory) => {
    const tar = tarOf([ok, manifestPart("c.json", ["l.tar"]), ["l.tar", "x".repeat(300_000)]]);
    await assert.rejects(
      open(directory, tar.subarray(0, 200_000)),
      failsWith("INVALID_ARGUMENT", /l\.tar: is cut off/),
    );
    await assert.rejects(open(directory, tar.subarray(0, 700)), FormatError);
  }));

test("openDockerArchive() returns or throws ShaleError for a damaged archive, whatever the damage", () =>
  inDirectory(async (directory) => {
    const tar = tarOf([ok, ["l.tar", "layer"], manifestPart("c.json", ["l.tar"], ["a:b"])]);
    const damage = fc.array(fc.tuple(fc.nat(tar.length - 1), fc.integer({ min: 0, max: 255 })), { maxLength: 8 });
    await fc.assert(
      fc.asyncProperty(damage, fc.nat(tar.length), async (changes, length) => {
        const copy = Buffer.from(tar);
        for (const [at, value] of changes) copy[at] = value;
        try {
          for (const text of layerTexts(await open(directory, copy.subarray(0, Math.max(length, 2048))))) {
            assert.ok(text.length <= tar.length);
          }
        } catch (error) {
          if (!(error instanceof ShaleError)) throw error;
        }
      }),
      { numRuns: 200 },
    );
  }));

test("openDockerArchive() reads compressed archives from a spool directory of the caller, and says so without one", () =>
  inDirectory(async (directory) => {
    const tar = tarOf([ok, ["l.tar", "layer"], manifestPart("c.json", ["l.tar"])]);
    for (const [name, bytes] of [
      ["gzip", gzipSync(tar)],
      ["zstd", zstdCompressSync(tar)],
    ] as const) {
      const path = join(directory, name);
      writeFileSync(path, bytes);
      await assert.rejects(
        openDockerArchive(path),
        failsWith("FAILED_PRECONDITION", new RegExp(`compressed with ${name}`)),
      );
      const spoolDirectory = join(directory, `${name}.spool`);
      mkdirSync(spoolDirectory);
      const bomb = openDockerArchive(path, { spoolDirectory, maximumSize: 1000 });
      await assert.rejects(bomb, failsWith("RESOURCE_EXHAUSTED", /1000/));
      assert.deepEqual(readdirSync(spoolDirectory), []);
      const signal = AbortSignal.abort();
      await assert.rejects(openDockerArchive(path, { spoolDirectory, signal }), failsWith("CANCELLED", /./));
      assert.deepEqual(readdirSync(spoolDirectory), []);
      assert.deepEqual(layerTexts(await openDockerArchive(path, { spoolDirectory })), ["layer"]);
    }
  }));

test("openDockerArchive() tells apart what is no file, and follows a symlink of the user", () =>
  inDirectory(async (directory) => {
    await assert.rejects(openDockerArchive(join(directory, "gone")), failsWith("NOT_FOUND", /gone/));
    await assert.rejects(openDockerArchive(directory), failsWith("FAILED_PRECONDITION", /not a regular file/));
    await open(directory, [ok, manifestPart("c.json", [])]);
    symlinkSync("image.tar", join(directory, "link"));
    assert.equal((await openDockerArchive(join(directory, "link"))).images.length, 1);
  }));

for (const [name, cleaned] of [
  ["a", "a"],
  ["./a//b/.", "a/b"],
  ["a/../b", "b"],
  ["/a", "a"],
  ["..", undefined],
  ["a/../..", undefined],
  ["./", undefined],
] as const) {
  test(`cleanName() makes ${cleaned} of ${name}`, () => assert.equal(cleanName(name), cleaned));
}

/** An image that other tools take: a config with diffIDs, layers that are tars. */
function imageOf(repoTag: string, layers: readonly Buffer[]): DockerArchiveContent {
  const diffIds = layers.map((layer) => digestOf(layer) as string as DiffId);
  const config = { architecture: "amd64", os: "linux", config: {}, rootfs: { type: "layers", diff_ids: diffIds } };
  return {
    repoTags: [repoTag],
    config: Buffer.from(JSON.stringify(config)),
    layers: layers.map((layer, i) => ({ diffId: diffIds[i]!, size: layer.length, read: () => [layer] })),
  };
}

async function written(images: readonly DockerArchiveContent[]): Promise<Buffer> {
  const pieces: Buffer[] = [];
  const size = await writeDockerArchive((bytes) => void pieces.push(Buffer.from(bytes)), images);
  const archive = Buffer.concat(pieces);
  assert.equal(archive.length, size);
  return archive;
}

const lower = tarOf([["etc/os-release", "ID=test\n"]]);
const upper = tarOf([["app", "x".repeat(100_000)]]);

test("writeDockerArchive() writes what openDockerArchive() reads, the same bytes each time, shared layers once", () =>
  inDirectory(async (directory) => {
    const images = [imageOf("app:v1", [lower]), imageOf("app:v2", [lower, upper])];
    const bytes = await written(images);
    assert.deepEqual(await written(images), bytes);
    const archive = await open(directory, bytes);
    assert.deepEqual(
      archive.images.map((image) => image.repoTags),
      [["app:v1"], ["app:v2"]],
    );
    assert.deepEqual(Buffer.from(archive.images[1]!.config), images[1]!.config);
    assert.equal(archive.images[0]!.layers[0]!.offset, archive.images[1]!.layers[0]!.offset);
    assert.deepEqual(layerTexts(archive), [lower.toString(), lower.toString(), upper.toString()]);
  }));

test("writeDockerArchive() refuses a layer that is not what its diffID and size say", async () => {
  const good = imageOf("app:v1", [lower]);
  const layer = good.layers[0]!;
  for (const [bytes, text] of [
    [upper.subarray(0, lower.length), /its digest is/],
    [lower.subarray(1), /bytes came instead of/],
    [Buffer.concat([lower, lower]), /more than/],
  ] as const) {
    const image = { ...good, layers: [{ ...layer, read: () => [bytes] }] };
    await assert.rejects(written([image]), failsWith("DATA_LOSS", text));
  }
});

test("writeDockerArchive() ends with the sink's error and by its signal", async () => {
  const full = new Error("full");
  const failing = writeDockerArchive(() => {
    throw full;
  }, [imageOf("a:b", [lower])]);
  await assert.rejects(failing, (error) => error === full);
  const signal = AbortSignal.abort();
  await assert.rejects(
    writeDockerArchive(() => undefined, [], { signal }),
    failsWith("CANCELLED", /./),
  );
});

// Peer: skopeo 1.9.3 (Debian 12); ./check installs it.
const skopeo = (...args: string[]) => execFileSync("skopeo", args, { stdio: ["ignore", "pipe", "pipe"] }).toString();

test("skopeo reads what writeDockerArchive() writes, and openDockerArchive() what skopeo writes", () =>
  inDirectory(async (directory) => {
    const ours = join(directory, "ours.tar");
    const image = imageOf("docker.io/library/app:v1", [lower, upper]);
    writeFileSync(ours, await written([image]));
    const inspected = JSON.parse(skopeo("inspect", "--raw", `docker-archive:${ours}`)) as { layers: unknown[] };
    assert.equal(inspected.layers.length, 2);
    skopeo("copy", `docker-archive:${ours}`, `oci:${join(directory, "layout")}:v1`);
    const layout = openOciLayout(join(directory, "layout"));
    const { manifest } = layout.readManifest(layout.get("v1"));
    assert.ok(manifest.kind === "manifest");
    const config = JSON.parse(Buffer.from(layout.readBlob(manifest.config, 1 << 20)).toString()) as {
      rootfs: { diff_ids: string[] };
    };
    assert.deepEqual(config.rootfs.diff_ids, [digestOf(lower), digestOf(upper)]);

    const theirs = join(directory, "theirs.tar");
    skopeo("copy", `docker-archive:${ours}`, `docker-archive:${theirs}:example.org/app:v2`);
    const archive = await openDockerArchive(theirs);
    assert.deepEqual(archive.images[0]!.repoTags, ["example.org/app:v2"]);
    assert.equal(archive.images[0]!.configDigest, digestOf(image.config));
    assert.deepEqual(layerTexts(archive), [lower.toString(), upper.toString()]);
    assert.ok(readFileSync(theirs).includes("repositories"), "skopeo writes the legacy files too");
  }));
