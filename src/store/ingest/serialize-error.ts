/** Errors across threads: structured clone would lose the class, and with it the code that callers branch on. */
import { errnoOf, ShaleError } from "../../errors/index.ts";
import type { SerializedError } from "./protocol.ts";

/** Causes deeper than this are cut. */
const DEPTH = 4;

export function serializeError(error: unknown, depth = 0): SerializedError {
  if (!(error instanceof Error)) {
    return {
      code: undefined,
      errno: undefined,
      syscall: undefined,
      path: undefined,
      name: "Error",
      message: String(error),
      hint: undefined,
      stack: undefined,
      cause: undefined,
    };
  }
  return {
    code: error instanceof ShaleError ? error.code : undefined,
    errno: errnoOf(error),
    syscall: textOf(error, "syscall"),
    path: textOf(error, "path"),
    name: error.name,
    message: error.message,
    hint: error instanceof ShaleError ? error.hint : undefined,
    stack: error.stack,
    cause: error.cause === undefined || depth === DEPTH ? undefined : serializeError(error.cause, depth + 1),
  };
}

function textOf(error: Error, property: "syscall" | "path"): string | undefined {
  const value: unknown = (error as Partial<Record<typeof property, unknown>>)[property];
  return typeof value === "string" ? value : undefined;
}

/** A FormatError comes back as a ShaleError with the same code and message. */
export function deserializeError(error: SerializedError): Error {
  const cause = error.cause === undefined ? undefined : deserializeError(error.cause);
  if (error.code !== undefined) {
    const options = {
      ...(cause === undefined ? {} : { cause }),
      ...(error.hint === undefined ? {} : { hint: error.hint }),
    };
    return new ShaleError(error.code, error.message, options);
  }
  const result = new Error(error.message, cause === undefined ? undefined : { cause });
  result.name = error.name;
  const { errno: code, syscall, path } = error;
  for (const [name, value] of Object.entries({ code, syscall, path })) {
    if (value !== undefined) Object.assign(result, { [name]: value });
  }
  if (error.stack !== undefined) result.stack = error.stack;
  return result;
}
