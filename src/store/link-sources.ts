/**
 * Link sources: the files that checkouts share by hard link, `ROOT/links/<2 digits>/<62 digits>`.
 *
 * A source's name is a function of everything that its inode says, content included ({@link fingerprintOf}), so that any
 * process finds it by computing, one that makes it meets another that does in EEXIST, and `check` can tell from the file alone
 * whether it is what its name says. There is no list of them. Whoever writes to a checkout's file writes to the source: a source
 * whose size, time, owner or mode differ from what is wanted is dropped and made anew, never handed on.
 *
 * Sources come to be as names in a checkout first and get their name here when they are complete; gc may unlink any of them at
 * any time without harm. Used by many threads and processes at once, without a lock.
 */
import { createHash, hash } from "node:crypto";
import type { ByteString } from "../bytes/index.ts";
import { errnoOf } from "../errors/index.ts";
import type { Xattr } from "../formats/layer-index/index.ts";
import {
  closeFile,
  findAt,
  linkAt,
  makeDirectoryAt,
  openDirectory,
  openDirectoryBeneath,
  openFileBeneath,
  readAt,
  readXattrs,
  type Statx,
  statDescriptor,
  unlinkAt,
} from "../sys/index.ts";

/** All that one inode has to say, but its content. */
export interface LinkAttributes {
  /** Type and permission bits. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly size: number;
  readonly mtimeSeconds: number;
  readonly mtimeNanoseconds: number;
  /** In byte order of their names. */
  readonly xattrs: readonly Xattr[];
}

/** Bump it when what goes in changes: old sources are then found by nobody, and freed. */
const VERSION = "shale link source 1\n";
const FIXED_SIZE = VERSION.length + 32 + 4 + 4 + 4 + 8 + 8 + 4;

/** Written by the security modules of the host whatever a checkout wants: a file that brings its own is not shared. */
const OF_THE_HOST = new Set(["security.selinux", "security.SMACK64", "security.ima", "security.evm"]);

export function isOfTheHost(name: ByteString): boolean {
  return OF_THE_HOST.has(name);
}

/** The name of the source of a file: SHA-256, as "ab/cdef...". `digest` is the SHA-256 of the content. */
export function fingerprintOf(digest: Uint8Array, attributes: LinkAttributes): ByteString {
  const { xattrs } = attributes;
  const extra = xattrs.reduce((sum, { name, value }) => sum + 8 + name.length + value.length, 0);
  const bytes = Buffer.allocUnsafe(FIXED_SIZE + extra);
  let at = bytes.write(VERSION, 0, "latin1");
  bytes.set(digest, at);
  at = bytes.writeUInt32LE(attributes.mode, at + digest.length);
  at = bytes.writeUInt32LE(attributes.uid, at);
  at = bytes.writeUInt32LE(attributes.gid, at);
  at = bytes.writeDoubleLE(attributes.size, at);
  at = bytes.writeDoubleLE(attributes.mtimeSeconds, at);
  at = bytes.writeUInt32LE(attributes.mtimeNanoseconds, at);
  for (const { name, value } of xattrs) {
    at = bytes.writeUInt32LE(name.length, at);
    at = bytes.writeUInt32LE(value.length, at);
    at += bytes.write(name, at, "latin1");
    at += bytes.write(value, at, "latin1");
  }
  const digits = hash("sha256", bytes, "hex");
  return `${digits.slice(0, 2)}/${digits.slice(2)}`;
}

export interface LinkOptions {
  /** A source with as many names as this or more is left alone. */
  readonly maximumLinks?: number;
  /** Reads the whole file, and its xattrs, before it is given a name: also finds a change that hides its time. */
  readonly verify?: boolean;
}

export class LinkSources implements Disposable {
  readonly #directory: number;
  #replaced = 0;

  /** `path` is `ROOT/links`, an existing directory. */
  constructor(path: string) {
    this.#directory = openDirectory(path);
  }

  /** Sources that were not what their name says, and were dropped: someone has written to a checkout that shares them. */
  get replaced(): number {
    return this.#replaced;
  }

  /**
   * Gives the source `fingerprint` the name `name` in `directory`; false when there is none, or none that is what it should be
   * and has less than `maximumLinks` names. EXDEV, EMLINK, EPERM as link(2).
   */
  link(
    fingerprint: ByteString,
    expected: LinkAttributes,
    directory: number,
    name: ByteString,
    { maximumLinks = Infinity, verify = false }: LinkOptions = {},
  ): boolean {
    const status = findAt(this.#directory, fingerprint);
    if (status === undefined || status.links >= maximumLinks) return false;
    if (
      !isAsExpected(status, expected) ||
      (verify && fingerprintOfFile(this.#directory, fingerprint) !== fingerprint)
    ) {
      this.#drop(fingerprint);
      this.#replaced++;
      return false;
    }
    try {
      linkAt(this.#directory, fingerprint, directory, name);
      return true;
    } catch (error) {
      if (errnoOf(error) === "ENOENT") return false; // gc has taken it since
      throw error;
    }
  }

  /**
   * Makes the file at `name`, which is complete, the source `fingerprint`. When another has made it meanwhile, `name` becomes a
   * name of that one instead. False or an error (EXDEV, EMLINK, EPERM as link(2)) when neither can be done: then nothing may
   * have the name `name` any more.
   */
  publish(
    fingerprint: ByteString,
    expected: LinkAttributes,
    directory: number,
    name: ByteString,
    options: LinkOptions = {},
  ): boolean {
    const parent = this.#openGroup(fingerprint.slice(0, 2));
    try {
      linkAt(directory, name, parent, fingerprint.slice(3));
      return true;
    } catch (error) {
      if (errnoOf(error) !== "EEXIST") throw error;
    } finally {
      closeFile(parent);
    }
    unlinkAt(directory, name);
    return this.link(fingerprint, expected, directory, name, options);
  }

  #openGroup(group: ByteString): number {
    try {
      return openDirectoryBeneath(this.#directory, group);
    } catch (error) {
      if (errnoOf(error) !== "ENOENT") throw error;
    }
    try {
      makeDirectoryAt(this.#directory, group);
    } catch (error) {
      if (errnoOf(error) !== "EEXIST") throw error;
    }
    return openDirectoryBeneath(this.#directory, group);
  }

  #drop(fingerprint: ByteString): void {
    const parent = openDirectoryBeneath(this.#directory, fingerprint.slice(0, 2));
    try {
      unlinkAt(parent, fingerprint.slice(3));
    } finally {
      closeFile(parent);
    }
  }

  [Symbol.dispose](): void {
    closeFile(this.#directory);
  }
}

function isAsExpected(status: Statx, expected: LinkAttributes): boolean {
  return (
    status.size === expected.size &&
    status.mtimeSeconds === expected.mtimeSeconds &&
    status.mtimeNanoseconds === expected.mtimeNanoseconds &&
    status.mode === expected.mode &&
    status.uid === expected.uid &&
    status.gid === expected.gid
  );
}

const PIECE = 1 << 20;

/** What the name of a file in `ROOT/links` should be: all of it is read. Undefined when there is no such file. */
export function fingerprintOfFile(directory: number, fingerprint: ByteString): ByteString | undefined {
  let file: number;
  try {
    file = openFileBeneath(directory, fingerprint);
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return undefined;
    throw error;
  }
  try {
    const status = statDescriptor(file);
    const hasher = createHash("sha256");
    const piece = Buffer.allocUnsafe(Math.min(PIECE, Math.max(1, status.size)));
    for (let at = 0; at < status.size; ) {
      const count = readAt(file, piece, at);
      if (count === 0) break;
      hasher.update(piece.subarray(0, count));
      at += count;
    }
    const xattrs = readXattrs(file).filter(({ name }) => !isOfTheHost(name));
    return fingerprintOf(hasher.digest(), { ...status, xattrs });
  } finally {
    closeFile(file);
  }
}
