import { displayName } from "../../images/find.ts";
import { singleLine } from "../../log/index.ts";
import type { ImageUsage, LayerUsage, Usage, UsageNumbers } from "../../store/index.ts";
import { defineCommand } from "../command.ts";
import { type BarPart, countOf, formatBytes, formatTable, GLYPHS, shortDigest, stackedBar } from "../format.ts";
import { emit, type Output } from "../output.ts";
import { openStore } from "./store-access.ts";

export const df = defineCommand({
  name: "df",
  summary: "Show where the store's bytes are",
  description: `
Exact accounting. For each image, and with --layers for each layer: apparent (what its files would take unpacked), stored
(what it takes here), unique (only this one has it, so removing it frees that) and shared. In sum: the parts of the
store, what unpacked images and layers would take, and what deduplication saved. On a terminal there are bars.
`,
  arguments: [],
  options: {
    layers: { type: "flag", short: "l", help: "Show each layer too" },
  },
  examples: [
    { command: "shale df", help: "Per image and in sum" },
    { command: "shale df --layers --json", help: "Every number, for a program" },
  ],
  async run(context) {
    await using store = await openStore(context);
    const usage = store.measureUsage();
    const { isNeeded, listExports } = await import("../../export/index.ts");
    const cachedExports = listExports(store).map(({ id, manifest, layer, chain, allocated }) => {
      return { id, manifest, layer, allocated, needed: isNeeded(store, { manifest, chain }) };
    });
    const exports = cachedExports.reduce((sum, { allocated }) => sum + allocated, 0);
    await emit(context, { ...usage, exports, cachedExports }, (value, output) => {
      const text = formatUsage(value, { layers: context.values.layers, output });
      const clones =
        value.clones.bytes === 0
          ? ""
          : `${formatBytes(value.clones.bytes)} in clones for checkouts, blocks shared with blobs included\n`;
      return `${text}${clones}${formatSnapshots(value.snapshots)}${formatExports(cachedExports)}`;
    });
    return undefined;
  },
});

/** "831 MB in 2 cached exports, blocks shared with the store included; 400 MB of them in 1 that shale gc frees". */
export function formatExports(exports: readonly { readonly allocated: number; readonly needed: boolean }[]): string {
  if (exports.length === 0) return "";
  const sum = (list: typeof exports) => formatBytes(list.reduce((bytes, { allocated }) => bytes + allocated, 0));
  const unused = exports.filter(({ needed }) => !needed);
  const freed = unused.length === 0 ? "" : `; ${sum(unused)} of them in ${unused.length} that shale gc frees`;
  return `\n${sum(exports)} in ${countOf(exports.length, "cached export")}, blocks shared with the store included${freed}\n`;
}

function formatSnapshots({ active, view, committed }: Usage["snapshots"]): string {
  const all = active + view + committed;
  if (all === 0) return "";
  const kinds = `${committed} committed, ${active} active, ${countOf(view, "view")}`;
  return `${countOf(all, "snapshot")} of containerd (${kinds}); the layers that they hold are nobody's unique bytes\n`;
}

/** Cells of a bar; narrower where the terminal is. */
const MAX_BAR = 60;
const MIN_BAR = 10;

export function formatUsage(
  usage: Usage,
  options: { readonly layers: boolean; readonly output: Pick<Output, "columns" | "unicode"> },
): string {
  const { output } = options;
  const sections = [formatRows("IMAGE", usage.images, (image) => singleLine(displayName(image.name)), output)];
  if (options.layers) sections.push(formatRows("LAYER", usage.layers, (layer) => shortDigest(layer.diffId), output));
  sections.push(formatTotals(usage, output));
  return sections.join("\n");
}

function formatRows<Row extends ImageUsage | LayerUsage>(
  title: string,
  rows: readonly Row[],
  name: (row: Row) => string,
  output: Pick<Output, "columns" | "unicode">,
): string {
  const cell = (pick: (row: UsageNumbers) => number) => (row: Row) => formatBytes(pick(row));
  const columns = [
    { header: title, cell: name },
    { header: "APPARENT", cell: cell((row) => row.apparent), align: "right" },
    { header: "STORED", cell: cell((row) => row.stored), align: "right" },
    { header: "UNIQUE", cell: cell((row) => row.unique), align: "right" },
    { header: "SHARED", cell: cell((row) => row.shared), align: "right" },
  ] as const;
  const table = formatTable(columns, rows);
  if (output.columns === undefined) return table;
  const taken = Math.max(...table.split("\n").map((line) => line.length));
  const width = Math.min(MAX_BAR / 2, output.columns - taken - 3);
  if (width < MIN_BAR) return table;
  const largest = Math.max(1, ...rows.map((row) => row.stored));
  const bar = (row: Row) =>
    stackedBar(
      [
        { size: row.unique, glyph: GLYPHS.unique },
        { size: row.shared, glyph: GLYPHS.shared },
      ],
      largest,
      width,
      output.unicode,
    );
  const key = `${glyphOf("unique", output)} unique  ${glyphOf("shared", output)} shared`;
  return formatTable([...columns, { header: key, cell: bar }], rows);
}

function glyphOf(name: keyof typeof GLYPHS, { unicode }: Pick<Output, "unicode">): string {
  return unicode ? GLYPHS[name].unicode : GLYPHS[name].ascii;
}

interface Part extends BarPart {
  readonly name: string;
  readonly key: keyof typeof GLYPHS;
}

function formatTotals(usage: Usage, output: Pick<Output, "columns" | "unicode">): string {
  const parts: readonly Part[] = [
    { name: "file contents", key: "blobs", size: usage.blobs, glyph: GLYPHS.blobs },
    { name: "metadata of layers", key: "metadata", size: usage.metadata, glyph: GLYPHS.metadata },
    { name: "merged images", key: "merged", size: usage.merged, glyph: GLYPHS.merged },
    ...(usage.links.bytes === 0
      ? []
      : [{ name: "shared with checkouts", key: "links", size: usage.links.bytes, glyph: GLYPHS.links } as const]),
    ...(usage.snapshots.bytes === 0
      ? []
      : [
          {
            name: "directories of snapshots",
            key: "snapshots",
            size: usage.snapshots.bytes,
            glyph: GLYPHS.snapshots,
          } as const,
        ]),
    { name: "database and downloads", key: "other", size: usage.database + usage.downloads, glyph: GLYPHS.other },
  ];
  const { available, size } = usage.fileSystem;
  const lines: { readonly name: string; readonly bytes: string; readonly note: string }[] = [
    ...parts.map((part) => ({ name: part.name, bytes: formatBytes(part.size), note: "" })),
    {
      name: "stored in all",
      bytes: formatBytes(usage.stored),
      note: `${formatBytes(available)} of ${formatBytes(size)} free on its file system`,
    },
    { name: "each image unpacked", bytes: formatBytes(usage.apparent), note: ratio(usage.apparent, usage.stored) },
    {
      name: "each layer unpacked",
      bytes: formatBytes(usage.layersApparent),
      note: ratio(usage.layersApparent, usage.stored),
    },
    { name: "saved by deduplication", bytes: formatBytes(usage.savedByDeduplication), note: "equal files and holes" },
  ];
  const table = formatTable(
    [
      { header: "IN SUM", cell: (line) => line.name },
      { header: "", cell: (line) => line.bytes, align: "right" },
      { header: "", cell: (line) => line.note },
    ],
    lines,
  );
  if (output.columns === undefined) return table;
  const width = Math.min(MAX_BAR, output.columns);
  const whole = usage.stored + usage.savedByDeduplication;
  const saved: Part = { name: "saved", key: "saved", size: usage.savedByDeduplication, glyph: GLYPHS.saved };
  const shown = [...parts, saved].filter((part) => part.size > 0);
  const key = shown.map((part) => `${glyphOf(part.key, output)} ${part.name}`).join("  ");
  return `${stackedBar(shown, whole, width, output.unicode)}\n${key}\n\n${table}`;
}

/** How often the stored bytes go into what it would take otherwise. */
function ratio(bytes: number, stored: number): string {
  return stored === 0 ? "" : `${(bytes / stored).toFixed(2)} times what is stored`;
}
