/** Copying payloads into an export: shared with the store where the file system can, otherwise within the kernel. */
import { setImmediate } from "node:timers/promises";
import { throwIfAborted } from "../async/index.ts";
import { ShaleError } from "../errors/index.ts";
import { copyRange, DataMap, startWriteback, statFile } from "../sys/index.ts";
import type { CopyRun } from "./payload-plan.ts";

/** Copied at a time, so that an abort and the progress bar do not wait for a file of many GiB. */
const PIECE_SIZE = 64 * 1024 * 1024;
/** Between two looks at the clock of the event loop. */
const RUNS_PER_TURN = 256;
const PROBE_SIZE = 4096;
/** So much is copied before the disk is set to work: the final sync then has little left to wait for. */
const WRITEBACK_SIZE = 32 * 1024 * 1024;

export interface CopyTarget {
  readonly file: number;
  /** Where the payload area begins, a multiple of 4096. */
  readonly offset: number;
}

/** Whether the first run can be shared; tried with its first block, which is then in its place. */
export function canReflink(runs: readonly CopyRun[], sources: readonly number[], target: CopyTarget): boolean {
  const first = runs[0];
  if (first === undefined) return true;
  const length = Math.min(PROBE_SIZE, first.length);
  return copyRange(sources[first.device]!, first.from, target.file, target.offset + first.to, length) === "reflink";
}

/** DATA_LOSS when a source ends before a run does: its missing end would pass for a hole. */
export function checkRuns(runs: readonly CopyRun[], sources: readonly number[]): void {
  const sizes = sources.map((source) => statFile(source).size);
  for (const { device, from, length } of runs) {
    if (from + length <= sizes[device]!) continue;
    throw new ShaleError(
      "DATA_LOSS",
      `Cannot export: file ${device} of the store has ${sizes[device]} bytes, and ${from + length} are needed`,
      { hint: "Run shale check --repair" },
    );
  }
}

/** Copies all runs. `sources` are descriptors by device. Holes stay holes; `onCopied` counts them as copied. */
export async function copyRuns(
  runs: readonly CopyRun[],
  sources: readonly number[],
  target: CopyTarget,
  options: {
    readonly reflink: boolean;
    readonly signal?: AbortSignal | undefined;
    readonly onCopied?: ((bytes: number) => void) | undefined;
  },
): Promise<void> {
  const { reflink, signal, onCopied } = options;
  checkRuns(runs, sources);
  const maps = sources.map((source) => new DataMap(source));
  let turn = 0;
  let sinceWriteback = 0;
  for (const run of runs) {
    const source = sources[run.device]!;
    for (let done = 0; done < run.length; done += PIECE_SIZE) {
      const length = Math.min(PIECE_SIZE, run.length - done);
      const from = run.from + done;
      const to = target.offset + run.to + done;
      const parts = reflink ? [{ offset: from, length }] : maps[run.device]!.ranges(from, length);
      for (const part of parts) {
        copyRange(source, part.offset, target.file, to + (part.offset - from), part.length, { reflink });
      }
      onCopied?.(length);
      sinceWriteback += length;
      if (!reflink && sinceWriteback >= WRITEBACK_SIZE) {
        startWriteback(target.file, to + length - sinceWriteback, sinceWriteback);
        sinceWriteback = 0;
      }
      if (!reflink && length === PIECE_SIZE) turn = RUNS_PER_TURN;
      if (++turn >= RUNS_PER_TURN) {
        turn = 0;
        await setImmediate();
        throwIfAborted(signal);
      }
    }
  }
}
