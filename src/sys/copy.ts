/** Copying a range between files by the cheapest means that both file systems have. */
import { errnoOf, ShaleError } from "../errors/index.ts";
import type { FileRange } from "./data-ranges.ts";
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
  const clone = () => cloneRange(source, sourceOffset, target, targetOffset, length);
  const cloned = () => tried(() => effect("copy", target, clone, { offset: targetOffset, length }));
  if (options.reflink !== false && cloned()) return "reflink";
  const done = copyInKernel(source, sourceOffset, target, targetOffset, length);
  if (done === length) return "copy_file_range";
  readAndWrite(source, sourceOffset + done, target, targetOffset + done, length - done);
  return "read-write";
}

/** Bytes by the way they came. */
export interface MovedBytes {
  readonly cloned: number;
  /** Inside the kernel, by copy_file_range(2). */
  readonly copied: number;
  /** Through this process. */
  readonly written: number;
}

export interface MoveOptions {
  /** What cloning is done in multiples of: the file system's block, or the larger unit that it asks for. */
  readonly blockSize: number;
  /** The parts of the source that may hold data: holes are left out. All of it unless given. */
  readonly data?: (offset: number, length: number) => Iterable<FileRange>;
}

/**
 * Brings `length` bytes into a part of `target` that holds nothing yet, by the cheapest means: whole blocks are cloned where
 * both offsets are multiples of the block; what can't be is copied, data only, holes stay holes. The partial block at the
 * end is written, never cloned: what is written behind it would make the file system copy the shared block (XFS sets aside
 * space for that, five times as much as is needed). The target may end earlier than the range when that ends in a hole.
 * DATA_LOSS when the source ends before.
 */
export function moveRange(
  source: number,
  sourceOffset: number,
  target: number,
  targetOffset: number,
  length: number,
  options: MoveOptions,
): MovedBytes {
  const { blockSize, data } = options;
  const aligned = sourceOffset % blockSize === 0 && targetOffset % blockSize === 0;
  const whole = aligned ? length - (length % blockSize) : 0;
  const counts = { cloned: 0, copied: 0, written: 0 };
  if (whole > 0) {
    const clone = () => cloneRange(source, sourceOffset, target, targetOffset, whole);
    if (tried(() => effect("copy", target, clone, { offset: targetOffset, length: whole }))) counts.cloned = whole;
  }
  const shift = targetOffset - sourceOffset;
  if (counts.cloned > 0) {
    counts.written = length - counts.cloned;
    readAndWrite(source, sourceOffset + whole, target, targetOffset + whole, counts.written);
    return counts;
  }
  for (const { offset, length: part } of data?.(sourceOffset, length) ?? [{ offset: sourceOffset, length }]) {
    const copied = copyInKernel(source, offset, target, offset + shift, part);
    readAndWrite(source, offset + copied, target, offset + copied + shift, part - copied);
    counts.copied += copied;
    counts.written += part - copied;
  }
  return counts;
}

/** As much of the range as copy_file_range does; 0 where it does nothing. */
function copyInKernel(source: number, from: number, target: number, to: number, length: number): number {
  let done = 0;
  while (done < length) {
    const step = tried(() =>
      effect("copy", target, () => copyFileRange(source, from + done, target, to + done, length - done), {
        offset: to + done,
        length: length - done,
      }),
    );
    if (step === undefined) break;
    if (step.value === 0) throw tooShort(source, from + done);
    done += step.value;
  }
  return done;
}

const small = Buffer.allocUnsafe(4096);

function readAndWrite(source: number, from: number, target: number, to: number, length: number): void {
  if (length === 0) return;
  // The partial block at the end of a cloned file is the common case, ten thousand times.
  const buffer = length <= small.length ? small : Buffer.allocUnsafeSlow(Math.min(BUFFER, length));
  for (let done = 0; done < length; ) {
    const part = buffer.subarray(0, Math.min(buffer.length, length - done));
    if (readAt(source, part, from + done) !== part.length) throw tooShort(source, from + done);
    writeAt(target, part, to + done);
    done += part.length;
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

/** Shares blocks, or fails: ENOTSUP, EXDEV or EINVAL where that is not possible. Offsets and length as for {@link copyRange}. */
export function shareRange(
  source: number,
  sourceOffset: number,
  target: number,
  targetOffset: number,
  length: number,
): void {
  effect("copy", target, () => cloneRange(source, sourceOffset, target, targetOffset, length), {
    offset: targetOffset,
    length,
  });
}
