/**
 * A machine for one test: a registry, the daemon on the host, and a containerd (1.6 of the host's Debian, or 2.1 of sid) in a
 * mount and a pid namespace of its own, into which the daemon's mounts propagate. That is how a node looks to a DaemonSet.
 *
 * Everything it makes is below one directory; when it ends, nothing is left, also of a test that failed.
 */
import assert from "node:assert/strict";
import { existsSync, globSync, mkdirSync, mkdtempSync, readFileSync, rmdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { type DockerRegistry, startDockerRegistry } from "../../../src/registry/testing/docker-registry.ts";
import { isRoot } from "../../../src/sys/index.ts";
import { must, Process, type Ran, run, until } from "./processes.ts";

const HERE = import.meta.dirname;
const REPOSITORY = resolve(HERE, "../../..");
const SHALE = join(REPOSITORY, "src/cli/main.ts");

export type Generation = "1.6" | "2.1";
/** How layers come in: fetched by shale, applied by shale's differ, or unpacked by containerd's walking differ. */
export type Way = "remote" | "differ" | "plain";

export interface MachineOptions {
  readonly generation: Generation;
  readonly way: Way;
  /** Lines of the daemon's configuration. */
  readonly config?: string;
  /** The registry lets in nobody but USER with PASSWORD. */
  readonly guarded?: boolean;
  /** With containerd 2.1 and runc, in place of the one made for tests. */
  readonly tree?: string;
  /** Where the machine's directory is made: the file system under test; /var/tmp unless given. */
  readonly parent?: string;
  /** containerd's; one of its own unless given. */
  readonly namespace?: string;
  /** Further environment of the daemon. */
  readonly env?: Readonly<Record<string, string>>;
  /** Bytes of a disk of its own (ext4) for the daemon's store. */
  readonly diskSize?: number;
}

export { needsRoot } from "../../../src/sys/testing/filesystems.ts";

export const USER = "someone";
export const PASSWORD = "a:pass word";
/** python3.11 -c 'from crypt import *; print(crypt("a:pass word", mksalt(METHOD_BLOWFISH, rounds=16)))' */
const PASSWORD_HASH = "$2b$04$gzgidfsZzoVbNoP5gP4xL.BgD04VjYPg3vRvV8xZMp5BisUhgCll.";

let built: Promise<string> | undefined;

/** The directory with suites and sid tree, made when it is missing; nothing for who may not run these tests. */
export function ensureTools(): Promise<string> {
  if (!isRoot()) return Promise.resolve("");
  built ??= must([join(HERE, "../conformance/build.sh")]).then((out) => out.trim());
  return built;
}

export class Machine implements AsyncDisposable {
  readonly directory: string;
  readonly root: string;
  readonly namespace: string;
  readonly registry: DockerRegistry;
  readonly #options: MachineOptions;
  #way: Way;
  #holder: Process | undefined;
  #daemon: Process | undefined;
  #containerd: Process | undefined;
  #env: Readonly<Record<string, string>>;

  private constructor(directory: string, registry: DockerRegistry, options: MachineOptions) {
    this.directory = directory;
    this.registry = registry;
    this.#options = options;
    this.namespace = options.namespace ?? `shale-test-${process.pid}-${++counter}`;
    this.#way = options.way;
    this.#env = options.env ?? {};
    this.root = join(directory, "shale");
  }

  /** With everything running. */
  static async start(options: MachineOptions): Promise<Machine> {
    // Not /tmp where that may be a tmpfs: overlays of the host's file system are what is tested.
    const directory = mkdtempSync(join(options.parent ?? "/var/tmp", "shale-machine-"));
    await must(["mount", "--bind", directory, directory]);
    await must(["mount", "--make-shared", directory]);
    writeFileSync(join(directory, "htpasswd"), `${USER}:${PASSWORD_HASH}\n`);
    const guard = `auth: {htpasswd: {realm: test, path: ${join(directory, "htpasswd")}}}\n`;
    const registry = await startDockerRegistry(join(directory, "registry"), options.guarded ? guard : "");
    const machine = new Machine(directory, registry, options);
    try {
      if (options.diskSize !== undefined) await machine.#mountDisk(options.diskSize);
      const tree = options.generation === "1.6" ? "/" : (options.tree ?? join(await ensureTools(), "sid"));
      const holder = new Process([join(HERE, "enter.sh"), tree, directory], join(directory, "namespace.log"));
      machine.#holder = holder;
      await holder.ready(() => existsSync(join(directory, `ready-${holder.pid}`)));
      await machine.startDaemon();
      await machine.startContainerd();
      return machine;
    } catch (error) {
      await machine[Symbol.asyncDispose]();
      throw error;
    }
  }

  async #mountDisk(size: number): Promise<void> {
    const image = join(this.directory, "disk");
    mkdirSync(this.root);
    await must(["truncate", "-s", String(size), image]);
    await must(["mkfs.ext4", "-q", "-F", "-m0", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0", image]);
    await must(["mount", "-o", "loop", image, this.root]);
  }

  get socket(): string {
    return join(this.directory, "shale.sock");
  }

  get containerdSocket(): string {
    return join(this.directory, "containerd.sock");
  }

  /** Of the CRI proxy. */
  get proxySocket(): string {
    return join(this.directory, "cri.sock");
  }

  get guarded(): boolean {
    return this.#options.guarded ?? false;
  }

  get generation(): Generation {
    return this.#options.generation;
  }

  // --- the daemon

  /** `env` replaces what it was given before. Resolves when the socket answers, or containerd has reached it again. */
  async startDaemon(
    env: Readonly<Record<string, string>> = this.#env,
    options: { readonly wait?: "socket" | "containerd" } = {},
  ): Promise<void> {
    this.#env = env;
    const config = join(this.directory, "shale.toml");
    writeFileSync(
      config,
      `version = 1
${this.#options.config ?? ""}
[cri_proxy]
address = "${this.proxySocket}"
backend = "${this.containerdSocket}"
[containerd]
address = "${this.containerdSocket}"
root = "${join(this.directory, "containerd")}"
`,
    );
    const words = ["daemon", "--config", config, "--root", this.root, "--address", this.socket];
    this.#daemon = new Process(
      // The launcher, as users start it: it gives the daemon a small heap, and becomes it.
      [join(REPOSITORY, "shale"), ...words],
      join(this.directory, "daemon.log"),
      { ...cleanEnvironment(), ...env },
    );
    await this.#daemon.ready(() => existsSync(this.socket) && this.#answers());
    if (options.wait !== "socket") await this.#connected();
  }

  /**
   * containerd tries a socket that was gone again within three seconds; until then it refuses by itself. A listing asks the
   * daemon for each snapshot that containerd knows, where it knows any.
   */
  async #connected(): Promise<void> {
    if (this.#containerd?.running !== true) return;
    await until(async () => {
      const { code } = await this.ctr("snapshots", "--snapshotter", "shale", "ls");
      return code === 0 || this.#daemon?.running !== true;
    });
  }

  async #answers(): Promise<boolean> {
    const { connect } = await import("node:net");
    return await new Promise((answer) => {
      const socket = connect({ path: this.socket });
      socket.once("connect", () => answer(true)).once("error", () => answer(false));
      socket.once("connect", () => socket.destroy());
    });
  }

  get daemon(): Process {
    assert.ok(this.#daemon);
    return this.#daemon;
  }

  async stopDaemon(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    await this.#daemon?.end(signal);
  }

  // --- containerd

  async startContainerd(way: Way = this.#way): Promise<void> {
    this.#way = way;
    const config = join(this.directory, "containerd.toml");
    writeFileSync(config, containerdConfig(this, way));
    const pidFile = join(this.directory, "containerd.pid");
    rmSync(pidFile, { force: true });
    const start = 'echo $$ >"$0"; exec containerd --config "$1"';
    this.#containerd = new Process(
      this.#inside(["sh", "-c", start, pidFile, config]),
      join(this.directory, "containerd.log"),
    );
    await this.#containerd.ready(async () => (await this.ctr("version")).code === 0);
  }

  /** In its namespace: what nsenter starts is not what a signal to nsenter reaches. */
  async stopContainerd(signal: "TERM" | "KILL" = "TERM"): Promise<void> {
    const pid = readFileSync(join(this.directory, "containerd.pid"), "utf8").trim();
    await must(this.#inside(["sh", "-c", `kill -${signal} ${pid}`]));
    await this.#containerd?.ended;
  }

  #inside(command: readonly string[]): readonly string[] {
    const holder = readFileSync(`/proc/${this.#holder!.pid}/task/${this.#holder!.pid}/children`, "utf8").trim();
    return ["nsenter", "-t", holder, "-m", "-p", "-r", "-w", ...command];
  }

  /** A command where containerd runs. */
  inside(command: readonly string[]): Promise<Ran> {
    return run(this.#inside(command));
  }

  ctr(...words: readonly string[]): Promise<Ran> {
    return this.inside(["ctr", "-a", this.containerdSocket, "-n", this.namespace, ...words]);
  }

  /** The output of ctr; an error with what it said when it fails. */
  async mustCtr(...words: readonly string[]): Promise<string> {
    const { code, stdout, stderr } = await this.ctr(...words);
    if (code === 0) return stdout;
    throw new Error(
      `ctr ${words.join(" ")} ended with ${code}: ${stderr.trim()} ${stdout.trim()}\n${this.#daemon?.tail()}`,
    );
  }

  /** Of an image in this machine's registry; what names another registry stays as it is. */
  reference(name: string): string {
    return /^[^/]+:\d+\//.test(name) ? name : `${this.registry.host}/${name}`;
  }

  /** Pulls and unpacks into `snapshotter`; by the transfer service where there is one. */
  async pull(name: string, snapshotter = "shale"): Promise<void> {
    const user = this.guarded ? ["--user", `${USER}:${PASSWORD}`] : [];
    const words = ["images", "pull", "--plain-http", ...user, "--snapshotter", snapshotter];
    await this.mustCtr(...words, this.reference(name));
  }

  /** Runs a command in a new container, as root, to its end; its output. */
  async runContainer(
    name: string,
    id: string,
    command: readonly string[],
    options: { readonly keep?: boolean; readonly snapshotter?: string } = {},
  ): Promise<string> {
    const { keep = false, snapshotter = "shale" } = options;
    const words = ["run", ...(keep ? [] : ["--rm"]), "--snapshotter", snapshotter, "--fifo-dir", this.fifoDirectory];
    return await this.mustCtr(...words, this.reference(name), id, ...command);
  }

  get fifoDirectory(): string {
    return join(this.directory, "fifo");
  }

  /** containerd's own collection now, in step: the end of a lease is enough of a reason. */
  async collect(): Promise<void> {
    const lease = (await this.mustCtr("leases", "create")).trim();
    await this.mustCtr("leases", "delete", "--sync", lease);
  }

  /**
   * Containers, images, snapshots and content, and then what containerd and shale have no more use for. The daemon has stopped then:
   * what it is doing (a merge, a collection of its own) has a lease, and what goes meanwhile is the next collection's.
   */
  async removeEverything(): Promise<void> {
    const lines = async (...words: string[]) =>
      (await this.mustCtr(...words)).split("\n").filter((line) => line !== "");
    for (const id of await lines("tasks", "ls", "-q")) await this.mustCtr("tasks", "rm", "-f", id);
    for (const id of await lines("containers", "ls", "-q")) await this.mustCtr("containers", "rm", id);
    for (const name of await lines("images", "ls", "-q")) await this.mustCtr("images", "rm", name);
    for (const id of await lines("leases", "ls", "-q")) await this.mustCtr("leases", "delete", id);
    await this.collect();
    await this.stopDaemon();
    await this.shale("gc");
  }

  /** A command of the program on this machine's store. */
  shale(...words: readonly string[]): Promise<string> {
    const node = [process.execPath, "--disable-warning=ExperimentalWarning", SHALE];
    return must([...node, ...words, "--root", this.root], { env: cleanEnvironment() });
  }

  /** Everything that is mounted below the store, as seen by the host. */
  mounts(): readonly string[] {
    return mountsBelow(this.root);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#holder?.end("SIGKILL");
    await this.#containerd?.ended;
    await this.#daemon?.end("SIGKILL");
    await this.registry.stop();
    removeCgroups(this.namespace);
    for (const mount of mountsBelow(this.directory).toReversed()) await run(["umount", "-l", mount]);
    await until(() => mountsBelow(this.directory).length === 0);
    rmSync(this.directory, { recursive: true, force: true });
  }
}

let counter = 0;

/** Mount points at or below `directory`, in the order they were made. */
export function mountsBelow(directory: string): readonly string[] {
  return readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .map((line) => (line.split(" ")[4] ?? "").replaceAll("\\040", " "))
    .filter((path) => path === directory || path.startsWith(`${directory}/`));
}

/** Loop devices whose file lies below `directory`. */
export function loopsBelow(directory: string): readonly string[] {
  return globSync("/sys/block/loop*/loop/backing_file").filter((path) => {
    try {
      return readFileSync(path, "utf8").startsWith(`${directory}/`);
    } catch {
      return false; // detached between the listing and now
    }
  });
}

/** runc leaves its groups behind where it is killed: those of this machine's namespace, innermost first. */
function removeCgroups(namespace: string): void {
  for (const top of globSync(`/sys/fs/cgroup/{${namespace},*/${namespace}}`)) {
    const all = globSync(`${top}/**/`).sort((a, b) => b.length - a.length);
    for (const group of [...all, top]) {
      try {
        rmdirSync(group);
      } catch {
        // A process of it has not ended yet, or its parent's removal has taken it along.
      }
    }
  }
}

/** Nothing of the caller's own settings. */
function cleanEnvironment(): NodeJS.ProcessEnv {
  const { PATH, NODE_COMPILE_CACHE = join(tmpdir(), "shale-test-compile-cache") } = process.env;
  return { PATH, NODE_COMPILE_CACHE, HOME: "/nonexistent" };
}

function containerdConfig(machine: Machine, way: Way): string {
  const { directory, generation, socket, root } = machine;
  const common = `
root = "${directory}/containerd"
state = "${directory}/state"
[grpc]
  address = "${machine.containerdSocket}"
[ttrpc]
  address = "${machine.containerdSocket}.ttrpc"
`;
  const proxy = `
[proxy_plugins.shale]
  type = "snapshot"
  address = "${socket}"
`;
  if (generation === "1.6") {
    return `version = 2
${common}
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "${directory}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "shale"
    disable_snapshot_annotations = ${way !== "remote"}
${proxy}`;
  }
  const differ = `
[proxy_plugins.shale-diff]
  type = "diff"
  address = "${socket}"
[plugins."io.containerd.service.v1.diff-service"]
  default = ["shale-diff", "walking"]
`;
  const annotations = `
  [proxy_plugins.shale.exports]
    root = "${root}"
    enable_remote_snapshot_annotations = "true"
`;
  return `version = 3
${common}
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "shale"
  disable_snapshot_annotations = true
[plugins."io.containerd.cri.v1.runtime".cni]
  conf_dir = "${directory}/cni"
[plugins."io.containerd.transfer.v1.local"]
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux"
    snapshotter = "shale"
    differ = "${way === "differ" ? "shale-diff" : "walking"}"
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux"
    snapshotter = "overlayfs"
    differ = "walking"
${proxy}${way === "remote" ? annotations : ""}${way === "differ" ? differ : ""}`;
}
