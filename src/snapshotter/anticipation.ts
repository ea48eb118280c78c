/**
 * Merges the layers of an image as soon as the last of them is there, not when its first container is waiting. Which one is the
 * last, labels say at best. Otherwise nobody does: the next layer's Prepare comes right behind a Commit, so after a moment of quiet
 * it was.
 */
import { delay } from "../async/index.ts";
import { ShaleError } from "../errors/index.ts";
import type { SnapshotRegister } from "../store/index.ts";
import { planBases } from "./bases.ts";
import type { HostMounts } from "./host-mounts.ts";
import type { SnapshotterEvent } from "./types.ts";

const QUIET_MS = 100;

export class Anticipation {
  readonly #register: SnapshotRegister;
  readonly #mounts: HostMounts;
  readonly #report: (event: SnapshotterEvent) => void;
  readonly #stop = new AbortController();
  readonly #running = new Set<Promise<void>>();
  /** Snapshots that a call under way builds upon. */
  readonly #parents = new Map<number, number>();

  constructor(register: SnapshotRegister, mounts: HostMounts, report: (event: SnapshotterEvent) => void) {
    this.#register = register;
    this.#mounts = mounts;
    this.#report = report;
  }

  /** While the result lives, something is being put on top of the snapshot. */
  build(parent: number | undefined): Disposable {
    if (parent === undefined) return { [Symbol.dispose]: () => {} };
    this.#parents.set(parent, (this.#parents.get(parent) ?? 0) + 1);
    return {
      [Symbol.dispose]: () => {
        const count = this.#parents.get(parent)! - 1;
        if (count === 0) this.#parents.delete(parent);
        else this.#parents.set(parent, count);
      },
    };
  }

  /** A layer was committed: a container may come. At once, if it is the uppermost; undefined: nobody said. */
  expect(id: number, uppermost: boolean | undefined): void {
    if (this.#stop.signal.aborted) return;
    const running: Promise<void> = this.#merge(id, uppermost === true ? 0 : QUIET_MS)
      .catch((error: unknown) => {
        if (ShaleError.is(error, "CANCELLED") || this.#register.findById(id) === undefined) return; // removed meanwhile
        this.#report({
          kind: "trouble",
          what: `Cannot merge the layers of snapshot ${id} before they are needed`,
          error,
        });
      })
      .finally(() => this.#running.delete(running));
    this.#running.add(running);
  }

  async #merge(id: number, quietMs: number): Promise<void> {
    await delay(quietMs, { signal: this.#stop.signal });
    if (this.#parents.has(id) || this.#register.hasChildren(id)) return;
    const chain = this.#register.chainOf(id);
    const bases = planBases(chain, "merged");
    if (!bases.some((base) => base.kind === "chain" && base.diffIds.length > 1)) return;
    using _ = await this.#mounts.use(bases, undefined);
  }

  async settled(): Promise<void> {
    while (this.#running.size > 0) await Promise.all(this.#running);
  }

  async close(): Promise<void> {
    this.#stop.abort(new ShaleError("CANCELLED", "Stopped on request"));
    await this.settled();
  }
}
