import { singleLine } from "../../log/index.ts";
import type { GarbageItem, GarbageReport } from "../../store/index.ts";
import { defineCommand } from "../command.ts";
import { countOf, formatBytes, formatDuration, formatTable } from "../format.ts";
import { emit } from "../output.ts";
import { openStore } from "./store-access.ts";

export const gc = defineCommand({
  name: "gc",
  summary: "Free what nothing needs any more",
  description: `
Removes layers and files that no image, snapshot, mount or running operation refers to. Runs beside pulls and mounts, and may be
killed at any time. Space inside a blob that is still partly needed is given back to the file system too.
`,
  arguments: [],
  options: {
    "dry-run": { type: "flag", short: "n", help: "Change nothing; say what would be freed and why" },
  },
  examples: [
    { command: "shale gc --dry-run", help: "What would go" },
    { command: "shale gc", help: "Free it" },
  ],
  async run(context) {
    const dryRun = context.values["dry-run"];
    const startMs = performance.now();
    await using store = await openStore(context);
    const { collectAll } = await import("../../export/index.ts");
    const report = await collectAll(store, { dryRun, signal: context.signal });
    const elapsedMs = performance.now() - startMs;
    await emit(context, { dryRun, ...report, elapsedMs }, () =>
      dryRun ? formatDryRun(report) : formatCollection(report, elapsedMs),
    );
    return undefined;
  },
});

/** Each thing that would go, with the reason. */
export function formatDryRun(report: GarbageReport): string {
  if (report.items.length + report.postponed.length === 0) return "nothing to free\n";
  const table = formatTable(
    [
      { header: "KIND", cell: (item: GarbageItem) => item.kind },
      { header: "ID", cell: (item) => singleLine(item.id) },
      { header: "SIZE", cell: (item) => formatBytes(item.size), align: "right" },
      { header: "WHY", cell: (item) => item.why },
    ],
    report.items,
  );
  return `${table}would free ${formatBytes(report.freed)}\n${postponedText(report)}`;
}

/** "freed 167 MB in 20 ms: 1 blob (164 MB), 2 layers (3.02 MB)". */
export function formatCollection(report: GarbageReport, elapsedMs: number): string {
  const took = `in ${formatDuration(elapsedMs)}`;
  if (report.items.length === 0) return `nothing to free (${took.slice(3)})\n${postponedText(report)}`;
  const kinds = new Map<string, { count: number; size: number }>();
  for (const { kind, size } of report.items) {
    const sum = kinds.get(kind) ?? { count: 0, size: 0 };
    kinds.set(kind, { count: sum.count + 1, size: sum.size + size });
  }
  const parts = [...kinds].map(([kind, { count, size }]) => `${kindCount(kind, count)} (${formatBytes(size)})`);
  return `freed ${formatBytes(report.freed)} ${took}: ${parts.join(", ")}\n${postponedText(report)}`;
}

function kindCount(kind: string, count: number): string {
  if (kind === "link sources" || kind === "clones") return `${kind} without use`;
  if (kind === "blob ranges") return `ranges of ${countOf(count, "blob")}`;
  if (kind === "staging") return countOf(count, "abandoned ingest");
  return countOf(count, kind);
}

function postponedText({ postponed }: GarbageReport): string {
  if (postponed.length === 0) return "";
  const size = postponed.reduce((sum, item) => sum + item.size, 0);
  return `${countOf(postponed.length, "item")} (${formatBytes(size)}) may be in use by what runs now; a later gc frees them\n`;
}
