/**
 * Processes that go on: real podman, crun, runc and containerd checkpoint and restore, and so does shale, in all four directions. Run by
 * `npm run test:checkpoint-lab`, which makes the tree of peers first; takes about a minute more.
 */
import assert from "node:assert/strict";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { delay } from "../../src/async/index.ts";
import { Lab } from "./lab.ts";

/** Counts, under an identity that it has in memory only, and has changed all that podman itself loses, and what it keeps. */
const WORK = `
echo volume > /data/v; echo shared > /dev/shm/s
echo changed > /etc/adduser.conf; echo changed > /etc/issue; rm /etc/gone
rm -r /usr/share/doc/pkg; mkdir /usr/share/doc/pkg; echo new > /usr/share/doc/pkg/new
chmod 700 /opt; chown 5:6 /opt
truncate -s 50M /sparse; head -c 3000000 /dev/urandom > /big; sha256sum /big > /big.sum; ln /big /hard
touch -d @1700000000 /etc/issue
id=$(cat /proc/sys/kernel/random/uuid)
i=0; while :; do i=$((i+1)); echo $id $i > /count; sleep 0.05; done
`;

/** What must be found in a restored container; each line is a check. */
const CHECKS: readonly { readonly what: string; readonly script: string; readonly says: string }[] = [
  { what: "content", script: "sha256sum -c /big.sum", says: "/big: OK" },
  { what: "the volume", script: "cat /data/v", says: "volume" },
  { what: "shared memory", script: "cat /dev/shm/s", says: "shared" },
  { what: "a changed file", script: "cat /etc/issue", says: "changed" },
  { what: "a deletion", script: "ls /etc/gone 2>&1 | grep -c 'No such'", says: "1" },
  { what: "hard links", script: "stat -c %h /big", says: "2" },
  { what: "times", script: "stat -c %Y /etc/issue", says: "1700000000" },
];
/** Lost in podman's own archives. */
const LOST_BY_PODMAN: typeof CHECKS = [
  { what: "a directory removed and made again", script: "ls /usr/share/doc/pkg", says: "new" },
  { what: "attributes of an image directory", script: "stat -c '%a %u:%g' /opt", says: "700 5:6" },
];
/** No member of the archive has it: podman asks the host whether the file is there. */
const LOST_WHERE_THE_HOST_LACKS_IT: typeof CHECKS = [
  { what: "a changed file that the host lacks", script: "cat /etc/adduser.conf", says: "changed" },
];

type Shell = (script: string) => Promise<string>;

async function check(shell: Shell, checks: typeof CHECKS): Promise<void> {
  for (const { what, script, says } of checks) assert.equal((await shell(script)).trim(), says, what);
}

interface Count {
  /** Of the process that counts. */
  readonly id: string;
  readonly value: number;
}

async function readCount(shell: Shell): Promise<Count> {
  for (let tries = 0; tries < 100; tries++) {
    const [id, value] = (await shell("cat /count")).trim().split(" ");
    if (id && value) return { id, value: Number(value) }; // between truncation and writing there is nothing in it
  }
  throw new Error("/count stays empty");
}

/** The same process goes on counting from where it was. How far it came until it is asked, the machine's load decides. */
async function assertCounts(shell: Shell, before: Count): Promise<void> {
  const now = await readCount(shell);
  assert.equal(now.id, before.id, "a process of its own, that began anew");
  assert.ok(now.value >= before.value, `${before.value}, then ${now.value}`);
  for (let tries = 0; (await readCount(shell)).value === now.value; tries++) assert.ok(tries < 100, "it stands still");
}

describe("interoperation", { timeout: 900_000 }, () => {
  let lab: Lab;
  before(async () => {
    lab = await Lab.start();
  });
  after(async () => {
    await lab[Symbol.asyncDispose]();
  });

  const inContainer =
    (name: string): Shell =>
    (script) =>
      lab.exec("podman", "exec", name, "sh", "-c", script);

  /** A counting container in podman; answers its lower directory. */
  async function startContainer(runtime: string): Promise<string> {
    await lab.clean();
    const options = ["--name", "c1", "--network=none", "-v", "vol1:/data"];
    await lab.exec("podman", "--runtime", runtime, "run", "-d", ...options, "lab", "sh", "-c", WORK);
    for (let tries = 0; (await lab.try("podman", "exec", "c1", "cat", "/count")).code !== 0; tries++)
      assert.ok(tries < 100);
    return (await lab.exec("podman", "inspect", "c1", "--format", "{{.GraphDriver.Data.LowerDir}}")).trim();
  }

  /** Hidden files and directories beside archives. */
  function leftovers(): readonly string[] {
    return readdirSync(lab.disk).filter((name) => name.startsWith("."));
  }

  async function removeContainer(name: string): Promise<void> {
    await lab.exec("podman", "rm", "-f", "-t0", name);
    await lab.try("podman", "volume", "rm", "-f", "vol1");
  }

  /** Restores with shale into /w/disk/NAME and runs it there; answers a shell in it. */
  async function restoreByShale(runtime: string, archive: string, lower: string, name: string): Promise<Shell> {
    const place = `/w/disk/${name}`;
    mkdirSync(join(lab.disk, name));
    const lowers = lower.split(":").flatMap((path) => ["--lower", path]);
    await lab.shale(
      ...["checkpoint", "restore", archive, "--upper", `${place}/diff`, ...lowers, "--bundle", `${place}/bundle`],
      ...["--volume", `vol1=${place}/volume`, "--run", runtime, "--name", name],
    );
    return (script) => lab.exec(runtime, "exec", name, "sh", "-c", script);
  }

  async function endRuntime(runtime: string, name: string): Promise<void> {
    await lab.try(runtime, "delete", "-f", name);
    await lab.try("umount", `/w/disk/${name}/bundle/rootfs`);
  }

  test("what shale takes from podman's database is what podman exports", async () => {
    await lab.clean();
    const options = ["--name", "c1", "--network=none", "-v", "vol1:/data", "--label", "a=b", "--env", "X=1"];
    await lab.exec("podman", "run", "-d", ...options, "lab", "sh", "-c", "while :; do sleep 1; done");
    const theirs = ["--leave-running", "--compress=none", "-e", "/w/disk/theirs.tar"];
    await lab.exec("podman", "container", "checkpoint", ...theirs, "c1");
    // In place of podman: one that notes what it was asked.
    const spy = '#!/bin/sh\necho "$*" >>/w/disk/asked\nexec podman "$@"\n';
    writeFileSync(join(lab.disk, "spy"), spy, { mode: 0o755 });
    await lab.shale("checkpoint", "save", "c1", "-o", "/w/disk/ours.tar", "--program", "/w/disk/spy");
    const asked = readFileSync(join(lab.disk, "asked"), "utf8");
    assert.match(asked, /^container inspect -- c1\n.* container checkpoint --keep -- /, "it was not asked to export");
    for (const document of ["config.dump", "spec.dump"]) {
      const [their, our] = await Promise.all(
        ["theirs", "ours"].map((name) => lab.exec("tar", "-xOf", `/w/disk/${name}.tar`, document)),
      );
      assert.deepEqual(JSON.parse(our!), JSON.parse(their!), document);
    }
    await removeContainer("c1");
  });

  test("of a container without volumes podman is asked nothing but to checkpoint it", async () => {
    await lab.clean();
    const script = "echo changed >/etc/motd; rm /etc/issue; echo ready >/ready; while :; do sleep 1; done";
    await lab.exec("podman", "run", "-d", "--name", "c1", "--network=none", "lab", "sh", "-c", script);
    await inContainer("c1")("until [ -e /ready ]; do sleep 0.1; done");
    const spy = '#!/bin/sh\necho "$*" >>/w/disk/asked-plain\nexec podman "$@"\n';
    writeFileSync(join(lab.disk, "spy"), spy, { mode: 0o755 });
    await lab.shale("checkpoint", "save", "c1", "-o", "/w/disk/plain.tar", "--program", "/w/disk/spy");
    const id = (await lab.exec("podman", "inspect", "c1", "--format", "{{.Id}}")).trim();
    const asked = readFileSync(join(lab.disk, "asked-plain"), "utf8");
    assert.equal(asked, `--runtime crun container checkpoint --keep -- ${id}\n`);
    const state = (await lab.exec("podman", "inspect", "c1", "--format", "{{.State.Checkpointed}}")).trim();
    assert.equal(state, "true");
    await removeContainer("c1");
    await lab.exec("podman", "container", "restore", "-i", "/w/disk/plain.tar", "-n", "r1");
    assert.equal(await inContainer("r1")("cat /etc/motd /ready; ls /etc/issue 2>&1 | wc -l"), "changed\nready\n1\n");
    await removeContainer("r1");
  });

  test("two saves of one container at once: one has the archive, the other says why not, and nothing is lost", async () => {
    await startContainer("crun");
    const before = await readCount(inContainer("c1"));
    const archives = ["/w/disk/one.tar", "/w/disk/two.tar"];
    const saves = archives.map((archive) => lab.shale("checkpoint", "save", "c1", "-o", archive));
    const [one, two] = await Promise.allSettled(saves);
    const failed = [one!, two!].filter((result) => result.status === "rejected");
    assert.equal(failed.length, 1);
    assert.match(String(failed[0]!.reason), /Cannot (checkpoint|find container) c1/);
    const archive = archives[one!.status === "fulfilled" ? 0 : 1]!;
    await lab.shale("checkpoint", "verify", archive);
    assert.deepEqual(leftovers(), []);
    await removeContainer("c1");
    await lab.exec("podman", "container", "restore", "-i", archive, "-n", "r1");
    await assertCounts(inContainer("r1"), before);
    await removeContainer("r1");
    await lab.exec("rm", archive);
  });

  test("a save killed at any time leaves the container running, or where podman restores it, and no half archive", async () => {
    await startContainer("crun");
    const archive = "/w/disk/killed.tar";
    const seen = new Set<string>();
    for (let delay = 60; delay <= 560; delay += 50) {
      const before = await readCount(inContainer("c1"));
      await lab.shaleKilled(delay, "checkpoint", "save", "c1", "-o", archive);
      // podman, if it was started, does not end with shale.
      const commands = 'for f in /proc/[0-9]*/cmdline; do tr "\\0" " " <$f; done 2>/dev/null';
      await lab.exec("sh", "-c", `while { ${commands}; } | grep -q "containe[r] checkpoint"; do sleep 0.05; done`);
      const status = (await lab.exec("podman", "inspect", "c1", "--format", "{{.State.Status}}")).trim();
      const whole = (await lab.try("test", "-e", archive)).code === 0;
      seen.add(`${status}, ${whole ? "archive" : "none"}`);
      if (whole) await lab.shale("checkpoint", "verify", archive);
      if (status !== "running") await lab.exec("podman", "container", "restore", "c1");
      await assertCounts(inContainer("c1"), before);
      await lab.exec("sh", "-c", "rm -rf /w/disk/killed.tar /w/disk/.killed.tar.*");
    }
    assert.ok(seen.has("running, none"), `before podman: ${[...seen].join("; ")}`);
    assert.ok(
      [...seen].some((each) => each.startsWith("exited")),
      `after podman: ${[...seen].join("; ")}`,
    );
    // What was left behind is in nobody's way.
    await lab.shale("checkpoint", "save", "c1", "-o", archive);
    await lab.shale("checkpoint", "verify", archive);
    await removeContainer("c1");
    await lab.exec("rm", archive);
  });

  test("a container whose database shale does not know is saved by way of podman's export", async () => {
    await startContainer("crun");
    const before = await readCount(inContainer("c1"));
    // --root is the same place by another name, which is not the one in the configuration.
    const spy =
      '#!/bin/sh\nexec podman "$@" | sed "s,/w/disk/store/overlay-containers,/w/disk/link/overlay-containers,g"\n';
    writeFileSync(join(lab.disk, "other"), spy, { mode: 0o755 });
    await lab.exec("ln", "-s", "store", "/w/disk/link");
    await lab.shale("checkpoint", "save", "c1", "-o", "/w/disk/exported.tar", "--program", "/w/disk/other");
    await removeContainer("c1");
    await lab.exec("podman", "container", "restore", "-i", "/w/disk/exported.tar", "-n", "r1");
    await assertCounts(inContainer("r1"), before);
    await removeContainer("r1");
  });

  for (const runtime of ["crun", "runc"] as const) {
    for (const compression of ["none", "gzip", "zstd"] as const) {
      test(`shale to podman, and to shale: ${runtime}, ${compression}`, async () => {
        const lower = await startContainer(runtime);
        const archive = `/w/disk/shale-${runtime}-${compression}`;
        const before = await readCount(inContainer("c1"));
        await lab.shale("checkpoint", "save", "c1", "-o", archive, "--compress", compression);
        await removeContainer("c1");
        await lab.exec("podman", "--runtime", runtime, "container", "restore", "-i", archive, "-n", "r1");
        await assertCounts(inContainer("r1"), before);
        await check(inContainer("r1"), [...CHECKS, ...LOST_BY_PODMAN, ...LOST_WHERE_THE_HOST_LACKS_IT]);
        await removeContainer("r1");

        const name = `s-${runtime}-${compression}`;
        const shell = await restoreByShale(runtime, archive, lower, name);
        await assertCounts(shell, before);
        await check(shell, [...CHECKS, ...LOST_BY_PODMAN, ...LOST_WHERE_THE_HOST_LACKS_IT]);
        assert.equal((await shell("du -k /sparse")).split(/\s/)[0], "0", "holes are holes");
        await endRuntime(runtime, name);
      });

      test(`podman to shale: ${runtime}, ${compression}`, async () => {
        const lower = await startContainer(runtime);
        const archive = `/w/disk/podman-${runtime}-${compression}`;
        const before = await readCount(inContainer("c1"));
        const flags = ["-e", archive, `--compress=${compression}`];
        await lab.exec("podman", "--runtime", runtime, "container", "checkpoint", ...flags, "c1");
        await removeContainer("c1");
        const name = `p-${runtime}-${compression}`;
        const shell = await restoreByShale(runtime, archive, lower, name);
        await assertCounts(shell, before);
        await check(shell, [...CHECKS, LOST_BY_PODMAN[0]!]);
        await endRuntime(runtime, name);
      });
    }

    test(`a container of ${runtime} alone is saved and restored`, async () => {
      const lower = await startContainer(runtime);
      await lab.shale("checkpoint", "save", "c1", "-o", `/w/disk/first-${runtime}`);
      await removeContainer("c1");
      const first = await restoreByShale(runtime, `/w/disk/first-${runtime}`, lower, `one-${runtime}`);
      const before = await readCount(first);
      await lab.shale("checkpoint", "save", `one-${runtime}`, "-o", `/w/disk/second-${runtime}`, "--engine", runtime);
      await endRuntime(runtime, `one-${runtime}`);
      const place = `/w/disk/two-${runtime}`;
      mkdirSync(join(lab.disk, `two-${runtime}`));
      await lab.shale(
        ...["checkpoint", "restore", `/w/disk/second-${runtime}`, "--upper", `${place}/diff`, "--lower", lower],
        ...["--bundle", `${place}/bundle`, "--run", runtime, "--name", `two-${runtime}`],
      );
      const second: Shell = (script) => lab.exec(runtime, "exec", `two-${runtime}`, "sh", "-c", script);
      await assertCounts(second, before);
      await check(second, [...CHECKS, ...LOST_BY_PODMAN]);
      await endRuntime(runtime, `two-${runtime}`);
    });
  }

  test("a container of containerd is saved, and restored with runc", async () => {
    await lab.clean();
    const socket = "/run/cd.sock";
    const ctr = (...args: readonly string[]) => lab.exec("ctr", "-a", socket, ...args);
    const daemon = `setsid containerd --root /w/disk/cd --state /run/cd --address ${socket} >/w/disk/cd.log 2>&1 </dev/null &`;
    await lab.exec("bash", "-c", daemon); // it ends with the laboratory
    for (let tries = 0; (await lab.try("ctr", "-a", socket, "version")).code !== 0; tries++) {
      assert.ok(tries < 100, "containerd does not answer");
      await delay(100);
    }
    await lab.exec("podman", "save", "-q", "localhost/lab", "-o", "/w/disk/lab.tar");
    await ctr("image", "import", "/w/disk/lab.tar");
    // No resources: cgroup2 has no controllers here.
    const options = ["-d", "--cgroup", "", "--cpu-shares", "0", "--snapshotter", "overlayfs"];
    const script = WORK.replace("echo shared > /dev/shm/s", "mkdir -p /data");
    await ctr("run", ...options, "localhost/lab:latest", "web", "sh", "-c", script);
    const inside: Shell = (text) =>
      ctr("tasks", "exec", "--exec-id", `e${process.hrtime.bigint()}`, "web", "sh", "-c", text);
    for (
      let tries = 0;
      (await lab.try("ctr", "-a", socket, "tasks", "exec", "--exec-id", `r${tries}`, "web", "cat", "/count")).code !==
      0;
      tries++
    ) {
      assert.ok(tries < 100);
    }
    const before = await readCount(inside);
    await lab.exec("bash", "-c", `printf '#!/bin/sh\nexec ctr -a ${socket} "$@"\n' >/w/disk/ctr; chmod +x /w/disk/ctr`);
    await lab.shale(
      "checkpoint",
      "save",
      "web",
      "-o",
      "/w/disk/web.tar",
      "--engine",
      "containerd",
      "--program",
      "/w/disk/ctr",
    );
    const mounts = await ctr("snapshots", "--snapshotter", "overlayfs", "mounts", "/", "web");
    const lower = /lowerdir=([^,\s]+)/.exec(mounts)![1]!;
    mkdirSync(join(lab.disk, "web"));
    await lab.shale(
      ...["checkpoint", "restore", "/w/disk/web.tar", "--upper", "/w/disk/web/diff", "--lower", lower],
      ...["--bundle", "/w/disk/web/bundle", "--run", "runc", "--name", "web"],
    );
    const shell: Shell = (text) => lab.exec("runc", "exec", "web", "sh", "-c", text);
    await assertCounts(shell, before);
    const others = CHECKS.filter(({ what }) => what !== "shared memory");
    await check(shell, [...others, ...LOST_BY_PODMAN, ...LOST_WHERE_THE_HOST_LACKS_IT]);
    await endRuntime("runc", "web");
  });
});
