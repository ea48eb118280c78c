/** What committed directories take on disk: measured once, soon after Commit, and kept. */
import { join } from "node:path";
import type { SnapshotRegister } from "../store/index.ts";
import { UPPER } from "./mount-lists.ts";
import type { SnapshotUsage } from "./types.ts";
import { walkInTurns } from "./usage.ts";

export class CommittedUsage {
  readonly #register: SnapshotRegister;
  readonly #measuring = new Map<number, Promise<SnapshotUsage>>();

  constructor(register: SnapshotRegister) {
    this.#register = register;
  }

  measure(id: number): Promise<SnapshotUsage> {
    let measuring = this.#measuring.get(id);
    if (measuring === undefined) {
      measuring = this.#measure(id).finally(() => this.#measuring.delete(id));
      this.#measuring.set(id, measuring);
    }
    return measuring;
  }

  async #measure(id: number): Promise<SnapshotUsage> {
    const { usage: written } = await walkInTurns(join(this.#register.directoryOf(id), UPPER));
    const now = this.#register.findById(id);
    if (now?.usage !== undefined) return now.usage; // a layer was made of it meanwhile
    if (now === undefined) return written;
    const layer = now.diffId === undefined ? { size: 0, inodes: 0 } : this.#register.layerUsage(now.diffId);
    const usage = { size: written.size + layer.size, inodes: written.inodes + layer.inodes };
    this.#register.setUsage(id, usage);
    return usage;
  }

  async settled(): Promise<void> {
    while (this.#measuring.size > 0) await Promise.allSettled(this.#measuring.values());
  }
}
