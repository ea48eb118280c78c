/**
 * docs/cli.md, from the tables: `node src/cli/docs.ts > docs/cli.md`. A test checks that the file is what this prints.
 */
import { type Command, GLOBAL_OPTIONS, type OptionTable } from "./command.ts";
import { type CommandGroup, optionHelp, optionUsage, paragraphsOf, usageOf } from "./help.ts";
import { loadGroups } from "./table.ts";

const EXIT_CODES = [
  ["0", "success; also when the reader of stdout leaves early (`shale ls ... | head`)"],
  ["1", "the command failed, or its answer is no: `diff` found differences, `check` found damage"],
  ["2", "the command line can't be meant: unknown command or option, missing argument, bad value"],
  ["130", "stopped by SIGINT (Ctrl-C), after cleaning up"],
  ["143", "stopped by SIGTERM, after cleaning up"],
] as const;

export function formatDocs(groups: readonly CommandGroup[]): string {
  const overview = groups.flatMap((group) => [
    `**${group.title}**\n`,
    ...group.commands.map(
      (command) => `- [\`${command.name}\`](#${command.name.replaceAll(" ", "-")}): ${command.summary}`,
    ),
    "",
  ]);
  return `${[
    "# The command line",
    "",
    "Made from the command tables by `node src/cli/docs.ts > docs/cli.md`; don't edit it by hand.",
    "",
    ...overview,
    "## For every command",
    "",
    "Options may stand before or after the command's name. `--` ends the options.",
    "",
    ...optionRows(GLOBAL_OPTIONS),
    "",
    "### Output",
    "",
    "Results go to stdout, all else to stderr. With `--json` the result is one JSON value on stdout, and stderr carries",
    "JSON lines: log messages `{time, level, message, ...}` and, last, if the command failed,",
    "`{error: {code, message, causes?, hint?}}`. `code` is from a closed list (`NOT_FOUND`, `DATA_LOSS`, ...); branch on it,",
    "not on the text. Sizes for people are decimal (1 kB = 1000 B); in JSON they are bytes.",
    "",
    "Progress on stderr: bars where it is a terminal, otherwise a line at the start and end of each piece of work and every",
    "five seconds; none with `--quiet`, nor with `--json` unless stderr is a terminal.",
    "",
    "### Exit codes",
    "",
    "| code | meaning |",
    "|---|---|",
    ...EXIT_CODES.map(([code, meaning]) => `| ${code} | ${meaning} |`),
    "",
    "The first SIGINT or SIGTERM stops the command's work and cleans up; a second one kills it at once. The store survives both.",
    "",
    "## Commands",
    "",
    ...groups.flatMap((group) => group.commands.flatMap(formatCommand)),
  ]
    .join("\n")
    .trimEnd()}\n`;
}

function formatCommand(command: Command): readonly string[] {
  const lines = [`### ${command.name}`, "", "```", usageOf(command), "```", "", `${command.summary}.`, ""];
  for (const paragraph of paragraphsOf(command.description)) lines.push(paragraph, "");
  if (command.arguments.length > 0) {
    lines.push("| argument | |", "|---|---|");
    for (const each of command.arguments) lines.push(`| \`${each.name}\` | ${escapeCell(each.help)}. |`);
    lines.push("");
  }
  if (Object.keys(command.options).length > 0) lines.push(...optionRows(command.options), "");
  if (command.examples.length > 0) {
    lines.push("```sh", ...command.examples.flatMap((each) => [`# ${each.help}`, each.command]), "```", "");
  }
  return lines;
}

function optionRows(table: OptionTable): readonly string[] {
  const rows = Object.entries(table).map(
    ([name, spec]) => `| \`${escapeCell(optionUsage(name, spec))}\` | ${escapeCell(optionHelp(spec))} |`,
  );
  return ["| option | |", "|---|---|", ...rows];
}

function escapeCell(text: string): string {
  return text.replaceAll("|", "\\|");
}

if (import.meta.main) process.stdout.write(formatDocs(await loadGroups()));
