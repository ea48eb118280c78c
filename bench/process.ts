/**
 * Child processes of the benchmark.
 *
 * Guarantees: a command either ends with exit code 0 or its promise rejects with what it printed; a daemon has ended
 * when its disposal resolves. Only processes started here are ever signalled, by their own id.
 */
import { type ChildProcess, type SpawnOptions, spawn } from "node:child_process";
import { closeSync, existsSync, openSync, readdirSync, readFileSync } from "node:fs";
import { delay } from "../src/async/index.ts";
import { errnoOf, ShaleError } from "../src/errors/index.ts";

export interface RunOptions {
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
  /** Kills the command (SIGKILL, so that it can't outlive the benchmark). */
  readonly signal?: AbortSignal;
}

/** Runs a command to its end and returns its standard output. Throws INTERNAL with the end of stderr on failure. */
export async function run(argv: readonly string[], options: RunOptions = {}): Promise<string> {
  const [command, ...args] = argv;
  const spawnOptions: SpawnOptions = {
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ...options.env },
    killSignal: "SIGKILL",
  };
  if (options.cwd !== undefined) spawnOptions.cwd = options.cwd;
  if (options.signal) spawnOptions.signal = options.signal;
  const child = spawn(command!, args, spawnOptions);
  const stdout: Buffer[] = [];
  const stderr: Buffer[] = [];
  child.stdout!.on("data", (chunk: Buffer) => stdout.push(chunk));
  child.stderr!.on("data", (chunk: Buffer) => stderr.push(chunk));
  const failure = await new Promise<unknown>((resolve) => {
    // An abort emits "error" first; only "close" means that the process is gone.
    let problem: unknown;
    child.on("error", (error) => {
      problem = error;
      if (child.pid === undefined) resolve(error);
    });
    child.on("close", (code, signal) => resolve(problem ?? (code === 0 ? undefined : `ended with ${signal ?? code}`)));
  });
  if (failure === undefined) return Buffer.concat(stdout).toString();
  const tail = Buffer.concat([...stdout, ...stderr])
    .toString()
    .slice(-2000)
    .trim();
  throw new ShaleError("INTERNAL", `Cannot run ${argv.join(" ")}: ${String(failure)}: ${tail}`, { cause: failure });
}

/** Whether `command` is found in PATH. */
export function hasCommand(command: string): boolean {
  return (process.env.PATH ?? "").split(":").some((directory) => existsSync(`${directory}/${command}`));
}

export interface Daemon extends AsyncDisposable {
  readonly pid: number;
}

export interface DaemonOptions extends RunOptions {
  readonly logFile: string;
  /** Polled until true; at most 20 s. */
  readonly ready: (daemonPid: number) => boolean | Promise<boolean>;
  /** SIGKILL for `unshare --kill-child`, which ignores SIGTERM and takes its process tree along. */
  readonly stopSignal?: "SIGTERM" | "SIGKILL";
}

/** Starts a daemon in a session of its own, so that a Ctrl-C in the terminal does not end it before the cleanup. */
export async function startDaemon(argv: readonly string[], options: DaemonOptions): Promise<Daemon> {
  const log = openSync(options.logFile, "w");
  let child: ChildProcess;
  try {
    const [command, ...args] = argv;
    child = spawn(command!, args, {
      stdio: ["ignore", log, log],
      detached: true,
      env: { ...process.env, ...options.env },
    });
  } finally {
    closeSync(log);
  }
  const ended = new Promise<void>((resolve) => {
    child.on("exit", () => resolve());
    child.on("error", () => resolve());
  });
  const daemon: Daemon = {
    pid: child.pid ?? 0,
    async [Symbol.asyncDispose]() {
      await stop(child, ended, options.stopSignal ?? "SIGTERM");
    },
  };
  try {
    for (const deadline = Date.now() + 20_000; Date.now() < deadline; ) {
      if (child.pid === undefined || child.exitCode !== null) break;
      if (await options.ready(child.pid)) return daemon;
      await delay(20, options.signal ? { signal: options.signal } : {});
    }
    const log = readFileSync(options.logFile, "utf8").slice(-2000).trim();
    throw new ShaleError("UNAVAILABLE", `Cannot start ${argv[0]}: it is not ready: ${log}`);
  } catch (error) {
    await daemon[Symbol.asyncDispose]();
    throw error;
  }
}

async function stop(child: ChildProcess, ended: Promise<void>, signal: "SIGTERM" | "SIGKILL"): Promise<void> {
  if (child.pid === undefined) return;
  if (child.exitCode === null && child.signalCode === null) child.kill(signal);
  const impatient = setTimeout(() => child.kill("SIGKILL"), 10_000);
  await ended;
  clearTimeout(impatient);
}

/** Direct children of a process, from procfs; empty when it has ended. The kernel lists them by the thread that forked. */
export function childrenOf(pid: number): number[] {
  try {
    return readdirSync(`/proc/${pid}/task`).flatMap((thread) =>
      readFileSync(`/proc/${pid}/task/${thread}/children`, "utf8").trim().split(" ").filter(Boolean).map(Number),
    );
  } catch (error) {
    if (errnoOf(error) === "ENOENT" || errnoOf(error) === "ESRCH") return []; // it ended between two reads
    throw error;
  }
}
