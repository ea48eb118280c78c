import { displayBytes } from "../../../bytes/index.ts";
import type {
  CheckpointDifference,
  FileFacts,
  MemoryDifference,
  ProcessDifference,
} from "../../../checkpoint/diff/index.ts";
import { defineCommand, EXIT } from "../../command.ts";
import { type Column, formatCount, formatTable } from "../../format.ts";
import { emit } from "../../output.ts";
import { openNamedArchive } from "./archive-file.ts";

export const checkpointDiff = defineCommand({
  name: "checkpoint diff",
  summary: "Compare two checkpoints by file and by memory page",
  description: `
Compares what two archives mean: changed files and deletions of the container, volumes, /dev/shm, metadata, and the memory of each
process by address. The archives may be of different engines, and compressed; a compressed one is read again for each process.

Each file that differs is a line: + for one that only B has, - for one that only A has, ~ for one that both have, with what of it
is not the same. The exit code is 1 when they differ.
`,
  arguments: [
    { name: "A", help: "Earlier archive", completes: "file" },
    { name: "B", help: "Later archive", completes: "file" },
  ],
  options: {
    memory: { type: "boolean", default: true, help: "Compare processes and their memory too" },
    ranges: { type: "flag", help: "Show the ranges of memory that differ, the first 1000 of each process" },
  },
  examples: [
    { command: "shale checkpoint diff monday.tar tuesday.tar", help: "What happened since" },
    { command: "shale checkpoint diff --memory=false monday.tar tuesday.tar", help: "Files only" },
  ],
  async run(context) {
    const { positionals, values, signal } = context;
    const { diffArchives } = await import("../../../checkpoint/diff/index.ts");
    await using before = await openNamedArchive(positionals[0]!, signal);
    await using after = await openNamedArchive(positionals[1]!, signal);
    const difference = await diffArchives(before, after, { memory: values.memory });
    await emit(context, describeDifference(difference), () => formatDifference(difference, { ranges: values.ranges }));
    return difference.same ? undefined : EXIT.failure;
  },
});

export function describeDifference({ same, files, processes }: CheckpointDifference): object {
  const facts = (file: FileFacts | undefined) =>
    file && { ...file, mode: file.mode.toString(8).padStart(4, "0"), linkTarget: displayBytes(file.linkTarget) };
  return {
    same,
    files: files.map(({ path, change, what, before, after }) => {
      return { path: displayBytes(path), change, what, before: facts(before), after: facts(after) };
    }),
    processes: processes.map(({ comm, ...rest }) => ({
      ...rest,
      comm: comm === undefined ? undefined : displayBytes(comm),
    })),
  };
}

const SIGNS = { added: "+", removed: "-", changed: "~", same: " " } as const;

export function formatDifference(
  { same, files, processes }: CheckpointDifference,
  options: { readonly ranges: boolean },
): string {
  if (same) return "no difference\n";
  const lines = files.map(({ path, change, what, before, after }) => {
    const gone = (after ?? before)?.type === "deleted" ? " (deleted)" : "";
    return `${SIGNS[change]} ${displayBytes(path)}${gone}${what.length === 0 ? "" : `: ${what.join(", ")}`}\n`;
  });
  const changed = processes.filter(({ change }) => change !== "same");
  if (changed.length > 0) {
    if (lines.length > 0) lines.push("\n");
    lines.push(formatTable(COLUMNS, changed));
  }
  if (options.ranges) for (const process of changed) lines.push("\n", ...formatRanges(process));
  return lines.join("");
}

const count = (
  key: "same" | "changed" | "added" | "removed" | "inParent",
  header: string,
): Column<ProcessDifference> => ({
  header,
  cell: ({ memory }) => formatCount(memory[key]),
  align: "right",
});

/** Pages of memory. */
const COLUMNS: readonly Column<ProcessDifference>[] = [
  { header: "", cell: ({ change }) => SIGNS[change] },
  { header: "PID", cell: ({ pid }) => String(pid), align: "right" },
  { header: "COMMAND", cell: ({ comm }) => displayBytes(comm ?? "?") },
  count("same", "SAME PAGES"),
  count("changed", "CHANGED"),
  count("added", "ADDED"),
  count("removed", "REMOVED"),
];

function formatRanges({ pid, memory }: ProcessDifference): readonly string[] {
  return memory.ranges.map(({ address, pages, change }: MemoryDifference["ranges"][number]) => {
    return `${SIGNS[change]} ${pid} 0x${address.toString(16)} ${formatCount(pages)} ${pages === 1 ? "page" : "pages"}\n`;
  });
}
