/**
 * Leases: every operation that reads or writes layers holds one, and garbage collection frees nothing that a living lease
 * may still be using.
 *
 * A lease is a locked file `leases/<epoch>-<random>`. The kernel drops the lock when its process dies, so a lease can
 * neither leak nor be forgotten; the file that stays behind is removed by whoever finds it unlocked.
 *
 * The epoch is read from the database *before* the file is made. Garbage collection (1) raises the epoch and takes what
 * is dead out of sight in one transaction, (2) lists the leases, (3) frees what no lease with a lower epoch can know of.
 * A lease that (2) does not see was made after (1), so it cannot have found what (1) took out of sight: reading an
 * epoch that is already old only makes the collector wait longer.
 */
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { bootId, crashPoint, findFile, type Lock, list, makeDirectory, removeTree, tryLock } from "../sys/index.ts";
import type { Database } from "./database.ts";
import type { Layout } from "./layout.ts";

/** `<epoch>-<12 hex digits>`; also the first part of the ids of everything made under it. */
export type LeaseId = string;

export class Lease implements Disposable {
  readonly id: LeaseId;
  readonly #layout: Layout;
  readonly #database: Database;
  readonly #lock: Lock;
  #staged = 0;
  #released = false;

  private constructor(layout: Layout, database: Database, id: LeaseId, lock: Lock) {
    this.#layout = layout;
    this.#database = database;
    this.id = id;
    this.#lock = lock;
  }

  /** `what` names the operation in messages of others that wait for it ("pull docker.io/library/debian:12"). */
  static begin(layout: Layout, database: Database, what: string): Lease {
    for (;;) {
      const id = `${currentEpoch(database)}-${randomBytes(6).toString("hex")}`;
      const lock = tryLock(layout.lease(id), { command: what });
      if (lock !== undefined) return new Lease(layout, database, id, lock);
    }
  }

  /** A new directory for one ingest, and the id that its layer will have. Removed when the lease ends. */
  stage(): { readonly id: string; readonly directory: string } {
    const number = this.#staged++;
    const parent = this.#layout.leaseStaging(this.id);
    if (number === 0) makeDirectory(parent);
    crashPoint("stage:lease-directory");
    const directory = join(parent, String(number));
    makeDirectory(directory);
    crashPoint("stage:directory");
    return { id: `${this.id}-${number}`, directory };
  }

  /** Ends the lease and removes what it staged and did not commit, also what a failed commit had moved into place. */
  release(): void {
    if (this.#released) return;
    this.#released = true;
    let clean = false;
    try {
      if (this.#staged > 0) removeStaged(this.#layout, this.#database, this.id);
      clean = true;
    } finally {
      // Unlocked but there, it tells the next opener to finish this.
      this.#lock.release({ unlink: clean });
    }
  }

  [Symbol.dispose](): void {
    this.release();
  }
}

export function currentEpoch(database: Database): number {
  return Number(database.get("SELECT value FROM state WHERE key = 'epoch'")!.value);
}

function epochOf(id: LeaseId): number {
  const epoch = Number(id.slice(0, id.indexOf("-")));
  // A file that is not ours holds everything back rather than nothing; check reports it.
  return Number.isSafeInteger(epoch) && epoch > 0 ? epoch : 0;
}

export interface LivingLeases {
  /** The lowest epoch of a living lease, or Infinity. */
  readonly oldestEpoch: number;
  readonly ids: ReadonlySet<LeaseId>;
}

/** The leases whose processes live, without `except`. Files of dead ones are removed. */
export function livingLeases(layout: Layout, except?: LeaseId): LivingLeases {
  const ids = new Set<LeaseId>();
  let oldestEpoch = Infinity;
  for (const { name: id } of list(layout.leases)) {
    if (id === except) continue;
    const lock = tryLock(layout.lease(id), { command: "clean up after a dead process" });
    if (lock !== undefined && findFile(layout.leaseStaging(id)) === undefined) {
      lock.release({ unlink: true });
      continue;
    }
    if (lock !== undefined) {
      lock.release({ unlink: false }); // recoverStaging needs its name
      continue;
    }
    ids.add(id);
    oldestEpoch = Math.min(oldestEpoch, epochOf(id));
  }
  return { oldestEpoch, ids };
}

/** The lease that something was made under, from its id. */
export function leaseOf(id: string): LeaseId {
  return id.slice(0, id.lastIndexOf("-"));
}

/**
 * Removes what dead processes left in staging, and what they had moved into place without committing it. No heuristics:
 * a lease directory is garbage exactly when its lock is free, and a file in place is garbage exactly when no row has its
 * id. Safe to kill and to run in several processes at once. Returns the number of leases cleaned.
 */
export function recoverStaging(layout: Layout, database: Database): number {
  let cleaned = 0;
  for (const { name: id } of list(layout.staging)) {
    const lock = tryLock(layout.lease(id), { command: "clean up after a dead process" });
    if (lock === undefined) continue; // alive, or another process cleans
    try {
      if (findFile(layout.leaseStaging(id)) === undefined) continue; // cleaned between the listing and the lock
      removeStaged(layout, database, id);
      cleaned++;
    } finally {
      lock.release({ unlink: true });
    }
  }
  return cleaned;
}

/** Call with the lease's lock held. The staging directory goes last: it names what may be in place. */
function removeStaged(layout: Layout, database: Database, id: LeaseId): void {
  const directory = layout.leaseStaging(id);
  for (const { name: number } of list(directory)) {
    const made = `${id}-${number}`;
    for (const [query, path] of placesOf(layout, made)) {
      if (database.get(query, made) === undefined) removeTree(path);
    }
    crashPoint("recover:files-removed");
  }
  removeTree(directory);
}

function placesOf(layout: Layout, id: string): readonly (readonly [query: string, path: string])[] {
  return [
    ["SELECT 1 FROM layers WHERE id = ?", layout.layer(id)],
    ["SELECT 1 FROM blobs WHERE id = ?", layout.blob(id)],
    ["SELECT 1 FROM merged WHERE id = ?", layout.mergedImage(id)],
  ];
}

/**
 * After a power cut a name may be back that was removed, and a staging directory gone whose files are in place: nothing
 * syncs either, since that would cost every pull. So the first opener after each boot compares `layers/`, `blobs/` and
 * `merged/` with the database, and removes what neither a row nor a living lease knows. Once a boot: listing 50,000
 * layers takes some 100 ms. Safe to kill and to run in several processes at once.
 */
export function recoverFromReboot(layout: Layout, database: Database): void {
  const boot = `boot ${bootId()}`;
  if (database.get("SELECT 1 FROM state WHERE key = ?", boot) !== undefined) return;
  for (const [query, path] of unknownFiles(layout, database)) {
    // Asked again: another opener may be at the same, and a row is final.
    if (database.get(query, nameOf(path)) === undefined) removeTree(path);
    crashPoint("recover:stray-removed");
  }
  database.transaction(() => {
    database.run("DELETE FROM state WHERE key LIKE 'boot %'");
    database.run("INSERT INTO state (key, value) VALUES (?, ?)", boot, Date.now());
  });
}

/** Files in place that no row and no operation under way knows; with the query that says so. */
export function* unknownFiles(
  layout: Layout,
  database: Database,
  except?: LeaseId,
): Generator<readonly [query: string, path: string]> {
  for (const place of [layout.layers, layout.blobs, layout.merged]) {
    const names = list(place).map((entry) => entry.name);
    // Leases after names, rows after leases: what is made later is not in the list; what was made before has a lease
    // that lives, or a row by now, or a staging directory that recoverStaging will follow.
    const { ids } = livingLeases(layout, except);
    for (const name of names) {
      const [query, path] = placesOf(layout, name).find(([, one]) => one === join(place, name))!;
      const lease = leaseOf(name);
      if (ids.has(lease) || database.get(query, name) !== undefined) continue;
      if (lease !== "" && findFile(layout.leaseStaging(lease)) !== undefined) continue;
      if (findFile(path) !== undefined) yield [query, path];
    }
  }
}

function nameOf(path: string): string {
  return path.slice(path.lastIndexOf("/") + 1);
}
