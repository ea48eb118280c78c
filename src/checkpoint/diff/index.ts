/**
 * What differs between two checkpoints: files by path (changed files of the root, volumes, /dev/shm, metadata, CRIU's images),
 * memory by process and page.
 *
 * Guarantees: archives of different engines and compressions compare by what they mean (a whiteout is a deletion, a layer's file
 * a changed file); content is compared in full. Each archive is read once for its files, and once more for each process with
 * memory, where passing over costs nothing in plain archives. Memory grows with the number of files, not with their size.
 */
import type { ByteString } from "../../bytes/index.ts";
import { ShaleError } from "../../errors/index.ts";
import type { Process } from "../../formats/criu/index.ts";
import type { CheckpointArchive } from "../archive/index.ts";
import { type FileFacts, surveyFiles } from "./files.ts";
import { compareMemory, type MemoryDifference } from "./memory.ts";

export type { FileFacts } from "./files.ts";
export type { MemoryDifference, MemoryRange } from "./memory.ts";

export interface FileDifference {
  readonly path: ByteString;
  readonly change: "added" | "removed" | "changed";
  /** What of it, for a changed one: "content", "mode", "owner", "modified", ... */
  readonly what: readonly string[];
  readonly before: FileFacts | undefined;
  readonly after: FileFacts | undefined;
}

export interface ProcessDifference {
  readonly pid: number;
  /** The kernel's name of it, of the later checkpoint if it is in it. */
  readonly comm: ByteString | undefined;
  readonly change: "added" | "removed" | "changed" | "same";
  readonly memory: MemoryDifference;
}

export interface CheckpointDifference {
  readonly same: boolean;
  /** In byte order of their paths. */
  readonly files: readonly FileDifference[];
  /** All processes of both, by pid; empty when memory was not to be compared. */
  readonly processes: readonly ProcessDifference[];
}

export interface DiffOptions {
  /** Processes and their memory too; yes unless given. */
  readonly memory?: boolean;
}

/** FAILED_PRECONDITION for a stream: archives are gone through more than once. */
export async function diffArchives(
  before: CheckpointArchive,
  after: CheckpointArchive,
  options: DiffOptions = {},
): Promise<CheckpointDifference> {
  for (const { repeatable, name } of [before, after]) {
    if (repeatable) continue;
    throw new ShaleError("FAILED_PRECONDITION", `Cannot compare ${name}: it is a stream`, {
      hint: "Save it to a file first",
    });
  }
  const a = await surveyFiles(before);
  const b = await surveyFiles(after);
  const files: FileDifference[] = [];
  for (const path of new Set([...a.files.keys(), ...b.files.keys()])) {
    const difference = compareFile(path, a.files.get(path), b.files.get(path));
    if (difference !== undefined) files.push(difference);
  }
  files.sort((x, y) => (x.path < y.path ? -1 : 1));
  const processes: ProcessDifference[] = [];
  if (options.memory ?? true) {
    const [left, right] = [byPid(a.tree.processes), byPid(b.tree.processes)];
    for (const pid of [...new Set([...left.keys(), ...right.keys()])].sort((x, y) => x - y)) {
      const [was, is] = [left.get(pid), right.get(pid)];
      const memory = await compareMemory(
        { archive: before, pagemap: was?.pagemap },
        { archive: after, pagemap: is?.pagemap },
      );
      const moved = memory.changed + memory.added + memory.removed > 0;
      const change = was === undefined ? "added" : is === undefined ? "removed" : moved ? "changed" : "same";
      processes.push({ pid, comm: (is ?? was)?.comm, change, memory });
    }
  }
  return { same: files.length === 0 && processes.every(({ change }) => change === "same"), files, processes };
}

function byPid(processes: readonly Process[]): Map<number, Process> {
  return new Map(processes.map((process) => [process.pid, process]));
}

function compareFile(
  path: ByteString,
  before: FileFacts | undefined,
  after: FileFacts | undefined,
): FileDifference | undefined {
  if (before === undefined) return { path, change: "added", what: [], before, after };
  if (after === undefined) return { path, change: "removed", what: [], before, after };
  const what = Object.entries(WORDS).flatMap(([key, word]) => {
    const name = key as keyof FileFacts; // WORDS has all of them
    return before[name] === after[name] ? [] : [word];
  });
  return what.length === 0 ? undefined : { path, change: "changed", what, before, after };
}

const WORDS: Readonly<Record<keyof FileFacts, string>> = {
  type: "type",
  mode: "mode",
  owner: "owner",
  modified: "time",
  size: "size",
  linkTarget: "target",
  device: "device",
  xattrs: "xattrs",
  digest: "content",
};
