/** The published form: compiled by the script of package.json, its daemon finds its .proto files and its threads. */
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { diffMethods, snapshotsMethods, type WireMount } from "../../src/daemon/services/messages.ts";
import { RpcClient } from "../../src/rpc/index.ts";
import { PATIENT } from "../../src/rpc/testing/patient.ts";
import { noise, sha256, tar } from "../../src/store/testing/fixtures.ts";
import { mountInfo, unmount } from "../../src/sys/index.ts";
import { needsRoot } from "../../src/sys/testing/filesystems.ts";

const ROOT = new URL("../..", import.meta.url).pathname;

test("the compiled daemon serves, and takes layers in", needsRoot, async () => {
  const directory = mkdtempSync("/var/tmp/shale-compiled-");
  try {
    const { scripts } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8")) as { scripts: { build: string } };
    const dist = join(directory, "dist");
    const build = scripts.build
      .replace("tsconfig.build.json", `tsconfig.build.json --outDir ${dist}`)
      .replace("../dist/", dist);
    assert.notEqual(build, scripts.build);
    execFileSync("sh", ["-c", build], {
      cwd: ROOT,
      env: { ...process.env, PATH: `${ROOT}/node_modules/.bin:${process.env.PATH}` },
    });
    copyFileSync(join(ROOT, "package.json"), join(directory, "package.json"));
    symlinkSync(join(ROOT, "node_modules"), join(directory, "node_modules"));

    const blob = gzipSync(tar({ file: noise(50_000, 1) }));
    const containerd = join(directory, "containerd");
    const blobs = join(containerd, "io.containerd.content.v1.content/blobs/sha256");
    mkdirSync(blobs, { recursive: true });
    writeFileSync(join(blobs, sha256(blob)), blob);
    const [config, address] = [join(directory, "config.toml"), join(directory, "s.sock")];
    writeFileSync(config, `version = 1\nroot = "${join(directory, "root")}"\n[containerd]\nroot = "${containerd}"\n`);
    const args = [
      "--disable-warning=ExperimentalWarning",
      join(dist, "cli/main.js"),
      "daemon",
      "--config",
      config,
      "--address",
      address,
    ];
    const daemon = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
    const ended = new Promise<number | null>((resolve) => daemon.on("close", resolve));
    try {
      let output = "";
      await new Promise<void>((resolve, reject) => {
        daemon.stdout.on("data", (chunk: Buffer) => {
          output += chunk.toString();
          if (output.includes("Serving")) resolve();
        });
        void ended.then((code) => reject(new Error(`it ended with ${code}: ${output}`)));
      });
      using client = new RpcClient(address, PATIENT);
      const key = "n/1/extract-1";
      const snapshots = snapshotsMethods();
      const mounts = (await client.unary(snapshots.Prepare, { key })).mounts as readonly WireMount[];
      const mediaType = "application/vnd.oci.image.layer.v1.tar+gzip";
      const diff = { mediaType, digest: `sha256:${sha256(blob)}`, size: blob.length, annotations: {} };
      assert.equal(
        (await client.unary(diffMethods().Apply, { diff, mounts })).applied.size,
        tar({ file: noise(50_000, 1) }).length,
      );
      await client.unary(snapshots.Commit, { key, name: "A" });
      await client.unary(snapshots.Prepare, { key: "container", parent: "A" });
      daemon.kill("SIGTERM");
      assert.equal(await ended, 0);
    } finally {
      daemon.kill("SIGKILL");
      await ended;
    }
  } finally {
    for (const { mountPoint } of mountInfo().toReversed()) {
      if (mountPoint.startsWith(`${directory}/`)) unmount(mountPoint, { lazy: true });
    }
    rmSync(directory, { recursive: true });
  }
});
