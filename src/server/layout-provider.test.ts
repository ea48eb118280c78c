import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { OciLayoutWriter, openOciLayout } from "../archives/index.ts";
import { encodeTarHeader, TAR_END, tarPadding } from "../formats/tar/index.ts";
import { type Descriptor, digestOf, MediaType, parseReference } from "../oci/index.ts";
import { RegistryClient } from "../registry/index.ts";
import { layoutProvider, startRegistry } from "./index.ts";

const content = Buffer.alloc(3 << 20, "not all the same ");
const layer = Buffer.concat([
  encodeTarHeader({
    ...{ type: "file", path: "file", linkTarget: "", mode: 0o644, uid: 0, gid: 0, size: content.length },
    ...{ mtimeSeconds: 0, mtimeNanoseconds: 0, rdevMajor: 0, rdevMinor: 0, xattrs: [] },
  }),
  content,
  tarPadding(content.length),
  TAR_END,
]);

async function addImage(writer: OciLayoutWriter, tag: string): Promise<Descriptor> {
  const layerBlob = await writer.writeBlob([layer]);
  const rootfs = { type: "layers", diff_ids: [layerBlob.digest] };
  const config = { architecture: "amd64", os: "linux", author: tag, rootfs };
  const configBlob = await writer.writeBlob([Buffer.from(JSON.stringify(config))]);
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: MediaType.OCI_MANIFEST,
      config: { mediaType: MediaType.OCI_CONFIG, ...configBlob },
      layers: [{ mediaType: MediaType.OCI_LAYER, ...layerBlob }],
    }),
  );
  const descriptor = {
    ...(await writer.writeBlob([manifest])),
    ...{ mediaType: MediaType.OCI_MANIFEST, annotations: {}, urls: [] },
  };
  writer.addImage(descriptor, { tag });
  writer.commit();
  return descriptor;
}

async function withLayout(run: (directory: string, writer: OciLayoutWriter) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "shale-serve-"));
  try {
    using writer = await OciLayoutWriter.open(join(directory, "layout"));
    await run(directory, writer);
  } finally {
    rmSync(directory, { recursive: true });
  }
}

test("layoutProvider() serves a layout, and images added to it later", () =>
  withLayout(async (directory, writer) => {
    const v1 = await addImage(writer, "v1");
    await using server = await startRegistry(layoutProvider(join(directory, "layout"), "demo/app"));
    const get = (path: string) => fetch(`${server.url}/v2/${path}`);
    assert.equal((await get("demo/app/manifests/v2")).status, 404);
    const v2 = await addImage(writer, "v2");
    for (const [reference, { digest }] of [
      ["v1", v1],
      ["v2", v2],
      [v1.digest, v1],
    ] as const) {
      const response = await get(`demo/app/manifests/${reference}`);
      assert.equal(response.headers.get("docker-content-digest"), digest);
      assert.equal(digestOf(await response.bytes()), digest);
    }
    const blob = await (await get(`demo/app/blobs/${digestOf(layer)}`)).bytes();
    assert.ok(Buffer.from(blob).equals(layer));
    assert.deepEqual(await (await get("demo/app/tags/list")).json(), { name: "demo/app", tags: ["v1", "v2"] });
    assert.deepEqual(await (await get("_catalog")).json(), { repositories: ["demo/app"] });
    for (const path of ["other/manifests/v1", `other/blobs/${digestOf(layer)}`, "other/tags/list"]) {
      assert.equal((await get(path)).status, 404, path);
    }
    assert.equal((await get(`demo/app/blobs/${digestOf("none")}`)).status, 404);
  }));

test("RegistryClient pulls from startRegistry() and layoutProvider(), whole and by range", () =>
  withLayout(async (directory, writer) => {
    const v1 = await addImage(writer, "v1");
    await using server = await startRegistry(layoutProvider(join(directory, "layout"), "demo/app"));
    await using client = new RegistryClient({ hostsDirs: [], env: {} });
    const reference = parseReference(`${server.host}:${server.port}/demo/app:v1`);
    const { descriptor, bytes } = await client.resolve(reference);
    assert.equal(descriptor.digest, v1.digest);
    assert.equal(digestOf(bytes), v1.digest);
    const blob: Descriptor = {
      ...{ mediaType: MediaType.OCI_LAYER, digest: digestOf(layer), size: layer.length },
      ...{ annotations: {}, urls: [] },
    };
    const read = async (range: { offset?: number; end?: number }) => {
      const pieces: Uint8Array[] = [];
      for await (const piece of client.openBlob(reference, blob, range)) pieces.push(Buffer.from(piece));
      return Buffer.concat(pieces);
    };
    assert.ok((await read({})).equals(layer));
    assert.ok((await read({ offset: 1000, end: 2_000_000 })).equals(layer.subarray(1000, 2_000_000)));
  }));

// Peer: skopeo 1.9.3 (Debian 12); ./check installs it.
test("skopeo copies an image out of startRegistry() and layoutProvider()", () =>
  withLayout(async (directory, writer) => {
    const v1 = await addImage(writer, "v1");
    await using server = await startRegistry(layoutProvider(join(directory, "layout"), "demo/app"));
    const source = `docker://${server.host}:${server.port}/demo/app:v1`;
    const args = ["--src-tls-verify=false", "--preserve-digests", "--dest-oci-accept-uncompressed-layers"];
    await promisify(execFile)("skopeo", ["copy", ...args, source, `oci:${join(directory, "copy")}:v1`]);
    const copy = openOciLayout(join(directory, "copy"));
    assert.equal(copy.get("v1").digest, v1.digest);
    assert.equal(copy.findBlob(digestOf(layer))?.length, layer.length);
  }));
