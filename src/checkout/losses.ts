/** What a file should have and could not get: counted in full, listed up to a limit of each kind. */
import type { ByteString } from "../bytes/index.ts";
import type { Loss, LossKind, Tally } from "./protocol.ts";

/** Losses of one kind that are named; the others are counted. */
export const LOSSES_LISTED = 1000;

export function newTally(): Tally {
  return {
    ...{ directories: 0, files: 0, symlinks: 0, others: 0, bytes: 0 },
    ...{
      linked: 0,
      linkedBytes: 0,
      reflinked: 0,
      reflinkedBytes: 0,
      copied: 0,
      copiedBytes: 0,
      published: 0,
      replaced: 0,
    },
    losses: { owner: 0, "set-id bit": 0, xattr: 0, device: 0, symlink: 0 },
  };
}

export class Losses {
  readonly listed: Loss[] = [];
  readonly #counts: Record<LossKind, number>;

  constructor(counts: Record<LossKind, number>) {
    this.#counts = counts;
  }

  add(kind: LossKind, path: ByteString, detail: string): void {
    if (this.#counts[kind]++ < LOSSES_LISTED) this.listed.push({ kind, path, detail });
  }
}
