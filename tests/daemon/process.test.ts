/** The program `shale daemon`: stopping, being killed, configuration, signals, systemd. Real processes, a real store, real mounts. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, describe, test } from "node:test";
import { gzipSync } from "node:zlib";
import { diffMethods, healthMethods, snapshotsMethods, type WireMount } from "../../src/daemon/services/messages.ts";
import { RpcClient } from "../../src/rpc/index.ts";
import { PATIENT } from "../../src/rpc/testing/patient.ts";
import { noise, sha256, tar } from "../../src/store/testing/fixtures.ts";
import { mountInfo, unmount } from "../../src/sys/index.ts";
import { needsRoot } from "../../src/sys/testing/filesystems.ts";

const MAIN = new URL("../../src/cli/main.ts", import.meta.url).pathname;
const methods = { ...snapshotsMethods(), ...diffMethods(), Check: healthMethods().Check };

interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly output: string;
}

class DaemonProcess implements AsyncDisposable {
  readonly ended: Promise<Ended>;
  readonly #child: ChildProcess;
  #output = "";

  constructor(args: readonly string[], env: Readonly<Record<string, string>> = {}) {
    const node = ["--disable-warning=ExperimentalWarning", MAIN, "daemon", "--json", ...args];
    this.#child = spawn(process.execPath, node, { env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "pipe"] });
    for (const stream of [this.#child.stdout!, this.#child.stderr!]) {
      stream.on("data", (chunk: Buffer) => {
        this.#output += chunk.toString();
      });
    }
    this.ended = new Promise((resolve) => {
      this.#child.on("close", (code, signal) => resolve({ code, signal, output: this.#output }));
    });
  }

  get pid(): number {
    return this.#child.pid!;
  }

  get output(): string {
    return this.#output;
  }

  /** Resolves when a line of the output matches; rejects when the process ends before. */
  async says(pattern: RegExp): Promise<void> {
    const ended = this.ended.then(({ output }) => assert.fail(`it ended without ${pattern}: ${output}`));
    const watch = async () => {
      while (!pattern.test(this.#output)) await new Promise((resolve) => setTimeout(resolve, 10));
    };
    await Promise.race([watch(), ended]);
  }

  kill(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.kill("SIGKILL");
    await this.ended;
  }
}

let directory: string;
let at = 0;

before(() => {
  directory = mkdtempSync("/var/tmp/shale-daemon-test-");
});
after(() => {
  for (const { mountPoint } of mountInfo().toReversed()) {
    if (mountPoint.startsWith(`${directory}/`)) unmount(mountPoint, { lazy: true });
  }
  rmSync(directory, { recursive: true });
});

/** A root, a socket and a configuration that reaches nothing outside. */
function place() {
  const path = join(directory, String(at++));
  mkdirSync(path);
  const [root, address, config] = [join(path, "root"), join(path, "shale.sock"), join(path, "config.toml")];
  const containerd = join(path, "containerd");
  const lines = ["version = 1", "[remote]", "enabled = false", "[containerd]", `root = "${containerd}"`];
  writeFileSync(config, `${lines.join("\n")}\n`);
  return { path, root, address, config, containerd, args: ["--root", root, "--address", address, "--config", config] };
}

async function started(args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<DaemonProcess> {
  const daemon = new DaemonProcess(args, env);
  await daemon.says(/"message":"Serving"/);
  return daemon;
}

describe("shale daemon", needsRoot, () => {
  test("gives the same answers after SIGTERM and after SIGKILL, and leaves mounts alone", async () => {
    const { args, address, containerd } = place();
    const bytes = tar({ "etc/hosts": "127.0.0.1", big: noise(100_000, 1) });
    const blob = gzipSync(bytes);
    const digest = `sha256:${sha256(blob)}`;
    const blobs = join(containerd, "io.containerd.content.v1.content/blobs/sha256");
    mkdirSync(blobs, { recursive: true });
    writeFileSync(join(blobs, sha256(blob)), blob);

    const answers = async (client: RpcClient) => {
      const snapshots = (await Array.fromAsync(client.stream(methods.List, {}))).flatMap(({ info }) => info);
      const mounts = await client.unary(methods.Mounts, { key: "container" });
      const usage = await client.unary(methods.Usage, { key: "A" });
      return { snapshots, mounts, usage };
    };
    let expected: unknown;
    for (const signal of ["SIGTERM", "SIGKILL", "SIGKILL"] as const) {
      await using daemon = await started(args);
      using client = new RpcClient(address, PATIENT);
      if (expected === undefined) {
        const mounts = (await client.unary(methods.Prepare, { key: "n/1/extract-1" })).mounts as readonly WireMount[];
        const mediaType = "application/vnd.oci.image.layer.v1.tar+gzip";
        const diff = { mediaType, digest, size: blob.length, annotations: {} };
        await client.unary(methods.Apply, { diff, mounts });
        await client.unary(methods.Commit, { key: "n/1/extract-1", name: "A", labels: { x: "y" } });
        await client.unary(methods.Prepare, { key: "container", parent: "A" });
        expected = await answers(client);
      } else assert.deepEqual(await answers(client), expected);
      const mounted = mountInfo().filter(({ mountPoint }) => mountPoint.startsWith(directory)).length;
      assert.ok(mounted > 0);
      daemon.kill(signal);
      const { code, signal: by, output } = await daemon.ended;
      assert.deepEqual([code, by], signal === "SIGTERM" ? [0, null] : [null, "SIGKILL"], output);
      assert.equal(existsSync(address), signal === "SIGKILL");
      assert.equal(mountInfo().filter(({ mountPoint }) => mountPoint.startsWith(directory)).length, mounted);
    }
    await using _ = await started(args);
    using client = new RpcClient(address, PATIENT);
    assert.deepEqual(await answers(client), expected);
  });

  test("refuses a root that another daemon has, by process id and command, also under another name", async () => {
    const { path, root, args } = place();
    await using first = await started(args);
    symlinkSync(root, join(path, "same"));
    for (const name of ["root", "same"]) {
      const second = new DaemonProcess(["--root", join(path, name), "--address", join(path, "second.sock")]);
      const { code, output } = await second.ended;
      assert.equal(code, 1, output);
      assert.match(output, new RegExp(`FAILED_PRECONDITION.*${first.pid}.*daemon`));
      assert.equal(existsSync(join(path, "second.sock")), false);
    }
  });

  test("does not start with a configuration that can't be meant, and says where", async () => {
    const { path, args } = place();
    const config = join(path, "wrong.toml");
    writeFileSync(config, "version = 1\n[limits]\nlayer = 3\n");
    const { code, output } = await new DaemonProcess([...args.slice(0, 4), "--config", config]).ended;
    assert.equal(code, 1);
    assert.match(output, /wrong\.toml: line 3: \[limits\] layer: there is no such key; allowed are images, layers,/);
    const absent = await new DaemonProcess(["--config", join(path, "absent.toml")]).ended;
    assert.match(absent.output, /NOT_FOUND.*absent\.toml: there is no such file/);
  });

  test("--print-config prints what is in effect, as a configuration", async () => {
    const { path, root, args } = place();
    const { code, output } = await new DaemonProcess([...args, "--print-config"]).ended;
    assert.equal(code, 0);
    assert.match(output, new RegExp(`^root = "${root}"$`, "m"));
    const again = join(path, "again.toml");
    writeFileSync(again, output);
    assert.equal((await new DaemonProcess(["--config", again, "--print-config"]).ended).output, output);
  });

  test("SIGUSR1, SIGUSR2 and SIGHUP change the level of the log; a broken file changes nothing", async () => {
    const { args, config } = place();
    await using daemon = await started(args);
    daemon.kill("SIGUSR1");
    await daemon.says(/The log level is debug now/);
    daemon.kill("SIGUSR2");
    await daemon.says(/The log level is info now/);
    writeFileSync(config, 'version = 1\n[log]\nlevel = "warn"\n[remote]\nenabled = false\n');
    daemon.kill("SIGHUP");
    daemon.kill("SIGUSR1");
    await daemon.says(/The log level is info now[\s\S]*The log level is info now/);
    writeFileSync(config, "version = 7\n");
    daemon.kill("SIGHUP");
    await daemon.says(/Kept the configuration: .*its version is 7/);
  });

  test("tells systemd READY, RELOADING with the monotonic time, READY, STOPPING, and pings the watchdog", async () => {
    const { path, args } = place();
    const socket = join(path, "notify");
    const script =
      "import socket, sys, json\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\ns.bind(sys.argv[1])\nprint('bound', flush=True)\n" +
      "while True: print(json.dumps(s.recv(4096).decode().split('\\n')), flush=True)";
    const manager = spawn("python3", ["-c", script, socket], { stdio: ["ignore", "pipe", "inherit"] });
    try {
      const lines = createInterface(manager.stdout)[Symbol.asyncIterator]();
      const next = async () => String((await lines.next()).value);
      const nextOf = async (beginning: string): Promise<string[]> => {
        for (;;) {
          const said = JSON.parse(await next()) as string[];
          if (said[0]!.startsWith(beginning)) return said;
        }
      };
      assert.equal(await next(), "bound");
      const daemon = new DaemonProcess(args, { NOTIFY_SOCKET: socket, WATCHDOG_USEC: "200000" });
      await using _ = daemon;
      assert.match((await nextOf("READY=1"))[1]!, /^STATUS=Serving on /);
      await nextOf("WATCHDOG=1");
      daemon.kill("SIGHUP");
      assert.match((await nextOf("RELOADING=1"))[1]!, /^MONOTONIC_USEC=\d+$/);
      await nextOf("READY=1");
      daemon.kill("SIGTERM");
      await nextOf("STOPPING=1");
      assert.equal((await daemon.ended).code, 0);
    } finally {
      manager.kill("SIGKILL");
    }
  });

  test("serves the CRI image service for the kubelet beside its own", async () => {
    const { path, root, address } = place();
    const proxy = join(path, "cri.sock");
    const config = join(path, "cri.toml");
    writeFileSync(config, `version = 1\n[cri_proxy]\naddress = "${proxy}"\nbackend = "${join(path, "absent.sock")}"\n`);
    await using daemon = await started(["--root", root, "--address", address, "--config", config]);
    await daemon.says(/Passing CRI image calls on/);
    assert.ok(existsSync(proxy));
    daemon.kill("SIGTERM");
    assert.equal((await daemon.ended).code, 0);
    assert.equal(existsSync(proxy), false);
  });
});
