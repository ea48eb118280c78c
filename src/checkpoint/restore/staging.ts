/**
 * New directories that appear under their names together, when all of them are complete, or not at all.
 *
 * Each is made beside its name, as `.NAME.restoring`, with a lock that dies with the process: what a killed restore left is
 * recognised by that and removed by the next one.
 */
import { basename, dirname, join } from "node:path";
import { errnoOf, ShaleError } from "../../errors/index.ts";
import {
  closeFile,
  findFile,
  list,
  makeDirectory,
  openDirectory,
  removeTree,
  rename,
  statFile,
  syncDirectory,
  syncFileSystemOf,
  tryLockDescriptor,
} from "../../sys/index.ts";

interface Place {
  readonly target: string;
  readonly path: string;
  readonly fd: number;
  /** Whether an empty directory had the name. */
  readonly replaces: boolean;
}

export class Staging implements Disposable {
  readonly #places: Place[] = [];
  #published = false;

  /**
   * A new private directory that will be `target`. ALREADY_EXISTS when that is there and not empty; NOT_FOUND without the
   * directory that it is to be in.
   */
  add(target: string, what: string): string {
    const there = findFile(target);
    if (there !== undefined && (there.kind !== "directory" || list(target).length > 0)) {
      const state = there.kind === "directory" ? "it is there and not empty" : "it is there, and no directory";
      throw new ShaleError("ALREADY_EXISTS", `Cannot restore ${what} to ${target}: ${state}`, {
        hint: "Name a directory that does not exist, or is empty",
      });
    }
    const parent = findFile(dirname(target));
    if (parent === undefined) {
      throw new ShaleError("NOT_FOUND", `Cannot restore ${what} to ${target}: ${dirname(target)} does not exist`, {
        hint: "Make that directory first, on the file system that the restored files are to be on",
      });
    }
    if (there !== undefined && there.dev !== parent.dev) {
      throw new ShaleError(
        "FAILED_PRECONDITION",
        `Cannot restore ${what} to ${target}: a file system is mounted there`,
        {
          hint: "Name a directory in it: it is made beside its name, then given the name",
        },
      );
    }
    const path = join(dirname(target), `.${basename(target)}.restoring`);
    const place = { target, path, fd: claim(path, what), replaces: there !== undefined };
    this.#places.push(place);
    return path;
  }

  /**
   * Gives all of them their names, in the order in which they were added; none when one fails. With `durable`, what is in them survives
   * a power cut from before they have their names, and the names from when this returns. Otherwise neither does: a name that is durable
   * before its content would only look complete.
   */
  publish({ durable }: { readonly durable: boolean }): void {
    if (durable) for (const { fd } of this.#places) syncFileSystemOf(fd);
    const done: Place[] = [];
    try {
      for (const place of this.#places) {
        rename(place.path, place.target); // over an empty directory, or none
        done.push(place);
        if (durable) syncDirectory(dirname(place.target));
      }
      this.#published = true;
    } catch (error) {
      for (const { path, target, replaces } of done.reverse()) {
        rename(target, path);
        if (replaces) makeDirectory(target);
      }
      if (errnoOf(error) !== "EBUSY") throw error;
      throw new ShaleError("FAILED_PRECONDITION", "Cannot restore: a target directory is in use, or mounted", {
        cause: error,
      });
    }
  }

  [Symbol.dispose](): void {
    for (const { path, fd } of this.#places.splice(0)) {
      try {
        if (!this.#published) removeTree(path);
      } finally {
        closeFile(fd);
      }
    }
  }
}

/** The new directory, open and locked. */
function claim(path: string, what: string): number {
  for (;;) {
    try {
      makeDirectory(path);
    } catch (error) {
      if (errnoOf(error) !== "EEXIST") throw error;
      const fd = openDirectory(path);
      try {
        if (!tryLockDescriptor(fd, path)) {
          throw new ShaleError("ABORTED", `Cannot restore ${what}: another restore to the same place is under way`, {
            hint: "Wait until it has ended",
          });
        }
        removeTree(path);
      } finally {
        closeFile(fd);
      }
      continue;
    }
    const fd = openDirectory(path);
    // Between the two steps another restore may have taken it for a leftover.
    if (tryLockDescriptor(fd, path) && findFile(path)?.ino === statFile(fd).ino) return fd;
    closeFile(fd);
  }
}
