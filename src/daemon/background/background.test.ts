/** Disks made of what containerd pulls, and garbage of a running daemon: real threads on a real store. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { gzipSync } from "node:zlib";
import { listExports } from "../../export/index.ts";
import { noise, sha256, tar } from "../../store/testing/fixtures.ts";
import { Store } from "../../store/index.ts";
import { needsRoot } from "../../sys/testing/filesystems.ts";
import { defaultConfig } from "../index.ts";
import type { WireMount } from "../services/messages.ts";
import { startStoreDaemon } from "../testing/daemons.ts";
import { Collector } from "./collector.ts";

type TestDaemon = Awaited<ReturnType<typeof startStoreDaemon>>;
const GZIP = "application/vnd.oci.image.layer.v1.tar+gzip";

/** Two layers by Apply; the upper one's chain is committed as "B". */
async function pull(daemon: TestDaemon): Promise<void> {
  const { client, snapshots, diff, config } = daemon;
  const blobs = join(config.containerd.root, "io.containerd.content.v1.content/blobs/sha256");
  mkdirSync(blobs, { recursive: true });
  for (const [at, name] of ["A", "B"].entries()) {
    const blob = gzipSync(tar({ [`file-${name}`]: noise(20_000, at) }));
    writeFileSync(join(blobs, sha256(blob)), blob);
    const key = `n/1/extract-${name}`;
    const labels = { "containerd.io/snapshot/cri.image-layers": name === "B" ? "sha256:b" : "sha256:a,sha256:b" };
    const mounts = (await client.unary(snapshots.Prepare, { key, parent: at === 0 ? "" : "A" }))
      .mounts as readonly WireMount[];
    const descriptor = { mediaType: GZIP, digest: `sha256:${sha256(blob)}`, size: blob.length, annotations: {} };
    await client.unary(diff.Apply, { diff: descriptor, mounts });
    await client.unary(snapshots.Commit, { key, name, labels });
  }
}

const exported = (daemon: TestDaemon) => daemon.log().filter(({ message }) => message === "Made disks").length;
async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 10));
}

describe("[exports]", needsRoot, () => {
  const CASES = [
    { mode: "image", when: "pull", disks: 1, layers: [2] },
    { mode: "layer", when: "pull", disks: 2, layers: [1, 1] },
    { mode: "image", when: "demand", disks: 1, layers: [2] },
    { mode: "layer", when: "demand", disks: 2, layers: [1, 1] },
  ] as const;
  for (const { mode, when, disks, layers } of CASES) {
    test(`mode ${mode} at ${when}: ${disks} disks with dm-verity, which go with their layers`, async () => {
      const exports = { ...defaultConfig().exports, mode, when, verity: "superblock" } as const;
      await using daemon = await startStoreDaemon({ exports });
      const { client, snapshots, config } = daemon;
      await pull(daemon);
      if (when === "demand") {
        assert.equal(exported(daemon), 0);
        await client.unary(snapshots.Prepare, { key: "container", parent: "B" });
      }
      await until(() => exported(daemon) === disks);
      await using store = Store.open(config.root);
      const made = listExports(store);
      assert.deepEqual(made.map(({ chain }) => chain?.length).sort(), layers);
      for (const { path } of made) execFileSync("fsck.erofs", [path]);
      if (when === "demand") await client.unary(snapshots.Remove, { key: "container" });
      const failures: unknown[] = [];
      const collector = new Collector(config.root, (_, error) => error !== undefined && failures.push(error));
      await collector.collect();
      assert.equal(listExports(store).length, disks, "snapshots keep their layers, and those their disks");
      for (const key of ["B", "A"]) await client.unary(snapshots.Remove, { key });
      await client.unary(snapshots.Cleanup, {});
      // An operation of the snapshotter that is under way holds garbage back: the next run has it.
      do {
        collector.want();
        await collector.collect();
      } while (store.listLayers().length > 0);
      assert.deepEqual(listExports(store), []);
      assert.deepEqual(failures, []);
      await collector.close();
    });
  }

  test("nothing is made when it is off", async () => {
    await using daemon = await startStoreDaemon();
    await pull(daemon);
    await daemon.client.unary(daemon.snapshots.Prepare, { key: "container", parent: "B" });
    await daemon.daemon.close();
    assert.equal(exported(daemon), 0);
  });
});

describe("Collector", () => {
  test("runs once for all who ask at the same time, and reports what failed", async () => {
    await using daemon = await startStoreDaemon();
    const runs: unknown[] = [];
    const collector = new Collector(daemon.config.root, (result, error) => void runs.push(error ?? result));
    await Promise.all([collector.collect(), collector.collect(), collector.collect()]);
    assert.ok(runs.length <= 2);
    const broken = new Collector(join(daemon.directory, "absent"), (_, error) => void runs.push(error));
    await assert.rejects(broken.collect(), /Cannot collect garbage in .*absent: Cannot open the store/);
    await collector.close();
  });
});
