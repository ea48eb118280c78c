/** The client against Debian's docker-registry, with an image that skopeo pushed. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { ShaleError } from "../errors/index.ts";
import {
  checkLayerCount,
  decodeImageConfig,
  decodeManifest,
  digestOf,
  type Manifest,
  parseReference,
} from "../oci/index.ts";
import type { RegistryClient } from "./index.ts";
import { type DockerRegistry, startDockerRegistry } from "./testing/docker-registry.ts";
import { collect, testClient } from "./testing/fixtures.ts";

const USER = "someone";
const PASSWORD = "a:pass word";
/** python3.11 -c 'from crypt import *; print(crypt("a:pass word", mksalt(METHOD_BLOWFISH, rounds=16)))' */
const BCRYPT = "$2b$04$gzgidfsZzoVbNoP5gP4xL.BgD04VjYPg3vRvV8xZMp5BisUhgCll.";

const LAYER = randomBytes(3_000_000);
const directory = mkdtempSync(join(tmpdir(), "shale-docker-registry-"));
const registries: DockerRegistry[] = [];
let open: string;
let guarded: string;

before(async () => {
  const layout = writeLayout(join(directory, "layout"));
  writeFileSync(join(directory, "htpasswd"), `${USER}:${BCRYPT}\n`);
  const start = async (name: string, more: string) => {
    const registry = await startDockerRegistry(join(directory, name), more);
    registries.push(registry);
    return registry.host;
  };
  open = await start("open", "");
  guarded = await start("guarded", `auth: {htpasswd: {realm: test, path: ${join(directory, "htpasswd")}}}\n`);
  push(layout, open, []);
  push(layout, guarded, ["--dest-creds", `${USER}:${PASSWORD}`]);
});

after(async () => {
  for (const registry of registries) await registry.stop();
  rmSync(directory, { recursive: true, force: true });
});

/** An OCI layout with one image "x" of one layer, uncompressed and compressed bytes being the same. */
function writeLayout(path: string): string {
  mkdirSync(join(path, "blobs/sha256"), { recursive: true });
  const put = (content: Uint8Array, mediaType: string) => {
    const hex = createHash("sha256").update(content).digest("hex");
    writeFileSync(join(path, "blobs/sha256", hex), content);
    return { mediaType, digest: `sha256:${hex}`, size: content.length };
  };
  const json = (value: unknown) => Buffer.from(JSON.stringify(value));
  const layer = put(LAYER, "application/vnd.oci.image.layer.v1.tar");
  const rootfs = { type: "layers", diff_ids: [layer.digest] };
  const config = put(
    json({ architecture: "amd64", os: "linux", config: {}, rootfs }),
    "application/vnd.oci.image.config.v1+json",
  );
  const mediaType = "application/vnd.oci.image.manifest.v1+json";
  const manifest = put(json({ schemaVersion: 2, mediaType, config, layers: [layer] }), mediaType);
  const annotations = { "org.opencontainers.image.ref.name": "x" };
  writeFileSync(join(path, "index.json"), json({ schemaVersion: 2, manifests: [{ ...manifest, annotations }] }));
  writeFileSync(join(path, "oci-layout"), '{"imageLayoutVersion":"1.0.0"}');
  return path;
}

function push(layout: string, registry: string, credentials: readonly string[]): void {
  const policy = ["--insecure-policy", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"];
  execFileSync("skopeo", [...policy, ...credentials, `oci:${layout}:x`, `docker://${registry}/some/image:v1`], {
    stdio: "pipe",
  });
}

async function pull(client: RegistryClient, registry: string): Promise<void> {
  const reference = parseReference(`${registry}/some/image:v1`);
  const { descriptor, bytes } = await client.resolve(reference);
  const manifest = decodeManifest(bytes, descriptor.mediaType) as Manifest;
  checkLayerCount(manifest, decodeImageConfig(await client.fetchConfig(reference, manifest.config)));
  const [layer] = manifest.layers;
  assert.equal(digestOf(await collect(client.openBlob(reference, layer!))), layer!.digest);
  const middle = await collect(client.openBlob(reference, layer!, { offset: 1_000_000, end: 1_000_100 }));
  assert.ok(middle.equals(LAYER.subarray(1_000_000, 1_000_100)));
  const again = await client.resolve(parseReference(`${registry}/some/image@${descriptor.digest}`));
  assert.deepEqual(again, { descriptor, bytes });
}

test("docker-registry: resolve, config, blob, range", async () => {
  await using one = testClient({ stallTimeoutMs: 120_000 });
  await pull(one.client, open);
  await assert.rejects(one.client.resolve(parseReference(`${open}/some/image:other`)), (error) => {
    assert.ok(ShaleError.is(error, "NOT_FOUND"));
    assert.match(error.message, /it is not there \(HTTP 404: MANIFEST_UNKNOWN manifest unknown\)/);
    return true;
  });
});

test("docker-registry with htpasswd: with the password, with a wrong one, without", async () => {
  const authFile = join(directory, "auth.json");
  const login = (password: string) => {
    const auth = Buffer.from(`${USER}:${password}`).toString("base64");
    writeFileSync(authFile, JSON.stringify({ auths: { [guarded]: { auth } } }));
  };
  login(PASSWORD);
  await using one = testClient({ authFile, stallTimeoutMs: 120_000 });
  await pull(one.client, guarded);
  login("wrong");
  await using wrong = testClient({ authFile, stallTimeoutMs: 120_000 });
  await assert.rejects(pull(wrong.client, guarded), { code: "UNAUTHENTICATED" });
  await using none = testClient({ stallTimeoutMs: 120_000 });
  await assert.rejects(pull(none.client, guarded), { code: "UNAUTHENTICATED" });
});
