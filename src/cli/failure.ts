/** How an error looks to the person who typed the command, and to a program. Pure. */
import { type ErrorCode, errnoOf, ShaleError } from "../errors/index.ts";
import { singleLine } from "../log/index.ts";

/** Causes deeper than this say nothing that helps. */
const MAX_CAUSES = 4;

/**
 * System errors that say something about the machine or the caller's rights, wherever they come from. Others that reach this far
 * (ENOENT, EBADF, EINVAL, ...) are a mistake of ours: whoever made the call knew what they mean there, and had to say it.
 */
const OF_THE_MACHINE: Readonly<Record<string, ErrorCode>> = {
  EACCES: "PERMISSION_DENIED",
  EPERM: "PERMISSION_DENIED",
  EROFS: "PERMISSION_DENIED",
  EDQUOT: "RESOURCE_EXHAUSTED",
  EMFILE: "RESOURCE_EXHAUSTED",
  ENFILE: "RESOURCE_EXHAUSTED",
  ENOMEM: "RESOURCE_EXHAUSTED",
  ENOSPC: "RESOURCE_EXHAUSTED",
  EIO: "DATA_LOSS",
  ELOOP: "FAILED_PRECONDITION",
  ENAMETOOLONG: "FAILED_PRECONDITION",
};

/** "EACCES: permission denied, open '/x'" as "Cannot open /x: permission denied"; any other error as it is. */
function told(error: unknown): unknown {
  const code = OF_THE_MACHINE[errnoOf(error) ?? ""];
  if (code === undefined || !(error instanceof Error)) return error;
  const { syscall = "use", path = "a file" } = error as Error & { readonly syscall?: string; readonly path?: string };
  const state = /^[A-Z0-9]+: (.*?), /.exec(error.message)?.[1] ?? error.message;
  const shown = new ShaleError(code, `Cannot ${syscall} ${path}: ${state}`);
  shown.stack = error.stack ?? "";
  return shown;
}

/**
 * "shale: Cannot pull x: ...", then the causes that add something, then "hint: ...". An error that is neither a ShaleError nor one
 * of the machine is a mistake of ours and is shown with its stack, so that it can be reported.
 */
export function formatFailure(thrown: unknown, options: { readonly stack: boolean }): string {
  const error = told(thrown);
  const lines = [`shale: ${ShaleError.is(error) ? "" : "internal error: "}${singleLine(messageOf(error))}`];
  for (const cause of causesOf(error)) lines.push(`  because: ${singleLine(cause)}`);
  const hint = hintOf(error);
  if (hint !== undefined) lines.push(`hint: ${singleLine(hint)}`);
  if (error instanceof Error && (options.stack || !ShaleError.is(error))) lines.push(String(error.stack));
  return `${lines.join("\n")}\n`;
}

/** One line: `{"error":{"code":"NOT_FOUND","message":"...","causes":[...],"hint":"..."}}`. */
export function formatFailureJson(thrown: unknown): string {
  const error = told(thrown);
  const causes = causesOf(error);
  const shown = {
    code: ShaleError.is(error) ? error.code : "INTERNAL",
    message: messageOf(error),
    causes: causes.length > 0 ? causes : undefined,
    hint: hintOf(error),
  };
  return `${JSON.stringify({ error: shown })}\n`;
}

function messageOf(error: unknown): string {
  if (ShaleError.is(error)) return error.message;
  return error instanceof Error ? `${error.name}: ${error.message}` : String(error);
}

function hintOf(error: unknown): string | undefined {
  if (ShaleError.is(error)) return error.hint ?? deepestHint(error);
  return "this is a mistake in shale; please report it with the lines below";
}

function deepestHint(error: ShaleError): string | undefined {
  return ShaleError.is(error.cause) ? hintOf(error.cause) : undefined;
}

/** Messages of the cause chain, without those that the error above already quotes. */
function causesOf(error: unknown): readonly string[] {
  const shown: string[] = [];
  let above = messageOf(error);
  let cause = error instanceof Error ? error.cause : undefined;
  for (let depth = 0; depth < MAX_CAUSES && cause !== undefined; depth++) {
    const text = cause instanceof Error ? cause.message : String(cause);
    if (text !== "" && !above.includes(text)) shown.push(text);
    above += `\n${text}`;
    cause = cause instanceof Error ? cause.cause : undefined;
  }
  return shown;
}
