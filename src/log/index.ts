/**
 * Messages for people and for log collectors, one line each. Callers pass no secrets: not a token, a password, an
 * Authorization header or a URL's query.
 */
export type LogLevel = "error" | "warn" | "info" | "debug";

/** Values that are worth searching for, beside the sentence. */
export type LogFields = Readonly<Record<string, string | number | boolean | undefined>>;

export interface Log {
  error(message: string, fields?: LogFields): void;
  warn(message: string, fields?: LogFields): void;
  info(message: string, fields?: LogFields): void;
  debug(message: string, fields?: LogFields): void;
}

/** From the fewest messages to the most. */
export const LOG_LEVELS: readonly LogLevel[] = ["error", "warn", "info", "debug"];

/** Gives each message at `level` or above to `write`, as one line without its end. A level that is a function may change. */
export function createLog(options: {
  readonly level: LogLevel | (() => LogLevel);
  readonly json: boolean;
  readonly write: (line: string) => void;
  readonly now: () => Date;
}): Log {
  const { level: chosen } = options;
  const current = typeof chosen === "function" ? chosen : () => chosen;
  const at = (level: LogLevel) => (message: string, fields?: LogFields) => {
    if (LOG_LEVELS.indexOf(level) > LOG_LEVELS.indexOf(current())) return;
    options.write(
      options.json ? formatLogJson(level, message, fields, options.now()) : formatLogText(level, message, fields),
    );
  };
  return { error: at("error"), warn: at("warn"), info: at("info"), debug: at("debug") };
}

/** "shale: warning: Mirror does not answer host=m.example". Information carries no level: it is the common case. */
export function formatLogText(level: LogLevel, message: string, fields: LogFields = {}): string {
  const word = { error: "error: ", warn: "warning: ", info: "", debug: "debug: " }[level];
  const pairs = Object.entries(fields).filter(([, value]) => value !== undefined);
  const shown = pairs.map(([key, value]) => ` ${key}=${/[\s"=]/.test(String(value)) ? JSON.stringify(value) : value}`);
  return `shale: ${word}${singleLine(message)}${singleLine(shown.join(""))}`;
}

export function formatLogJson(level: LogLevel, message: string, fields: LogFields = {}, time: Date): string {
  return JSON.stringify({ ...fields, time: time.toISOString(), level, message });
}

/** Text from a registry may hold line ends and escape sequences; neither reaches the terminal. */
export function singleLine(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: escaping them is the point
  return text.replace(/[\u0000-\u001f\u007f-\u009f]/g, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`);
}
