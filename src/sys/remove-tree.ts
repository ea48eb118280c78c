/**
 * Removing directories with everything in them, whatever a container has put there: names that are not UTF-8, and trees
 * deeper than a path can be long. In steps, so that a long removal need not hold up the event loop.
 */
import * as fs from "node:fs";
import { errnoOf } from "../errors/index.ts";
import { effect, observed } from "./effects.ts";
import { unlessAbsent } from "./unless-absent.ts";

/** linux/limits.h has 4096 with the NUL; a name adds up to 256. Deeper directories are moved up before they are entered. */
const PATH_LIMIT = 3800;
const SLASH = Buffer.from("/");

/**
 * Removes a file, or a directory with all below it, following no symlink, one name between two steps; stopping between steps
 * leaves the rest for another call. Names that another process removes at the same time are fine; names that it adds end it
 * with ENOTEMPTY. Does not cross into mounts: a mount point inside ends it with EBUSY. Answers whether there was anything.
 */
export function* removalSteps(path: string): Generator<void, boolean> {
  const root = Buffer.from(path);
  try {
    return unlink(root);
  } catch (error) {
    if (errnoOf(error) !== "EISDIR") throw error; // Linux answers EISDIR for a directory, where POSIX has EPERM
  }
  return yield* new Removal(root).run();
}

/** All steps of {@link removalSteps} at once. */
export function removeTree(path: string): boolean {
  const steps = removalSteps(path);
  for (;;) {
    const step = steps.next();
    if (step.done === true) return step.value;
  }
}

class Removal {
  readonly #root: Buffer;
  #moved = 0;

  constructor(root: Buffer) {
    this.#root = root;
  }

  *run(): Generator<void, boolean> {
    for (;;) {
      const moved = this.#moved;
      yield* this.#empty(this.#root);
      try {
        return removeDirectory(this.#root);
      } catch (error) {
        if (errnoOf(error) !== "ENOTEMPTY" || this.#moved === moved) throw error;
      }
    }
  }

  *#empty(directory: Buffer): Generator<void, void> {
    for (const { name, isDirectory } of entriesOf(directory)) {
      const path = Buffer.concat([directory, SLASH, name]);
      if (!isDirectory) unlink(path);
      else if (path.length > PATH_LIMIT) this.#moveUp(path);
      else {
        yield* this.#empty(path);
        removeDirectory(path);
      }
      yield;
    }
  }

  #moveUp(path: Buffer): void {
    const to = Buffer.concat([this.#root, Buffer.from(`/.shale-deep-${process.pid}-${++this.#moved}`)]);
    effect("rename", path.toString(), () => fs.renameSync(path, to), { to: to.toString() });
  }
}

function entriesOf(directory: Buffer): { readonly name: Buffer; readonly isDirectory: boolean }[] {
  const shown = directory.toString();
  try {
    return observed("list", shown, () =>
      fs
        .readdirSync(directory, { withFileTypes: true, encoding: "buffer" })
        .map((entry) => ({ name: entry.name, isDirectory: entry.isDirectory() }))
        .sort((a, b) => Buffer.compare(a.name, b.name)),
    );
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return [];
    throw error;
  }
}

function unlink(path: Buffer): boolean {
  return effect("unlink", path.toString(), () => unlessAbsent(() => fs.unlinkSync(path)));
}

function removeDirectory(path: Buffer): boolean {
  return effect("rmdir", path.toString(), () => unlessAbsent(() => fs.rmdirSync(path)));
}
