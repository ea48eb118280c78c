/** Copying a range between files by the cheapest means that both file systems have. */
import { errnoOf, ShaleError } from "../errors/index.ts";
import { effect } from "./effects.ts";
import { readAt, writeAt } from "./files.ts";
import { cloneRange, copyFileRange } from "./libc.ts";

/** How the bytes came over: "reflink" shares the blocks, the others take space. */
export type CopyMethod = "reflink" | "copy_file_range" | "read-write";

/** Not possible here, but the next means may be: other file system, no such feature, unaligned, seccomp. */
const TRY_NEXT = new Set(["ENOTSUP", "EOPNOTSUPP", "EXDEV", "EINVAL", "ENOTTY", "ENOSYS", "EPERM"]);
const BUFFER = 1 << 20;

/**
 * Copies `length` bytes; DATA_LOSS when the source ends before. A reflink needs offsets and length in multiples of the
 * block size (4096), or a length that ends at the end of the source; with `reflink: false` none is tried. Blocks already there
 * are replaced.
 */
export function copyRange(
  source: number,
  sourceOffset: number,
  target: number,
  targetOffset: number,
  length: number,
  options: { readonly reflink?: boolean } = {},
): CopyMethod {
  if (length === 0) return "reflink"; // to FICLONERANGE, 0 means "to the end"
  let done = 0;
  if (
    options.reflink !== false &&
    tried(() => effectOnTarget(() => cloneRange(source, sourceOffset, target, targetOffset, length)))
  )
    return "reflink";
  while (done < length) {
    const copied = tried(() =>
      effectOnTarget(() => copyFileRange(source, sourceOffset + done, target, targetOffset + done, length - done)),
    );
    if (copied === undefined) break;
    if (copied.value === 0) throw tooShort(source, sourceOffset + done);
    done += copied.value;
  }
  if (done === length) return "copy_file_range";
  const buffer = Buffer.allocUnsafeSlow(Math.min(BUFFER, length - done));
  while (done < length) {
    const part = buffer.subarray(0, Math.min(buffer.length, length - done));
    if (readAt(source, part, sourceOffset + done) !== part.length) throw tooShort(source, sourceOffset + done);
    writeAt(target, part, targetOffset + done);
    done += part.length;
  }
  return "read-write";

  function effectOnTarget<T>(run: () => T): T {
    return effect("copy", target, run, { offset: targetOffset + done, length: length - done });
  }
}

function tried<T>(run: () => T): { readonly value: T } | undefined {
  try {
    return { value: run() };
  } catch (error) {
    if (TRY_NEXT.has(errnoOf(error) ?? "")) return undefined;
    throw error;
  }
}

function tooShort(fd: number, offset: number): ShaleError {
  return new ShaleError("DATA_LOSS", `Cannot copy from file descriptor ${fd}: it ends before byte ${offset}`);
}
