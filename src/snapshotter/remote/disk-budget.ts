/**
 * A high mark for the disk. Below it nothing is refused, whatever it asks for; above it garbage is collected, and what
 * begins while that has not brought the use below the mark is refused. What is under way goes on: a layer that does not fit
 * ends with RESOURCE_EXHAUSTED by itself, and the store is sound.
 */
import { throwIfAborted } from "../../async/index.ts";
import { errnoOf, ShaleError } from "../../errors/index.ts";
import { fileSystemStatus } from "../../sys/index.ts";

export interface DiskBudgetOptions {
  /** The store's directory. */
  readonly root: string;
  /** Share of the file system in use from which nothing new is begun, whoever uses it; 0.95 unless given. */
  readonly highMark?: number;
  /** Bytes that the store itself may take, if that is bounded too, and how many it takes. */
  readonly store?: { readonly limit: number; readonly used: () => number };
  /** Frees what nothing needs. */
  readonly collect: () => Promise<void>;
  /** In place of the file system's own share, for tests. */
  readonly usedShare?: () => number;
}

/** The high mark is reached, and collecting garbage did not help. */
class AboveHighMark extends ShaleError {}

const DEFAULT_HIGH_MARK = 0.95;
/** A collection that has just ended is not repeated for the next layer of the same image. */
const COLLECT_AGAIN_MS = 5_000;

export class DiskBudget {
  readonly #options: DiskBudgetOptions;
  readonly #highMark: number;
  #collecting: Promise<void> | undefined;
  #collectedAt = Number.NEGATIVE_INFINITY;

  constructor(options: DiskBudgetOptions) {
    const { highMark = DEFAULT_HIGH_MARK } = options;
    if (!(highMark > 0 && highMark <= 1))
      throw new RangeError(`highMark must be in 0..1: current value is ${highMark}`);
    this.#options = options;
    this.#highMark = highMark;
  }

  /** Resolves when something new may begin. RESOURCE_EXHAUSTED with `act` ("fetch layer sha256:ab") when it may not. */
  async admit(act: string, signal?: AbortSignal): Promise<void> {
    if (this.#excess() === undefined) return;
    await this.#collect();
    throwIfAborted(signal);
    const excess = this.#excess();
    if (excess === undefined) return;
    throw new AboveHighMark("RESOURCE_EXHAUSTED", `Cannot ${act}: ${excess}, and there is no garbage left to collect`, {
      hint: "Remove images or containers, enlarge the disk, or raise the mark in the daemon's configuration",
    });
  }

  /** One at a time; who comes meanwhile waits for the same. */
  #collect(): Promise<void> {
    if (this.#collecting === undefined) {
      if (performance.now() - this.#collectedAt < COLLECT_AGAIN_MS) return Promise.resolve();
      this.#collecting = this.#options.collect().finally(() => {
        this.#collecting = undefined;
        this.#collectedAt = performance.now();
      });
    }
    return this.#collecting;
  }

  /** What is over, in words; undefined when nothing is. */
  #excess(): string | undefined {
    const { store, root, usedShare = () => fileSystemStatus(root).usedShare } = this.#options;
    const share = usedShare();
    if (share > this.#highMark) {
      return `the disk of ${root} is ${(100 * share).toFixed(1)}% full, the mark is at ${100 * this.#highMark}%`;
    }
    if (store === undefined) return undefined;
    const used = store.used();
    return used > store.limit ? `the store takes ${used} bytes, its limit is ${store.limit}` : undefined;
  }
}

/** sqlite.org/rescode.html: the database had no room. */
const SQLITE_FULL = 13;

/** Whether an error is about room on the disk, rather than about another limit. */
export function isDiskFull(error: unknown): boolean {
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    if (cause instanceof AboveHighMark || ["ENOSPC", "EDQUOT"].includes(errnoOf(cause) ?? "")) return true;
    if ("errcode" in cause && (Number(cause.errcode) & 0xff) === SQLITE_FULL) return true;
  }
  return false;
}
