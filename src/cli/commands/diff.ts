import { displayBytes } from "../../bytes/index.ts";
import type { Difference } from "../../images/diff.ts";
import { countOf, formatBytes } from "../format.ts";
import { namedBytes } from "./image-file.ts";
import { openStore } from "./store-access.ts";
import { defineCommand, EXIT } from "../command.ts";
import { PLATFORM } from "./options.ts";

export const diff = defineCommand({
  name: "diff",
  summary: "Compare two images by metadata and file digests",
  description: `
Prints a line for each path that differs: "+" only in B, "-" only in A, "M" when content or metadata is another, with what
changed. Reads no file content: digests are known. Exit code 0 if the images are equal, 1 if they differ.
`,
  arguments: [
    { name: "A", help: "Image", completes: "image" },
    { name: "B", help: "Image to compare with A", completes: "image" },
  ],
  options: {
    platform: PLATFORM,
    "ignore-times": { type: "flag", help: "Take no notice of modification times" },
    summary: { type: "flag", short: "s", help: "Print only the numbers of paths and bytes" },
  },
  examples: [
    { command: "shale diff app:1 app:2", help: "What a release changed" },
    { command: "shale diff --ignore-times --summary app:1 app:1-rebuilt", help: "How reproducible a build is" },
  ],
  async run(context) {
    const { values, stdout, signal } = context;
    const [a, b] = context.positionals;
    const { findImage } = await import("../../images/find.ts");
    const { openImageTree } = await import("../../images/files.ts");
    const { diffTrees } = await import("../../images/diff.ts");
    await using store = await openStore(context);
    const before = findImage(store, a!, values.platform).manifest;
    const after = findImage(store, b!, values.platform).manifest;
    using operation = store.begin(`diff ${a} ${b}`);
    using left = openImageTree(operation, before);
    using right = openImageTree(operation, after);
    const sums = { added: 0, removed: 0, changed: 0, bytesAdded: 0, bytesRemoved: 0 };
    const lines: string[] = [];
    if (context.json) await stdout.write('{\n"differences": [');
    const print = async () => {
      if (lines.length > 0) await stdout.write(lines.splice(0).join(""));
      signal.throwIfAborted();
    };
    let total = 0;
    for (const difference of diffTrees(left.tree, right.tree, { ignoreTimes: values["ignore-times"] })) {
      sums[difference.kind]++;
      sums.bytesAdded += difference.kind === "changed" && !changesBytes(difference) ? 0 : difference.sizeAfter;
      sums.bytesRemoved += difference.kind === "changed" && !changesBytes(difference) ? 0 : difference.sizeBefore;
      total++;
      if (values.summary) continue;
      if (context.json) {
        lines.push(`${lines.length === 0 && total === 1 ? "\n" : ",\n"}  ${JSON.stringify(describe(difference))}`);
      } else lines.push(formatDifference(difference));
      if (lines.length >= BATCH) await print();
    }
    await print();
    if (context.json) await stdout.write(`\n],\n"summary": ${JSON.stringify(sums)}\n}\n`);
    else if (values.summary || total > 0) await stdout.write(`${values.summary ? "" : "\n"}${formatSums(sums)}\n`);
    return total === 0 ? EXIT.ok : EXIT.failure;
  },
});

/** Lines that are written at a time. */
const BATCH = 1000;

function changesBytes({ what }: Difference): boolean {
  return what.includes("content") || what.includes("type");
}

function describe(difference: Difference): Readonly<Record<string, unknown>> {
  const { path, kind, what, sizeBefore, sizeAfter } = difference;
  return { ...namedBytes("path", path), kind, what, sizeBefore, sizeAfter };
}

const SIGNS = { added: "+", removed: "-", changed: "M" } as const;

/** "M /etc/passwd  content (1.20 kB -> 1.25 kB), mtime". */
export function formatDifference(difference: Difference): string {
  const { path, kind, what, sizeBefore, sizeAfter } = difference;
  const resized = sizeBefore === sizeAfter ? "" : ` (${formatBytes(sizeBefore)} -> ${formatBytes(sizeAfter)})`;
  const shown = what.map((each) => (each === "content" ? `${each}${resized}` : each)).join(", ");
  return `${SIGNS[kind]} ${displayBytes(path)}${shown === "" ? "" : `  ${shown}`}\n`;
}

export interface DifferenceSums {
  readonly added: number;
  readonly removed: number;
  readonly changed: number;
  /** File bytes that only B has, and that only A has; of changed files all of them. */
  readonly bytesAdded: number;
  readonly bytesRemoved: number;
}

export function formatSums(sums: DifferenceSums): string {
  if (sums.added + sums.removed + sums.changed === 0) return "no differences";
  return [
    `${countOf(sums.added, "path")} added (${formatBytes(sums.bytesAdded)} new)`,
    `${sums.removed} removed`,
    `${sums.changed} changed (${formatBytes(sums.bytesRemoved)} gone)`,
  ].join(", ");
}
