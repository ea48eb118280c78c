/**
 * The interception point: every operation of `sys/` that the store's guarantees rest on passes through {@link effect}.
 *
 * Off (the normal case) it costs one comparison. Tests switch on, by environment for child processes:
 *
 *   SHALE_FAULT=KIND[@SUBSTRING]:NTH[+]:ERRNO[,...]  the NTH matching operation (with "+": and all later ones) fails
 *                                       without being run, e.g. "datasync:3:EIO", "write@blobs/:5+:ENOSPC"
 *   SHALE_CRASH_RECORD=FILE             appends one line per crash point: its name, a tab, the path
 *   SHALE_CRASH_AT=N | NAME[#K]         SIGKILL to this process at its N-th crash point, or at the K-th (first) of that
 *                                       name, before the operation is run
 *   SHALE_CRASH_FROM=FILE               points are neither recorded nor counted until FILE is there: what a process does to
 *                                       start, which differs from one time to the next, shifts no K
 *   SHALE_EFFECTS_LOG=DIR               appends every effect with its data to DIR/effects.log, for `testing/power-loss.ts`
 *
 * Every effect (not: reading) is a crash point named by its kind; store code adds its own with {@link crashPoint}. Counts
 * are of the process: worker threads share them (by environment data, so the main thread must import this module before it
 * starts workers). In worker threads the order of points may differ between runs, their number hardly.
 */
import {
  closeSync,
  existsSync,
  fstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  readlinkSync,
  readSync,
  writeSync,
} from "node:fs";
import { getEnvironmentData, isMainThread, setEnvironmentData } from "node:worker_threads";
import { type ByteString, displayBytes } from "../bytes/index.ts";
import { systemError } from "./system-error.ts";

/** Operations that change something: crash points, recorded. */
export type EffectKind =
  | "create"
  | "write"
  | "truncate"
  | "punch"
  | "copy"
  | "datasync"
  | "sync"
  | "syncDirectory"
  | "syncFileSystem"
  | "mkdir"
  | "rmdir"
  | "link"
  | "symlink"
  | "rename"
  | "unlink"
  | "mount"
  | "unmount"
  | "database";

/**
 * Operations that leave nothing behind: they can fail by injection, and are nothing else. Locks are among them: a crash
 * beside one is the crash at the next effect, and waiters poll, so their number would differ from run to run.
 */
export type ReadKind = "open" | "read" | "stat" | "list" | "lock";

/** What the recorder needs beside the target. `bytes` is read at the time of the call. */
export interface EffectDetail {
  /** The second path of link, symlink and rename. */
  readonly to?: string;
  readonly offset?: number;
  readonly length?: number;
  readonly bytes?: Uint8Array;
}

/** One line of the effects log. `ino` and `dev` identify the inode of an operation on a file descriptor. */
export interface EffectRecord extends Omit<EffectDetail, "bytes"> {
  readonly kind: EffectKind;
  readonly path: string;
  readonly ino?: string;
}

export interface Fault {
  readonly kind: EffectKind | ReadKind;
  /** Tested against the path (of rename and link: either path). */
  readonly path?: RegExp;
  /** 1 is the next matching operation. */
  readonly nth?: number;
  /** Also every later matching operation fails, as on a full disk. */
  readonly persistent?: boolean;
  readonly errno: string;
}

interface ArmedFault extends Fault {
  /** Counts matching operations; shared between threads for faults from the environment. */
  readonly seen: Int32Array;
  readonly slot: number;
}

interface Hooks {
  readonly faults: ArmedFault[];
  readonly record: string | undefined;
  readonly crashAt: { readonly name: string | undefined; readonly count: number } | undefined;
  /** Points count from when this file is there. */
  readonly from: string | undefined;
  readonly logFd: number | undefined;
  readonly counters: Int32Array;
}

const SHARED_KEY = "shale.sys.effects";
const CRASH_SLOT = 0;
const FIRST_FAULT_SLOT = 1;
const SLOTS = 64;

let hooks: Hooks | undefined = fromEnvironment(process.env);

/**
 * Runs one operation. `target` is its path, or its file descriptor. The result of `run` is returned; when it throws, or
 * answers false (which means that nothing was changed), nothing is recorded. For "create" the result must be the new file descriptor.
 */
export function effect<T>(kind: EffectKind, target: string | number, run: () => T, detail?: EffectDetail): T {
  return hooks === undefined ? run() : intercepted(hooks, kind, target, run, detail);
}

/** As {@link effect} for a name in an open directory; the paths are made only when someone watches. */
export function effectAt<T>(
  kind: EffectKind,
  directory: number,
  name: ByteString,
  run: () => T,
  to?: { readonly directory: number; readonly name: ByteString },
): T {
  if (hooks === undefined) return run();
  const path = (fd: number, last: ByteString) => `${pathOf(fd)}/${displayBytes(last)}`;
  return intercepted(
    hooks,
    kind,
    path(directory, name),
    run,
    to === undefined ? {} : { to: path(to.directory, to.name) },
  );
}

/** As {@link effect} for an operation that changes nothing. */
export function observed<T>(kind: ReadKind, target: string | number, run: () => T): T {
  if (hooks !== undefined && hooks.faults.length > 0) failIfArmed(hooks, kind, pathOf(target), undefined);
  return run();
}

/** A named point between two operations where a crash must be survivable. */
export function crashPoint(name: string): void {
  if (hooks !== undefined) reach(hooks, name, "");
}

/**
 * Tells the recorder that a database transaction has just become durable: the present content of `paths` (the database
 * and its write-ahead log; those that are absent are recorded as absent) is what a power cut leaves from here on.
 */
export function recordDatabaseCommit(paths: readonly string[]): void {
  if (hooks === undefined) return;
  reach(hooks, "database", paths[0] ?? "");
  if (hooks.logFd === undefined) return;
  for (const path of paths) {
    const bytes = existsSync(path) ? readFileSync(path) : undefined;
    append(hooks.logFd, { kind: "database", path, length: bytes?.length ?? -1 }, bytes);
  }
}

/** Arms a fault in this thread; dispose of the result to disarm it. */
export function injectFault(fault: Fault): Disposable {
  const armed: ArmedFault = { ...fault, seen: new Int32Array(1), slot: 0 };
  hooks ??= {
    faults: [],
    ...{ record: undefined, crashAt: undefined, from: undefined, logFd: undefined },
    counters: new Int32Array(SLOTS),
  };
  const own = hooks;
  own.faults.push(armed);
  return {
    [Symbol.dispose]() {
      const at = own.faults.indexOf(armed);
      if (at >= 0) own.faults.splice(at, 1);
      if (hooks === own && isIdle(own)) hooks = undefined;
    },
  };
}

/** Records this thread's effects into `directory` until the result is disposed of; as SHALE_EFFECTS_LOG for a process. */
export function recordEffects(directory: string): Disposable {
  const before = hooks;
  const logFd = openLog(directory);
  hooks = {
    faults: before?.faults ?? [],
    record: before?.record,
    crashAt: before?.crashAt,
    from: before?.from,
    logFd,
    counters: before?.counters ?? new Int32Array(SLOTS),
  };
  return {
    [Symbol.dispose]() {
      hooks = before;
      closeSync(logFd);
    },
  };
}

function isIdle(own: Hooks): boolean {
  return own.faults.length === 0 && own.record === undefined && own.crashAt === undefined && own.logFd === undefined;
}

function intercepted<T>(own: Hooks, kind: EffectKind, target: string | number, run: () => T, detail?: EffectDetail): T {
  const path = pathOf(target);
  reach(own, kind, detail?.to === undefined ? path : `${path} -> ${detail.to}`);
  failIfArmed(own, kind, path, detail?.to);
  const result = run();
  if (own.logFd !== undefined && result !== false) {
    const fd =
      typeof target === "number" ? target : kind === "create" && typeof result === "number" ? result : undefined;
    const { bytes = kind === "copy" ? copied(target, detail, result) : undefined, ...rest } = detail ?? {};
    append(own.logFd, { kind, path, ...rest, ...(fd === undefined ? {} : { ino: inodeOf(fd) }) }, bytes);
  }
  return result;
}

function reach(own: Hooks, name: string, path: string): void {
  if (own.record === undefined && own.crashAt === undefined) return;
  if (own.from !== undefined && !existsSync(own.from)) return;
  if (own.record !== undefined) {
    const fd = openSync(own.record, "a");
    writeSync(fd, `${name}\t${path}\n`);
    closeSync(fd);
  }
  if (own.crashAt === undefined) return;
  if (own.crashAt.name !== undefined && own.crashAt.name !== name) return;
  if (Atomics.add(own.counters, CRASH_SLOT, 1) + 1 === own.crashAt.count) die();
}

/** SIGKILL reaches the process before this thread could go on; the wait makes that certain. */
function die(): never {
  process.kill(process.pid, "SIGKILL");
  for (;;) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
}

function failIfArmed(own: Hooks, kind: EffectKind | ReadKind, path: string, to: string | undefined): void {
  for (const fault of own.faults) {
    if (fault.kind !== kind) continue;
    if (fault.path !== undefined && !fault.path.test(path) && !(to !== undefined && fault.path.test(to))) continue;
    const seen = Atomics.add(fault.seen, fault.slot, 1) + 1;
    const nth = fault.nth ?? 1;
    if (seen === nth || (fault.persistent === true && seen > nth)) throw systemError(fault.errno, kind, path, to);
  }
}

/** What a copy inside the kernel left in its target; `result` is the count where the call may stop early. */
function copied(target: string | number, detail: EffectDetail | undefined, result: unknown): Uint8Array | undefined {
  if (typeof target !== "number" || detail?.offset === undefined) return undefined;
  const bytes = Buffer.allocUnsafe(typeof result === "number" ? result : (detail.length ?? 0));
  const fd = openSync(`/proc/self/fd/${target}`, "r"); // the target may be open for writing only
  try {
    return bytes.subarray(0, readSync(fd, bytes, 0, bytes.length, detail.offset));
  } finally {
    closeSync(fd);
  }
}

function pathOf(target: string | number): string {
  return typeof target === "string" ? target : readlinkSync(`/proc/self/fd/${target}`);
}

function inodeOf(fd: number): string {
  const { dev, ino } = fstatSync(fd, { bigint: true });
  return `${dev}:${ino}`;
}

/**
 * Frame: u32le header length, u32le data length, JSON header, data. One appending write each, so that frames of threads
 * and processes follow one another whole, each after its operation was done.
 */
function append(logFd: number, header: EffectRecord, data: Uint8Array = new Uint8Array(0)): void {
  const json = Buffer.from(JSON.stringify(header));
  const frame = Buffer.allocUnsafe(8 + json.length + data.length);
  frame.writeUInt32LE(json.length, 0);
  frame.writeUInt32LE(data.length, 4);
  frame.set(json, 8);
  frame.set(data, 8 + json.length);
  const written = writeSync(logFd, frame);
  if (written !== frame.length) throw systemError("ENOSPC", "write", "effects.log");
}

function openLog(directory: string): number {
  mkdirSync(directory, { recursive: true });
  return openSync(`${directory}/effects.log`, "a");
}

function fromEnvironment(env: NodeJS.ProcessEnv): Hooks | undefined {
  const { SHALE_FAULT: fault, SHALE_CRASH_RECORD: record, SHALE_CRASH_AT: crashAt, SHALE_EFFECTS_LOG: log } = env;
  const from = env.SHALE_CRASH_FROM;
  if (!fault && !record && !crashAt && !log) return undefined;
  const counters = sharedCounters();
  return {
    faults: fault ? fault.split(",").map((text, i) => parseFault(text, counters, FIRST_FAULT_SLOT + i)) : [],
    record: record || undefined,
    crashAt: crashAt ? parseCrashAt(crashAt) : undefined,
    from: from || undefined,
    logFd: log ? openLog(log) : undefined,
    counters,
  };
}

function sharedCounters(): Int32Array {
  const inherited = isMainThread ? undefined : getEnvironmentData(SHARED_KEY);
  if (inherited instanceof SharedArrayBuffer) return new Int32Array(inherited);
  const buffer = new SharedArrayBuffer(SLOTS * Int32Array.BYTES_PER_ELEMENT);
  setEnvironmentData(SHARED_KEY, buffer);
  return new Int32Array(buffer);
}

function parseFault(text: string, seen: Int32Array, slot: number): ArmedFault {
  const match = /^([A-Za-z]+)(?:@([^:]+))?:([1-9][0-9]*)(\+?):(E[A-Z0-9]+)$/.exec(text);
  if (match === null || slot >= SLOTS)
    throw new TypeError(`SHALE_FAULT: ${JSON.stringify(text)} is not KIND[@TEXT]:NTH[+]:ERRNO`);
  const [, kind, substring, nth, persistent, errno] = match;
  return {
    kind: kind as EffectKind | ReadKind, // an unknown kind never matches; tests see that from a run that did not fail
    ...(substring === undefined ? {} : { path: new RegExp(RegExp.escape(substring)) }),
    nth: Number(nth),
    persistent: persistent === "+",
    errno: errno!,
    seen,
    slot,
  };
}

function parseCrashAt(text: string): { readonly name: string | undefined; readonly count: number } {
  if (/^[1-9][0-9]*$/.test(text)) return { name: undefined, count: Number(text) };
  const match = /^([^#]+)(?:#([1-9][0-9]*))?$/.exec(text);
  if (match === null) throw new TypeError(`SHALE_CRASH_AT: ${JSON.stringify(text)} is neither N nor NAME[#K]`);
  return { name: match[1]!, count: Number(match[2] ?? 1) };
}
