/** A bound that holds whoever asks: so much at a time, in the order of asking. */
import { cancelled } from "./index.ts";

interface Waiting {
  readonly weight: number;
  readonly grant: () => void;
}

export class Slots {
  readonly #capacity: number;
  readonly #queue: Waiting[] = [];
  #taken = 0;

  constructor(capacity: number) {
    if (!(capacity >= 1)) throw new RangeError(`capacity must be at least 1: current value is ${capacity}`);
    this.#capacity = capacity;
  }

  get taken(): number {
    return this.#taken;
  }

  /**
   * Resolves when `weight` fits beside what is taken; disposing gives it back. A weight over the capacity counts as the whole
   * of it: such a one goes alone. CANCELLED by the signal while it waits.
   */
  async take(weight: number, signal: AbortSignal): Promise<Disposable> {
    if (signal.aborted) throw cancelled(signal);
    const counted = Math.min(weight, this.#capacity);
    if (this.#queue.length > 0 || this.#taken + counted > this.#capacity) await this.#wait(counted, signal);
    else this.#taken += counted;
    let held = true;
    return {
      [Symbol.dispose]: () => {
        if (!held) return;
        held = false;
        this.#taken -= counted;
        this.#admit();
      },
    };
  }

  #wait(weight: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const stop = () => {
        const at = this.#queue.indexOf(waiting);
        if (at >= 0) this.#queue.splice(at, 1);
        reject(cancelled(signal));
        this.#admit(); // who stood behind may fit
      };
      const waiting: Waiting = {
        weight,
        grant: () => {
          signal.removeEventListener("abort", stop);
          resolve();
        },
      };
      this.#queue.push(waiting);
      signal.addEventListener("abort", stop, { once: true });
    });
  }

  #admit(): void {
    for (;;) {
      const next = this.#queue[0];
      if (next === undefined || this.#taken + next.weight > this.#capacity) return;
      this.#queue.shift();
      this.#taken += next.weight;
      next.grant();
    }
  }
}
