/** Telling damage of stored bytes from everything else that can go wrong. */
import { errnoOf, ShaleError } from "../errors/index.ts";

/** Something is wrong with stored bytes; anything else is an error of ours or of the machine. */
export function isDamage(error: unknown): boolean {
  return (
    (ShaleError.is(error) &&
      ["DATA_LOSS", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED"].includes(error.code)) ||
    ["ENOENT", "EIO", "EISDIR", "ENOTDIR", "ELOOP"].includes(errnoOf(error) ?? "")
  );
}

/** What is wrong, in words; rethrows what is not damage. */
export function problemOf(error: unknown): string {
  if (!isDamage(error)) throw error;
  return errnoOf(error) === "ENOENT" ? "the file is gone" : (error as Error).message;
}

/** The result, or undefined where stored bytes are damaged: for work that must go on without them (G10). */
export function unlessDamaged<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if (!isDamage(error)) throw error;
    return undefined;
  }
}
