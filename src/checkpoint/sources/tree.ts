/** A directory tree as it lies on disk: a volume, /dev/shm, CRIU's images. One descriptor and one listing at a time. */
import { type ByteString, displayBytes } from "../../bytes/index.ts";
import { ShaleError } from "../../errors/index.ts";
import type { TarEntryType, TarHeader } from "../../formats/tar/index.ts";
import {
  closeFile,
  findAt,
  listDirectory,
  openDirectory,
  openDirectoryBeneath,
  openFileBeneath,
  readLinkAt,
  readXattrsAt,
  type Statx,
  statDescriptor,
} from "../../sys/index.ts";
import { changed, type EntrySource, openUnchanged, type SourceContent, type SourceEntry } from "./entry.ts";

/** One name of a tree. */
export interface TreeFile {
  /** Relative; "" is the root. */
  readonly path: ByteString;
  readonly type: TarEntryType | "socket";
  readonly status: Statx;
  readonly xattrs: TarHeader["xattrs"];
  /** Of a symlink; else "". */
  readonly target: ByteString;
}

/** A directory and what is in it. */
export interface TreeDirectory {
  readonly directory: TreeFile;
  /** In byte order of their names. Directories among them come again as `directory`: the first one next. */
  readonly files: readonly TreeFile[];
}

const S_IFMT = 0o170000;
const TYPES: ReadonlyMap<number, TarEntryType | "socket"> = new Map([
  [0o100000, "file"],
  [0o040000, "directory"],
  [0o120000, "symlink"],
  [0o020000, "character"],
  [0o060000, "block"],
  [0o010000, "fifo"],
  [0o140000, "socket"],
]);

/** An open tree: what is opened later is opened beneath it. */
export class Tree implements Disposable {
  readonly path: string;
  readonly fd: number;
  #open = true;

  /** NOT_FOUND or FAILED_PRECONDITION when `path` is no directory; `what` names it in the message. */
  constructor(path: string, what: string) {
    this.path = path;
    try {
      this.fd = openDirectory(path);
    } catch (cause) {
      const code = cause instanceof Error && "code" in cause ? cause.code : undefined;
      if (code !== "ENOENT" && code !== "ENOTDIR") throw cause;
      const state = code === "ENOENT" ? "there is no such directory" : "it is no directory";
      throw new ShaleError(
        code === "ENOENT" ? "NOT_FOUND" : "FAILED_PRECONDITION",
        `Cannot read ${what} ${path}: ${state}`,
        {
          cause,
        },
      );
    }
  }

  /**
   * Directory by directory, one before those in it, and nothing else between: GNU tar sets a directory's time when it meets the
   * first name outside of it. Only what `into` says yes to is entered. ABORTED when a name goes away meanwhile.
   */
  *walk(into: (directory: TreeFile) => boolean = () => true): Generator<TreeDirectory, void, undefined> {
    const root = this.#describe(this.fd, "", "", statDescriptor(this.fd));
    const waiting: TreeFile[] = [root];
    for (let directory = waiting.pop(); directory !== undefined; directory = waiting.pop()) {
      const files = this.#list(directory.path);
      yield { directory, files };
      for (const file of files.toReversed()) if (file.type === "directory" && into(file)) waiting.push(file);
    }
  }

  /** What a file's content is read from. */
  content(file: TreeFile): SourceContent {
    return {
      open: () => openUnchanged(openFileBeneath(this.fd, file.path), file.status, file.path),
    };
  }

  [Symbol.dispose](): void {
    if (this.#open) closeFile(this.fd);
    this.#open = false;
  }

  #list(path: ByteString): TreeFile[] {
    const fd = path === "" ? this.fd : openDirectoryBeneath(this.fd, path);
    try {
      const names = listDirectory(fd).map(({ name }) => name);
      return names.sort().map((name) => {
        const below = path === "" ? name : `${path}/${name}`;
        const status = findAt(fd, name);
        if (status === undefined) throw changed(below);
        return this.#describe(fd, name, below, status);
      });
    } finally {
      if (fd !== this.fd) closeFile(fd);
    }
  }

  #describe(directory: number, name: ByteString, path: ByteString, status: Statx): TreeFile {
    const type = TYPES.get(status.mode & S_IFMT);
    if (type === undefined) throw new RangeError(`mode ${status.mode.toString(8)} of ${displayBytes(path)}`);
    return {
      path,
      type,
      status,
      xattrs: readXattrsAt(directory, name),
      target: type === "symlink" ? readLinkAt(directory, name) : "",
    };
  }
}

/** Finds names of one file: the second and later ones are hard links to the first. */
export class LinkFinder {
  readonly #first = new Map<string, ByteString>();

  /** The path that has the file already; undefined for the first. */
  find({ path, type, status }: TreeFile): ByteString | undefined {
    if (status.links < 2 || type === "directory") return undefined;
    const key = `${status.device} ${status.ino}`;
    const first = this.#first.get(key);
    if (first === undefined) this.#first.set(key, path);
    return first;
  }
}

/** The header of a file; `linked` is the path that it is a hard link to. Sockets have none: no tar can say them. */
export function headerOf(file: TreeFile, linked?: ByteString, xattrs = file.xattrs): TarHeader {
  const { status } = file;
  const type = linked === undefined ? file.type : "hardlink";
  if (type === "socket") throw new RangeError("header of a socket");
  return {
    type,
    path: file.path === "" ? "." : file.path,
    linkTarget: linked ?? file.target,
    mode: status.mode & 0o7777,
    uid: status.uid,
    gid: status.gid,
    size: type === "file" ? status.size : 0,
    mtimeSeconds: status.mtimeSeconds,
    mtimeNanoseconds: status.mtimeNanoseconds,
    rdevMajor: type === "character" || type === "block" ? status.rdevMajor : 0,
    rdevMinor: type === "character" || type === "block" ? status.rdevMinor : 0,
    xattrs: linked === undefined ? xattrs : [],
  };
}

/**
 * All of a tree, its root as ".". Sockets are left out: what is bound to them is made again by CRIU, and podman leaves them
 * out too.
 */
export function treeSource(tree: Tree): EntrySource {
  return {
    *entries(): Generator<SourceEntry, void, undefined> {
      const links = new LinkFinder();
      for (const { directory, files } of tree.walk()) {
        yield { header: headerOf(directory) };
        for (const file of files) {
          if (file.type === "socket" || file.type === "directory") continue;
          const linked = links.find(file);
          const header = headerOf(file, linked);
          yield header.type === "file" && header.size > 0 ? { header, content: tree.content(file) } : { header };
        }
      }
    },
  };
}
