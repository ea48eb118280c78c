/**
 * What a command is: a table of data and a `run` function. The parser, `--help`, shell completion and docs/cli.md are
 * all made from this table, so none of them can disagree with another.
 *
 * `run` neither exits, nor reads the environment, nor prints anywhere but `context.stdout`. It stops soon after
 * `context.signal` is aborted and has released what it held when it settles. Rendering is a pure function beside it.
 */
import type { Progress } from "../images/progress.ts";
import type { Log, LogLevel } from "../log/index.ts";
import type { Output } from "./output.ts";

/** What a shell may offer for a value. */
export type Completes = "file" | "directory" | "image" | "none";

interface OptionBase {
  /** One letter. */
  readonly short?: string;
  readonly help: string;
}

/** Off unless given. */
export interface FlagOption extends OptionBase {
  readonly type: "flag";
}

/** `--name`, `--name=true` or `--name=false`; for what is on by default. */
export interface BooleanOption extends OptionBase {
  readonly type: "boolean";
  readonly default: boolean;
}

export interface StringOption extends OptionBase {
  readonly type: "string";
  /** The value's name in help: "DIR". */
  readonly value: string;
  readonly default?: string;
  readonly choices?: readonly string[];
  /** May be given several times; the value is then a list. */
  readonly multiple?: true;
  /** Environment variable that gives the value where the option is absent. */
  readonly env?: string;
  /** How help describes a default that is computed. */
  readonly defaultText?: string;
  readonly completes?: Completes;
}

/** A whole number. */
export interface NumberOption extends OptionBase {
  readonly type: "number";
  readonly value: string;
  readonly default?: number;
  readonly minimum?: number;
  readonly maximum?: number;
}

export type OptionSpec = FlagOption | BooleanOption | StringOption | NumberOption;
export type OptionTable = Readonly<Record<string, OptionSpec>>;

type ValueOf<O extends OptionSpec> = O extends { readonly type: "flag" | "boolean" }
  ? boolean
  : O extends { readonly multiple: true }
    ? readonly string[]
    : O extends { readonly type: "number" }
      ? number | AbsentUnlessDefault<O>
      : (O extends { readonly choices: readonly (infer C)[] } ? C : string) | AbsentUnlessDefault<O>;

type AbsentUnlessDefault<O> = O extends { readonly default: string | number } ? never : undefined;

/** The values that a table of options gives, keyed by the long name as it is typed ("tls-verify"). */
export type ValuesOf<T extends OptionTable> = { readonly [K in keyof T]: ValueOf<T[K]> };

export interface ArgumentSpec {
  /** In capitals, as help shows it: "REF". */
  readonly name: string;
  readonly help: string;
  readonly optional?: true;
  /** Any number of them, at least one unless optional. Only the last argument. */
  readonly repeated?: true;
  readonly completes?: Completes;
}

export interface Example {
  readonly command: string;
  readonly help: string;
}

export interface Context<T extends OptionTable = OptionTable> {
  readonly values: ValuesOf<T>;
  /** As many as `arguments` allows; missing optional ones are absent. */
  readonly positionals: readonly string[];
  /** The store's directory, absolute. */
  readonly root: string;
  /** Whether the user has chosen it, by --root or SHALE_ROOT. */
  readonly rootGiven: boolean;
  /** The result is to be one JSON value on stdout; see `emit` in output.ts. */
  readonly json: boolean;
  readonly stdout: Output;
  /** Silent with --quiet. */
  readonly progress: Progress;
  readonly log: Log;
  /** As the user has chosen it, by --log-level, SHALE_LOG_LEVEL or --quiet. */
  readonly logLevel: LogLevel | undefined;
  readonly signal: AbortSignal;
}

export interface Command<T extends OptionTable = OptionTable> {
  readonly name: string;
  /** One line, begins with a verb, no full stop. */
  readonly summary: string;
  /** Paragraphs, separated by an empty line. */
  readonly description: string;
  readonly arguments: readonly ArgumentSpec[];
  readonly options: T;
  readonly examples: readonly Example[];
  /**
   * Resolves to the exit code, or undefined for success. A code of its own is for an answer ("they differ"); failures
   * are thrown.
   */
  run(context: Context<T>): Promise<number | undefined>;
}

/** Checks a table against its type and keeps the exact types of its options, so that `run` sees typed values. */
export function defineCommand<const T extends OptionTable>(command: Command<T>): Command<T> {
  return command;
}

/** Options that every command takes, before or after its name. */
export const GLOBAL_OPTIONS = {
  root: {
    type: "string",
    value: "DIR",
    env: "SHALE_ROOT",
    defaultText: "/var/lib/shale for root, $XDG_DATA_HOME/shale or ~/.local/share/shale for others",
    completes: "directory",
    help: "Where the store is",
  },
  json: { type: "flag", help: "Print the result as one JSON value, logs and errors as JSON lines on stderr" },
  quiet: { type: "flag", short: "q", help: "No progress, and only errors in the log" },
  "log-level": {
    type: "string",
    value: "LEVEL",
    choices: ["error", "warn", "info", "debug"],
    defaultText: "info",
    env: "SHALE_LOG_LEVEL",
    help: "The least important messages to log on stderr",
  },
  help: { type: "flag", short: "h", help: "Show help and exit" },
  version: { type: "flag", help: "Show the version and exit" },
} as const satisfies OptionTable;

/** Documented in docs/cli.md. */
export const EXIT = {
  ok: 0,
  /** The command failed, or its answer is no: `diff` found differences, `check` found damage. */
  failure: 1,
  /** The command line can't be meant. */
  usage: 2,
  /** 128 + the signal's number, as shells count. */
  interrupted: 130,
  terminated: 143,
} as const;
