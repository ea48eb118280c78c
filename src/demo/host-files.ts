/**
 * Collects files of the host for a layer: as they are, with the directories and symlinks on the way to them.
 *
 * Only what every user of the host may read goes in: no secret of the host gets into an image that could be handed on.
 * What can't be read or represented is counted, never a failure.
 */
import { dirname, join } from "node:path";
import { type ByteString, fromUtf8 } from "../bytes/index.ts";
import { errnoOf } from "../errors/index.ts";
import {
  closeFile,
  type FileStatus,
  findFile,
  list,
  openFile,
  readFile,
  readLink,
  readXattrs,
  realPath,
} from "../sys/index.ts";
import type { PlannedEntry } from "./tree.ts";

/** Larger files are left out: the demo shall be done in seconds. Also what one file may take of memory. */
export const MAX_FILE_SIZE = 24 << 20;
/** Symlinks that lead from one to another. */
const MAX_LINKS = 40;
const OTHERS_READ = 0o004;
const OTHERS_READ_AND_SEARCH = 0o005;
const PERMISSIONS = 0o7777;
const NANOSECONDS = 1_000_000_000n;

/** Attributes of the security module and of overlayfs belong to the host, not to the file. */
const FOREIGN_XATTR = /^(?:security\.(?:selinux|ima|evm|apparmor)|trusted\.|system\.)/;

export interface Budget {
  readonly files: number;
  readonly bytes: number;
}

export class HostFiles {
  readonly #entries = new Map<ByteString, PlannedEntry>();
  /** Files with several names: identity -> the first name that was taken. */
  readonly #hardLinks = new Map<string, ByteString>();
  /** What another layer has already. */
  readonly #below: ReadonlyMap<ByteString, PlannedEntry>;
  #bytes = 0;
  #files = 0;
  #skipped = 0;

  constructor(below?: HostFiles) {
    this.#below = below?.entries ?? new Map();
  }

  /** By path, in the order in which they were added. A directory comes before what is in it. */
  get entries(): ReadonlyMap<ByteString, PlannedEntry> {
    return this.#entries;
  }
  /** Bytes of the regular files. */
  get bytes(): number {
    return this.#bytes;
  }
  /** Regular files. */
  get files(): number {
    return this.#files;
  }
  /** Files that were wanted and left out: not readable by everyone, too large, or of a kind or name that is not taken. */
  get skipped(): number {
    return this.#skipped;
  }

  /** Adds an entry that is not the host's. Directories on the way to it have to be there. */
  addMade(entry: PlannedEntry): void {
    this.#entries.set(entry.path, entry);
  }

  /**
   * Adds the file at an absolute path, with every directory and symlink that leads to it: /bin/sh adds bin -> usr/bin, usr,
   * usr/bin, usr/bin/sh -> dash, usr/bin/dash. Returns the path at the end of the symlinks, or undefined when it was
   * skipped or is not there.
   */
  addFile(path: string): string | undefined {
    let pending = path.split("/").filter(Boolean);
    let at = "/";
    let links = 0;
    while (pending.length > 0) {
      const name = pending[0]!;
      pending = pending.slice(1);
      if (name === ".") continue;
      if (name === "..") {
        at = dirname(at);
        continue;
      }
      const next = join(at, name);
      const status = findFile(next);
      if (status === undefined) return undefined;
      if (!this.#add(next, status)) return undefined;
      if (status.kind !== "symlink") {
        at = next;
        continue;
      }
      if (++links > MAX_LINKS) return undefined;
      const target = Buffer.from(readLink(next), "latin1").toString();
      if (target.startsWith("/")) at = "/";
      pending = [...target.split("/").filter(Boolean), ...pending];
    }
    return at;
  }

  /**
   * Adds what is below a directory, in order of names, until the layer has as much as `budget` allows. Symlinks are added as
   * they are and not followed, except for `path` itself. Nothing when there is no such directory.
   */
  addTree(path: string, budget: Budget): void {
    const real = realPath(path);
    if (real === undefined || this.addFile(path) === undefined) return;
    const pending = [real];
    for (let directory = pending.pop(); directory !== undefined; directory = pending.pop()) {
      const below: string[] = [];
      for (const name of readableNames(directory)) {
        if (this.#files >= budget.files || this.#bytes >= budget.bytes) return;
        const one = join(directory, name);
        // Node gives names as text: one that is not UTF-8 has lost its bytes, and the file can't be reached by it.
        if (name.includes("\ufffd")) {
          this.#skipped++;
          continue;
        }
        const status = findFile(one);
        if (status === undefined) continue;
        if (this.#add(one, status) && status.kind === "directory") below.push(one);
      }
      pending.push(...below.reverse());
    }
  }

  #add(path: string, status: FileStatus): boolean {
    const name = nameOf(path);
    // Directories are in every layer that has something in them, as image builders write them.
    if (this.#entries.has(name) || (this.#below.has(name) && status.kind !== "directory")) return true;
    const entry = this.#planned(path, status);
    if (entry === undefined) {
      this.#skipped++;
      return false;
    }
    this.#entries.set(entry.path, entry);
    if (entry.type === "file") {
      this.#files++;
      this.#bytes += status.size;
    }
    return true;
  }

  #planned(path: string, status: FileStatus): PlannedEntry | undefined {
    const seconds = status.mtimeNs / NANOSECONDS - (status.mtimeNs % NANOSECONDS < 0n ? 1n : 0n);
    const header = {
      path: nameOf(path),
      mode: status.mode & PERMISSIONS,
      ...{ uid: status.uid, gid: status.gid, rdevMajor: 0, rdevMinor: 0, linkTarget: "" },
      mtimeSeconds: Number(seconds),
      mtimeNanoseconds: Number(status.mtimeNs - seconds * NANOSECONDS),
    };
    switch (status.kind) {
      case "directory":
        if ((status.mode & OTHERS_READ_AND_SEARCH) !== OTHERS_READ_AND_SEARCH) return undefined;
        return { ...header, type: "directory", xattrs: xattrsOf(path) };
      case "symlink":
        return { ...header, type: "symlink", mode: 0o777, linkTarget: readLink(path), xattrs: [] };
      case "file": {
        if ((status.mode & OTHERS_READ) === 0 || status.size > MAX_FILE_SIZE || !isReadable(path)) return undefined;
        const identity = `${status.dev}:${status.ino}`;
        const first = status.nlink > 1 ? this.#hardLinks.get(identity) : undefined;
        if (first !== undefined) return { ...header, type: "hardlink", linkTarget: first, xattrs: [] };
        this.#hardLinks.set(identity, header.path);
        return { ...header, type: "file", xattrs: xattrsOf(path), content: () => readFile(path, MAX_FILE_SIZE) };
      }
      default:
        return undefined; // a device, fifo or socket of the host
    }
  }
}

function nameOf(path: string): ByteString {
  return fromUtf8(path.replace(/^\/+/, "")) || ".";
}

function xattrsOf(path: string): PlannedEntry["xattrs"] {
  return readXattrs(path).filter(({ name }) => !FOREIGN_XATTR.test(name));
}

function readableNames(directory: string): string[] {
  try {
    return list(directory).map((entry) => entry.name);
  } catch (error) {
    if (isDenied(error)) return [];
    throw error;
  }
}

function isReadable(path: string): boolean {
  try {
    closeFile(openFile(path));
    return true;
  } catch (error) {
    if (isDenied(error)) return false;
    throw error;
  }
}

/** Also root may be refused: by a security module, or as root of a user namespace. */
function isDenied(error: unknown): boolean {
  return errnoOf(error) === "EACCES" || errnoOf(error) === "EPERM";
}
