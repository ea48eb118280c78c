/** Debian's containerd as a child of the test, with ctr-remote of stargz-snapshotter as its client. */
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);

export interface Containerd extends AsyncDisposable {
  /** ctr-remote, which is ctr with more commands. */
  ctr(...args: string[]): Promise<string>;
}

/** In `directory`, which it makes. It answers when this resolves. */
export async function startContainerd(directory: string): Promise<Containerd> {
  mkdirSync(directory);
  const path = (name: string) => join(directory, name);
  const disabled = [
    "grpc.v1.cri",
    "snapshotter.v1.aufs",
    "snapshotter.v1.btrfs",
    "snapshotter.v1.devmapper",
    "snapshotter.v1.zfs",
  ];
  writeFileSync(
    path("config.toml"),
    `version = 2\nroot = "${path("root")}"\nstate = "${path("state")}"\n` +
      `disabled_plugins = ${JSON.stringify(disabled.map((name) => `io.containerd.${name}`))}\n` +
      `[grpc]\naddress = "${path("c.sock")}"\n[ttrpc]\naddress = "${path("t.sock")}"\n`,
  );
  const child = spawn("containerd", ["-c", path("config.toml"), "-l", "error"], { stdio: "ignore" });
  const exited = once(child, "exit");
  const ctr = async (...args: string[]) => (await run("ctr-remote", ["-a", path("c.sock"), ...args])).stdout;
  const end = async () => {
    child.kill("SIGKILL");
    await exited;
  };
  for (let tries = 0; ; tries++) {
    try {
      await ctr("version");
      return { ctr, [Symbol.asyncDispose]: end };
    } catch (error) {
      if (tries < 100 && child.exitCode === null) continue; // its socket is not there yet
      await end();
      throw error;
    }
  }
}
