/** `--help`, from the tables. Pure: text in a given width. */
import { type ArgumentSpec, type Command, GLOBAL_OPTIONS, type OptionSpec, type OptionTable } from "./command.ts";
import { wrap } from "./format.ts";

/** Commands under a heading, in the order to show them. */
export interface CommandGroup {
  readonly title: string;
  readonly commands: readonly Command[];
}

const ABOUT = "Keeps container images on a Linux host and makes them ready to run without unpacking them.";

/** A family is one row: its commands are in its own help. `families` has the text of the row. */
export function formatOverview(
  groups: readonly CommandGroup[],
  width: number,
  families: Readonly<Record<string, string>> = {},
): string {
  const sections = groups.map(({ title, commands }) => {
    const rows = new Map<string, string>();
    for (const { name, summary } of commands) {
      const [first = name] = name.split(" ");
      rows.set(first, `${first === name ? summary : (families[first] ?? first)}.`);
    }
    return { title, rows: [...rows].map(([left, right]) => ({ left, right })) };
  });
  const column = Math.max(...sections.flatMap(({ rows }) => rows.map(({ left }) => left.length)));
  return [
    `Usage: shale [OPTIONS] COMMAND ...\n\n${wrap(ABOUT, width)}`,
    ...sections.map(({ title, rows }) => `${title}:\n${formatPairs(rows, width, column)}`),
    `Options of every command:\n${formatOptions(GLOBAL_OPTIONS, width)}`,
    "Start with `shale demo`. Details: `shale COMMAND --help`.",
  ]
    .map((section) => `${section.trimEnd()}\n`)
    .join("\n");
}

/** `shale FAMILY --help`. */
export function formatFamily(name: string, summary: string, commands: readonly Command[], width: number): string {
  const rows = commands.map((command) => ({
    left: command.name.slice(name.length + 1),
    right: `${command.summary}.`,
  }));
  return [
    `Usage: shale ${name} COMMAND ...`,
    `${summary}.`,
    `Commands:\n${formatPairs(rows, width)}`,
    `Details: \`shale ${name} COMMAND --help\`.`,
  ]
    .map((section) => `${section.trimEnd()}\n`)
    .join("\n");
}

export function formatCommandHelp(command: Command, width: number): string {
  const sections = [`Usage: ${usageOf(command)}`, `${command.summary}.`];
  for (const paragraph of paragraphsOf(command.description)) sections.push(wrap(paragraph, width));
  if (command.arguments.length > 0) {
    const rows = command.arguments.map((each) => ({ left: each.name, right: `${each.help}.` }));
    sections.push(`Arguments:\n${formatPairs(rows, width)}`);
  }
  if (Object.keys(command.options).length > 0) sections.push(`Options:\n${formatOptions(command.options, width)}`);
  const globals = Object.entries(GLOBAL_OPTIONS).map(([name, spec]) => optionUsage(name, spec));
  sections.push(wrap(`Also, as every command: ${globals.join(", ")}; see shale --help.`, width));
  if (command.examples.length > 0) {
    const shown = command.examples.map(
      (each) => `${wrap(`${each.help}:`, width, "  ")}\n    ${each.command.replaceAll("\n", "\n    ")}\n`,
    );
    sections.push(`Examples:\n${shown.join("")}`);
  }
  return sections.map((section) => `${section.trimEnd()}\n`).join("\n");
}

/** "shale mount [OPTIONS] [REF] [DIR]". */
export function usageOf(command: Command): string {
  const words = ["shale", command.name];
  if (Object.keys(command.options).length > 0) words.push("[OPTIONS]");
  return [...words, ...command.arguments.map(argumentUsage)].join(" ");
}

function argumentUsage(argument: ArgumentSpec): string {
  const name = argument.repeated ? `${argument.name}...` : argument.name;
  return argument.optional ? `[${name}]` : name;
}

export function paragraphsOf(text: string): readonly string[] {
  return text
    .split(/\n\s*\n/)
    .map((paragraph) => paragraph.trim().replace(/\s+/g, " "))
    .filter((paragraph) => paragraph !== "");
}

/** "-o, --output PATH". */
export function optionUsage(name: string, spec: OptionSpec): string {
  const short = spec.short === undefined ? "" : `-${spec.short}, `;
  if (spec.type === "flag") return `${short}--${name}`;
  if (spec.type === "boolean") return `${short}--${name}[=true|false]`;
  return `${short}--${name} ${spec.value}`;
}

/** The sentence of help, with choices, default and environment variable. */
export function optionHelp(spec: OptionSpec): string {
  const notes: string[] = [];
  if (spec.type === "string" && spec.choices) notes.push(`one of ${spec.choices.join(", ")}`);
  if (spec.type === "string" && spec.multiple) notes.push("may be repeated");
  const preset = spec.type === "string" ? (spec.defaultText ?? spec.default) : defaultOf(spec);
  if (preset !== undefined) notes.push(`default: ${preset}`);
  if (spec.type === "string" && spec.env) notes.push(`environment: ${spec.env}`);
  return notes.length === 0 ? `${spec.help}.` : `${spec.help} (${notes.join("; ")}).`;
}

function defaultOf(spec: OptionSpec): string | number | undefined {
  if (spec.type === "boolean") return String(spec.default);
  return spec.type === "number" ? spec.default : undefined;
}

function formatOptions(table: OptionTable, width: number): string {
  const rows = Object.entries(table).map(([name, spec]) => ({
    left: optionUsage(name, spec),
    right: optionHelp(spec),
  }));
  return formatPairs(rows, width);
}

/** Two columns; a left side that is too long for its column gets a line of its own. */
function formatPairs(
  rows: readonly { readonly left: string; readonly right: string }[],
  width: number,
  leftWidth = Math.max(...rows.map((row) => row.left.length)),
): string {
  const column = Math.min(24, leftWidth) + 4;
  const indent = " ".repeat(column);
  const lines = rows.map(({ left, right }) => {
    const text = wrap(right, Math.max(width, column + 20), indent);
    return left.length + 4 > column ? `  ${left}\n${text}` : `  ${left.padEnd(column - 2)}${text.slice(column)}`;
  });
  return `${lines.join("\n")}\n`;
}
