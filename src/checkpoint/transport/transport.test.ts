/** To Debian's docker-registry and back, with skopeo as the judge. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { gunzipSync, gzipSync, zstdCompressSync, zstdDecompressSync } from "node:zlib";
import { ShaleError } from "../../errors/index.ts";
import { digestOf, MediaType, parseReference } from "../../oci/index.ts";
import { type DockerRegistry, startDockerRegistry } from "../../registry/testing/docker-registry.ts";
import { testClient } from "../../registry/testing/fixtures.ts";
import { containerdArchive, crioArchive, podmanArchive, tarOf } from "../testing/sample-archives.ts";
import { pullCheckpoint, pushCheckpoint } from "./index.ts";

const directory = mkdtempSync(join(tmpdir(), "shale-transport-"));
let registry: DockerRegistry;
before(async () => {
  registry = await startDockerRegistry(join(directory, "registry"));
});
after(async () => {
  await registry.stop();
  rmSync(directory, { recursive: true, force: true });
});

let count = 0;
function archiveFile(bytes: Uint8Array): string {
  const path = join(directory, `${count++}.tar`);
  writeFileSync(path, bytes);
  return path;
}
const refer = (rest: string) => parseReference(`${registry.host}/${rest}`);
const patient = () => testClient({ stallTimeoutMs: 10_000 });

function skopeo(...parameters: string[]): string {
  return execFileSync("skopeo", parameters, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
}

describe("pushCheckpoint()", () => {
  for (const [dialect, bytes] of [
    ["podman", podmanArchive()],
    ["crio", crioArchive()],
    ["containerd", containerdArchive()],
  ] as const) {
    test(`an archive of ${dialect} comes back bit for bit, with the annotations of all engines`, async () => {
      await using one = patient();
      const reference = refer(`checkpoint/${dialect}:v1`);
      const pushed = await pushCheckpoint(one.client, archiveFile(bytes), reference);
      const manifest: unknown = JSON.parse(
        skopeo("inspect", "--raw", "--tls-verify=false", `docker://${registry.host}/checkpoint/${dialect}:v1`),
      );
      assert.ok(typeof manifest === "object" && manifest !== null && "annotations" in manifest);
      const annotations = manifest.annotations as Readonly<Record<string, string>>;
      for (const key of [
        "io.podman.annotations.checkpoint.name",
        "io.kubernetes.cri-o.annotations.checkpoint.name",
        "org.criu.checkpoint.container.name",
      ]) {
        assert.equal(annotations[key], "counter");
      }
      assert.equal(annotations["org.criu.checkpoint.rootfsImageName"], "docker.io/library/httpd:2.4");
      assert.equal(annotations["org.criu.checkpoint.host.arch"], "amd64");
      if (dialect !== "podman") assert.equal(annotations["org.criu.checkpoint.pod.name"], "web");
      const output = join(directory, `${dialect}.back.tar`);
      const pulled = await pullCheckpoint(one.client, reference, output);
      assert.ok(readFileSync(output).equals(bytes));
      assert.equal(statSync(output).mode & 0o777, 0o600);
      assert.deepEqual([pulled.name, pulled.diffId, pulled.digest], ["counter", digestOf(bytes), pushed.digest]);
    });
  }

  for (const [compression, decompress] of [
    ["none", (bytes: Buffer) => bytes],
    ["gzip", gunzipSync],
    ["zstd", zstdDecompressSync],
  ] as const) {
    test(`${compression}: skopeo copies the image, and the layer is the archive`, async () => {
      await using one = patient();
      const bytes = podmanArchive();
      const name = `kinds/${compression}`;
      const pushed = await pushCheckpoint(one.client, archiveFile(bytes), refer(`${name}:v1`), { compression });
      const layout = join(directory, `layout-${compression}`);
      const copy = ["--insecure-policy", "copy", "--quiet", "--preserve-digests", "--src-tls-verify=false"];
      skopeo(...copy, `docker://${registry.host}/${name}:v1`, `oci:${layout}:v1`);
      const blob = readFileSync(join(layout, "blobs/sha256", pushed.layer.digest.slice(7)));
      assert.ok(Buffer.from(decompress(blob)).equals(bytes));
      assert.equal(blob.length, pushed.layer.size);
    });
  }

  for (const [name, compress, mediaType] of [
    ["gzip", gzipSync, MediaType.OCI_LAYER_GZIP],
    ["zstd", zstdCompressSync, MediaType.OCI_LAYER_ZSTD],
  ] as const) {
    test(`an archive that ${name} compressed goes as it is, once`, async () => {
      await using one = patient();
      const bytes = podmanArchive({ name: `as-${name}` });
      const file = compress(bytes);
      const path = archiveFile(file);
      const first = await pushCheckpoint(one.client, path, refer(`asis/${name}:v1`));
      assert.deepEqual(first.layer, { digest: digestOf(file), size: file.length, mediaType });
      assert.deepEqual([first.how, first.diffId], ["uploaded", digestOf(bytes)]);
      assert.equal((await pushCheckpoint(one.client, path, refer(`asis/${name}:v2`))).how, "present");
      const mounted = await pushCheckpoint(one.client, path, refer(`elsewhere/${name}:v1`), {
        mountFrom: `asis/${name}`,
      });
      assert.equal(mounted.how, "mounted");
      const output = join(directory, `asis-${name}.tar`);
      await pullCheckpoint(one.client, refer(`asis/${name}:v1`), output);
      assert.ok(readFileSync(output).equals(bytes));
    });
  }

  test("more annotations win over those of the archive", async () => {
    await using one = patient();
    const more = { "org.criu.checkpoint.criu.version": "4.2.1", "org.criu.checkpoint.engine.name": "other" };
    const path = archiveFile(podmanArchive());
    const { annotations } = await pushCheckpoint(one.client, path, refer("more:v1"), { annotations: more });
    assert.equal(annotations["org.criu.checkpoint.criu.version"], "4.2.1");
    assert.equal(annotations["org.criu.checkpoint.engine.name"], "other");
  });

  test("what is no archive is refused before anything is sent", async () => {
    await using one = patient();
    for (const bytes of [Buffer.from("no tar at all"), podmanArchive().subarray(0, 20_000), Buffer.alloc(0)]) {
      const pushing = pushCheckpoint(one.client, archiveFile(bytes), refer("broken:v1"));
      await assert.rejects(pushing, (error) => ShaleError.is(error, "INVALID_ARGUMENT"));
    }
    await assert.rejects(one.client.resolve(refer("broken:v1")), { code: "NOT_FOUND" });
  });
});

describe("pullCheckpoint()", () => {
  test("refuses images that are no checkpoints, and leaves nothing behind", async () => {
    await using one = patient();
    const layer = tarOf([{ path: "a", content: "x" }]);
    await pushImage(one, "plain:v1", layer, digestOf(layer), {});
    const output = join(directory, "plain.tar");
    await assert.rejects(pullCheckpoint(one.client, refer("plain:v1"), output), { code: "FAILED_PRECONDITION" });
    assert.ok(!existsSync(output));
  });

  test("refuses a tar that is not what the config says, and leaves what was there", async () => {
    await using one = patient();
    const layer = podmanArchive();
    const annotations = { "org.criu.checkpoint.container.name": "x" };
    await pushImage(one, "lying:v1", layer, digestOf("another"), annotations);
    const output = join(directory, "lying.tar");
    writeFileSync(output, "what was there");
    await assert.rejects(pullCheckpoint(one.client, refer("lying:v1"), output), { code: "DATA_LOSS" });
    assert.equal(readFileSync(output, "utf8"), "what was there");
    assert.deepEqual(
      readdirSync(directory).filter((name) => name.includes("partial")),
      [],
    );
  });

  test("an aborted pull leaves nothing behind", async () => {
    await using one = patient();
    await pushCheckpoint(one.client, archiveFile(podmanArchive()), refer("aborted:v1"));
    const output = join(directory, "aborted.tar");
    const controller = new AbortController();
    const options = { signal: controller.signal, onBytes: () => controller.abort() };
    await assert.rejects(pullCheckpoint(one.client, refer("aborted:v1"), output, options));
    assert.ok(!existsSync(output) && !existsSync(`${output}.partial`));
  });
});

async function pushImage(
  { client }: ReturnType<typeof testClient>,
  name: string,
  layer: Uint8Array,
  diffId: string,
  annotations: Readonly<Record<string, string>>,
): Promise<void> {
  const reference = refer(name);
  const json = (value: unknown) => Buffer.from(JSON.stringify(value));
  const config = json({ architecture: "amd64", os: "linux", rootfs: { type: "layers", diff_ids: [diffId] } });
  await client.pushBlob(reference, [layer]);
  await client.pushBlob(reference, [config]);
  const manifest = json({
    schemaVersion: 2,
    mediaType: MediaType.OCI_MANIFEST,
    config: { mediaType: MediaType.OCI_CONFIG, digest: digestOf(config), size: config.length },
    layers: [{ mediaType: MediaType.OCI_LAYER, digest: digestOf(layer), size: layer.length }],
    annotations,
  });
  await client.pushManifest(reference, { bytes: manifest, mediaType: MediaType.OCI_MANIFEST });
}
