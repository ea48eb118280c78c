/** The laboratory of lab.sh as an object: real podman, crun, runc and CRIU, and shale inside of it, on a disk of its own. */
import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, realpathSync, rmSync } from "node:fs";
import { join } from "node:path";
import { type RunResult, run } from "../../src/sys/index.ts";

/** Loaded by each shale process: it notes its peak memory, in KiB, as it ends. */
const REPORT = `data:text/javascript,import{appendFileSync}from"node:fs";process.on("exit",()=>appendFileSync("/w/shale/memory",process.resourceUsage().maxRSS+"\\n"))`;
const SHALE = [
  ...["env", "NODE_COMPILE_CACHE=/w/shale/cache"],
  ...["/w/shale/node", "--disable-warning=ExperimentalWarning", "--import", REPORT, "/w/shale/src/cli/main.ts"],
];
const SCRIPT = join(import.meta.dirname, "lab.sh");
const SOURCES = join(import.meta.dirname, "../..");
/** Where the tree of peers.sh is; the laboratory is beside it. */
const PEERS = process.env.PEERS_ROOT ?? "/var/tmp/shale-peers";

export type LabFileSystem = "xfs" | "ext4";

export class Lab implements AsyncDisposable {
  readonly #directory: string;
  /** Host's path of what is /w/disk inside. */
  readonly disk: string;

  private constructor(directory: string) {
    this.#directory = directory;
    this.disk = join(directory, "w/disk");
  }

  /** On XFS, which has reflinks, or on ext4, which has none. */
  static async start(options: { readonly type?: LabFileSystem } = {}): Promise<Lab> {
    const lab = new Lab(mkdtempSync(join(PEERS, "lab-")));
    try {
      await lab.script("start", { LAB_FS: options.type ?? "xfs" });
      lab.#installShale();
      return lab;
    } catch (error) {
      await lab[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Runs a command inside; an error with what it printed unless it ends with 0. */
  async exec(...argv: readonly string[]): Promise<string> {
    const { code, stdout, stderr } = await this.try(...argv);
    if (code === 0) return stdout.toString();
    throw new Error(`${argv.join(" ")} ended with ${code}: ${stderr.toString()}${stdout.toString()}`);
  }

  try(...argv: readonly string[]): Promise<RunResult> {
    const env = { ...process.env, LAB: this.#directory };
    return run(SCRIPT, ["run", ...argv], { env, timeoutMs: 300_000 });
  }

  async shale(...args: readonly string[]): Promise<string> {
    return await this.exec(...SHALE, ...args);
  }

  /** Runs shale, and kills it after a time unless it ended before. What it started goes on. */
  async shaleKilled(afterMs: number, ...args: readonly string[]): Promise<void> {
    await this.try("timeout", "--foreground", "-s", "KILL", String(afterMs / 1000), ...SHALE, ...args);
  }

  /** The largest resident set of all shale processes so far, bytes. */
  peakMemory(): number {
    const lines = readFileSync(join(this.#directory, "w/shale/memory"), "utf8").trim().split("\n");
    return Math.max(...lines.map(Number)) * 1024;
  }

  /** Ends all containers, and removes what they leave in cgroups. */
  async clean(): Promise<void> {
    await this.try("podman", "rm", "-fa", "-t0");
    await this.try("podman", "volume", "rm", "-fa");
    await this.script("clean");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.script("stop");
    rmSync(this.#directory, { recursive: true, force: true });
  }

  /** A command of lab.sh itself. */
  async script(command: string, more: Readonly<Record<string, string>> = {}): Promise<void> {
    const env = { ...process.env, LAB: this.#directory, ...more };
    // Not `run`: what `start` leaves behind has its output, and a pipe would be waited for.
    execFileSync(SCRIPT, [command], { env, stdio: ["ignore", "ignore", "inherit"], timeout: 300_000 });
  }

  #installShale(): void {
    const target = join(this.#directory, "w/shale");
    mkdirSync(target);
    cpSync(realpathSync(process.execPath), join(target, "node"));
    for (const name of ["src", "package.json"]) cpSync(join(SOURCES, name), join(target, name), { recursive: true });
    for (const name of ["koffi", "@koromix"]) {
      cpSync(join(SOURCES, "node_modules", name), join(target, "node_modules", name), {
        recursive: true,
        dereference: true,
      });
    }
  }
}
