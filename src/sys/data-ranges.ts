/** Holes of sparse files. */
import { errnoOf } from "../errors/index.ts";
import { observed } from "./effects.ts";
import { lseek, SEEK_DATA, SEEK_HOLE } from "./libc.ts";

export interface FileRange {
  readonly offset: number;
  readonly length: number;
}

/**
 * The parts of a range that may hold data, in order; what lies between them is holes and reads as zeros. A file system that
 * knows no holes says that all is data. Moves the descriptor's file position, which nothing here uses.
 */
export function* dataRanges(fd: number, offset: number, length: number): Generator<FileRange> {
  const end = offset + length;
  for (let at = offset; at < end; ) {
    const start = seek(fd, at, SEEK_DATA);
    if (start === undefined || start >= end) return;
    const stop = Math.min(end, seek(fd, start, SEEK_HOLE) ?? end);
    yield { offset: start, length: stop - start };
    at = stop;
  }
}

/** Undefined when there is none up to the end of the file. */
function seek(fd: number, offset: number, whence: number): number | undefined {
  try {
    return observed("read", fd, () => lseek(fd, offset, whence));
  } catch (error) {
    if (errnoOf(error) === "ENXIO") return undefined;
    throw error;
  }
}
