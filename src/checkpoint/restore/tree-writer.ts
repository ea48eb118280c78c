/**
 * A new directory tree from the entries of a tar. The directory is private and new, and only this writer changes it: a parent is
 * a directory that was made here, or the entry is refused. So nothing is ever written through a symlink.
 */
import { setImmediate } from "node:timers/promises";
import { type ByteString, displayBytes } from "../../bytes/index.ts";
import { errnoOf, FormatError, ShaleError } from "../../errors/index.ts";
import type { TarHeader } from "../../formats/tar/index.ts";
import {
  closeFile,
  createFileAt,
  DataMap,
  findAt,
  linkAt,
  type MoveOptions,
  makeDirectoryAt,
  makeNodeAt,
  makeSymlinkAt,
  moveRange,
  openDirectory,
  openDirectoryBeneath,
  openItselfAt,
  setModifiedTime,
  setModifiedTimeAt,
  setOwner,
  setOwnerAt,
  setPermissions,
  setPermissionsOfHandle,
  setXattrOf,
  setXattrOfHandle,
  truncate,
  unlinkAt,
  writeAt,
} from "../../sys/index.ts";
import { type ArchiveEntry, type Content, cleanPath, DATA_FROM, type FilePlace } from "../archive/index.ts";

/** What a directory gets when everything in it is there. */
export type Attributes = Pick<TarHeader, "mode" | "uid" | "gid" | "mtimeSeconds" | "mtimeNanoseconds" | "xattrs">;

export interface TreeWriterOptions {
  /** Of a directory that no entry is for, but something below it. */
  readonly parent: (path: ByteString) => Attributes;
  /** The name under which an attribute is kept. */
  readonly xattrName?: (name: ByteString) => ByteString;
  /** Whether data may be moved inside the kernel, unseen. */
  readonly inKernel: boolean;
  readonly signal?: AbortSignal;
}

export interface WrittenTotals {
  files: number;
  /** Bytes of content, and how many of them share their blocks with the archive. */
  bytes: number;
  cloned: number;
}

export const PLAIN_DIRECTORY: Attributes = {
  ...{ mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0, xattrs: [] },
};

const S_IFMT = 0o170000;
const S_IFDIR = 0o040000;
const NODES = { character: 0o020000, block: 0o060000, fifo: 0o010000 } as const;
const BLOCK = 4096;
/** Kernel copies are cut, so that a signal is heard between two of them. */
const SLICE = 256 * 1024 * 1024;
const ZEROS = Buffer.alloc(BLOCK);
const OPEN_DIRECTORIES = 32;
/** Directories are held in memory until their attributes are set. */
const DIRECTORIES_MAX = 500_000;

export class TreeWriter implements Disposable {
  readonly totals: WrittenTotals = { files: 0, bytes: 0, cloned: 0 };
  readonly #root: number;
  readonly #options: TreeWriterOptions;
  readonly #uid = process.geteuid?.() ?? 0;
  readonly #gid = process.getegid?.() ?? 0;
  readonly #umask = process.umask();
  /** In the order in which they were made; "" is the root. */
  readonly #directories = new Map<ByteString, Attributes>();
  readonly #open = new Map<ByteString, number>();
  #data: { readonly fd: number; readonly ranges: NonNullable<MoveOptions["data"]> } | undefined;

  /** `path` is an empty directory that nobody else uses. */
  constructor(path: string, options: TreeWriterOptions) {
    this.#root = openDirectory(path);
    this.#options = options;
    const attributes = options.parent("");
    this.#directories.set("", { ...attributes, xattrs: this.#kept(attributes.xattrs) });
  }

  hasDirectory(path: ByteString): boolean {
    return this.#directories.has(path);
  }

  /** Whether something that is no directory has this path. */
  hasFile(path: ByteString): boolean {
    const parent = parentOf(path);
    return this.#directories.has(parent) && !this.#directories.has(path) && this.#exists(parent, nameOf(path));
  }

  /**
   * Makes an entry; an earlier one of its path is replaced. FormatError for what leads through something else than a directory.
   * Nothing to await where the content is at hand.
   */
  add({ path, entry, content }: ArchiveEntry): void | Promise<void> {
    this.#options.signal?.throwIfAborted();
    if (entry.type === "directory") {
      this.#makeDirectory(path, entry);
      return;
    }
    if (path === "") throw new FormatError("checkpoint archive", '"./"', `is a ${entry.type}, and the root of a tree`);
    const directory = this.#parent(path);
    const name = nameOf(path);
    this.totals.files++;
    try {
      return this.#make(directory, name, path, entry, content);
    } catch (error) {
      if (errnoOf(error) !== "EEXIST") throw error;
      if (this.#directories.has(path)) throw notTwice(path, entry.type);
      unlinkAt(directory, name);
      return this.#make(directory, name, path, entry, content);
    }
  }

  /** As {@link add} for a file whose content was read already. */
  async addBytes(file: ArchiveEntry, bytes: Uint8Array): Promise<void> {
    let given = false;
    const once = () => {
      const next = given || bytes.length === 0 ? undefined : bytes;
      given = true;
      return next;
    };
    const none = () => undefined;
    const content = {
      remaining: bytes.length,
      place: () => undefined,
      read: once,
      skip: none,
      bytes: () => Promise.resolve(bytes),
    };
    await this.add({ ...file, content });
  }

  /** A directory that the archive has no entry for. */
  addDirectory(path: ByteString, attributes: Attributes): void {
    this.#makeDirectory(path, attributes);
  }

  /** A device 0/0: how overlayfs marks a deletion. */
  addWhiteout(path: ByteString): void {
    makeNodeAt(this.#parent(path), nameOf(path), NODES.character | 0o000, 0, 0);
  }

  /** Adds an attribute to a directory, which is made when it is missing. */
  addDirectoryXattr(path: ByteString, name: ByteString, value: ByteString): void {
    const attributes = this.#directories.get(path) ?? this.#implied(path);
    const others = attributes.xattrs.filter((each) => each.name !== name);
    this.#directories.set(path, { ...attributes, xattrs: [...others, { name, value }] });
  }

  /** Sets the attributes of all directories, those below before those above: what is made in one changes its time. */
  finish(): void {
    for (const [path, attributes] of [...this.#directories].reverse()) {
      const fd = path === "" ? this.#root : openDirectoryBeneath(this.#root, path);
      try {
        this.#setAttributes(fd, attributes, true);
      } catch (error) {
        throw attributeError(path, error);
      } finally {
        if (fd !== this.#root) closeFile(fd);
      }
    }
  }

  [Symbol.dispose](): void {
    for (const fd of this.#open.values()) closeFile(fd);
    this.#open.clear();
    closeFile(this.#root);
  }

  /** What it throws at once, EEXIST among it, comes before any content was read. */
  #make(
    directory: number,
    name: ByteString,
    path: ByteString,
    entry: ArchiveEntry["entry"],
    content: Content,
  ): void | Promise<void> {
    switch (entry.type) {
      case "file":
        return this.#makeFile(directory, name, path, entry, content);
      case "hardlink":
        this.#makeLink(name, path, entry.linkTarget);
        return;
      case "symlink":
        makeSymlinkAt(entry.linkTarget, directory, name);
        break;
      case "directory":
        throw new RangeError("a directory is no file");
      default:
        makeNodeAt(directory, name, NODES[entry.type] | entry.mode, entry.rdevMajor, entry.rdevMinor);
    }
    this.#setAttributesOf(directory, name, path, entry);
  }

  #makeFile(
    directory: number,
    name: ByteString,
    path: ByteString,
    entry: ArchiveEntry["entry"],
    content: Content,
  ): void | Promise<void> {
    const fd = createFileAt(directory, name, entry.mode & 0o777);
    let isFilling = false;
    try {
      const filling = this.#fill(fd, entry, content);
      isFilling = filling !== undefined;
      if (filling === undefined) this.#finishFile(fd, path, entry);
      else return filling.then(() => this.#finishFile(fd, path, entry)).finally(() => closeFile(fd));
    } finally {
      if (!isFilling) closeFile(fd);
    }
  }

  #finishFile(fd: number, path: ByteString, entry: ArchiveEntry["entry"]): void {
    this.totals.bytes += entry.size;
    try {
      this.#setAttributes(fd, entry, false);
    } catch (error) {
      throw attributeError(path, error);
    }
  }

  /** Content goes to its places; what no byte was stored for is a hole. */
  #fill(fd: number, entry: ArchiveEntry["entry"], content: Content): void | Promise<void> {
    const { size, segments } = entry;
    if (size === 0) return;
    if (segments !== undefined) return this.#fillSegments(fd, segments, size, content);
    const end = this.#fillRange(fd, 0, size, size, content);
    const finish = (last: number) => {
      if (last < size) truncate(fd, size);
    };
    return typeof end === "number" ? finish(end) : end.then(finish);
  }

  async #fillSegments(
    fd: number,
    segments: readonly { readonly offset: number; readonly length: number }[],
    size: number,
    content: Content,
  ): Promise<void> {
    let end = 0;
    for (const { offset, length } of segments) end = await this.#fillRange(fd, offset, length, size, content);
    if (end < size) truncate(fd, size);
  }

  /** Answers where the file ends so far. */
  #fillRange(fd: number, at: number, length: number, size: number, content: Content): number | Promise<number> {
    const place = this.#options.inKernel && size >= DATA_FROM ? content.place() : undefined;
    if (place === undefined) return this.#copyRange(fd, at, length, content);
    if (length > SLICE) return this.#moveSlices(fd, at, place, length, content);
    const end = this.#move(fd, at, place, length);
    const skipping = content.skip(length);
    return skipping === undefined ? end : skipping.then(() => end);
  }

  async #moveSlices(fd: number, at: number, place: FilePlace, length: number, content: Content): Promise<number> {
    let end = 0;
    for (let done = 0; done < length; done += SLICE) {
      await setImmediate(); // else no Ctrl-C comes through
      this.#options.signal?.throwIfAborted();
      const from = { fd: place.fd, offset: place.offset + done };
      end = this.#move(fd, at + done, from, Math.min(SLICE, length - done));
    }
    await content.skip(length);
    return end;
  }

  /** Answers where the file ends so far; 0 where its end may be a hole, and nothing has set the size. */
  #move(fd: number, at: number, place: FilePlace, length: number): number {
    const options = { blockSize: BLOCK, data: this.#dataOf(place.fd) };
    const { cloned, copied, written } = moveRange(place.fd, place.offset, fd, at, length, options);
    this.totals.cloned += cloned;
    return cloned + copied + written === length ? at + length : 0;
  }

  #copyRange(fd: number, at: number, length: number, content: Content): number | Promise<number> {
    let end = 0;
    for (let done = 0; done < length; ) {
      const given = content.read(length - done);
      if (given instanceof Promise) return this.#copyRest(fd, at, { done, length, end }, content, given);
      if (given === undefined) throw endsBefore();
      end = Math.max(end, writeData(fd, at + done, given));
      done += given.length;
    }
    return end;
  }

  async #copyRest(
    fd: number,
    at: number,
    from: { readonly done: number; readonly length: number; readonly end: number },
    content: Content,
    first: Promise<Uint8Array | undefined>,
  ): Promise<number> {
    let { done, end } = from;
    for (let given: ReturnType<Content["read"]> = first; ; given = content.read(from.length - done)) {
      const piece = await given;
      this.#options.signal?.throwIfAborted();
      if (piece === undefined) throw endsBefore();
      end = Math.max(end, writeData(fd, at + done, piece));
      done += piece.length;
      if (done >= from.length) return end;
    }
  }

  /** Of the archive: one file, however many of its members are read. */
  #dataOf(fd: number): NonNullable<MoveOptions["data"]> {
    if (this.#data?.fd !== fd) {
      const map = new DataMap(fd);
      this.#data = { fd, ranges: (offset, length) => map.ranges(offset, length) };
    }
    return this.#data.ranges;
  }

  #makeLink(name: ByteString, path: ByteString, target: ByteString): void {
    const fail = (problem: string) => {
      const shown = `hard link "${displayBytes(path)}" to "${displayBytes(target.slice(0, 200))}"`;
      return new FormatError("checkpoint archive", shown, problem);
    };
    const from = cleanPath(target, (problem) => fail(`its target ${problem}`));
    const parent = parentOf(from);
    if (from === "" || this.#directories.has(from)) throw fail("its target is a directory");
    if (from === path) throw fail("is a link to itself");
    if (!this.#directories.has(parent) || !this.#exists(parent, nameOf(from)))
      throw fail("its target is not in the archive before it");
    const fromDirectory = this.#directory(parent);
    linkAt(fromDirectory, nameOf(from), this.#directory(parentOf(path)), name);
  }

  #makeDirectory(path: ByteString, attributes: Attributes): void {
    if (!this.#directories.has(path)) this.#mkdir(path);
    const { mode, uid, gid, mtimeSeconds, mtimeNanoseconds, xattrs } = attributes;
    this.#directories.set(path, { mode, uid, gid, mtimeSeconds, mtimeNanoseconds, xattrs: this.#kept(xattrs) });
  }

  #implied(path: ByteString): Attributes {
    this.#mkdir(path);
    const attributes = this.#options.parent(path);
    return { ...attributes, xattrs: this.#kept(attributes.xattrs) };
  }

  #mkdir(path: ByteString): void {
    if (this.#directories.size >= DIRECTORIES_MAX) {
      const problem = `there are more than ${DIRECTORIES_MAX}`;
      throw new FormatError("checkpoint archive", "directories", problem, { code: "RESOURCE_EXHAUSTED" });
    }
    const directory = this.#parent(path);
    try {
      makeDirectoryAt(directory, nameOf(path));
    } catch (error) {
      if (errnoOf(error) === "EEXIST") throw notTwice(path, "directory");
      throw error;
    }
  }

  /** The open directory that `path` is in; made, with all above it, when it is missing. */
  #parent(path: ByteString): number {
    const parent = parentOf(path);
    if (!this.#directories.has(parent)) this.#directories.set(parent, this.#implied(parent));
    return this.#directory(parent);
  }

  #directory(path: ByteString): number {
    if (path === "") return this.#root;
    const known = this.#open.get(path);
    if (known !== undefined) {
      this.#open.delete(path); // to the end: what was used last is closed last
      this.#open.set(path, known);
      return known;
    }
    const fd = openDirectoryBeneath(this.#root, path);
    if (this.#open.size >= OPEN_DIRECTORIES) {
      const [oldest, oldFd] = this.#open.entries().next().value!;
      this.#open.delete(oldest);
      closeFile(oldFd);
    }
    this.#open.set(path, fd);
    return fd;
  }

  #exists(directory: ByteString, name: ByteString): boolean {
    return findAt(this.#directory(directory), name) !== undefined;
  }

  #kept(xattrs: TarHeader["xattrs"]): TarHeader["xattrs"] {
    const { xattrName } = this.#options;
    if (xattrName === undefined || xattrs.length === 0) return xattrs;
    return xattrs.map(({ name, value }) => ({ name: xattrName(name), value }));
  }

  /** The owner first: a change of it takes set-user-ID bits and capabilities away. */
  #setAttributes(fd: number, attributes: Attributes, isDirectory: boolean): void {
    const { uid, gid, mode } = attributes;
    const owned = uid === this.#uid && gid === this.#gid;
    if (!owned) setOwner(fd, uid, gid);
    const created = isDirectory ? 0o700 : mode & 0o777 & ~this.#umask;
    if (isDirectory || !owned || created !== mode) setPermissions(fd, mode);
    const xattrs = isDirectory ? attributes.xattrs : this.#kept(attributes.xattrs);
    for (const { name, value } of xattrs) setXattrOf(fd, Buffer.from(name, "latin1"), Buffer.from(value, "latin1"));
    setModifiedTime(fd, attributes.mtimeSeconds, attributes.mtimeNanoseconds);
  }

  /** Of a symlink or device, which can't be opened. */
  #setAttributesOf(directory: number, name: ByteString, path: ByteString, entry: TarHeader): void {
    try {
      if (entry.uid !== this.#uid || entry.gid !== this.#gid) setOwnerAt(directory, name, entry.uid, entry.gid);
      if (entry.type !== "symlink" || entry.xattrs.length > 0) {
        const handle = openItselfAt(directory, name);
        try {
          if (entry.type !== "symlink") setPermissionsOfHandle(handle, entry.mode);
          for (const { name: key, value } of this.#kept(entry.xattrs)) {
            setXattrOfHandle(handle, Buffer.from(key, "latin1"), Buffer.from(value, "latin1"));
          }
        } finally {
          closeFile(handle);
        }
      }
      setModifiedTimeAt(directory, name, entry.mtimeSeconds, entry.mtimeNanoseconds);
    } catch (error) {
      throw attributeError(path, error);
    }
  }
}

function endsBefore(): RangeError {
  return new RangeError("content ends before its entry");
}

/** Writes what is not zero, block by block: the file is new, so the rest is a hole. Answers the end of what was written. */
function writeData(fd: number, at: number, piece: Uint8Array): number {
  const bytes = Buffer.from(piece.buffer, piece.byteOffset, piece.byteLength);
  let end = 0;
  let start = 0;
  const flush = (stop: number) => {
    if (stop <= start) return;
    writeAt(fd, bytes.subarray(start, stop), at + start);
    end = at + stop;
  };
  for (let i = 0; i < bytes.length; ) {
    const stop = Math.min(bytes.length, i + BLOCK - ((at + i) % BLOCK)); // a piece may begin and end inside of a block
    if (bytes[i] === 0 && bytes.compare(ZEROS, 0, stop - i, i, stop) === 0) {
      flush(i);
      start = stop;
    }
    i = stop;
  }
  flush(bytes.length);
  return end;
}

export function parentOf(path: ByteString): ByteString {
  return path.slice(0, Math.max(0, path.lastIndexOf("/")));
}

function nameOf(path: ByteString): ByteString {
  return path.slice(path.lastIndexOf("/") + 1);
}

function notTwice(path: ByteString, type: string): FormatError {
  const problem = `is a ${type} here, and was something else before: one of the two would be lost`;
  return new FormatError("checkpoint archive", `"${displayBytes(path)}"`, problem);
}

function attributeError(path: ByteString, cause: unknown): unknown {
  const errno = errnoOf(cause);
  if (errno === undefined) return cause;
  if (errno === "ENOSPC" || errno === "EDQUOT" || errno === "EIO") return cause;
  const hint =
    errno === "EPERM"
      ? "Restoring owners and trusted attributes needs root"
      : "Restore to a file system that has owners, times and extended attributes (ext4, XFS, btrfs)";
  const message = `Cannot restore the attributes of ${displayBytes(path) || "the root"}: ${(cause as Error).message}`;
  return new ShaleError(errno === "EPERM" ? "PERMISSION_DENIED" : "FAILED_PRECONDITION", message, { cause, hint });
}

export function isDirectoryMode(mode: number): boolean {
  return (mode & S_IFMT) === S_IFDIR;
}
