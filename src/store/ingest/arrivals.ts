/**
 * Tells a worker thread which parts of a download have come, in whatever order: one flag a part, shared memory. The worker
 * waits for the part that it needs next; the main thread marks parts while they are written.
 */
import { ShaleError } from "../../errors/index.ts";

const HEADER_SIZE = 8;
/** Slots of the header, Int32: a counter that changes with every mark, and the state. */
const CHANGES = 0;
const STATE = 1;
const FAILED = 1;
/** A waiting worker looks so often whether it is to stop. */
const POLL_MS = 250;

/** The main thread's end. */
export class Arrivals {
  readonly shared: SharedArrayBuffer;
  readonly #header: Int32Array;
  readonly #flags: Uint8Array;

  constructor(parts: number) {
    this.shared = new SharedArrayBuffer(HEADER_SIZE + parts);
    this.#header = new Int32Array(this.shared, 0, 2);
    this.#flags = new Uint8Array(this.shared, HEADER_SIZE);
  }

  /** The bytes of this part are in the file. */
  mark(part: number): void {
    Atomics.store(this.#flags, part, 1);
    this.#wake();
  }

  isMarked(part: number): boolean {
    return Atomics.load(this.#flags, part) === 1;
  }

  /** No more will come: a worker that waits stops with ABORTED, and whoever waits for both reports the real error. */
  fail(): void {
    Atomics.store(this.#header, STATE, FAILED);
    this.#wake();
  }

  #wake(): void {
    Atomics.add(this.#header, CHANGES, 1);
    Atomics.notify(this.#header, CHANGES);
  }
}

/** Whether part `part` is there, without waiting. */
export function hasArrived(shared: SharedArrayBuffer, part: number): boolean {
  return Atomics.load(new Uint8Array(shared, HEADER_SIZE), part) === 1;
}

/** The worker's end: returns when part `part` is there. `check` throws when the worker is to stop. Blocks the thread. */
export function awaitArrival(shared: SharedArrayBuffer, part: number, check: () => void): void {
  const header = new Int32Array(shared, 0, 2);
  const flags = new Uint8Array(shared, HEADER_SIZE);
  for (;;) {
    const changes = Atomics.load(header, CHANGES);
    if (Atomics.load(flags, part) === 1) return;
    if (Atomics.load(header, STATE) === FAILED) throw new ShaleError("ABORTED", "Stopped because the download failed");
    check();
    Atomics.wait(header, CHANGES, changes, POLL_MS);
  }
}
