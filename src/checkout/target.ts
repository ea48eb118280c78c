/**
 * The place of a checkout: made beside its target under a name that only the holder of the target's lock uses, and put in place by
 * one rename. At any moment, power cuts included, the target is absent, what was there before, or all of the new tree.
 *
 * `.NAME.shale-lock`, `.NAME.shale-new` and `.NAME.shale-links` stand beside a target while it is made. What a killed checkout
 * leaves of them is removed by the next one to the same target. Everything is done in descriptors: the directory that the target
 * is in is opened once, and nothing below it is reached through a symlink.
 */
import { basename, dirname, join, resolve } from "node:path";
import { type ByteString, fromUtf8 } from "../bytes/index.ts";
import { errnoOf, ShaleError } from "../errors/index.ts";
import { FileType } from "../formats/layer-index/index.ts";
import { digestHex, digestOf } from "../oci/index.ts";
import {
  acquireLock,
  closeFile,
  crashPoint,
  exchangeAt,
  findAt,
  type Lock,
  makeDirectoryAt,
  mountInfo,
  openDirectory,
  openDirectoryBeneath,
  type ProcessRights,
  removeInherited,
  removeTreeAt,
  renameNoReplaceAt,
  setOwner,
  syncNames,
} from "../sys/index.ts";

const NAME_MAX = 255;

export interface TargetOptions {
  readonly replace: boolean;
  readonly rights: ProcessRights;
  /** The store's own directory: nothing is checked out into it, nor over it. */
  readonly storeRoot: string;
  readonly signal?: AbortSignal | undefined;
}

export class Target implements Disposable {
  /** Absolute. */
  readonly path: string;
  readonly #parent: number;
  readonly #name: ByteString;
  readonly #lock: Lock;
  readonly #replace: boolean;
  readonly #files: { readonly fresh: ByteString; readonly pool: ByteString };
  /** Descriptors, valid until disposal. */
  readonly root: number;
  readonly pool: number;
  #published = false;

  private constructor(path: string, parent: number, lock: Lock, { replace, rights }: TargetOptions) {
    this.path = path;
    this.#parent = parent;
    this.#name = fromUtf8(basename(path));
    this.#lock = lock;
    this.#replace = replace;
    this.#files = { fresh: nameBeside(this.#name, "new"), pool: nameBeside(this.#name, "links") };
    this.#checkAbsent();
    this.#removeOwn(); // of a checkout that was killed: its lock is gone with it
    using made = new DisposableStack();
    made.defer(() => this.#removeOwn());
    this.pool = made.adopt(this.#make(this.#files.pool, rights), closeFile);
    this.root = this.#make(this.#files.fresh, rights);
    made.move();
  }

  /**
   * Waits for another checkout to the same target. ALREADY_EXISTS when something is there and `replace` is false or it is no
   * directory; FAILED_PRECONDITION when something is mounted below it.
   */
  static async open(path: string, options: TargetOptions): Promise<Target> {
    const target = resolve(path);
    checkPlace(target, options.storeRoot);
    const directory = dirname(target);
    using cleanup = new DisposableStack();
    const parent = cleanup.adopt(openParent(target, directory), closeFile);
    const lockName = Buffer.from(nameBeside(fromUtf8(basename(target)), "lock"), "latin1").toString();
    const lock = await acquireLock(join(directory, lockName), {
      what: target,
      command: `checkout to ${target}`,
      ...(options.signal ? { signal: options.signal } : {}),
    });
    cleanup.defer(() => lock.release({ unlink: true }));
    const made = new Target(target, parent, lock, options);
    cleanup.move();
    return made;
  }

  /** Removes the names that only hard links within the checkout needed. */
  dropPool(): void {
    removeTreeAt(this.#parent, this.#files.pool);
  }

  /**
   * Gives the tree its name, durably; all in it must have been synced. Then removes what was there; answers its path when that
   * is in use and stays until the next checkout to this target.
   */
  publish(): string | undefined {
    const { fresh } = this.#files;
    crashPoint("checkout:synced");
    if (!this.#replace || findAt(this.#parent, this.#name) === undefined) {
      if (!renameNoReplaceAt(this.#parent, fresh, this.#name)) throw alreadyThere(this.path, this.#replace);
    } else this.#exchange();
    this.#published = true;
    crashPoint("checkout:renamed");
    syncNames(this.#parent);
    crashPoint("checkout:durable");
    try {
      removeTreeAt(this.#parent, fresh); // after an exchange, what was there before
      return undefined;
    } catch (error) {
      // Something was mounted in it since, or processes go on to write there: the checkout is complete all the same.
      if (errnoOf(error) !== "EBUSY" && errnoOf(error) !== "ENOTEMPTY") throw error;
      return join(dirname(this.path), Buffer.from(fresh, "latin1").toString());
    }
  }

  #exchange(): void {
    try {
      exchangeAt(this.#parent, this.#files.fresh, this.#name);
    } catch (error) {
      if (errnoOf(error) !== "EINVAL" && errnoOf(error) !== "EXDEV" && errnoOf(error) !== "EBUSY") throw error;
      throw new ShaleError(
        "FAILED_PRECONDITION",
        `Cannot replace ${this.path}: the file system can't swap it in one step`,
        {
          cause: error,
          hint: "Remove it first, then check out without --replace",
        },
      );
    }
  }

  #checkAbsent(): void {
    const there = findAt(this.#parent, this.#name);
    if (there === undefined) return;
    if (!this.#replace || (there.mode & FileType.MASK) !== FileType.DIRECTORY)
      throw alreadyThere(this.path, this.#replace);
    const inside = mountInfo().find(
      ({ mountPoint }) => mountPoint === this.path || mountPoint.startsWith(`${this.path}/`),
    );
    if (inside !== undefined) {
      throw new ShaleError("FAILED_PRECONDITION", `Cannot replace ${this.path}: ${inside.mountPoint} is mounted`, {
        hint: `Unmount ${inside.mountPoint} first`,
      });
    }
  }

  #make(name: ByteString, { uid, gid }: ProcessRights): number {
    makeDirectoryAt(this.#parent, name);
    const directory = openDirectoryBeneath(this.#parent, name);
    const found = findAt(directory, "");
    if (found !== undefined && (found.uid !== uid || found.gid !== gid)) setOwner(directory, uid, gid); // of a set-group-ID parent
    removeInherited(directory, 0o700);
    return directory;
  }

  #removeOwn(): void {
    for (const name of Object.values(this.#files)) removeTreeAt(this.#parent, name);
  }

  /** Without {@link publish}, nothing of the checkout is left. */
  [Symbol.dispose](): void {
    try {
      if (!this.#published) this.#removeOwn();
    } finally {
      closeFile(this.root);
      closeFile(this.pool);
      closeFile(this.#parent);
      this.#lock.release({ unlink: true });
    }
  }
}

function checkPlace(target: string, storeRoot: string): void {
  const within = (path: string, directory: string) => path === directory || path.startsWith(`${directory}/`);
  if (dirname(target) === target) {
    throw new ShaleError("INVALID_ARGUMENT", "Cannot check out to /: name a directory that does not exist yet");
  }
  if (!within(target, storeRoot) && !within(storeRoot, target)) return;
  throw new ShaleError("INVALID_ARGUMENT", `Cannot check out to ${target}: the store is ${storeRoot}`, {
    hint: "Choose a directory outside of the store",
  });
}

function openParent(target: string, directory: string): number {
  try {
    return openDirectory(directory);
  } catch (error) {
    if (errnoOf(error) !== "ENOENT" && errnoOf(error) !== "ENOTDIR") throw error;
    throw new ShaleError("NOT_FOUND", `Cannot check out to ${target}: ${directory} is no directory`, {
      cause: error,
      hint: `mkdir -p ${directory}`,
    });
  }
}

function alreadyThere(path: string, replace: boolean): ShaleError {
  return new ShaleError(
    "ALREADY_EXISTS",
    `Cannot check out to ${path}: ${replace ? "it is no directory" : "it exists"}`,
    {
      hint: replace ? "Only a directory is replaced" : "Choose another directory, or use --replace",
    },
  );
}

/** ".NAME.shale-KIND"; of a name that is too long for that, its digest. */
function nameBeside(name: ByteString, kind: string): ByteString {
  const plain = `.${name}.shale-${kind}`;
  return plain.length <= NAME_MAX ? plain : `.${digestHex(digestOf(name))}.shale-${kind}`;
}
