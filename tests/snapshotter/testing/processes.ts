/** Commands and long-running processes of these tests. Every process is ended by who started it, by its own id. */
import { type ChildProcess, spawn } from "node:child_process";
import { createWriteStream, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

export interface Ran {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs to the end, whatever the exit code. */
export function run(
  command: readonly string[],
  options: { readonly input?: string; readonly env?: NodeJS.ProcessEnv } = {},
): Promise<Ran> {
  return new Promise((resolve, reject) => {
    const child = spawn(command[0]!, command.slice(1), { stdio: "pipe", env: options.env ?? process.env });
    const out = { stdout: "", stderr: "" };
    child.stdout.setEncoding("utf8").on("data", (text: string) => (out.stdout += text));
    child.stderr.setEncoding("utf8").on("data", (text: string) => (out.stderr += text));
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, ...out }));
    child.stdin.on("error", () => undefined).end(options.input ?? ""); // a command that reads nothing may be gone
  });
}

/** The standard output; an error with everything it said when it fails. */
export async function must(command: readonly string[], options: Parameters<typeof run>[1] = {}): Promise<string> {
  const { code, stdout, stderr } = await run(command, options);
  if (code === 0) return stdout;
  throw new Error(`${command.join(" ")} ended with ${code}: ${stderr.trim()} ${stdout.trim()}`);
}

/** Until it is so; the runner's time limit ends what never comes. */
export async function until(condition: () => boolean | Promise<boolean>, everyMs = 20): Promise<void> {
  while (!(await condition())) await sleep(everyMs);
}

export class Process {
  readonly #child: ChildProcess;
  readonly log: string;
  readonly ended: Promise<number | NodeJS.Signals | null>;
  #over = false;

  /** Output is appended to the file `log`. */
  constructor(command: readonly string[], log: string, env: NodeJS.ProcessEnv = process.env) {
    this.log = log;
    this.#child = spawn(command[0]!, command.slice(1), { stdio: ["ignore", "pipe", "pipe"], env });
    const file = createWriteStream(log, { flags: "a" });
    this.#child.stdout!.pipe(file, { end: false });
    this.#child.stderr!.pipe(file, { end: false });
    this.ended = new Promise((resolve, reject) => {
      this.#child.on("error", reject);
      this.#child.on("exit", () => {
        this.#over = true;
      });
      this.#child.on("close", (code, signal) => {
        file.end();
        resolve(code ?? signal);
      });
    });
  }

  get pid(): number {
    return this.#child.pid!;
  }

  get running(): boolean {
    return !this.#over;
  }

  /** Resolves when `condition` holds; an error with the log's end when the process ends first. */
  async ready(condition: () => boolean | Promise<boolean>): Promise<void> {
    await until(async () => {
      if (this.#over) throw new Error(`The process ended before it was ready:\n${this.tail()}`);
      return await condition();
    });
  }

  /** Sends the signal and waits for the end. */
  async end(signal: NodeJS.Signals): Promise<void> {
    if (!this.#over) this.#child.kill(signal);
    await this.ended;
  }

  tail(): string {
    return readFileSync(this.log, "utf8").split("\n").slice(-8).join("\n");
  }
}
