/**
 * What a power cut leaves: replays a log of effects (SHALE_EFFECTS_LOG, recordEffects()) up to a moment and builds the
 * directory tree that a disk could hold then.
 *
 * The model, which is what POSIX promises and a little more:
 * - the content of an inode is that of its last datasync or sync; what came after it is lost, or zeros, or a part;
 * - a name (create, link, mkdir, rename, unlink, rmdir) is as of the last syncDirectory of its directory; a rename is atomic
 *   and durable with the directory of its new name; later changes of the same directory do not become durable before it;
 * - syncFileSystem makes durable what there is: all that is replayed counts as one file system;
 * - a name that is durable may lead to an inode whose content is not (the zero-length file of ext4's delayed allocation);
 * - a directory that has no durable name is gone with all below it;
 * - database files are what recordDatabaseCommit() said last (SQLite's own syncs are trusted, and not recorded).
 *
 * {@link Choices} decide for each change that was not made durable whether it survived all the same: a disk may have
 * written anything early. For tests only.
 */
import { mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import type { EffectRecord } from "../effects.ts";

export interface LoggedEffect extends EffectRecord {
  readonly data: Uint8Array;
}

/** The fate of content written after the last sync of its file. */
export type Fate = "lost" | "zeros" | "torn" | "kept";

export interface Choices {
  /** Whether a change of names that was not made durable survived. */
  name(effect: LoggedEffect): boolean;
  /** What became of unsynced content. "zeros": the new size, zeros where it was written; "torn": only its first half. */
  content(path: string): Fate;
}

/** Everything that was not synced is lost. */
export const DROP_UNSYNCED: Choices = { name: () => false, content: () => "lost" };
/** Everything reached the disk: the same tree as after a SIGKILL. */
export const KEEP_ALL: Choices = { name: () => true, content: () => "kept" };

/** All names reached the disk, no unsynced content did. The usual face of a missing fdatasync. */
export const NAMES_ONLY: Choices = { name: () => true, content: () => "zeros" };

/** A different disk for each seed, the same for the same one. */
export function seededChoices(seed: number): Choices {
  let state = (seed ^ 0x9e3779b9) >>> 0;
  const next = (limit: number): number => {
    state = (Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x6d2b79f5) >>> 0;
    const mixed = Math.imul(state ^ (state >>> 12), 0x297a2d39) >>> 0;
    return ((mixed ^ (mixed >>> 15)) >>> 0) % limit;
  };
  const fates: readonly Fate[] = ["lost", "zeros", "torn", "kept"];
  return { name: () => next(2) === 1, content: () => fates[next(fates.length)]! };
}

/** Reads the log of a directory given to SHALE_EFFECTS_LOG. A frame cut off by a SIGKILL at the end is left out. */
export function readEffectsLog(directory: string): LoggedEffect[] {
  const bytes = readFileSync(join(directory, "effects.log"));
  const effects: LoggedEffect[] = [];
  for (let at = 0; at + 8 <= bytes.length; ) {
    const dataAt = at + 8 + bytes.readUInt32LE(at);
    const end = dataAt + bytes.readUInt32LE(at + 4);
    if (end > bytes.length) break;
    const record = JSON.parse(bytes.toString("utf8", at + 8, dataAt)) as EffectRecord; // written by effects.ts only
    effects.push({ ...record, data: bytes.subarray(dataAt, end) });
    at = end;
  }
  return effects;
}

export interface ReplayOptions {
  /** The directory that the effects were made in; effects outside of it are ignored. */
  readonly root: string;
  /** A new or empty directory to build the tree in. */
  readonly target: string;
  /** A copy of `root` from before the first effect, all of it durable. Without it `root` was empty. */
  readonly base?: string;
  /** The power goes after that many effects of the log; all unless given. */
  readonly upTo?: number;
  readonly choices?: Choices;
}

/** Builds in `target` what is left of `root`. */
export function replay(effects: readonly LoggedEffect[], options: ReplayOptions): void {
  const disk = new Disk(options.root);
  if (options.base !== undefined) disk.load(options.base);
  for (const effect of effects.slice(0, options.upTo ?? effects.length)) disk.apply(effect);
  disk.write(options.target, options.choices ?? DROP_UNSYNCED);
}

/** Content as of now and as of the last sync. Buffers are replaced, never changed, so `durable` may be shared. */
class File {
  current: Uint8Array = new Uint8Array(0);
  durable: Uint8Array = new Uint8Array(0);
  /** Byte ranges of `current` that were written since. */
  dirty: { readonly start: number; readonly end: number }[] = [];
}

class Directory {
  readonly current = new Map<string, Node>();
  readonly durable = new Map<string, Node>();
}

type Node = File | Directory;

interface Place {
  readonly directory: Directory;
  readonly name: string;
}

/** A change of names that waits for its directory's sync. */
interface Pending {
  readonly effect: LoggedEffect;
  readonly node: Node;
  readonly removes: Place | undefined;
  readonly adds: Place | undefined;
}

class Disk {
  readonly #root: string;
  readonly #tree = new Directory();
  readonly #inodes = new Map<string, File>();
  #pending: Pending[] = [];

  constructor(root: string) {
    this.#root = root;
  }

  /** Everything in `base` is there, and durable. */
  load(base: string, into: Directory = this.#tree): void {
    for (const entry of readdirSync(base, { withFileTypes: true })) {
      const path = join(base, entry.name);
      let node: Node;
      if (entry.isDirectory()) {
        node = new Directory();
        this.load(path, node);
      } else {
        node = new File();
        node.current = node.durable = readFileSync(path);
      }
      into.current.set(entry.name, node);
      into.durable.set(entry.name, node);
    }
  }

  apply(effect: LoggedEffect): void {
    switch (effect.kind) {
      case "create": {
        const file = new File();
        if (effect.ino !== undefined) this.#inodes.set(effect.ino, file); // a number used again names the new file from here on
        this.#change(effect, file, undefined, this.#place(effect.path));
        break;
      }
      case "mkdir":
        this.#change(effect, new Directory(), undefined, this.#place(effect.path));
        break;
      case "link":
        this.#change(effect, this.#nodeAt(effect.path), undefined, this.#place(effect.to!));
        break;
      case "rename":
        this.#change(effect, this.#nodeAt(effect.path), this.#place(effect.path), this.#place(effect.to!));
        break;
      case "unlink":
      case "rmdir":
        this.#change(effect, this.#nodeAt(effect.path), this.#place(effect.path), undefined);
        break;
      case "write":
      case "copy":
        this.#write(this.#file(effect), effect.offset!, effect.data);
        break;
      case "punch":
        this.#punch(this.#file(effect), effect.offset!, effect.length!);
        break;
      case "truncate":
        this.#truncate(this.#file(effect), effect.length!);
        break;
      case "datasync":
      case "sync":
        this.#sync(this.#file(effect));
        break;
      case "syncDirectory": {
        const directory = this.#nodeAt(effect.path);
        if (directory instanceof Directory) this.#syncDirectory(directory);
        break;
      }
      case "syncFileSystem":
        for (const pending of this.#pending.splice(0)) makeDurable(pending);
        for (const file of this.#inodes.values()) this.#sync(file);
        break;
      case "database":
        this.#database(effect);
        break;
      case "mount":
      case "unmount":
      case "symlink":
        break; // nothing of theirs outlives the power, and the store makes no symlinks
    }
  }

  /** Builds the durable tree, with the survivors that `choices` picks. */
  write(target: string, choices: Choices): void {
    for (const pending of this.#pending) if (choices.name(pending.effect)) makeDurable(pending);
    const written = new Map<File, Uint8Array>(); // an inode with two names has one fate
    const build = (directory: Directory, path: string): void => {
      mkdirSync(path, { recursive: true });
      for (const [name, node] of directory.durable) {
        const child = join(path, name);
        if (node instanceof Directory) build(node, child);
        else {
          const bytes = written.get(node) ?? contentAfter(node, choices.content(relative(target, child)));
          written.set(node, bytes);
          writeFileSync(child, bytes);
        }
      }
    };
    build(this.#tree, target);
  }

  #change(effect: LoggedEffect, node: Node | undefined, removes: Place | undefined, adds: Place | undefined): void {
    if (node === undefined) return; // outside of the root, or a file that came there unrecorded
    if (removes !== undefined) removes.directory.current.delete(removes.name);
    if (adds !== undefined) adds.directory.current.set(adds.name, node);
    if (removes !== undefined || adds !== undefined) this.#pending.push({ effect, node, removes, adds });
  }

  #syncDirectory(directory: Directory): void {
    // Durable: all changes that end in this directory, and with them earlier ones of the same names (renames away).
    const due = new Set<Pending>();
    const names = new Set<string>();
    for (const pending of this.#pending.toReversed()) {
      const { adds, removes } = pending;
      const last = adds ?? removes!;
      const leaves = removes?.directory === directory && names.has(removes.name);
      if (last.directory !== directory && !leaves) continue;
      due.add(pending);
      for (const place of [adds, removes]) if (place?.directory === directory) names.add(place.name);
    }
    for (const pending of this.#pending) if (due.has(pending)) makeDurable(pending);
    this.#pending = this.#pending.filter((pending) => !due.has(pending));
  }

  #write(file: File | undefined, offset: number, data: Uint8Array): void {
    if (file === undefined) return;
    const grown = new Uint8Array(Math.max(file.current.length, offset + data.length));
    grown.set(file.current);
    grown.set(data, offset);
    file.current = grown;
    file.dirty.push({ start: offset, end: offset + data.length });
  }

  #punch(file: File | undefined, offset: number, length: number): void {
    if (file === undefined) return;
    const end = Math.min(offset + length, file.current.length); // KEEP_SIZE
    if (end > offset) this.#write(file, offset, new Uint8Array(end - offset));
  }

  #truncate(file: File | undefined, size: number): void {
    if (file === undefined) return;
    const resized = new Uint8Array(size);
    resized.set(file.current.subarray(0, size));
    file.current = resized;
  }

  #sync(file: File | undefined): void {
    if (file === undefined) return;
    file.durable = file.current;
    file.dirty = [];
  }

  /** Durable with its name and the directories above it: SQLite, and whoever made its directory, saw to that. */
  #database(effect: LoggedEffect): void {
    const place = this.#place(effect.path);
    if (place === undefined) return;
    this.#pending = this.#pending.filter((p) => p.adds?.directory !== place.directory || p.adds.name !== place.name);
    if (effect.length === -1) {
      place.directory.current.delete(place.name);
      place.directory.durable.delete(place.name);
      return;
    }
    const file = new File();
    file.current = file.durable = effect.data;
    place.directory.current.set(place.name, file);
    place.directory.durable.set(place.name, file);
  }

  #file(effect: LoggedEffect): File | undefined {
    const known = effect.ino === undefined ? undefined : this.#inodes.get(effect.ino);
    if (known !== undefined) return known;
    const node = this.#nodeAt(effect.path);
    if (!(node instanceof File)) return undefined;
    if (effect.ino !== undefined) this.#inodes.set(effect.ino, node); // of the base: from here on by its number, as it may be renamed
    return node;
  }

  #nodeAt(path: string): Node | undefined {
    const parts = this.#parts(path);
    if (parts === undefined) return undefined;
    let node: Node | undefined = this.#tree;
    for (const part of parts) node = node instanceof Directory ? node.current.get(part) : undefined;
    return node;
  }

  #place(path: string): Place | undefined {
    const directory = this.#parts(path)?.length ? this.#nodeAt(dirname(path)) : undefined;
    return directory instanceof Directory ? { directory, name: path.slice(path.lastIndexOf("/") + 1) } : undefined;
  }

  #parts(path: string): string[] | undefined {
    const inside = relative(this.#root, path);
    if (inside === "") return [];
    return inside.startsWith("..") ? undefined : inside.split("/");
  }
}

function makeDurable({ node, removes, adds }: Pending): void {
  if (removes?.directory.durable.get(removes.name) === node) removes.directory.durable.delete(removes.name);
  adds?.directory.durable.set(adds.name, node);
}

function contentAfter(file: File, fate: Fate): Uint8Array {
  if (fate === "kept") return file.current;
  if (fate === "lost") return file.durable;
  const bytes = new Uint8Array(file.current.length);
  bytes.set(file.durable.subarray(0, bytes.length));
  for (const { start, end } of file.dirty) {
    const until = Math.min(fate === "torn" ? Math.floor((start + end) / 2) : start, bytes.length);
    bytes.set(file.current.subarray(start, until), start);
    bytes.fill(0, until, Math.min(end, bytes.length));
  }
  return bytes;
}

/** Copies a tree for {@link ReplayOptions.base} (files and directories only). */
export function snapshotTree(source: string, target: string): void {
  mkdirSync(target, { recursive: true });
  for (const name of readdirSync(source)) {
    const from = join(source, name);
    const to = join(target, name);
    const status = statSync(from);
    if (status.isDirectory()) snapshotTree(from, to);
    else writeFileSync(to, readFileSync(from));
  }
}
