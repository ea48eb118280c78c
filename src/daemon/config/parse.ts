/**
 * Reads a configuration file against the table of options. Strict: what is misspelt, of the wrong kind or out of range is an error that
 * names the line, the key and what is allowed; a daemon that ignored a limit would be worse than one that does not start. Pure.
 */
import { parse as parseToml, TomlError } from "smol-toml";
import { ShaleError, shownValue } from "../../errors/index.ts";
import { type Config, OPTIONS, TOP } from "./options.ts";
import type { Spec } from "./values.ts";

/** The only version that there is; a file of a later one may mean something else by the same keys. */
const VERSION = 1;

type Table = Readonly<Record<string, unknown>>;

/** The defaults. */
export function defaultConfig(): Config {
  return buildConfig("", {}, "the defaults");
}

/** `name` is the file's path, for messages. INVALID_ARGUMENT for anything that the options don't allow. */
export function parseConfig(text: string, name: string): Config {
  let table: Table;
  try {
    table = parseToml(text);
  } catch (error) {
    if (!(error instanceof TomlError)) throw error;
    const problem = error.message.split("\n")[0]!.replace(/^Invalid TOML document: /, "");
    throw new ShaleError("INVALID_ARGUMENT", `Cannot read ${name}: line ${error.line}: it is not TOML: ${problem}`, {
      cause: error,
    });
  }
  const { version, ...rest } = table;
  if (version !== VERSION) {
    const found = version === undefined ? "it says no version" : `its version is ${JSON.stringify(version)}`;
    throw new ShaleError("INVALID_ARGUMENT", `Cannot read ${name}: ${found}`, {
      hint: `Write version = ${VERSION} as its first line`,
    });
  }
  return buildConfig(text, rest, name);
}

function buildConfig(text: string, table: Table, name: string): Config {
  const fail = (section: string, key: string, problem: string): never => {
    const line = findLine(text, section, key);
    const place = line === undefined ? "" : ` line ${line}:`;
    throw new ShaleError("INVALID_ARGUMENT", `Cannot read ${name}:${place} ${shown(section, key)}: ${problem}`);
  };
  const read = (section: string, specs: Readonly<Record<string, Spec<unknown>>>, values: Table) => {
    for (const key of Object.keys(values)) {
      if (Object.hasOwn(specs, key)) continue;
      const keys = section === "" ? ["version", ...Object.keys(specs), ...Object.keys(OPTIONS)] : Object.keys(specs);
      fail(section, key, `there is no such key; allowed are ${keys.join(", ")}`);
    }
    return Object.fromEntries(
      Object.entries(specs).map(([key, spec]) => {
        const given = Object.hasOwn(values, key) ? values[key] : undefined;
        if (given === undefined) return [camelCase(key), spec.default];
        const value = spec.parse(given);
        return [camelCase(key), value ?? fail(section, key, `${describe(given)} is not allowed; give ${spec.allowed}`)];
      }),
    );
  };
  const sections = Object.entries(OPTIONS).map(([section, specs]) => {
    const values = Object.hasOwn(table, section) ? table[section] : {};
    if (!isTable(values)) return fail("", section, `it is a section: write [${section}] and its keys below`);
    return [camelCase(section), read(section, specs, values)] as const;
  });
  const top = Object.fromEntries(Object.entries(table).filter(([key]) => !Object.hasOwn(OPTIONS, key)));
  // Made from the same table that the type is made from.
  const config = { ...read("", TOP, top), ...Object.fromEntries(sections) } as unknown as Config;
  if (config.disk.lowWatermark > config.disk.highWatermark) {
    fail("disk", "low_watermark", `it is above high_watermark, which is ${config.disk.highWatermark}`);
  }
  return config;
}

function shown(section: string, key: string): string {
  return section === "" ? key : `[${section}] ${key}`;
}

function describe(value: unknown): string {
  return typeof value === "object" ? "a table or list" : shownValue(value, 80);
}

function isTable(value: unknown): value is Table {
  return typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Date);
}

export function camelCase(key: string): string {
  return key.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
}

/**
 * Where a key is written. The TOML parser keeps no positions; keys are looked for as files have them, one a line below their
 * section's header. What is written in another way (a dotted or quoted key) has no line in the message.
 */
function findLine(text: string, section: string, key: string): number | undefined {
  let current = "";
  const lines = text.split("\n");
  for (const [at, line] of lines.entries()) {
    const header = /^\s*\[\s*([A-Za-z0-9_.-]+)\s*\]/.exec(line);
    if (header !== null) {
      current = header[1]!;
      if (section === "" && current.split(".")[0] === key) return at + 1;
      if (current === `${section}.${key}`) return at + 1;
      continue;
    }
    const assigned = /^\s*([A-Za-z0-9_-]+)\s*[=.]/.exec(line)?.[1];
    if (current === section && assigned === key) return at + 1;
  }
  return undefined;
}
