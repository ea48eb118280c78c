/**
 * How the benchmark measures: medians, interleaved rounds, cold caches, peak memory, allocated bytes.
 */
import { lstatSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { errnoOf } from "../src/errors/index.ts";
import { childrenOf, run } from "./process.ts";

/** The middle value, or the mean of the two middle ones. Throws RangeError for no values. */
export function median(values: readonly number[]): number {
  if (values.length === 0) throw new RangeError("median of no values");
  const sorted = [...values].sort((a, b) => a - b);
  const upper = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? sorted[upper]! : (sorted[upper - 1]! + sorted[upper]!) / 2;
}

/**
 * The order of all runs: every contestant once a round, each round starting one contestant later. Slow drifts of the
 * machine (other load, a warming disk cache of the host) then meet all contestants alike.
 */
export function interleave<T>(contestants: readonly T[], rounds: number): T[] {
  const order: T[] = [];
  for (let round = 0; round < rounds; round++) {
    for (let i = 0; i < contestants.length; i++) order.push(contestants[(i + round) % contestants.length]!);
  }
  return order;
}

export async function timed<T>(work: () => Promise<T>): Promise<{ readonly seconds: number; readonly value: T }> {
  const start = process.hrtime.bigint();
  const value = await work();
  return { seconds: Number(process.hrtime.bigint() - start) / 1e9, value };
}

/**
 * Writes back what is dirty, then drops page, dentry and inode caches of the whole machine. Pages that a running
 * process has mapped stay (so does this Node's own binary).
 */
export async function dropCaches(): Promise<void> {
  await run(["sync"]);
  writeFileSync("/proc/sys/vm/drop_caches", "3");
}

/** Makes everything on the file system of `path` durable: syncfs(2). */
export async function syncFileSystem(path: string): Promise<void> {
  await run(["sync", "-f", path]);
}

/** Bytes the file system has allocated below `path` (st_blocks), hard links counted once. */
export function allocatedBytes(path: string): number {
  const seen = new Set<string>();
  const visit = (name: string): number => {
    const stat = lstatSync(name);
    if (stat.nlink > 1 && !stat.isDirectory()) {
      const key = `${stat.dev}:${stat.ino}`;
      if (seen.has(key)) return 0;
      seen.add(key);
    }
    let bytes = stat.blocks * 512;
    if (stat.isDirectory()) for (const entry of readdirSync(name)) bytes += visit(join(name, entry));
    return bytes;
  };
  return visit(path);
}

/**
 * Peak resident memory of everything this process starts during `work`, except the trees of `exclude`: the largest sum, at
 * any sample, of the kernel's own high-water marks (VmHWM) of the processes alive then. That is an upper bound: pages
 * shared by two processes count twice, and two peaks need not coincide. Daemons count with all they used before.
 */
export async function peakMemory<T>(
  exclude: readonly number[],
  work: () => Promise<T>,
): Promise<{ readonly peak: number; readonly value: T }> {
  let peak = 0;
  const sample = () => {
    let sum = 0;
    const pending = childrenOf(process.pid).filter((pid) => !exclude.includes(pid));
    for (let pid = pending.pop(); pid !== undefined; pid = pending.pop()) {
      sum += highWaterMark(pid);
      pending.push(...childrenOf(pid));
    }
    peak = Math.max(peak, sum);
  };
  // Only growth in a process's last 5 ms can be missed; a high-water mark never falls before that.
  const timer = setInterval(sample, 5);
  try {
    const value = await work();
    sample();
    return { peak, value };
  } finally {
    clearInterval(timer);
  }
}

function highWaterMark(pid: number): number {
  try {
    const line = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"));
    return line ? Number(line[1]) * 1024 : 0; // a zombie has no such line
  } catch (error) {
    if (errnoOf(error) === "ENOENT" || errnoOf(error) === "ESRCH") return 0; // it ended between two reads
    throw error;
  }
}
