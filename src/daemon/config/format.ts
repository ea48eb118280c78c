/** The effective configuration as a file again, and the tables of docs/daemon.md. Pure. */
import { type Config, OPTIONS, TOP } from "./options.ts";
import { camelCase } from "./parse.ts";
import type { Spec } from "./values.ts";

type Specs = Readonly<Record<string, Spec<unknown>>>;
type Values = Readonly<Record<string, unknown>>;

/** TOML that parses to `config`, each option under a comment with what is allowed. */
export function formatConfig(config: Config): string {
  const all: Values = config;
  const sections = Object.entries(OPTIONS).map(([section, specs]) =>
    [`[${section}]`, ...formatValues(specs, all[camelCase(section)] as Values)].join("\n"),
  );
  return `version = 1\n\n${[formatValues(TOP, all).join("\n"), ...sections].join("\n\n")}\n`;
}

function formatValues(specs: Specs, values: Values): string[] {
  return Object.entries(specs).flatMap(([key, spec]) => [
    `# ${spec.help}`,
    `# Allowed: ${spec.allowed}${spec.reload ? "; SIGHUP applies it" : ""}`,
    `${key} = ${spec.format(values[camelCase(key)])}`,
  ]);
}

/** docs/daemon-config.md. */
export function formatConfigDocs(): string {
  const sections = [["", TOP] as const, ...Object.entries(OPTIONS)].map(([section, specs]) => {
    const title = section === "" ? "## Above the first section" : `## \`[${section}]\``;
    return [title, "", "| key | default | allowed | |", "|---|---|---|---|", ...rows(specs), ""].join("\n");
  });
  return [
    "# Options of the daemon",
    "",
    "<!-- Made by `npm run docs`. -->",
    "",
    INTRODUCTION,
    "",
    sections.join("\n"),
  ].join("\n");
}

const INTRODUCTION = `Of \`/etc/shale/config.toml\`, see [daemon.md](daemon.md). The first line is \`version = 1\`; every key may be left out. Sizes and
times are strings with a unit. \`shale daemon --print-config\` prints all of them with the values in effect.`;

function rows(specs: Specs): string[] {
  return Object.entries(specs).map(
    ([key, spec]) =>
      `| \`${key}\` | \`${spec.format(spec.default)}\` | ${spec.allowed} | ${spec.help}${spec.reload ? " SIGHUP applies it." : ""} |`,
  );
}
