/**
 * Numbers, tables and bars for people. Pure. Sizes are decimal (1 kB = 1000 B), as registries, disks and the other
 * container tools print them; exact bytes are in --json.
 */

const SIZE_UNITS = ["B", "kB", "MB", "GB", "TB", "PB"] as const;

/** Three digits: "999 B", "1.23 kB", "45.6 MB", "789 GB". */
export function formatBytes(size: number): string {
  const sign = size < 0 ? "-" : "";
  let value = Math.abs(size);
  let unit = 0;
  // 999.5 of a unit would round to a fourth digit, so the next unit begins there.
  while (value >= (unit === 0 ? 1000 : 999.5) && unit < SIZE_UNITS.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${sign}${unit === 0 ? String(value) : threeDigits(value)} ${SIZE_UNITS[unit]}`;
}

function threeDigits(value: number): string {
  if (value < 9.995) return value.toFixed(2);
  return value < 99.95 ? value.toFixed(1) : value.toFixed(0);
}

export function formatRate(bytesPerSecond: number): string {
  return `${formatBytes(Math.round(bytesPerSecond))}/s`;
}

/** "0.8 ms", "850 ms", "12.3 s", "2 min 05 s", "3 h 07 min". */
export function formatDuration(ms: number): string {
  if (ms < 9.95) return `${ms.toFixed(1)} ms`;
  if (ms < 999.5) return `${ms.toFixed(0)} ms`;
  if (ms < 59_950) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${twoDigits(seconds % 60)} s`;
  const minutes = Math.round(seconds / 60);
  return `${Math.floor(minutes / 60)} h ${twoDigits(minutes % 60)} min`;
}

function twoDigits(value: number): string {
  return String(value).padStart(2, "0");
}

/** "30,000". */
export function formatCount(value: number): string {
  return String(value).replace(/\B(?=(\d{3})+$)/g, ",");
}

/** "1 file", "2 files"; `plural` where an s is not enough. */
export function countOf(count: number, noun: string, plural = `${noun}s`): string {
  return `${formatCount(count)} ${count === 1 ? noun : plural}`;
}

/** Twelve hexadecimal digits: enough to tell digests apart on a screen, and to name one on the command line. */
export function shortDigest(digest: string): string {
  return digest.slice(digest.indexOf(":") + 1, digest.indexOf(":") + 13);
}

/** "2026-11-22 04:26:50", UTC: listings of one store read the same on every machine. */
export function formatTime(time: Date): string {
  return time.toISOString().slice(0, 19).replace("T", " ");
}

/** Name and value under each other: labels two spaces before the widest one's values. */
export function formatFields(fields: readonly (readonly [label: string, value: string])[], indent = ""): string {
  const width = Math.max(0, ...fields.map(([label]) => widthOf(label)));
  return (
    fields
      // Without a label: one more value of the field above.
      .map(
        ([label, value]) =>
          `${indent}${label}${label === "" ? " " : ":"}${" ".repeat(width - widthOf(label) + 1)}${value}`,
      )
      .map((line) => `${line.trimEnd()}\n`)
      .join("")
  );
}

export interface Column<Row> {
  readonly header: string;
  readonly cell: (row: Row) => string;
  /** Numbers go right, so that their units line up. */
  readonly align?: "left" | "right";
}

/** Columns two spaces apart, a header line, no spaces at line ends. The header stands also over no rows. */
export function formatTable<Row>(columns: readonly Column<Row>[], rows: readonly Row[]): string {
  const cells = rows.map((row) => columns.map((column) => column.cell(row)));
  const lines = [columns.map((column) => column.header), ...cells];
  const widths = columns.map((_, at) => Math.max(...lines.map((line) => widthOf(line[at]!))));
  const pad = (text: string, at: number) => {
    const space = " ".repeat(widths[at]! - widthOf(text));
    return columns[at]!.align === "right" ? space + text : text + space;
  };
  return lines.map((line) => `${line.map(pad).join("  ").trimEnd()}\n`).join("");
}

/** Nearly every cell; counting its code points would take most of the time of a long table. */
const PLAIN = /^[ -~]*$/;

/** Code points: exact for the names that registries allow; a file name in wide characters only shifts its line. */
function widthOf(text: string): number {
  return PLAIN.test(text) ? text.length : [...text].length;
}

export interface BarPart {
  readonly size: number;
  readonly glyph: { readonly unicode: string; readonly ascii: string };
}

/** What `df` draws with: of an image its unique, shared and saved bytes; of the store its parts. */
export const GLYPHS = {
  unique: { unicode: "█", ascii: "#" },
  shared: { unicode: "▓", ascii: "+" },
  saved: { unicode: "░", ascii: "." },
  blobs: { unicode: "█", ascii: "#" },
  metadata: { unicode: "▓", ascii: "+" },
  merged: { unicode: "▒", ascii: "=" },
  links: { unicode: "▚", ascii: "o" },
  snapshots: { unicode: "▄", ascii: "s" },
  other: { unicode: "▞", ascii: "x" },
} as const;

/**
 * One bar of parts side by side, `width` cells for `total`. Cells are shared out by largest remainder, so the bar is as
 * long as the sum says; a part that isn't zero gets a cell of its own if there is one to spare.
 */
export function stackedBar(parts: readonly BarPart[], total: number, width: number, unicode: boolean): string {
  const sum = parts.reduce((all, part) => all + part.size, 0);
  if (sum <= 0 || total <= 0) return "";
  const length = Math.min(width, Math.max(1, Math.round((sum / total) * width)));
  const shares = parts.map((part) => (part.size / sum) * length);
  const cells = shares.map((share, at) => (parts[at]!.size > 0 ? Math.max(1, Math.floor(share)) : 0));
  const used = () => cells.reduce((all, cell) => all + cell, 0);
  const byRemainder = shares.map((_, at) => at).sort((a, b) => (shares[b]! % 1) - (shares[a]! % 1));
  for (let turn = 0; used() < length; turn++) cells[byRemainder[turn % byRemainder.length]!]!++;
  for (let spare = used() - length; spare > 0; spare--) cells[cells.indexOf(Math.max(...cells))]!--;
  return parts.map((part, at) => (unicode ? part.glyph.unicode : part.glyph.ascii).repeat(cells[at]!)).join("");
}

const EIGHTHS = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"] as const;

/** A bar of exactly `width` cells, filled by `fraction` (0..1). */
export function fillBar(fraction: number, width: number, unicode: boolean): string {
  const part = Math.min(1, Math.max(0, fraction));
  const eighths = Math.floor(part * width * 8);
  const full = Math.floor(eighths / 8);
  if (!unicode) return "#".repeat(full).padEnd(width, "-");
  return ("█".repeat(full) + EIGHTHS[eighths % 8]!).padEnd(width, " ");
}

/** Breaks text at spaces so that no line is longer than `width` (except a word that is), each after `indent`. */
export function wrap(text: string, width: number, indent = ""): string {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(/\s+/).filter((part) => part !== "")) {
    if (line !== "" && indent.length + line.length + 1 + word.length > width) {
      lines.push(line);
      line = "";
    }
    line = line === "" ? word : `${line} ${word}`;
  }
  if (line !== "") lines.push(line);
  return lines.map((each) => indent + each).join("\n");
}
