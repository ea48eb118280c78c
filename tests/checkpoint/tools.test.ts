/** The commands that read, compare, convert, move and keep checkpoint archives, as users run them. */
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import {
  containerdArchive,
  crioArchive,
  podmanArchive,
  sampleProcesses,
} from "../../src/checkpoint/testing/sample-archives.ts";
import { type DockerRegistry, startDockerRegistry } from "../../src/registry/testing/docker-registry.ts";

const SHALE = join(import.meta.dirname, "../../shale");
const work = mkdtempSync(join(tmpdir(), "shale-checkpoint-tools-"));
const file = (name: string) => join(work, name);
after(() => rmSync(work, { recursive: true, force: true }));

before(() => {
  writeFileSync(file("podman.tar"), podmanArchive());
  writeFileSync(file("later.tar"), podmanArchive({ processes: sampleProcesses(1), deleted: ["/etc/motd"] }));
  writeFileSync(file("crio.tar"), crioArchive());
  writeFileSync(file("containerd.tar"), containerdArchive());
  for (const [kind, command] of [
    ["gz", "gzip"],
    ["bz2", "bzip2"],
    ["xz", "xz"],
    ["zst", "zstd"],
  ] as const) {
    writeFileSync(file(`podman.tar.${kind}`), execFileSync(command, ["-c"], { input: podmanArchive() }));
  }
});

interface Ended {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function shale(args: readonly string[], input?: Buffer): Ended {
  const environment = { PATH: process.env.PATH, HOME: work, LANG: "C.UTF-8", NODE_COMPILE_CACHE: file("compiled") };
  const words = ["--root", file("store"), "checkpoint", ...args];
  const { status, stdout, stderr } = spawnSync(SHALE, words, { env: environment, ...(input && { input }), cwd: work });
  return { status, stdout: stdout.toString(), stderr: stderr.toString() };
}

function ok(...args: readonly string[]): string {
  const { status, stdout, stderr } = shale(args);
  assert.equal(status, 0, stderr);
  return stdout;
}

const json = (...args: readonly string[]) => JSON.parse(ok(...args, "--json")) as Record<string, unknown>;

describe("shale checkpoint", () => {
  test("show: container, processes and sections, for people and for programs", () => {
    const text = ok("show", "podman.tar");
    for (const part of [
      "counter",
      "docker.io/library/httpd:2.4",
      "crun",
      "sh -c counter",
      "changed files",
      "volume data",
    ]) {
      assert.ok(text.includes(part), part);
    }
    const value = json("show", "crio.tar");
    assert.equal(value.dialect, "crio");
    assert.deepEqual(
      (value.processes as { pid: number }[]).map(({ pid }) => pid),
      [1, 7],
    );
  });

  for (const kind of ["gz", "bz2", "xz", "zst"]) {
    test(`show --full: an archive in ${kind}, by its name and from stdin`, () => {
      const expected = ok("show", "podman.tar").replace(/compression: .*/, "");
      assert.equal(ok("show", "--full", `podman.tar.${kind}`).replace(/compression: .*/, ""), expected);
      const { stdout } = shale(["show", "--full", "-"], readFileSync(file(`podman.tar.${kind}`)));
      assert.equal(stdout.replace(/compression: .*/, ""), expected);
    });
  }

  test("ls: members, and the files in nested tars", () => {
    assert.ok(ok("ls", "podman.tar").split("\n").includes("rootfs-diff.tar"));
    assert.match(ok("ls", "-lR", "podman.tar"), /-0644 0:0 +9 B rootfs-diff\.tar\/data\/log\.txt/);
    const { files } = json("ls", "-R", "containerd.tar") as { files: { path: string }[] };
    assert.ok(files.some(({ path }) => path === "rootfs-diff.tar/etc/.wh.motd"));
  });

  test("diff: nothing, and what happened between two", () => {
    assert.equal(ok("diff", "podman.tar", "podman.tar.zst"), "no difference\n");
    const { status, stdout } = shale(["diff", "--ranges", "podman.tar", "later.tar"]);
    assert.equal(status, 1);
    assert.match(stdout, /^- rootfs\/var\/cache\/old \(deleted\)$/m);
    assert.match(stdout, /^~ +1 +sh +16 +36 +0 +0$/m);
    assert.match(stdout, /^~ 1 0x555500000000 32 pages$/m);
  });

  test("convert: there, back, and what can't go along", () => {
    const there = shale(["convert", "--to", "containerd", "podman.tar", "there.tar"]);
    assert.equal(there.status, 0, there.stderr);
    assert.match(there.stdout, /^there\.tar: podman to containerd, .*, 2 deletions$/m);
    assert.match(there.stderr, /containerd restores no volumes/);
    assert.equal(statSync(file("there.tar")).mode & 0o777, 0o600);
    ok("convert", "--to", "podman", "there.tar", "back.tar");
    assert.match(shale(["diff", "podman.tar", "back.tar"]).stdout, /^[^~+-]*~ config\.dump|no difference/m);
    const strict = shale(["convert", "--to", "containerd", "--strict", "podman.tar", "strict.tar"]);
    assert.equal(strict.status, 1);
    assert.equal(shale(["convert", "podman.tar", "x.tar"]).status, 2);
  });

  test("verify: whole, and damaged", () => {
    assert.match(ok("verify", "podman.tar.xz"), /it has no digests, and is whole/);
    ok("convert", "--to", "podman", "--digest-data", "podman.tar", "digested.tar");
    assert.match(ok("verify", "digested.tar"), /unchanged since shale/);
    const bytes = readFileSync(file("digested.tar"));
    bytes[bytes.indexOf("one line")]! ^= 1;
    writeFileSync(file("damaged.tar"), bytes);
    const { status, stdout } = shale(["verify", "damaged.tar"]);
    assert.equal(status, 1);
    assert.match(stdout, /^rootfs-diff\.tar +damaged: it does not match its digest$/m);
    writeFileSync(file("cut.tar"), bytes.subarray(0, 100_000));
    assert.equal(shale(["verify", "cut.tar"]).status, 1);
  });

  test("import, list, export, and the store's own commands", () => {
    assert.match(ok("import", "podman.tar", "web:1"), /^web:1: .* new in the store$/m);
    assert.match(ok("import", "podman.tar", "web:again"), /already in the store/);
    const second = json("import", "later.tar", "web:2") as { stored: number; size: number };
    assert.ok(second.stored < second.size);
    const { checkpoints } = json("list") as { checkpoints: { name: string; container: string }[] };
    assert.deepEqual(
      checkpoints.map(({ name, container }) => [name, container]),
      ["1", "2", "again"].map((tag) => [`docker.io/library/web:${tag}`, "counter"]),
    );
    ok("export", "web:2", "-o", "exported.tar");
    assert.ok(readFileSync(file("exported.tar")).equals(readFileSync(file("later.tar"))));
    assert.equal(statSync(file("exported.tar")).mode & 0o777, 0o600);
    const others = (...args: string[]) => spawnSync(SHALE, ["--root", file("store"), ...args], { encoding: "utf8" });
    assert.equal(others("rm", "web:1", "web:again").status, 0);
    assert.equal(others("gc").status, 0);
    const check = others("check");
    assert.equal(check.status, 0, check.stdout + check.stderr);
    assert.match(others("ls", "web:2").stderr, /it is the archive of a checkpoint/);
    ok("export", "web:2", "-o", "exported.tar");
  });

  test("a family without a command is a mistake, and its help lists the commands", () => {
    assert.equal(shale([]).status, 2);
    const help = ok("--help");
    for (const name of ["show", "ls", "diff", "verify", "convert", "push", "pull", "import", "export", "list"]) {
      assert.match(help, new RegExp(`^ {2}${name} `, "m"));
    }
  });
});

describe("shale checkpoint push and pull", () => {
  let registry: DockerRegistry;
  before(async () => {
    registry = await startDockerRegistry(file("registry"));
  });
  after(() => registry.stop());

  test("to a registry and back, with the annotations that were asked for", () => {
    const name = `${registry.host}/checkpoints/web:1`;
    const more = "org.criu.checkpoint.criu.version=4.2";
    assert.match(ok("push", "--annotation", more, "podman.tar", name), /uploaded$/m);
    const raw = execFileSync("skopeo", ["inspect", "--raw", "--tls-verify=false", `docker://${name}`], {
      encoding: "utf8",
    });
    const { annotations } = JSON.parse(raw) as { annotations: Record<string, string> };
    assert.equal(annotations["org.criu.checkpoint.criu.version"], "4.2");
    assert.match(ok("pull", "-o", "pulled.tar", name), /checkpoint of counter/);
    assert.ok(readFileSync(file("pulled.tar")).equals(readFileSync(file("podman.tar"))));
    // from the store, by the command for images
    ok("import", "podman.tar", "stored:1");
    const stored = `${registry.host}/checkpoints/stored:1`;
    const { status, stderr } = spawnSync(SHALE, ["--root", file("store"), "push", "stored:1", stored], {
      encoding: "utf8",
    });
    assert.equal(status, 0, stderr);
    ok("pull", "-o", "again.tar", stored);
    assert.ok(readFileSync(file("again.tar")).equals(readFileSync(file("podman.tar"))));
    assert.equal(shale(["push", "--annotation", "novalue", "podman.tar", name]).status, 2);
    assert.equal(shale(["pull", name]).status, 2);
    assert.match(shale(["pull", "-o", "none.tar", `${registry.host}/checkpoints/none:1`]).stderr, /not there/);
  });
});
