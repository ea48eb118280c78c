/** Facts about this process, its machine, and child processes with bounded output. */
import { spawn } from "node:child_process";
import { accessSync, constants, existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { getCompileCacheDir } from "node:module";
import { release } from "node:os";
import { delimiter, dirname, join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { cancelled, throwIfAborted } from "../async/index.ts";
import { errnoOf, ShaleError } from "../errors/index.ts";

export interface RunOptions {
  readonly input?: Uint8Array | string;
  readonly env?: NodeJS.ProcessEnv;
  readonly cwd?: string;
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
  /** Limit for each of stdout and stderr, 16 MiB unless given; more ends the command with RESOURCE_EXHAUSTED. */
  readonly maxOutput?: number;
}

export interface RunResult {
  /** The exit code, or undefined when a signal ended the command. */
  readonly code: number | undefined;
  readonly killedBy: NodeJS.Signals | undefined;
  readonly stdout: Buffer;
  readonly stderr: Buffer;
}

/**
 * Runs a command without a shell and resolves when it has ended, whatever its exit code. Rejects with NOT_FOUND when there
 * is no such command; with UNAVAILABLE on timeout and CANCELLED on `signal`, after the command was killed and has ended.
 */
export function run(command: string, args: readonly string[], options: RunOptions = {}): Promise<RunResult> {
  throwIfAborted(options.signal);
  const limit = options.maxOutput ?? 16 * 1024 * 1024;
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { env: options.env, cwd: options.cwd, stdio: "pipe" });
    let failure: ShaleError | undefined;
    const stop = (error: ShaleError) => {
      failure ??= error;
      child.kill("SIGKILL");
    };
    const collect = (name: string) => {
      const parts: Buffer[] = [];
      let size = 0;
      const add = (chunk: Buffer) => {
        size += chunk.length;
        if (size <= limit) parts.push(chunk);
        else
          stop(
            new ShaleError("RESOURCE_EXHAUSTED", `Cannot run ${command}: ${name} is over the limit of ${limit} bytes`),
          );
      };
      return { add, bytes: () => Buffer.concat(parts) };
    };
    const stdout = collect("stdout");
    const stderr = collect("stderr");
    child.stdout.on("data", stdout.add);
    child.stderr.on("data", stderr.add);
    child.stdin.on("error", (error) => {
      if (errnoOf(error) !== "EPIPE")
        stop(new ShaleError("INTERNAL", `Cannot run ${command}: input failed`, { cause: error }));
    }); // EPIPE: the command does not want its input, which is its right
    child.stdin.end(options.input);
    const timer =
      options.timeoutMs === undefined
        ? undefined
        : setTimeout(() => {
            stop(new ShaleError("UNAVAILABLE", `Cannot run ${command}: it did not end in ${options.timeoutMs} ms`));
          }, options.timeoutMs);
    const onAbort = () => stop(cancelled(options.signal!));
    options.signal?.addEventListener("abort", onAbort, { once: true });
    const settle = () => {
      clearTimeout(timer);
      options.signal?.removeEventListener("abort", onAbort);
    };
    child.on("error", (error) => {
      settle();
      const code = errnoOf(error) === "ENOENT" ? "NOT_FOUND" : "FAILED_PRECONDITION";
      reject(new ShaleError(code, `Cannot run ${command}: ${error.message}`, { cause: error }));
    });
    child.on("close", (code, signal) => {
      settle();
      if (failure !== undefined) return reject(failure);
      resolve({
        code: code ?? undefined,
        killedBy: signal ?? undefined,
        stdout: stdout.bytes(),
        stderr: stderr.bytes(),
      });
    });
  });
}

/** The path of an executable file in $PATH, or undefined. */
export function which(command: string, path = process.env.PATH ?? ""): string | undefined {
  for (const directory of path.split(delimiter)) {
    if (directory === "") continue;
    const candidate = join(directory, command);
    try {
      accessSync(candidate, constants.X_OK);
      if (statSync(candidate).isFile()) return candidate;
    } catch (error) {
      if (!["ENOENT", "EACCES", "ENOTDIR"].includes(errnoOf(error) ?? "")) throw error;
    }
  }
  return undefined;
}

/** Changes with every boot: locks, mounts and process ids of another boot mean nothing. */
export function bootId(): string {
  return readFileSync("/proc/sys/kernel/random/boot_id", "latin1").trim();
}

export interface ProcessStatus {
  /** Clock ticks since boot; with the pid it names a process for good (pids are used again). */
  readonly startTime: number;
  /** One letter of proc(5): R, S, D, T (stopped), t, Z ... */
  readonly state: string;
}

/** Undefined when there is no such process (in this pid namespace). */
export function findProcess(pid: number): ProcessStatus | undefined {
  let text: string;
  try {
    text = readFileSync(`/proc/${pid}/stat`, "latin1");
  } catch (error) {
    if (errnoOf(error) === "ENOENT" || errnoOf(error) === "ESRCH") return undefined;
    throw error;
  }
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" "); // the name in parentheses may hold anything
  return { state: fields[0]!, startTime: Number(fields[19]) };
}

let ownStartTime: number | undefined;

/** The start time of a process, or undefined when it does not exist. */
export function processStartTime(pid: number = process.pid): number | undefined {
  if (pid !== process.pid) return findProcess(pid)?.startTime;
  ownStartTime ??= findProcess(pid)?.startTime;
  return ownStartTime;
}

/**
 * Keeps V8's young generation at the size that it has. Otherwise it grows to 64 MB in a program that makes many small objects,
 * which makes a walk over many files no faster. For a process that has one such thing to do.
 */
export function keepYoungGenerationSmall(): void {
  setFlagsFromString("--semi-space-growth-factor=1");
}

export function isRoot(): boolean {
  return process.geteuid?.() === 0;
}

/** Bit numbers of linux/capability.h. */
export const Capability = {
  CHOWN: 0,
  DAC_OVERRIDE: 1,
  FOWNER: 3,
  SYS_CHROOT: 18,
  SYS_ADMIN: 21,
  MKNOD: 27,
  LEASE: 28,
} as const;

/** Whether this process has a capability in its effective set. */
export function hasCapability(capability: number): boolean {
  const match = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync("/proc/self/status", "latin1"));
  return match !== null && ((BigInt(`0x${match[1]}`) >> BigInt(capability)) & 1n) === 1n;
}

export interface KernelVersion {
  readonly major: number;
  readonly minor: number;
  /** As uname(1) prints it. */
  readonly release: string;
}

export function kernelVersion(): KernelVersion {
  const name = release();
  const match = /^(\d+)\.(\d+)/.exec(name);
  return { major: Number(match?.[1] ?? 0), minor: Number(match?.[2] ?? 0), release: name };
}

/** Whether the running kernel is at least this version. */
export function kernelAtLeast(major: number, minor: number): boolean {
  const kernel = kernelVersion();
  return kernel.major > major || (kernel.major === major && kernel.minor >= minor);
}

/** Those of `names` that the running kernel has, built in, loaded, or as a module that a mount would load. */
export function fileSystemTypes(names: readonly string[]): ReadonlySet<string> {
  const loaded = readFileSync("/proc/filesystems", "latin1");
  const modules = `/lib/modules/${release()}/modules.dep`;
  const known = existsSync(modules) ? readFileSync(modules, "latin1") : "";
  return new Set(
    names.filter((name) => new RegExp(`\\t${name}$`, "m").test(loaded) || new RegExp(`/${name}\\.ko`).test(known)),
  );
}

/** Largest resident set of this process so far, bytes (VmHWM). */
export function peakMemory(): number {
  const match = /^VmHWM:\s*(\d+) kB$/m.exec(readFileSync("/proc/self/status", "latin1"));
  if (match === null) throw new ShaleError("INTERNAL", "Cannot read the peak memory: /proc/self/status has no VmHWM");
  return Number(match[1]) * 1024;
}

/**
 * The environment to start a worker thread with. A thread reads from its environment where compiled sources are kept. The program has taken that variable out of its own,
 * for the sake of child processes; without it each thread would strip and compile everything again, at 250 ms.
 */
export function threadEnvironment(): NodeJS.ProcessEnv {
  const cache = getCompileCacheDir();
  return cache === undefined ? process.env : { ...process.env, NODE_COMPILE_CACHE: dirname(cache) };
}

export interface ProcessNumbers {
  readonly cpuSeconds: number;
  readonly residentBytes: number;
  readonly virtualBytes: number;
  readonly openFiles: number;
  /** Infinity when there is no limit. */
  readonly maxFiles: number;
  readonly threads: number;
  /** Seconds since 1970. */
  readonly startedSeconds: number;
}

/** What monitoring wants to know of this process, as of now; under a millisecond. */
export function processNumbers(): ProcessNumbers {
  const status = readFileSync("/proc/self/status", "latin1");
  const field = (name: string) => Number(new RegExp(`^${name}:\\s*(\\d+)`, "m").exec(status)?.[1] ?? 0);
  const limit = /^Max open files\s+(\S+)/m.exec(readFileSync("/proc/self/limits", "latin1"))?.[1] ?? "unlimited";
  const { user, system } = process.cpuUsage();
  return {
    cpuSeconds: (user + system) / 1e6,
    residentBytes: field("VmRSS") * 1024,
    virtualBytes: field("VmSize") * 1024,
    openFiles: readdirSync("/proc/self/fd").length - 1, // the one that reads the directory
    maxFiles: limit === "unlimited" ? Number.POSITIVE_INFINITY : Number(limit),
    threads: field("Threads"),
    startedSeconds: performance.timeOrigin / 1000,
  };
}
