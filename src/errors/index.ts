/**
 * The two error classes of shale.
 *
 * Guarantees: every failure that a caller can act on is a {@link ShaleError} with a `code` from the closed list below.
 * Callers branch on `code`, never on the text. Messages read "act, thing, state" without a full stop; `hint` says what
 * to do next. `TypeError` and `RangeError` mean a mistake of ours and are not caught.
 */

/** Closed list; the meanings are those of gRPC status codes, so that the daemon can answer them unchanged. */
export type ErrorCode =
  | "ABORTED" // lost a race that can be tried again
  | "ALREADY_EXISTS"
  | "CANCELLED" // the caller's signal
  | "DATA_LOSS" // stored bytes are not what was stored, or input is not what its digest says
  | "FAILED_PRECONDITION" // not in this state, on this kernel, without this right
  | "INTERNAL"
  | "INVALID_ARGUMENT" // what the user or a peer sent can't be meant
  | "NOT_FOUND"
  | "PERMISSION_DENIED"
  | "RESOURCE_EXHAUSTED" // a limit of docs/limits.md, the disk, or memory
  | "UNAUTHENTICATED"
  | "UNAVAILABLE" // a peer does not answer; trying again may help
  | "UNIMPLEMENTED";

export interface ShaleErrorOptions {
  readonly cause?: unknown;
  /** What the reader can do next, as a sentence without a full stop. */
  readonly hint?: string;
}

export class ShaleError extends Error {
  readonly code: ErrorCode;
  readonly hint: string | undefined;

  constructor(code: ErrorCode, message: string, options: ShaleErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = "ShaleError";
    this.code = code;
    this.hint = options.hint;
  }

  static is(error: unknown, code?: ErrorCode): error is ShaleError {
    return error instanceof ShaleError && (code === undefined || error.code === code);
  }
}

/**
 * Input bytes that break their format. `code` is INVALID_ARGUMENT for input, or RESOURCE_EXHAUSTED where a length in
 * the input is over a limit. `offset` counts bytes from the start of that input.
 */
export class FormatError extends ShaleError {
  readonly format: string;
  readonly field: string;
  readonly offset: number | undefined;

  constructor(
    format: string,
    field: string,
    problem: string,
    options: ShaleErrorOptions & { readonly offset?: number; readonly code?: ErrorCode } = {},
  ) {
    const place = options.offset === undefined ? "" : ` at byte ${options.offset}`;
    super(options.code ?? "INVALID_ARGUMENT", `Cannot read ${format}: ${field}${place}: ${problem}`, options);
    this.name = "FormatError";
    this.format = format;
    this.field = field;
    this.offset = options.offset;
  }
}

/** The `code` property of a Node system error ("ENOENT"), or undefined for anything else. */
export function errnoOf(error: unknown): string | undefined {
  if (!(error instanceof Error) || !("code" in error) || typeof error.code !== "string") return undefined;
  return /^E[A-Z0-9]+$/.test(error.code) ? error.code : undefined;
}

/**
 * A value out of somebody else's document, for a message: at most about `limit` characters, nothing that a terminal would
 * act on; "missing" where there is none, and of a list or an object no more than that. String() and JSON.stringify() are
 * not fit for it: the one throws for `{"toString": []}`, both for lists that nest a hundred thousand times.
 */
export function shownValue(value: unknown, limit = 40): string {
  if (value === undefined) return "missing";
  if (typeof value === "object") return value === null ? "null" : Array.isArray(value) ? "a list" : "an object";
  if (typeof value !== "string") return String(value);
  const text = JSON.stringify(value.slice(0, limit)).replace(/[^\x20-\x7e]+/g, "?");
  return value.length > limit ? `${text}...` : text;
}
