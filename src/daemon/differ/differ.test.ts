/** Apply against a real store and real mounts; containerd's content store as a directory, and as a service. */
import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { gunzipSync, gzipSync, zstdCompressSync } from "node:zlib";
import { ShaleError } from "../../errors/index.ts";
import { RpcServer } from "../../rpc/index.ts";
import { noise, sha256, tar } from "../../store/testing/fixtures.ts";
import { Store } from "../../store/index.ts";
import { bindMount, mountOverlay, unmount } from "../../sys/index.ts";
import { needsRoot } from "../../sys/testing/filesystems.ts";
import { contentMethods, type WireMount } from "../services/messages.ts";
import { startStoreDaemon } from "../testing/daemons.ts";

const GZIP = "application/vnd.oci.image.layer.v1.tar+gzip";
const digestOf = (bytes: Uint8Array) => `sha256:${sha256(bytes)}`;
type TestDaemon = Awaited<ReturnType<typeof startStoreDaemon>>;

/** Puts a blob where containerd's local content plugin would have it. */
function putBlob({ config }: TestDaemon, bytes: Uint8Array, digest = digestOf(bytes)) {
  const directory = join(config.containerd.root, "io.containerd.content.v1.content/blobs/sha256");
  mkdirSync(directory, { recursive: true });
  writeFileSync(join(directory, digest.slice("sha256:".length)), bytes);
  return { mediaType: GZIP, digest, size: bytes.length, annotations: {} };
}

const prepare = async ({ client, snapshots }: TestDaemon, key: string, parent = "") =>
  (await client.unary(snapshots.Prepare, { key, parent })).mounts as readonly WireMount[];

const KEY = "default/1/extract-1-abc sha256:00";

/** The files of a committed snapshot, as a container would see them. */
async function contentOf(daemon: TestDaemon, name: string): Promise<Record<string, string>> {
  const { client, snapshots, directory } = daemon;
  const key = `view-${name}`;
  const mounts = (await client.unary(snapshots.View, { key, parent: name })).mounts as readonly WireMount[];
  const target = join(directory, `mnt-${name}`);
  mkdirSync(target);
  for (const { type, source, options } of mounts) {
    if (type === "bind") bindMount(source, target, { readOnly: true });
    else {
      const lower = options
        .find((option) => option.startsWith("lowerdir="))!
        .slice("lowerdir=".length)
        .split(":");
      mountOverlay({ lower, target, name: "test" });
    }
  }
  try {
    const names = readdirSync(target, { recursive: true, withFileTypes: true });
    const files = names.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
    return Object.fromEntries(files.sort().map((path) => [path.slice(target.length), readFileSync(path, "latin1")]));
  } finally {
    unmount(target);
    await client.unary(snapshots.Remove, { key });
  }
}

describe("Apply", needsRoot, () => {
  const layer = tar({ "etc/": "", "etc/hosts": "127.0.0.1", big: noise(100_000, 1) });

  for (const [name, blob, mediaType] of [
    ["gzip", gzipSync(layer), GZIP],
    ["zstd", zstdCompressSync(layer), "application/vnd.oci.image.layer.v1.tar+zstd"],
    ["a plain tar", layer, "application/vnd.docker.image.rootfs.diff.tar"],
  ] as const) {
    test(`makes a snapshot of a layer in ${name}, and answers the tar's digest and size`, async () => {
      await using daemon = await startStoreDaemon();
      const { client, snapshots, diff, config } = daemon;
      const mounts = await prepare(daemon, KEY);
      const descriptor = { ...putBlob(daemon, blob), mediaType };
      const { applied } = await client.unary(diff.Apply, { diff: descriptor, mounts });
      assert.deepEqual(applied, {
        mediaType: "application/vnd.oci.image.layer.v1.tar",
        ...{ digest: digestOf(layer), size: layer.length, annotations: {} },
      });
      assert.deepEqual(await client.unary(diff.Apply, { diff: descriptor, mounts }), { applied }, "again is success");
      await client.unary(snapshots.Commit, { key: KEY, name: "A" });
      assert.deepEqual(await contentOf(daemon, "A"), {
        "/big": noise(100_000, 1).toString("latin1"),
        "/etc/hosts": "127.0.0.1",
      });
      await using store = Store.open(config.root);
      assert.deepEqual(
        store.listLayers().map(({ diffId }) => diffId),
        [digestOf(layer)],
      );
    });
  }

  test("stacks layers, with the whiteouts of the upper one", async () => {
    await using daemon = await startStoreDaemon();
    const { client, snapshots, diff } = daemon;
    const upper = tar({ "etc/.wh.hosts": "", "etc/motd": "hello" });
    for (const [at, bytes] of [layer, upper].entries()) {
      const mounts = await prepare(daemon, `${KEY}${at}`, at === 0 ? "" : "L0");
      await client.unary(diff.Apply, { diff: putBlob(daemon, gzipSync(bytes)), mounts });
      await client.unary(snapshots.Commit, { key: `${KEY}${at}`, name: `L${at}` });
    }
    assert.deepEqual(Object.keys(await contentOf(daemon, "L1")), ["/big", "/etc/motd"]);
  });

  test("takes a layer that the store has without reading it, and one that is wanted twice at once only once", async () => {
    await using daemon = await startStoreDaemon();
    const { client, diff } = daemon;
    const blob = gzipSync(layer);
    const descriptor = putBlob(daemon, blob);
    const keys = ["a", "b", "c"].map((name) => `${name}/1/extract-${name}`);
    const mounts = await Promise.all(keys.map((key) => prepare(daemon, key)));
    await Promise.all(mounts.map((each) => client.unary(diff.Apply, { diff: descriptor, mounts: each })));
    rmSync(join(daemon.config.containerd.root, "io.containerd.content.v1.content"), { recursive: true });
    await client.unary(diff.Apply, { diff: descriptor, mounts: await prepare(daemon, "d/1/extract-d") });
    const states = daemon.log().filter(({ message }) => message === "Stored a layer" || message === "Had a layer");
    assert.deepEqual(states.map(({ message }) => message).sort(), [...Array(3).fill("Had a layer"), "Stored a layer"]);
  });

  test("reads through containerd's socket, in the namespace of the call, where its root can't be seen", async () => {
    const blob = gzipSync(tar({ big: noise(3_000_000, 2) }));
    const seen: (string | undefined)[] = [];
    const server = new RpcServer();
    const unexpected = () => {
      throw new Error("not expected");
    };
    server.add(contentMethods(), {
      ...{ Info: unexpected, Abort: unexpected, Write: unexpected },
      async *Read({ offset }, call) {
        seen.push(call.header("containerd-namespace"));
        for (let at = offset; at < blob.length; at += 1_000_000)
          yield { offset: at, data: blob.subarray(at, at + 1_000_000) };
      },
    });
    await using daemon = await startStoreDaemon();
    await server.listen(daemon.config.containerd.address);
    await using _ = { [Symbol.asyncDispose]: () => server.close(0) };
    const { client, diff, snapshots } = daemon;
    const descriptor = { mediaType: GZIP, digest: digestOf(blob), size: blob.length, annotations: {} };
    const key = "k8s.io/7/extract-1";
    const mounts = await prepare(daemon, key);
    await client.unary(diff.Apply, { diff: descriptor, mounts });
    await client.unary(snapshots.Commit, { key, name: "A" });
    assert.equal((await contentOf(daemon, "A"))["/big"]?.length, 3_000_000);
    const other = gzipSync(tar({ other: "1" }));
    const lying = { mediaType: GZIP, digest: digestOf(other), size: other.length, annotations: {} };
    const second = await prepare(daemon, "x/1/extract-2");
    const options = { headers: { "containerd-namespace": "given" } };
    await assert.rejects(client.unary(diff.Apply, { diff: lying, mounts: second }, options), { code: "DATA_LOSS" });
    assert.deepEqual(seen, ["k8s.io", "given"]);
    assert.deepEqual(readdirSync(join(daemon.config.root, "downloads")), []);
  });

  const OTHERS: readonly {
    readonly name: string;
    readonly change: (
      daemon: TestDaemon,
    ) => Promise<{ readonly mediaType?: string; readonly mounts?: readonly WireMount[] }>;
  }[] = [
    {
      name: "mounts of somebody else",
      change: async () => ({ mounts: [{ type: "bind", source: "/tmp", target: "", options: ["rw"] }] }),
    },
    { name: "no mounts", change: async () => ({ mounts: [] }) },
    {
      name: "a container's mounts",
      change: async (daemon) => ({ mounts: await prepare(daemon, "default/1/container") }),
    },
    { name: "an encrypted layer", change: async () => ({ mediaType: `${GZIP}+encrypted` }) },
    { name: "an artifact", change: async () => ({ mediaType: "application/vnd.example+json" }) },
  ];
  for (const { name, change } of OTHERS) {
    test(`leaves ${name} to the next differ`, async () => {
      await using daemon = await startStoreDaemon();
      const { client, diff } = daemon;
      const mounts = await prepare(daemon, KEY);
      const { mediaType = GZIP, ...rest } = await change(daemon);
      const descriptor = { ...putBlob(daemon, gzipSync(layer)), mediaType };
      await assert.rejects(client.unary(diff.Apply, { diff: descriptor, mounts, ...rest }), { code: "UNIMPLEMENTED" });
    });
  }

  test("leaves a snapshot into which somebody has written to the next differ", async () => {
    await using daemon = await startStoreDaemon();
    const mounts = await prepare(daemon, KEY);
    writeFileSync(join(mounts[0]!.source, "written"), "1");
    const diff = putBlob(daemon, gzipSync(layer));
    await assert.rejects(daemon.client.unary(daemon.diff.Apply, { diff, mounts }), { code: "UNIMPLEMENTED" });
  });

  const WRONG: readonly {
    readonly name: string;
    readonly blob: Uint8Array;
    readonly digest?: string;
    readonly code: string;
  }[] = [
    {
      name: "bytes that are not what the digest says",
      blob: gzipSync(layer),
      digest: digestOf(layer),
      code: "DATA_LOSS",
    },
    { name: "a broken gzip stream", blob: gzipSync(layer).subarray(0, 500), code: "INVALID_ARGUMENT" },
    { name: "what is no tar", blob: gzipSync(noise(10_000, 3)), code: "INVALID_ARGUMENT" },
  ];
  for (const { name, blob, digest, code } of WRONG) {
    test(`refuses ${name}, and the snapshot stays usable`, async () => {
      await using daemon = await startStoreDaemon();
      const { client, diff } = daemon;
      const mounts = await prepare(daemon, KEY);
      await assert.rejects(
        client.unary(diff.Apply, { diff: putBlob(daemon, blob, digest), mounts }),
        (error: Error) => {
          return "code" in error && (error.code === code || error.code === "DATA_LOSS");
        },
      );
      const sound = putBlob(daemon, gzipSync(layer));
      await client.unary(diff.Apply, { diff: sound, mounts });
      assert.deepEqual(readdirSync(join(daemon.config.root, "staging")), []);
    });
  }

  test("refuses a descriptor that can't be one", async () => {
    await using daemon = await startStoreDaemon();
    const { client, diff } = daemon;
    const mounts = await prepare(daemon, KEY);
    await assert.rejects(client.unary(diff.Apply, { mounts }), { code: "INVALID_ARGUMENT" });
    for (const wrong of [
      { digest: "sha256:zz", size: 1 },
      { digest: `sha256:${"0".repeat(64)}`, size: -1 },
      { digest: "../../x", size: 1 },
    ]) {
      const descriptor = { mediaType: GZIP, annotations: {}, ...wrong };
      await assert.rejects(client.unary(diff.Apply, { diff: descriptor, mounts }), { code: "INVALID_ARGUMENT" });
    }
  });

  test("stops when it is cancelled, and leaves nothing", async () => {
    await using daemon = await startStoreDaemon();
    const { client, diff, config } = daemon;
    const entries = (name: string) => readdirSync(join(config.root, name));
    // An ingest may be done before the abort reaches it: then the next one is tried.
    for (let at = 0; ; at++) {
      const mounts = await prepare(daemon, `${KEY}${at}`);
      const descriptor = putBlob(daemon, gzipSync(tar({ big: noise(20_000_000, at) }), { level: 1 }));
      const before = entries("layers");
      const stop = new AbortController();
      const call = client.unary(diff.Apply, { diff: descriptor, mounts }, { signal: stop.signal });
      const ended = call.then(
        () => "OK",
        (error: unknown) => (ShaleError.is(error) ? error.code : error),
      );
      let running = true;
      void ended.then(() => (running = false));
      while (running && entries("staging").length === 0) await new Promise((resolve) => setTimeout(resolve, 1));
      stop.abort();
      const outcome = await ended;
      if (outcome === "OK") continue;
      assert.equal(outcome, "CANCELLED");
      while (!daemon.log().some(({ code }) => code === "CANCELLED")) await new Promise((done) => setTimeout(done, 10));
      if (entries("layers").length > before.length) continue; // committed, and nobody was told
      assert.deepEqual(entries("staging"), []);
      await client.unary(diff.Apply, { diff: descriptor, mounts });
      return;
    }
  });

  test("Diff is left to the next differ", async () => {
    await using daemon = await startStoreDaemon();
    await assert.rejects(daemon.client.unary(daemon.diff.Diff, {}), { code: "UNIMPLEMENTED" });
  });
});

test("a layer that came from containerd is found there again for a repair", needsRoot, async () => {
  const directory = mkdtempSync("/var/tmp/shale-differ-");
  {
    await using daemon = await startStoreDaemon({}, directory);
    const bytes = tar({ big: noise(50_000, 5) });
    const blob = gzipSync(bytes);
    await daemon.client.unary(daemon.diff.Apply, { diff: putBlob(daemon, blob), mounts: await prepare(daemon, KEY) });
    const store = Store.open(daemon.config.root);
    const [source] = store.sourcesOf(store.listLayers()[0]!.diffId);
    assert.deepEqual(source, {
      ...{ location: `containerd:${daemon.config.containerd.root}`, digest: digestOf(blob) },
      ...{ mediaType: GZIP, size: blob.length },
    });
    await store.close();
    assert.ok(statSync(directory).isDirectory());
    assert.equal(gunzipSync(blob).length, bytes.length);
  }
  rmSync(directory, { recursive: true });
});
