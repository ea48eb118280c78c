import assert from "node:assert/strict";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { type ErrorCode, FormatError, ShaleError } from "../errors/index.ts";
import { type Descriptor, type Digest, digestOf, MediaType } from "../oci/index.ts";
import { type EffectKind, injectFault } from "../sys/index.ts";
import { type OciLayout, OciLayoutWriter, openOciLayout, readFileRange } from "./index.ts";

/** Runs with a directory of its own, which is removed. */
async function inDirectory(run: (directory: string) => Promise<void> | void): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "shale-layout-"));
  try {
    await run(directory);
  } finally {
    rmSync(directory, { recursive: true });
  }
}

function failsWith(code: ErrorCode, text?: RegExp) {
  return (error: unknown) => {
    assert.ok(ShaleError.is(error, code), String(error));
    if (text !== undefined) assert.match(error.message, text);
    return true;
  };
}

const descriptorOf = (bytes: Uint8Array, mediaType: string): Descriptor => ({
  mediaType,
  digest: digestOf(bytes),
  size: bytes.length,
  annotations: {},
  urls: [],
});

/** A manifest that differs by `label`; its blobs need not exist for the tests here. */
function manifestOf(label: string): Buffer {
  const config = { mediaType: MediaType.OCI_CONFIG, digest: digestOf(label), size: 2 };
  return Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: MediaType.OCI_MANIFEST, config, layers: [] }));
}

async function addManifest(writer: OciLayoutWriter, label: string, names: Parameters<OciLayoutWriter["addImage"]>[1]) {
  const bytes = manifestOf(label);
  await writer.writeBlob([bytes]);
  const descriptor = descriptorOf(bytes, MediaType.OCI_MANIFEST);
  writer.addImage(descriptor, names);
  return descriptor;
}

/** A layout with the given index entries (and no blobs but those written by the test). */
function handMade(directory: string, manifests: readonly object[]): OciLayout {
  mkdirSync(join(directory, "blobs/sha256"), { recursive: true });
  writeFileSync(join(directory, "oci-layout"), '{"imageLayoutVersion": "1.0.0"}');
  writeFileSync(join(directory, "index.json"), JSON.stringify({ schemaVersion: 2, manifests }));
  return openOciLayout(directory);
}

const blobFile = (directory: string, digest: Digest) => join(directory, "blobs/sha256", digest.slice(7));

test("OciLayoutWriter makes a layout that openOciLayout() reads, and adds to it later", () =>
  inDirectory(async (directory) => {
    const target = join(directory, "new/layout");
    const writer = await OciLayoutWriter.open(target);
    const v1 = await addManifest(writer, "1", { tag: "v1", fullName: "example.org/app:v1" });
    writer.commit();
    const v2 = await addManifest(writer, "2", { tag: "v2" });
    writer.commit();
    writer.close();
    writer.close();

    const layout = openOciLayout(target);
    assert.deepEqual(layout.listNames(), ["v1", "v2"]);
    assert.equal(layout.get("v1").digest, v1.digest);
    assert.equal(layout.get("example.org/app:v1").digest, v1.digest);
    assert.equal(layout.get(v2.digest).digest, v2.digest);
    assert.equal(layout.find("v3"), undefined);
    const { bytes, manifest } = layout.readManifest(v2);
    assert.deepEqual(Buffer.from(bytes), manifestOf("2"));
    assert.equal(manifest.kind, "manifest");
    assert.deepEqual(readdirSync(target).sort(), ["blobs", "index.json", "oci-layout"]);
  }));

test("OciLayoutWriter.addImage() moves a tag, and keeps other entries and members that it does not know", () =>
  inDirectory(async (directory) => {
    const other = {
      ...{ mediaType: MediaType.OCI_MANIFEST, digest: digestOf("x"), size: 1, data: "eA==" },
      annotations: { "org.opencontainers.image.ref.name": "other" },
    };
    handMade(directory, [other]);
    const path = join(directory, "index.json");
    writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, "utf8")), subject: { a: 1 } }));
    using writer = await OciLayoutWriter.open(directory);
    await addManifest(writer, "1", { tag: "v" });
    writer.commit();
    const second = await addManifest(writer, "2", { tag: "v" });
    writer.commit();
    const index = JSON.parse(readFileSync(path, "utf8")) as { subject: unknown; manifests: { digest: string }[] };
    assert.deepEqual(index.subject, { a: 1 });
    assert.equal(index.manifests.length, 2);
    assert.deepEqual(index.manifests[0], other);
    assert.equal(index.manifests[1]?.digest, second.digest);
  }));

test("OciLayoutWriter.close() without commit() leaves index.json as it was", () =>
  inDirectory(async (directory) => {
    const target = join(directory, "l");
    {
      using writer = await OciLayoutWriter.open(target);
      await addManifest(writer, "1", { tag: "v1" });
      writer.commit();
      await addManifest(writer, "2", { tag: "v2" });
    }
    assert.deepEqual(openOciLayout(target).listNames(), ["v1"]);
  }));

test("OciLayoutWriter.writeBlob() stores nothing when size or digest differ", () =>
  inDirectory(async (directory) => {
    const target = join(directory, "l");
    using writer = await OciLayoutWriter.open(target);
    const expected = { digest: digestOf("abc"), size: 3 };
    for (const [bytes, text] of [
      ["abcd", /more than its 3 bytes/],
      ["ab", /only 2 bytes/],
      ["xyz", /its digest is sha256/],
    ] as const) {
      await assert.rejects(writer.writeBlob([Buffer.from(bytes)], { expected }), failsWith("DATA_LOSS", text));
    }
    const broken = new Error("broken");
    const source = (function* () {
      yield Buffer.from("a");
      throw broken;
    })();
    await assert.rejects(writer.writeBlob(source), (error) => error === broken);
    assert.deepEqual(readdirSync(join(target, "blobs/sha256")), []);
    assert.deepEqual(readdirSync(join(target, ".shale-tmp")), []);
    assert.deepEqual(await writer.writeBlob([Buffer.from("a"), Buffer.from("bc")], { expected }), expected);
  }));

test("OciLayoutWriter.writeBlob() keeps a blob that is there, and does not read the source", () =>
  inDirectory(async (directory) => {
    using writer = await OciLayoutWriter.open(join(directory, "l"));
    const blob = await writer.writeBlob([Buffer.from("abc")]);
    const unread = (function* (): Generator<Uint8Array> {
      yield assert.fail("the source was read");
    })();
    assert.deepEqual(await writer.writeBlob(unread, { expected: blob }), blob);
  }));

test("OciLayoutWriter.writeBlob() stops by its signal, and takes sha512", () =>
  inDirectory(async (directory) => {
    using writer = await OciLayoutWriter.open(join(directory, "l"));
    const signal = AbortSignal.abort();
    await assert.rejects(writer.writeBlob([Buffer.from("x")], { signal }), failsWith("CANCELLED"));
    const { digest } = await writer.writeBlob([Buffer.from("x")], { algorithm: "sha512" });
    assert.equal(digest, digestOf("x", "sha512"));
    assert.ok(existsSync(join(directory, "l/blobs/sha512", digest.slice(7))));
  }));

test("OciLayoutWriter.copyBlob() stores a range of a file, verified", () =>
  inDirectory(async (directory) => {
    const path = join(directory, "source");
    writeFileSync(path, `${"-".repeat(4096)}${"+".repeat(10_000)}tail`);
    using writer = await OciLayoutWriter.open(join(directory, "l"));
    const range = { path, offset: 4096, length: 10_000 };
    const wrong = { digest: digestOf("other"), size: 10_000 };
    await assert.rejects(writer.copyBlob(range, wrong), failsWith("DATA_LOSS"));
    const blob = { digest: digestOf("+".repeat(10_000)), size: 10_000 };
    await writer.copyBlob(range, blob);
    assert.ok(writer.hasBlob(blob));
    const short = { ...range, length: 100_000 };
    const expected = { digest: digestOf("n"), size: 100_000 };
    await assert.rejects(writer.copyBlob(short, expected), failsWith("DATA_LOSS"));
  }));

test("OciLayoutWriter.commit() refuses an image whose manifest was not written", () =>
  inDirectory(async (directory) => {
    using writer = await OciLayoutWriter.open(join(directory, "l"));
    writer.addImage(descriptorOf(manifestOf("1"), MediaType.OCI_MANIFEST), { tag: "v1" });
    assert.throws(() => writer.commit(), failsWith("FAILED_PRECONDITION"));
  }));

const steps: readonly EffectKind[] = ["create", "write", "datasync", "rename", "syncDirectory", "unlink", "mkdir"];
for (const kind of steps) {
  test(`OciLayoutWriter leaves the layout as it was, or as it shall be, when any ${kind} fails`, () =>
    inDirectory(async (directory) => {
      const target = join(directory, "l");
      const add = async (label: string) => {
        using writer = await OciLayoutWriter.open(target);
        await addManifest(writer, label, { tag: label });
        writer.commit();
      };
      await add("v0");
      let failures = 0;
      for (let nth = 1; nth < 50; nth++) {
        let failed = false;
        {
          using _fault = injectFault({ kind, nth, errno: "EIO" });
          await add(`v${nth}`).catch((error: unknown) => {
            assert.match(String(error), /EIO/);
            failed = true;
          });
        }
        // What is named is there and sound, whatever step failed; the next writer finds nothing in its way.
        const layout = openOciLayout(target);
        for (const name of layout.listNames()) layout.readManifest(layout.get(name));
        assert.ok(layout.find("v0"));
        if (!failed) {
          assert.ok(layout.find(`v${nth}`));
          break;
        }
        failures++;
      }
      assert.ok(failures > 0 || kind === "unlink" || kind === "mkdir", `no ${kind} was made to fail`);
      await add("last");
      assert.ok(openOciLayout(target).find("last"));
    }));
}

test("OciLayoutWriter.open() waits for another writer, and stops waiting by its signal", () =>
  inDirectory(async (directory) => {
    const target = join(directory, "l");
    const first = await OciLayoutWriter.open(target);
    const stop = new AbortController();
    const second = OciLayoutWriter.open(target, { signal: stop.signal });
    stop.abort();
    await assert.rejects(second, failsWith("CANCELLED"));
    const third = OciLayoutWriter.open(target);
    first.close();
    (await third).close();
  }));

test("OciLayoutWriter.open() removes what a killed writer left, and refuses a directory of something else", () =>
  inDirectory(async (directory) => {
    const target = join(directory, "l");
    (await OciLayoutWriter.open(target)).close();
    mkdirSync(join(target, ".shale-tmp"));
    writeFileSync(join(target, ".shale-tmp/0"), "half");
    using writer = await OciLayoutWriter.open(target);
    await writer.writeBlob([Buffer.from("x")]);
    writeFileSync(join(directory, "file"), "");
    await assert.rejects(OciLayoutWriter.open(directory), failsWith("ALREADY_EXISTS", /but file$/));
    assert.deepEqual(readdirSync(directory).sort(), ["file", "l"]);
  }));

test("OciLayout.get() without a name takes the only image, and is told of several", () =>
  inDirectory(async (directory) => {
    const entry = { mediaType: MediaType.OCI_MANIFEST, digest: digestOf("x"), size: 1 };
    assert.equal(handMade(directory, [entry]).get().digest, entry.digest);
    assert.equal(handMade(directory, [entry, entry]).get().digest, entry.digest);
    const two = handMade(directory, [entry, { ...entry, digest: digestOf("y") }]);
    assert.throws(() => two.get(), failsWith("FAILED_PRECONDITION", /2 images/));
    assert.throws(() => handMade(directory, []).get(), failsWith("NOT_FOUND"));
  }));

test("OciLayout.get() prefers the exact name, then the tag of a full reference, then nested indexes", () =>
  inDirectory(async (directory) => {
    const named = (text: string, annotations: object) => ({
      ...{ mediaType: MediaType.OCI_MANIFEST, digest: digestOf(text), size: 1 },
      annotations,
    });
    const ref = "org.opencontainers.image.ref.name";
    const nested = Buffer.from(
      JSON.stringify({ schemaVersion: 2, manifests: [named("nested", { [ref]: "inner" }), named("two", {})] }),
    );
    const index = descriptorOf(nested, MediaType.OCI_INDEX);
    const missing = { mediaType: MediaType.OCI_INDEX, digest: digestOf("sparse"), size: 1 };
    const layout = handMade(directory, [
      named("full", { [ref]: "example.org/app:v1" }),
      named("exact", { [ref]: "v1" }),
      named("containerd", { "io.containerd.image.name": "example.org/other:v7" }),
      missing,
      { mediaType: index.mediaType, digest: index.digest, size: index.size },
    ]);
    writeFileSync(blobFile(directory, index.digest), nested);
    const digest = (name: string) => layout.find(name)?.digest;
    assert.equal(digest("v1"), digestOf("exact"));
    assert.equal(digest("example.org/app:v1"), digestOf("full"));
    assert.equal(digest("v7"), digestOf("containerd"));
    assert.equal(digest("inner"), digestOf("nested"));
    assert.equal(digest(digestOf("two")), digestOf("two"));
    assert.equal(digest("p:v1"), undefined);
    assert.throws(() => layout.get("nothing"), failsWith("NOT_FOUND", /nothing/));
  }));

test("OciLayout reads blobs verified and within the limit", () =>
  inDirectory(async (directory) => {
    const layout = handMade(directory, []);
    const blob = { digest: digestOf("abc"), size: 3 };
    assert.throws(() => layout.readBlob(blob, 10), failsWith("NOT_FOUND"));
    writeFileSync(blobFile(directory, blob.digest), "abc");
    assert.equal(Buffer.from(layout.readBlob(blob, 3)).toString(), "abc");
    assert.throws(() => layout.readBlob(blob, 2), failsWith("RESOURCE_EXHAUSTED"));
    assert.throws(() => layout.readBlob({ ...blob, size: 2 }, 10), failsWith("DATA_LOSS", /says 2 bytes/));
    writeFileSync(blobFile(directory, blob.digest), "abd");
    assert.throws(() => layout.readBlob(blob, 10), failsWith("DATA_LOSS", /Cannot verify/));
    assert.deepEqual(layout.getBlob(blob), { path: blobFile(directory, blob.digest), offset: 0, length: 3 });
  }));

test("OciLayout follows symlinks to blobs (Bazel) and refuses what is not a regular file", () =>
  inDirectory(async (directory) => {
    const layout = handMade(directory, []);
    const linked = { digest: digestOf("abc"), size: 3 };
    writeFileSync(join(directory, "elsewhere"), "abc");
    symlinkSync("../../elsewhere", blobFile(directory, linked.digest));
    assert.equal(Buffer.from(layout.readBlob(linked, 3)).toString(), "abc");
    const device = { digest: digestOf("device"), size: 0 };
    symlinkSync("/dev/zero", blobFile(directory, device.digest));
    assert.throws(() => layout.readBlob(device, 10), failsWith("FAILED_PRECONDITION"));
  }));

function replace(path: string, make: (path: string) => unknown): void {
  rmSync(path);
  make(path);
}

test("openOciLayout() of files that may not be read says PERMISSION_DENIED, and which", () =>
  inDirectory((directory) => {
    const blob = { digest: digestOf("abc"), size: 3 };
    const layout = handMade(directory, []);
    writeFileSync(blobFile(directory, blob.digest), "abc");
    for (const path of [join(directory, "oci-layout"), join(directory, "index.json")]) {
      using _ = injectFault({ kind: "open", path: new RegExp(`^${path}$`), errno: "EACCES" });
      assert.throws(() => openOciLayout(directory), failsWith("PERMISSION_DENIED", new RegExp(`Cannot read ${path}`)));
    }
    using _ = injectFault({ kind: "open", path: /blobs.sha256/, errno: "EACCES" });
    assert.throws(() => layout.readBlob(blob, 3), failsWith("PERMISSION_DENIED"));
  }));

for (const [name, prepare, expected] of [
  ["no oci-layout file", (d) => rmSync(join(d, "oci-layout")), "NOT_FOUND"],
  ["an oci-layout file that is no JSON", (d) => writeFileSync(join(d, "oci-layout"), "x"), "INVALID_ARGUMENT"],
  ["another version", (d) => writeFileSync(join(d, "oci-layout"), '{"imageLayoutVersion":"2.0.0"}'), "UNIMPLEMENTED"],
  [
    "a version that String() throws for",
    (d) => writeFileSync(join(d, "oci-layout"), '{"imageLayoutVersion":{"toString":[]}}'),
    "UNIMPLEMENTED",
  ],
  ["an empty object", (d) => writeFileSync(join(d, "oci-layout"), "{}"), "UNIMPLEMENTED"],
  ["an over-long oci-layout file", (d) => writeFileSync(join(d, "oci-layout"), " ".repeat(5000)), "RESOURCE_EXHAUSTED"],
  ["no index.json", (d) => rmSync(join(d, "index.json")), "NOT_FOUND"],
  ["an index.json that is a directory", (d) => replace(join(d, "index.json"), mkdirSync), "INVALID_ARGUMENT"],
  [
    "an index.json that is a circle of symlinks",
    (d) => replace(join(d, "index.json"), (path) => symlinkSync("index.json", path)),
    "FAILED_PRECONDITION",
  ],
  ["an index.json over 4 MiB", (d) => writeFileSync(join(d, "index.json"), " ".repeat(5 << 20)), "RESOURCE_EXHAUSTED"],
  ["an index.json that is a manifest", (d) => writeFileSync(join(d, "index.json"), manifestOf("")), "INVALID_ARGUMENT"],
  [
    "a digest that leaves the directory",
    (d) =>
      writeFileSync(
        join(d, "index.json"),
        '{"schemaVersion":2,"manifests":[{"mediaType":"a/b","digest":"sha256:../../x","size":1}]}',
      ),
    "INVALID_ARGUMENT",
  ],
] as readonly (readonly [string, (directory: string) => void, ErrorCode])[]) {
  test(`openOciLayout() refuses ${name} with ${expected}`, () =>
    inDirectory((directory) => {
      handMade(directory, []);
      prepare(directory);
      assert.throws(() => openOciLayout(directory), failsWith(expected));
      if (expected === "INVALID_ARGUMENT") assert.throws(() => openOciLayout(directory), FormatError);
    }));
}

test("readFileRange() gives pieces of their own, and DATA_LOSS when the file is shorter", () =>
  inDirectory((directory) => {
    const path = join(directory, "f");
    writeFileSync(path, Buffer.alloc(600_000, "abcdefg"));
    const pieces = [...readFileRange({ path, offset: 1, length: 599_999 })];
    assert.deepEqual(Buffer.concat(pieces), Buffer.alloc(600_000, "abcdefg").subarray(1));
    assert.throws(() => [...readFileRange({ path, offset: 1, length: 600_000 })], failsWith("DATA_LOSS"));
  }));
