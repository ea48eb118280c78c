/**
 * From an argument vector to a command's typed values. `util.parseArgs` cuts the vector into tokens; the checks are
 * here, because a message that says what was probably meant needs the table. Pure: the environment is a parameter.
 */
import { type ParseArgsOptionsConfig, parseArgs } from "node:util";
import type { ArgumentSpec, OptionSpec, OptionTable, ValuesOf } from "./command.ts";
import { nearest, UsageError } from "./usage.ts";

export type Environment = Readonly<Record<string, string | undefined>>;

export interface Parsed<T extends OptionTable> {
  readonly values: ValuesOf<T>;
  readonly positionals: readonly string[];
}

/**
 * Takes the command's name out of `args`: the first word that is neither an option nor an option's value, and the next such
 * word with it where the first one is one of `families`. Only the family's name when nothing follows it.
 */
export function splitCommand(
  args: readonly string[],
  globals: OptionTable,
  families: readonly string[] = [],
): { readonly name: string | undefined; readonly rest: readonly string[] } {
  const { tokens } = parseArgs({ ...LENIENT, args: [...args], options: configOf(globals) });
  const words: string[] = [];
  const taken = new Set<number>();
  for (const token of tokens) {
    if (token.kind === "option" && globals[token.name] === undefined) {
      if (words.length > 0) break; // of the command whose second word is missing
      throw unknownOption(token.rawName, globals, true);
    }
    if (token.kind === "option-terminator") break;
    if (token.kind !== "positional") continue;
    words.push(token.value);
    taken.add(token.index);
    if (words.length > 1 || !families.includes(token.value)) break;
  }
  if (words.length === 0) return { name: undefined, rest: args };
  return { name: words.join(" "), rest: args.filter((_, index) => !taken.has(index)) };
}

/** Throws UsageError for anything that the table doesn't allow. Absent options come from `env`, then their default. */
export function parseOptions<T extends OptionTable>(args: readonly string[], table: T, env: Environment): Parsed<T> {
  const { tokens } = parseArgs({ ...LENIENT, args: [...args], options: configOf(table) });
  const given = new Map<string, (string | undefined)[]>();
  const positionals: string[] = [];
  for (const token of tokens) {
    if (token.kind === "positional") positionals.push(token.value);
    if (token.kind !== "option") continue;
    const spec = Object.hasOwn(table, token.name) ? table[token.name] : undefined;
    if (spec === undefined) throw unknownOption(token.rawName, table, false);
    if (token.value?.startsWith("-") && token.value.length > 1 && !token.inlineValue) {
      throw new UsageError(
        `Cannot read ${token.rawName}: its value is missing`,
        `where ${token.value} is meant as the value, write --${token.name}=${token.value}`,
      );
    }
    const earlier = given.get(token.name);
    if (earlier && takesValue(spec) && !("multiple" in spec)) {
      throw new UsageError(`Cannot read --${token.name}: it is given twice`, "give it once");
    }
    if (earlier) earlier.push(token.value);
    else given.set(token.name, [token.value]);
  }
  const values: Record<string, unknown> = {};
  for (const [name, spec] of Object.entries(table)) values[name] = resolveValue(name, spec, given.get(name), env);
  return { values: values as ValuesOf<T>, positionals };
}

/** Throws UsageError unless the number of positional arguments is one that `specs` allows. */
export function checkPositionals(
  positionals: readonly string[],
  specs: readonly ArgumentSpec[],
  command: string,
): void {
  const hint = `see shale ${command} --help`;
  const missing = specs.find((spec, index) => !spec.optional && index >= positionals.length);
  if (missing) throw new UsageError(`Cannot run ${command}: ${missing.name} is missing`, hint);
  const extra = specs.at(-1)?.repeated ? undefined : positionals[specs.length];
  if (extra !== undefined) throw new UsageError(`Cannot run ${command}: ${extra} is one argument too many`, hint);
}

const LENIENT = { strict: false, allowPositionals: true, tokens: true } as const;

function configOf(table: OptionTable): ParseArgsOptionsConfig {
  const entries = Object.entries(table).map(([name, spec]) => [
    name,
    { type: takesValue(spec) ? "string" : "boolean", multiple: true, ...(spec.short ? { short: spec.short } : {}) },
  ]);
  return Object.fromEntries(entries) as ParseArgsOptionsConfig;
}

/** Whether the next word is the option's value. A boolean's value is only ever written with "=". */
export function takesValue(spec: OptionSpec): boolean {
  return spec.type === "string" || spec.type === "number";
}

function resolveValue(
  name: string,
  spec: OptionSpec,
  given: readonly (string | undefined)[] | undefined,
  env: Environment,
) {
  const last = given?.at(-1);
  switch (spec.type) {
    case "flag":
      if (last !== undefined)
        throw new UsageError(`Cannot read --${name}=${last}: it takes no value`, `write --${name}`);
      return given !== undefined;
    case "boolean":
      if (given === undefined) return spec.default;
      if (last === undefined || last === "true") return true;
      if (last === "false") return false;
      throw new UsageError(`Cannot read --${name}=${last}: it is neither true nor false`, `write --${name}=false`);
    case "number":
      return given === undefined ? spec.default : numberOf(name, spec, last);
    case "string": {
      const fromEnv = spec.env === undefined ? undefined : env[spec.env] || undefined;
      const found = given ?? (fromEnv === undefined ? undefined : [fromEnv]);
      const label = given === undefined ? `environment variable ${spec.env}` : `--${name}`;
      const texts = (found ?? []).map((text) => checkText(label, spec.value, spec.choices, text));
      if (spec.multiple) return texts;
      return texts.at(-1) ?? spec.default;
    }
  }
}

function checkText(label: string, value: string, choices: readonly string[] | undefined, text: string | undefined) {
  if (text === undefined || text === "") {
    throw new UsageError(`Cannot read ${label}: its value is missing`, `write ${label} ${value}`);
  }
  if (choices && !choices.includes(text)) {
    const meant = nearest(text, choices);
    const hint = meant === undefined ? `choose one of ${choices.join(", ")}` : `did you mean ${meant}?`;
    throw new UsageError(`Cannot read ${label}: ${text} is not one of ${choices.join(", ")}`, hint);
  }
  return text;
}

function numberOf(name: string, spec: OptionSpec & { readonly type: "number" }, text: string | undefined): number {
  const low = spec.minimum ?? 0;
  const high = spec.maximum ?? Number.MAX_SAFE_INTEGER;
  const number = text !== undefined && /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (!(number >= low && number <= high)) {
    const range = spec.maximum === undefined ? `of at least ${low}` : `from ${low} to ${high}`;
    throw new UsageError(
      `Cannot read --${name}: ${text ?? "nothing"} is not a whole number ${range}`,
      `write --${name} ${low}`,
    );
  }
  return number;
}

function unknownOption(typed: string, table: OptionTable, beforeCommand: boolean): UsageError {
  const message = `Cannot read ${typed}: there is no such option${beforeCommand ? " before a command" : ""}`;
  const letters = typed.replace(/^-+/, "");
  const meant = letters.length > 1 ? nearest(letters, Object.keys(table)) : undefined;
  if (meant !== undefined) return new UsageError(message, `did you mean --${meant}?`);
  return new UsageError(message, beforeCommand ? "a command's own options come after its name" : "see --help");
}
