/** What the system says about a file that is being written, in terms of what the user can do. */
import { type ErrorCode, errnoOf, ShaleError } from "../errors/index.ts";

const STATES: Readonly<Record<string, readonly [code: ErrorCode, state: string]>> = {
  ENOSPC: ["RESOURCE_EXHAUSTED", "the disk is full"],
  EDQUOT: ["RESOURCE_EXHAUSTED", "the disk quota is used up"],
  EFBIG: ["RESOURCE_EXHAUSTED", "the file would be larger than the file system or the process may have"],
  EACCES: ["PERMISSION_DENIED", "not permitted"],
  EPERM: ["PERMISSION_DENIED", "not permitted"],
  EROFS: ["PERMISSION_DENIED", "the file system is read-only"],
  ENOENT: ["NOT_FOUND", "its directory does not exist"],
  ENOTDIR: ["FAILED_PRECONDITION", "a file stands where a directory is needed"],
  EISDIR: ["FAILED_PRECONDITION", "it is a directory"],
  ELOOP: ["FAILED_PRECONDITION", "a symlink stands in the way"],
};

/** A state of the machine becomes a ShaleError "`act`: state"; any other error is given back as it is. */
export function explainWriteError(error: unknown, act: string, hint?: string): unknown {
  if (ShaleError.is(error)) return error;
  const known = STATES[errnoOf(error) ?? ""];
  if (known === undefined) return error;
  const [code, state] = known;
  return new ShaleError(code, `${act}: ${state}`, { cause: error, ...(hint === undefined ? {} : { hint }) });
}

/** As {@link explainWriteError}, for the merged image of `name`, whose layers are in the store by then. */
export function explainMergeError(error: unknown, name: string): unknown {
  const hint = "The image itself is here: remove others, run shale gc, then mount it";
  return explainWriteError(error, `Cannot merge the layers of ${name}`, hint);
}
