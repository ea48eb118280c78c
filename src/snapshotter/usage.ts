/**
 * What active snapshots take on disk. containerd's CRI plugin asks for each of them every 10 seconds, so the time that is
 * spent on walking is bounded, not the number of walks: see docs/adr/0012.
 */
import { setImmediate } from "node:timers/promises";
import { throwIfAborted } from "../async/index.ts";
import { diskUsageSteps } from "../sys/index.ts";
import type { SnapshotUsage } from "./types.ts";

/** Of one thread's time, at most: measuring all that is asked for takes this part of the age that numbers may have. */
const SHARE = 0.1;
/** What has not been asked for so long does not count. */
const FORGET_MS = 120_000;
/** One turn of the event loop. */
const SLICE_MS = 4;
/** Waiting for a number that takes longer to find is worse than the number before. */
const PATIENCE_MS = 50;

interface Measured {
  readonly usage: SnapshotUsage;
  /** Milliseconds on the monotonic clock. */
  readonly at: number;
  readonly costMs: number;
  askedAt: number;
}

export class UsageMeter {
  readonly #now: () => number;
  readonly #measured = new Map<number, Measured>();
  readonly #running = new Map<number, Promise<SnapshotUsage>>();
  /** Sum of the costs in `#measured`. */
  #costMs = 0;

  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /** Of the directory that the active snapshot `id` writes to. */
  async measure(id: number, directory: string, signal?: AbortSignal): Promise<SnapshotUsage> {
    throwIfAborted(signal);
    const last = this.#measured.get(id);
    if (last === undefined) return await this.#start(id, directory);
    const now = this.#now();
    last.askedAt = now;
    if (now - last.at < this.#allowedAge(now)) return last.usage;
    const running = this.#start(id, directory);
    if (last.costMs <= PATIENCE_MS) return await running;
    running.catch(() => {}); // whoever asks next sees it
    return last.usage;
  }

  forget(id: number): void {
    const last = this.#measured.get(id);
    if (last === undefined) return;
    this.#costMs -= last.costMs;
    this.#measured.delete(id);
  }

  #allowedAge(now: number): number {
    const age = this.#costMs / SHARE;
    if (age < FORGET_MS) return age;
    for (const [id, { askedAt }] of this.#measured) if (now - askedAt > FORGET_MS) this.forget(id);
    return this.#costMs / SHARE;
  }

  #start(id: number, directory: string): Promise<SnapshotUsage> {
    let running = this.#running.get(id);
    if (running === undefined) {
      running = this.#walk(id, directory).finally(() => this.#running.delete(id));
      this.#running.set(id, running);
    }
    return running;
  }

  async #walk(id: number, directory: string): Promise<SnapshotUsage> {
    const { usage, costMs } = await walkInTurns(directory, this.#now);
    this.forget(id);
    const at = this.#now();
    this.#measured.set(id, { usage, at, costMs, askedAt: at });
    this.#costMs += costMs;
    return usage;
  }
}

/** Walks a directory without holding up the event loop; `costMs` is without the time of others. */
export async function walkInTurns(
  directory: string,
  now: () => number = () => performance.now(),
): Promise<{ readonly usage: SnapshotUsage; readonly costMs: number }> {
  const steps = diskUsageSteps(directory);
  let costMs = 0;
  for (;;) {
    const began = now();
    for (;;) {
      const step = steps.next();
      const took = now() - began;
      if (step.done === true) return { usage: step.value, costMs: costMs + took };
      if (took < SLICE_MS) continue;
      costMs += took;
      break;
    }
    await setImmediate();
  }
}
