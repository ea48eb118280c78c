import type { ErrorCode } from "../errors/index.ts";
import { ShaleError } from "../errors/index.ts";

export interface FailureOptions {
  /** Asking the same host again may help. */
  readonly again?: boolean;
  /** What the server asked for by Retry-After. */
  readonly waitMs?: number;
  readonly hint?: string;
  readonly cause?: unknown;
  /** No byte of an answer came: the host is not reachable this way (wrong scheme, port, certificate). */
  readonly connecting?: boolean;
  /** HTTP status of the answer that was not wanted. */
  readonly status?: number;
}

/**
 * One request to one host went wrong. Stays inside this module: `client.ts` retries it, goes on to the next host, and in
 * the end makes a ShaleError of it that says what was wanted. `reason` never holds a secret, nor control characters.
 */
export class Failure extends Error {
  readonly code: ErrorCode;
  readonly host: string;
  readonly reason: string;
  readonly again: boolean;
  readonly connecting: boolean;
  readonly waitMs: number | undefined;
  readonly hint: string | undefined;
  readonly status: number | undefined;

  constructor(code: ErrorCode, host: string, reason: string, options: FailureOptions = {}) {
    super(`${host}: ${reason}`, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = "Failure";
    this.code = code;
    this.host = host;
    this.reason = reason;
    this.again = options.again ?? false;
    this.connecting = options.connecting ?? false;
    this.waitMs = options.waitMs;
    this.hint = options.hint;
    this.status = options.status;
  }
}

/**
 * The error for the caller. The last failure decides (hosts are asked mirrors first, the registry itself last); those
 * before it are named behind it.
 */
export function explain(act: string, failures: readonly (Failure | ShaleError)[]): ShaleError {
  const last = failures.at(-1);
  if (last === undefined) throw new RangeError("nothing failed");
  const before = failures.slice(0, -1).map((one) => one.message);
  const others = before.length === 0 ? "" : `; before that, ${[...new Set(before)].join("; ")}`;
  const text = last.message.startsWith("Cannot ") ? last.message : `Cannot ${act}: ${last.message}`;
  return new ShaleError(last.code, text + others, {
    cause: last,
    ...(last.hint === undefined ? {} : { hint: last.hint }),
  });
}

/** A peer's text for a message: one line, short, nothing that a terminal would act on. */
export function printable(text: string, limit = 200): string {
  const line = text.replace(/[^\x20-\x7e]+/g, " ").trim();
  return line.length > limit ? `${line.slice(0, limit)}...` : line;
}
