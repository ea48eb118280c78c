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
    name: error.name,
    message: error.message,
    hint: error instanceof ShaleError ? error.hint : undefined,
    stack: error.stack,
    cause: error.cause === undefined || depth === DEPTH ? undefined : serializeError(error.cause, depth + 1),
  };
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
  if (error.errno !== undefined) Object.assign(result, { code: error.errno });
  if (error.stack !== undefined) result.stack = error.stack;
  return result;
}
