/** What a directory takes on disk, as du(1) counts, in steps, so that a large one need not hold up the event loop. */
import * as fs from "node:fs";
import { errnoOf } from "../errors/index.ts";
import { observed } from "./effects.ts";

export interface DiskUsage {
  /** Blocks, in bytes; hard links once. */
  readonly size: number;
  /** The directory itself is one. */
  readonly inodes: number;
}

/** Deeper than a path can be long (4096), a directory is reached through its descriptor. */
const PATH_LIMIT = 3800;
const SLASH = Buffer.from("/");
/** Files looked at between two steps. */
const STEP = 64;

/** Zero for nothing. What changes meanwhile is counted as it was or as it is. About 3 us a file. */
export function* diskUsageSteps(directory: string): Generator<void, DiskUsage> {
  const root = Buffer.from(directory);
  const status = lstat(root);
  if (status === undefined) return { size: 0, inodes: 0 };
  const seen = new Set<number>();
  const sum = { size: status.blocks * 512, inodes: 1 };
  const open: number[] = [];
  try {
    if (status.isDirectory()) yield* walk(root, sum, seen, open);
  } finally {
    for (const fd of open) fs.closeSync(fd);
  }
  return sum;
}

/** All steps of {@link diskUsageSteps} at once. */
export function diskUsage(directory: string): DiskUsage {
  const steps = diskUsageSteps(directory);
  for (;;) {
    const step = steps.next();
    if (step.done === true) return step.value;
  }
}

function* walk(
  directory: Buffer,
  sum: { size: number; inodes: number },
  seen: Set<number>,
  open: number[],
): Generator<void, void> {
  let looked = 0;
  for (const name of namesIn(directory)) {
    const path = Buffer.concat([directory, SLASH, name]);
    const status = lstat(path);
    if (status === undefined) continue;
    if (!status.isDirectory() && status.nlink > 1) {
      if (seen.has(status.ino)) continue;
      seen.add(status.ino);
    }
    sum.size += status.blocks * 512;
    sum.inodes++;
    if (++looked % STEP === 0) yield;
    if (!status.isDirectory()) continue;
    const kept = open.length;
    yield* walk(shortened(path, open), sum, seen, open);
    for (const fd of open.splice(kept)) fs.closeSync(fd);
  }
  yield;
}

function shortened(path: Buffer, open: number[]): Buffer {
  if (path.length <= PATH_LIMIT) return path;
  try {
    const fd = fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY | fs.constants.O_NOFOLLOW);
    open.push(fd);
    return Buffer.from(`/proc/self/fd/${fd}`);
  } catch (error) {
    if (isGone(error)) return path;
    throw error;
  }
}

function lstat(path: Buffer): fs.Stats | undefined {
  return fs.lstatSync(path, { throwIfNoEntry: false });
}

function namesIn(directory: Buffer): Buffer[] {
  try {
    return observed("list", directory.toString(), () => fs.readdirSync(directory, { encoding: "buffer" }));
  } catch (error) {
    if (isGone(error)) return [];
    throw error;
  }
}

function isGone(error: unknown): boolean {
  return ["ENOENT", "ENOTDIR", "ELOOP"].includes(errnoOf(error) ?? "");
}
