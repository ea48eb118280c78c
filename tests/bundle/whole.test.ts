/** The build of the whole program: it has all that the sources find by their own place, and its threads and messages work. */
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { globSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { gzipSync } from "node:zlib";
import { bundle, findSources } from "../../scripts/bundle.ts";
import { writeLayout } from "../../src/cli/testing/layout.ts";
import { diffMethods, healthMethods, snapshotsMethods, type WireMount } from "../../src/daemon/services/messages.ts";
import { RpcClient } from "../../src/rpc/index.ts";
import { PATIENT } from "../../src/rpc/testing/patient.ts";
import { noise, sha256, tar } from "../../src/store/testing/fixtures.ts";
import { mountInfo, unmount } from "../../src/sys/index.ts";
import { needsRoot } from "../../src/sys/testing/filesystems.ts";
import { makeRepository } from "./repository.ts";

const SRC = join(import.meta.dirname, "../../src");
const WATCH = join(import.meta.dirname, "../export/watch-threads.ts");

const EXPORTS = `[exports]\nmode = "layer"\nwhen = "pull"\n`;

const work = mkdtempSync("/var/tmp/shale-bundle-");
const at = (name: string) => join(work, name);
let build: string;

interface Ended {
  readonly stdout: string;
  readonly stderr: string;
  /** Threads beside the main one. */
  readonly threads: number;
}

/** Runs a command of the build, which must succeed. */
function shale(...words: readonly string[]): Ended {
  const args = ["--disable-warning=ExperimentalWarning", "--import", WATCH, join(build, "src/main.js")];
  const { status, stdout, stderr } = spawnSync(process.execPath, [...args, "--root", at("store"), ...words], {
    encoding: "utf8",
    env: { PATH: process.env.PATH, HOME: work, WATCH_THREADS: at("threads") },
  });
  assert.equal(status, 0, `shale ${words.join(" ")}: ${stderr}`);
  return { stdout, stderr, threads: JSON.parse(readFileSync(at("threads"), "utf8")).started };
}

before(async () => {
  makeRepository(at("repository"));
  build = await bundle(at("repository"));
  await writeLayout(at("layout"));
});
after(() => {
  for (const { mountPoint } of mountInfo().toReversed()) {
    if (mountPoint.startsWith(`${work}/`)) unmount(mountPoint, { lazy: true });
  }
  rmSync(work, { recursive: true, force: true });
});

describe("bundle()", () => {
  test("has every source that is made to run in a thread", () => {
    const made = globSync("**/*.ts", { cwd: SRC, exclude: ["**/*.test.ts", "**/testing/**"] })
      .filter((path) => /import \{[^}]*\b(?:parentPort|workerData)\b/.test(readFileSync(join(SRC, path), "utf8")))
      .sort();
    assert.ok(made.length >= 5);
    assert.deepEqual([...findSources(SRC).threads].sort(), made);
    for (const path of made) readFileSync(join(build, "src", path.replace(/\.ts$/, ".js")));
  });

  test("has every .proto file that the sources name, as it is", () => {
    const named = globSync("**/*.ts", { cwd: SRC, exclude: ["**/*.test.ts", "**/testing/**"] }).flatMap((path) =>
      [...readFileSync(join(SRC, path), "utf8").matchAll(/"([\w-]+)\.proto"|\bproto\("(\w+)"\)/g)].map(
        (match) => match[1] ?? match[2],
      ),
    );
    const there = globSync("**/*.proto", { cwd: join(build, "src") }).sort();
    assert.ok(named.length >= 5);
    for (const name of named)
      assert.ok(
        there.some((path) => path.endsWith(`/${name}.proto`)),
        name,
      );
    for (const path of there) {
      assert.deepEqual(readFileSync(join(build, "src", path)), readFileSync(join(SRC, path)), path);
    }
  });

  test("leaves nothing of its own in the build, and packages where they are", () => {
    assert.deepEqual(readdirSync(build).sort(), ["package.json", "src", "stamp"]);
    const code = readdirSync(join(build, "src")).filter((name) => name.endsWith(".js"));
    assert.ok(code.every((name) => !readFileSync(join(build, "src", name), "utf8").includes("// node_modules/")));
  });
});

describe("the build", () => {
  test("version, help and an error", () => {
    assert.match(shale("version").stdout, /^shale \d+\.\d+\.\d+ \(Node /);
    assert.match(shale("--help").stdout, /^ +pull +Fetch images/m);
    const args = [
      "--enable-source-maps",
      join(build, "src/main.js"),
      "--root",
      at("none"),
      "--log-level",
      "debug",
      "rm",
      "x",
    ];
    const { status, stderr } = spawnSync(process.execPath, args, { encoding: "utf8" });
    assert.equal(status, 1);
    assert.match(stderr, /^shale: Cannot open the store/m);
    assert.match(stderr, / at .*\/repository\/src\/cli\/commands\/rm\.ts:\d+:\d+\)/); // by the source map
  });

  test("pull, in threads", () => {
    for (const tag of ["v1", "v2"]) assert.ok(shale("pull", `oci:${at("layout")}:${tag}`).threads > 0);
    assert.match(shale("cat", `oci:${at("layout")}:v1`, "/etc/passwd").stdout, /^root:/);
    shale("check");
  });

  test("checkout, in threads", () => {
    assert.equal(shale("checkout", "-j", "2", `oci:${at("layout")}:v1`, at("tree")).threads, 2);
    assert.match(readFileSync(at("tree/etc/passwd"), "utf8"), /^root:/);
  });

  test("verity and verify, in threads", () => {
    writeFileSync(at("data"), noise(32 << 20, 1));
    const verity = shale("verity", "-j", "2", at("data"), "-o", at("hashes"), "--json");
    assert.equal(verity.threads, 1);
    const { rootHash } = JSON.parse(verity.stdout) as { readonly rootHash: string };
    shale("verify", "-j", "2", at("data"), "--hash-file", at("hashes"), "--root-hash", rootHash);
  });

  test("export with verity, save and convert, in threads", () => {
    shale("export", `oci:${at("layout")}:v1`, "--verity", "-o", at("disk"));
    shale("save", `oci:${at("layout")}:v1`, "-o", at("saved/"));
    assert.ok(shale("convert", `oci:${at("layout")}:v1`, "-o", at("converted/")).threads > 0);
  });

  test("daemon: messages, layers taken in, disks made in a thread of its own", needsRoot, async () => {
    const blob = gzipSync(tar({ file: noise(50_000, 1) }));
    const containerd = at("containerd");
    const blobs = join(containerd, "io.containerd.content.v1.content/blobs/sha256");
    mkdirSync(blobs, { recursive: true });
    writeFileSync(join(blobs, sha256(blob)), blob);
    const [config, address] = [at("config.toml"), at("s.sock")];
    writeFileSync(config, `version = 1\nroot = "${at("daemon")}"\n[containerd]\nroot = "${containerd}"\n${EXPORTS}`);
    const args = ["--disable-warning=ExperimentalWarning", join(build, "src/main.js"), "daemon"];
    const daemon = spawn(process.execPath, [...args, "--config", config, "--address", address], {
      stdio: ["ignore", "pipe", "inherit"],
    });
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
      const snapshots = snapshotsMethods();
      assert.equal((await client.unary(healthMethods().Check, {})).status, 1);
      const key = "n/1/extract-1";
      const mounts = (await client.unary(snapshots.Prepare, { key })).mounts as readonly WireMount[];
      const mediaType = "application/vnd.oci.image.layer.v1.tar+gzip";
      const diff = { mediaType, digest: `sha256:${sha256(blob)}`, size: blob.length, annotations: {} };
      await client.unary(diffMethods().Apply, { diff, mounts });
      await client.unary(snapshots.Commit, { key, name: "A" });
      await client.unary(snapshots.Prepare, { key: "container", parent: "A" });
      while (!output.includes("Made disks")) await new Promise((resolve) => daemon.stdout.once("data", resolve));
      daemon.kill("SIGTERM");
      assert.equal(await ended, 0);
    } finally {
      daemon.kill("SIGKILL");
      await ended;
    }
  });
});
