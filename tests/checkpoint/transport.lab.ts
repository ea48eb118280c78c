/**
 * Processes that go on after their checkpoint was converted, or went through a registry: real podman on both ends. Run by
 * `npm run test:checkpoint-lab`.
 */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { type DockerRegistry, startDockerRegistry } from "../../src/registry/testing/docker-registry.ts";
import { run } from "../../src/sys/index.ts";
import { Lab } from "./lab.ts";

const SHALE = join(import.meta.dirname, "../../shale");
const WORK = "echo changed > /etc/issue; rm /etc/gone; i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.05; done";

describe("podman, through shale's tools", { timeout: 900_000 }, () => {
  const directory = mkdtempSync(join(tmpdir(), "shale-transport-lab-"));
  let lab: Lab;
  let registry: DockerRegistry;
  before(async () => {
    registry = await startDockerRegistry(join(directory, "registry"));
    lab = await Lab.start();
  });
  after(async () => {
    await lab?.[Symbol.asyncDispose]();
    await registry?.stop();
    rmSync(directory, { recursive: true, force: true });
  });

  const podman = (...args: string[]) => lab.exec("podman", "--runtime", "crun", ...args);

  /** On the host, for the network: what is /w/disk inside is `lab.disk` there. */
  async function shale(...args: string[]): Promise<void> {
    const words = args.map((word) => word.replace(/^\/w\/disk/, lab.disk));
    const { code, stderr } = await run(SHALE, ["checkpoint", ...words], { env: process.env, timeoutMs: 60_000 });
    assert.equal(code, 0, stderr.toString());
  }

  /** Runs the counter, checkpoints it with these arguments, and removes it. Returns where it was. */
  async function checkpoint(name: string, ...how: string[]): Promise<number> {
    await podman("run", "-d", "--name", name, "--network=none", "localhost/lab", "sh", "-c", WORK);
    let count = 0;
    while (count < 5) count = Number((await lab.try("podman", "exec", name, "cat", "/count")).stdout.toString());
    await podman("container", "checkpoint", ...how, name);
    await lab.clean();
    return count;
  }

  async function assertGoesOn(name: string, from: number): Promise<void> {
    const count = async () => Number(await podman("exec", name, "cat", "/count"));
    const first = await count();
    assert.ok(first >= from && first < from + 400, `${from}, then ${first}`);
    for (let tries = 0; (await count()) === first; tries++) assert.ok(tries < 100, "it stands still");
    assert.equal((await podman("exec", name, "cat", "/etc/issue")).trim(), "changed");
    assert.notEqual((await lab.try("podman", "exec", name, "ls", "/etc/gone")).code, 0);
    await lab.clean();
  }

  test("an archive that was converted to containerd's layout and back", async () => {
    const from = await checkpoint("a", "-e", "/w/disk/a.tar", "--compress=none");
    await shale("convert", "--to", "containerd", "/w/disk/a.tar", "/w/disk/b.tar");
    await shale("convert", "--to", "podman", "/w/disk/b.tar", "/w/disk/c.tar");
    await podman("container", "restore", "-i", "/w/disk/c.tar", "-n", "c");
    await assertGoesOn("c", from);
  });

  test("an image that shale pushed", async () => {
    const name = `${registry.host}/pushed:1`;
    const from = await checkpoint("d", "-e", "/w/disk/d.tar.zst", "--compress=zstd");
    await shale("push", "/w/disk/d.tar.zst", name);
    await podman("pull", "-q", "--tls-verify=false", name);
    await podman("container", "restore", "-n", "e", name);
    await assertGoesOn("e", from);
  });

  test("an image that podman made and shale pulled", async () => {
    const name = `${registry.host}/made:1`;
    const from = await checkpoint("f", "--create-image", name);
    await podman("push", "-q", "--tls-verify=false", name);
    await shale("pull", "-o", "/w/disk/f.tar", name);
    await podman("container", "restore", "-i", "/w/disk/f.tar", "-n", "g");
    await assertGoesOn("g", from);
  });
});
