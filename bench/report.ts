/**
 * What the benchmark found, as text: pure functions from values to the terminal's table and to bench/RESULTS.md.
 */

/** A bar of the project's "must reach" list, held against a measurement of the same run. */
export interface Goal {
  readonly name: string;
  readonly bar: string;
  readonly measured: string;
  /** undefined: reported, no bar. */
  readonly met: boolean | undefined;
}

/** The details behind the goals. The first column is text, the others are numbers and align right. */
export interface Table {
  readonly title: string;
  readonly columns: readonly string[];
  readonly rows: readonly (readonly string[])[];
  /** Sentences below the table: how it was measured, what it leaves out. */
  readonly notes: readonly string[];
}

export interface Findings {
  readonly goals: readonly Goal[];
  readonly tables: readonly Table[];
}

export interface Report extends Findings {
  /** Label and value: date, machine, kernel, versions, number of runs. */
  readonly facts: readonly (readonly [string, string])[];
}

export const seconds = (value: number): string => `${value.toFixed(value < 10 ? 2 : 1)} s`;
export const milliseconds = (value: number): string => `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms`;
/** Decimal megabytes. */
export const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(1)} MB`;
export const times = (ratio: number): string => `${ratio.toFixed(2)} x`;

/** "met" only for numbers that hold: no rounding in a project's own favour. */
export function atMost(name: string, value: number, bar: number, format: (value: number) => string): Goal {
  return { name, bar: `at most ${format(bar)}`, measured: format(value), met: value <= bar };
}

export function atLeast(name: string, value: number, bar: number, format: (value: number) => string): Goal {
  return { name, bar: `at least ${format(bar)}`, measured: format(value), met: value >= bar };
}

/** Without a bar. */
export function reported(name: string, value: number, format: (value: number) => string): Goal {
  return { name, bar: "-", measured: format(value), met: undefined };
}

function goalRows(goals: readonly Goal[]): string[][] {
  return goals.map(({ name, measured, bar, met }) => [
    name,
    measured,
    bar,
    met === undefined ? "-" : met ? "yes" : "NO",
  ]);
}

const GOAL_COLUMNS = ["goal", "measured", "bar", "met"];

/** The table for a terminal: columns padded with spaces, numbers to the right. */
export function formatTerminal(report: Report): string {
  const parts = report.tables.map((table) => `${table.title}\n${plainTable(table.columns, table.rows)}`);
  if (report.goals.length > 0) parts.push(plainTable(GOAL_COLUMNS, goalRows(report.goals)));
  return `${parts.join("\n\n")}\n`;
}

function plainTable(columns: readonly string[], rows: readonly (readonly string[])[]): string {
  const all = [columns, ...rows];
  const widths = columns.map((_, c) => Math.max(...all.map((row) => (row[c] ?? "").length)));
  return all
    .map((row) => row.map((cell, c) => (c === 0 ? cell.padEnd(widths[c]!) : cell.padStart(widths[c]!))).join("  "))
    .join("\n");
}

/** bench/RESULTS.md. Ends with a newline. */
export function formatMarkdown(report: Report): string {
  const facts = report.facts.map(([label, value]) => `- ${label}: ${value}`).join("\n");
  const sections = [
    "# Benchmark results",
    "Written by `npm run bench`; do not edit. What is measured, and how: [docs/bench.md](../docs/bench.md).",
    facts,
  ];
  if (report.goals.length > 0) sections.push("## Goals", markdownTable(GOAL_COLUMNS, goalRows(report.goals)));
  for (const table of report.tables) {
    sections.push(`## ${table.title}`, markdownTable(table.columns, table.rows), ...table.notes);
  }
  return `${sections.join("\n\n")}\n`;
}

function markdownTable(columns: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]) => `| ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`;
  const rule = columns.map((_, c) => (c === 0 ? "---" : "---:"));
  return [line(columns), line(rule), ...rows.map(line)].join("\n");
}
