/** How an error looks to the person who typed the command, and to a program. Pure. */
import { ShaleError } from "../errors/index.ts";
import { singleLine } from "../log/index.ts";

/** Causes deeper than this say nothing that helps. */
const MAX_CAUSES = 4;

/**
 * "shale: Cannot pull x: ...", then the causes that add something, then "hint: ...". An error that is no ShaleError is
 * a mistake of ours and is shown with its stack, so that it can be reported.
 */
export function formatFailure(error: unknown, options: { readonly stack: boolean }): string {
  const lines = [`shale: ${ShaleError.is(error) ? "" : "internal error: "}${singleLine(messageOf(error))}`];
  for (const cause of causesOf(error)) lines.push(`  because: ${singleLine(cause)}`);
  const hint = hintOf(error);
  if (hint !== undefined) lines.push(`hint: ${singleLine(hint)}`);
  if (error instanceof Error && (options.stack || !ShaleError.is(error))) lines.push(String(error.stack));
  return `${lines.join("\n")}\n`;
}

/** One line: `{"error":{"code":"NOT_FOUND","message":"...","causes":[...],"hint":"..."}}`. */
export function formatFailureJson(error: unknown): string {
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
