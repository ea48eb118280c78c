/** Removing for good: directories that no snapshot needs, and mounts that none stands on. */
import { setImmediate } from "node:timers/promises";
import { throwIfAborted } from "../async/index.ts";
import { ShaleError } from "../errors/index.ts";
import type { SnapshotRegister } from "../store/index.ts";
import { removalSteps } from "../sys/index.ts";
import type { HostMounts } from "./host-mounts.ts";
import type { SnapshotterEvent } from "./types.ts";
import { walkInTurns } from "./usage.ts";

/** Removed files between two turns of the event loop. */
const REMOVALS_A_TURN = 200;

export class Cleaner {
  readonly #register: SnapshotRegister;
  readonly #mounts: HostMounts;
  readonly #report: (event: SnapshotterEvent) => void;
  readonly #stop = new AbortController();
  #running: Promise<void> | undefined;

  constructor(register: SnapshotRegister, mounts: HostMounts, report: (event: SnapshotterEvent) => void) {
    this.#register = register;
    this.#mounts = mounts;
    this.#report = report;
  }

  /** One after the other: the second finds what came after the first. */
  async run(signal: AbortSignal | undefined): Promise<void> {
    while (this.#running !== undefined) await this.#settle();
    const either = signal === undefined ? this.#stop.signal : AbortSignal.any([signal, this.#stop.signal]);
    this.#running = this.#clean(either).finally(() => {
      this.#running = undefined;
    });
    await this.#running;
  }

  /** What was not done is found by the next process. */
  async close(): Promise<void> {
    this.#stop.abort(new ShaleError("UNAVAILABLE", "snapshotter is closed: unavailable"));
    await this.#settle();
  }

  async #settle(): Promise<void> {
    await this.#running?.catch(() => {}); // its own caller was told
  }

  async #clean(signal: AbortSignal): Promise<void> {
    const began = performance.now();
    let directories = 0;
    let bytes = 0;
    for (const id of this.#register.abandoned()) {
      throwIfAborted(signal);
      const path = this.#register.directoryOf(id);
      try {
        const { usage } = await walkInTurns(path);
        if (await deleteInTurns(path, signal)) directories++;
        this.#register.deleted(id);
        bytes += usage.size;
      } catch (error) {
        throwIfAborted(signal);
        // The others must not wait for it; the next cleanup tries again.
        this.#report({ kind: "trouble", what: `Cannot delete the directory of snapshot ${id}`, error });
      }
    }
    this.#mounts.releaseIdle();
    if (directories > 0) {
      this.#report({ kind: "removed", directories, bytes, durationMs: performance.now() - began });
    }
  }
}

async function deleteInTurns(path: string, signal: AbortSignal): Promise<boolean> {
  const steps = removalSteps(path);
  for (let count = 1; ; count++) {
    const step = steps.next();
    if (step.done === true) return step.value;
    if (count % REMOVALS_A_TURN !== 0) continue;
    await setImmediate();
    throwIfAborted(signal);
  }
}
