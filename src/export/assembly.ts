/**
 * A file that is put together from runs of other files, for those who hash it meanwhile: every byte is read once, where it comes
 * from, and written to its place from the same buffer. Copying first and hashing the copy would move each byte twice, and on file
 * systems with reflinks would read from the disk what the source has in memory.
 */
import { ShaleError } from "../errors/index.ts";
import { DataMap, readAt, startWriteback, writeAt } from "../sys/index.ts";
import { checkRuns } from "./copy-runs.ts";
import type { CopyRun } from "./payload-plan.ts";

/** Plain data and shared memory: the same for all threads of a process. */
export interface Assembly {
  /** Descriptors by device. */
  readonly sources: readonly number[];
  /** {@link RUN_SIZE} numbers a run: device, from, to, length. Ascending and disjoint by `to`, which is a byte of the file. */
  readonly runs: Float64Array;
  /** Whether runs are still to be written; not where the file shares its blocks with the sources already. */
  readonly write: boolean;
}

const RUN_SIZE = 4;

/** `runs` ascend by `to`, which counts from `offset`. DATA_LOSS when a source is too short for them. */
export function assemblyOf(
  runs: readonly CopyRun[],
  sources: readonly number[],
  { offset, write }: { readonly offset: number; readonly write: boolean },
): Assembly {
  checkRuns(runs, sources);
  const numbers = new Float64Array(new SharedArrayBuffer(runs.length * RUN_SIZE * Float64Array.BYTES_PER_ELEMENT));
  for (const [at, { device, from, to, length }] of runs.entries()) {
    numbers.set([device, from, offset + to, length], at * RUN_SIZE);
  }
  return { sources, runs: numbers, write };
}

/** The bytes of a file, of which an {@link Assembly} says what comes from elsewhere; without one all are its own. For one thread. */
export class AssemblyReader {
  readonly #file: number;
  readonly #runs: Float64Array;
  readonly #runCount: number;
  readonly #sources: readonly number[];
  readonly #maps: readonly DataMap[];
  readonly #write: boolean;

  constructor(file: number, assembly: Assembly | undefined) {
    this.#file = file;
    this.#runs = assembly?.runs ?? new Float64Array(0);
    this.#runCount = this.#runs.length / RUN_SIZE;
    this.#sources = assembly?.sources ?? [];
    this.#maps = this.#sources.map((source) => new DataMap(source));
    this.#write = assembly?.write ?? false;
  }

  /**
   * Fills `piece` with what belongs at `offset` of the file, and writes what is not there yet; holes of a source stay holes.
   * Pieces that do not overlap may be read at the same time in several threads. DATA_LOSS when a file ends too early.
   */
  read(piece: Buffer, offset: number): void {
    const end = offset + piece.length;
    let run = this.#firstAfter(offset);
    /** What was read of runs without a hole between, to be written at once: many runs are a few blocks long. */
    let pending = { start: offset, end: offset };
    for (let at = offset; at < end; ) {
      const start = run < this.#runCount ? this.#runs[run * RUN_SIZE + 2]! : end;
      if (at < start) {
        const stop = Math.min(start, end);
        readExactly(this.#file, piece.subarray(at - offset, stop - offset), at);
        at = stop;
        continue;
      }
      const stop = Math.min(end, start + this.#runs[run * RUN_SIZE + 3]!);
      let filled = at;
      for (const data of this.#readRun(run, piece, offset, at, stop)) {
        piece.fill(0, filled - offset, data.start - offset);
        filled = data.end;
        if (data.start !== pending.end) {
          this.#flush(piece, offset, pending);
          pending = { ...data };
        } else pending.end = data.end;
      }
      piece.fill(0, filled - offset, stop - offset);
      at = stop;
      run++;
    }
    this.#flush(piece, offset, pending);
  }

  /** Lets the disk begin with what was written, so that the final sync finds little left. */
  startWriteback(offset: number, length: number): void {
    if (this.#write) startWriteback(this.#file, offset, length);
  }

  /** The first run that ends behind `offset`. */
  #firstAfter(offset: number): number {
    let low = 0;
    let high = this.#runCount;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#runs[middle * RUN_SIZE + 2]! + this.#runs[middle * RUN_SIZE + 3]! > offset) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  /** Reads the data of a run between two bytes of the file into a piece; gives the parts that are no holes. */
  *#readRun(run: number, piece: Buffer, offset: number, at: number, stop: number) {
    const device = this.#runs[run * RUN_SIZE]!;
    const shift = this.#runs[run * RUN_SIZE + 2]! - this.#runs[run * RUN_SIZE + 1]!;
    for (const range of this.#maps[device]!.ranges(at - shift, stop - at)) {
      const start = range.offset + shift;
      const end = start + range.length;
      readExactly(this.#sources[device]!, piece.subarray(start - offset, end - offset), range.offset);
      yield { start, end };
    }
  }

  #flush(piece: Buffer, offset: number, { start, end }: { readonly start: number; readonly end: number }): void {
    if (this.#write && end > start) writeAt(this.#file, piece.subarray(start - offset, end - offset), start);
  }
}

function readExactly(file: number, target: Buffer, offset: number): void {
  if (readAt(file, target, offset) === target.length) return;
  throw new ShaleError("DATA_LOSS", `Cannot read the data: it ends before byte ${offset + target.length}`);
}
