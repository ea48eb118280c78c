/**
 * Makes committed directories durable, after Commit: a sync takes as long as the disk has work, and containerd's database is
 * locked meanwhile. Until it is done, the record says in which boot the snapshot was committed.
 */

import { delay } from "../async/index.ts";
import { ShaleError } from "../errors/index.ts";
import type { SnapshotRegister } from "../store/index.ts";
import { run } from "../sys/index.ts";
import type { SnapshotterEvent } from "./types.ts";

/** Commits come in a row, and a process for each would hold up the calls between them. */
const BATCH_MS = 100;

export class Syncer {
  readonly #root: string;
  readonly #register: SnapshotRegister;
  readonly #report: (event: SnapshotterEvent) => void;
  #wanted = false;
  #running: Promise<void> | undefined;

  constructor(root: string, register: SnapshotRegister, report: (event: SnapshotterEvent) => void) {
    this.#root = root;
    this.#register = register;
    this.#report = report;
  }

  request(): void {
    this.#wanted = true;
    this.#running ??= this.#run().finally(() => {
      this.#running = undefined;
      if (this.#wanted) this.request(); // came between the loop's last look and now
    });
  }

  async settled(): Promise<void> {
    while (this.#running !== undefined) await this.#running;
  }

  async #run(): Promise<void> {
    while (this.#wanted) {
      await delay(BATCH_MS);
      this.#wanted = false;
      const ids = this.#register.unsynced();
      if (ids.length === 0) continue;
      try {
        // In a process of its own: syncfs(2) blocks its thread, for seconds on a busy disk.
        const { code, stderr } = await run("sync", ["--file-system", this.#root]);
        if (code !== 0) throw new ShaleError("UNAVAILABLE", `Cannot sync ${this.#root}: ${stderr.toString().trim()}`);
        this.#register.setSynced(ids);
      } catch (error) {
        this.#report({ kind: "trouble", what: "Committed snapshots may not survive a power cut", error });
      }
    }
  }
}
