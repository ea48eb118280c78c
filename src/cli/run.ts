/**
 * One invocation: finds the command, reads its options, runs it, and turns what happened into an exit code. Touches
 * neither the process nor its environment: the host is a parameter, so that tests run whole command lines.
 */
import { resolve } from "node:path";
import type { LogLevel } from "../log/index.ts";
import { createLog } from "../log/index.ts";
import { type Command, type Context, EXIT, GLOBAL_OPTIONS, type OptionTable } from "./command.ts";
import { formatFailure, formatFailureJson } from "./failure.ts";
import { formatCommandHelp, formatFamily, formatOverview } from "./help.ts";
import { type Output, ReaderGone } from "./output.ts";
import { checkPositionals, type Environment, parseOptions, splitCommand } from "./parse.ts";
import { createProgress, type ProgressConsole, type ProgressStream } from "./progress/index.ts";
import { COMMANDS, type CommandEntry, FAMILIES, familyOf, loadGroups } from "./table.ts";
import { nearest, UsageError } from "./usage.ts";

export interface Host {
  /** Without the program and the script. */
  readonly args: readonly string[];
  readonly env: Environment;
  readonly cwd: string;
  readonly home: string;
  /** Effective user id: decides where the store is. */
  readonly uid: number;
  readonly stdout: Output;
  readonly stderr: ProgressStream & NodeJS.WritableStream;
  readonly signal: AbortSignal;
}

/** Widest help: longer lines are hard to read. */
const MAX_HELP_WIDTH = 100;

/** Never rejects. The exit code is one of EXIT, or what the command answered. */
export async function run(host: Host, commands: readonly CommandEntry[] = COMMANDS): Promise<number> {
  // Only for errors before the options are known.
  const state: Reporting = { json: host.args.includes("--json"), stack: false, progress: undefined };
  try {
    return await runCommand(host, commands, state);
  } catch (error) {
    if (error instanceof ReaderGone || host.signal.reason instanceof ReaderGone) return EXIT.ok;
    state.progress?.close();
    host.stderr.write(state.json ? formatFailureJson(error) : formatFailure(error, { stack: state.stack }));
    return error instanceof UsageError ? EXIT.usage : EXIT.failure;
  } finally {
    state.progress?.close();
  }
}

interface Reporting {
  json: boolean;
  stack: boolean;
  progress: ProgressConsole | undefined;
}

async function runCommand(host: Host, commands: readonly CommandEntry[], state: Reporting): Promise<number> {
  const { name, rest } = splitCommand(host.args, GLOBAL_OPTIONS, familiesOf(commands));
  if (name === undefined || name === "help") return await runWithoutCommand(host, commands, rest);
  if (familiesOf(commands).includes(name)) return await runFamily(host, commands, name, rest);
  const command = await loadCommand(commands, name);
  const { values, positionals } = parseOptions(rest, { ...command.options, ...GLOBAL_OPTIONS }, host.env);
  const globals = values as typeof values & Globals;
  state.json = globals.json;
  if (globals.version && name !== "version") return await run({ ...host, args: ["version"] }, commands);
  if (globals.help) {
    await host.stdout.write(formatCommandHelp(command, helpWidth(host)));
    return EXIT.ok;
  }
  checkPositionals(positionals, command.arguments, command.name);
  const logLevel = globals.quiet ? "error" : globals["log-level"];
  const level = logLevel ?? "info";
  state.stack = level === "debug";
  const progress = createProgress(progressKind(host, globals), host.stderr, { unicode: host.stdout.unicode });
  state.progress = progress;
  const context: Context = {
    values,
    positionals,
    root: rootDirectory(globals.root, host),
    rootGiven: globals.root !== undefined,
    json: globals.json,
    stdout: host.stdout,
    progress,
    log: createLog({ level, json: globals.json, write: (line) => progress.note(line), now: () => new Date() }),
    logLevel,
    signal: host.signal,
  };
  return (await command.run(context)) ?? EXIT.ok;
}

interface Globals {
  readonly root: string | undefined;
  readonly json: boolean;
  readonly quiet: boolean;
  readonly "log-level": LogLevel | undefined;
  readonly help: boolean;
  readonly version: boolean;
}

/** `shale`, `shale --help`, `shale --version`, `shale help [COMMAND]`. */
async function runWithoutCommand(
  host: Host,
  commands: readonly CommandEntry[],
  rest: readonly string[],
): Promise<number> {
  const { values, positionals } = parseOptions(rest, GLOBAL_OPTIONS satisfies OptionTable, host.env);
  if (values.version)
    return await run({ ...host, args: ["version", ...rest.filter((arg) => arg !== "--version")] }, commands);
  const topic = positionals.slice(0, familiesOf(commands).includes(positionals[0] ?? "") ? 2 : 1).join(" ");
  if (familiesOf(commands).includes(topic)) return await runFamily(host, commands, topic, ["--help"]);
  const text =
    topic === ""
      ? formatOverview(await loadGroups(commands), helpWidth(host), FAMILIES)
      : formatCommandHelp(await loadCommand(commands, topic), helpWidth(host));
  await host.stdout.write(text);
  return EXIT.ok;
}

/** `shale checkpoint`: what there is. An error unless it was asked for, so that a script sees that nothing was done. */
async function runFamily(
  host: Host,
  commands: readonly CommandEntry[],
  family: string,
  rest: readonly string[],
): Promise<number> {
  const { values } = parseOptions(rest, GLOBAL_OPTIONS satisfies OptionTable, host.env);
  if (!values.help) {
    throw new UsageError(`Cannot run ${family}: the command in it is missing`, `see shale ${family} --help`);
  }
  const members = await Promise.all(
    commands.filter((each) => familyOf(each.name) === family).map((each) => each.load()),
  );
  await host.stdout.write(formatFamily(family, FAMILIES[family] ?? family, members, helpWidth(host)));
  return EXIT.ok;
}

function familiesOf(commands: readonly CommandEntry[]): readonly string[] {
  return [...new Set(commands.map((each) => familyOf(each.name)).filter((family) => family !== undefined))];
}

async function loadCommand(commands: readonly CommandEntry[], name: string): Promise<Command> {
  const entry = commands.find((each) => each.name === name);
  if (entry) return await entry.load();
  const meant = nearest(
    name,
    commands.map((each) => each.name),
  );
  throw new UsageError(
    `Cannot run ${name}: there is no such command`,
    meant === undefined ? "shale --help lists the commands" : `did you mean ${meant}?`,
  );
}

/** Bars and lines are for people; a program that reads JSON from stderr gets only logs and errors there. */
function progressKind(host: Host, globals: Globals) {
  if (globals.quiet) return "silent";
  if (host.stderr.isTTY && host.env.TERM !== "dumb") return "bars";
  return globals.json ? "silent" : "lines";
}

function helpWidth(host: Host): number {
  return Math.min(host.stdout.columns ?? 80, MAX_HELP_WIDTH);
}

/** Where the store is, as GLOBAL_OPTIONS.root documents it. */
export function rootDirectory(given: string | undefined, host: Pick<Host, "env" | "uid" | "home" | "cwd">): string {
  if (given !== undefined) return resolve(host.cwd, given);
  if (host.uid === 0) return "/var/lib/shale";
  const data = host.env.XDG_DATA_HOME;
  // The XDG specification: a relative path there is to be ignored.
  return data?.startsWith("/") ? resolve(data, "shale") : resolve(host.home, ".local/share/shale");
}
