/**
 * Fills directories: everything that a directory names is made in it, then the directory gets its own owner, mode, xattrs and
 * times, which nothing later changes; those below it are further tasks. So any number of threads can share the tasks of a
 * checkout, and none of them holds more than the names of the directories that it has still to fill.
 */
import { type ByteString, displayBytes } from "../bytes/index.ts";
import { errnoOf, ShaleError } from "../errors/index.ts";
import type { ErofsInode } from "../formats/erofs/index.ts";
import { FileType, type Xattr } from "../formats/layer-index/index.ts";
import {
  closeFile,
  linkAt,
  makeDirectoryAt,
  makeNodeAt,
  makeSymlinkAt,
  openDirectoryBeneath,
  unlinkAt,
} from "../sys/index.ts";
import { Attributes, attributesOf } from "./attributes.ts";
import { FileWriter } from "./file-writer.ts";
import { impliedBy } from "./implied.ts";
import { Losses, newTally } from "./losses.ts";
import { createClone, OpenTree } from "./open-tree.ts";
import {
  BYTES_DONE,
  type CheckoutJob,
  type DirectoryTask,
  FILES_DONE,
  type Tally,
  type ThreadResult,
} from "./protocol.ts";

const PERMISSIONS = 0o7777;
const OWNER_MAY_ALL = 0o700;
/** As the reader's: far beyond any path that a system call takes, and an end for the loops of a damaged image. */
const MAX_PATH = 1 << 20;

export class TreeWriter implements Disposable {
  readonly #job: CheckoutJob;
  readonly #control: BigInt64Array;
  readonly #tally: Tally = newTally();
  readonly #losses: Losses;
  readonly #attributes: Attributes;
  readonly #files: FileWriter;
  readonly #trees: OpenTree[] = [];
  /** Directories of each tree that this thread was given. */
  readonly #filled: number[] = [];
  readonly #closed: { readonly path: ByteString; readonly mode: number }[] = [];
  #told = 0;

  constructor(job: CheckoutJob) {
    this.#job = job;
    this.#control = new BigInt64Array(job.control);
    this.#losses = new Losses(this.#tally.losses);
    this.#attributes = new Attributes(job.rights, job.layers, this.#losses);
    this.#files = new FileWriter(job, this.#tally, this.#attributes);
  }

  /** Fills one directory and answers those that it made in it. Throws CANCELLED when the checkout is to stop. */
  fill(task: DirectoryTask): DirectoryTask[] {
    const tree = this.#tree(task.tree);
    const { reader } = tree;
    const inode = reader.inode(task.nid);
    if (this.#job.cloning) return this.#clone(tree, task, inode);
    this.#checkSize(tree, task);
    const directory = openDirectoryBeneath(this.#job.root, task.path);
    try {
      const children: DirectoryTask[] = [];
      let done = 0;
      for (const { name, nid } of reader.directory(inode)) {
        this.#files.throwIfStopped();
        const child = reader.inode(nid);
        const path = task.path === "" ? name : `${task.path}/${name}`;
        if ((child.mode & FileType.MASK) === FileType.DIRECTORY) {
          makeDirectoryAt(directory, name, OWNER_MAY_ALL);
          children.push({ tree: task.tree, nid, path, inside: task.inside === "" ? name : `${task.inside}/${name}` });
        } else if (child.links > 1) this.#writeLinked(task.tree, directory, name, child, path);
        else this.#write(tree, directory, name, child, path);
        done++;
      }
      // The checkout's own root stays closed to others until all is in it.
      if (task.path !== "") this.#finish(directory, task, inode);
      this.#tally.directories++;
      this.#tell(done);
      return children;
    } finally {
      closeFile(directory);
    }
  }

  /** The first pass of a checkout by reflink: contents only, each inode's once, into the directory of clones. */
  #clone(tree: OpenTree, task: DirectoryTask, directory: ErofsInode): DirectoryTask[] {
    this.#checkSize(tree, task);
    this.#tally.directories++;
    const children: DirectoryTask[] = [];
    for (const { name, nid } of tree.reader.directory(directory)) {
      this.#files.throwIfStopped();
      const inode = tree.reader.inode(nid);
      const type = inode.mode & FileType.MASK;
      if (type === FileType.DIRECTORY) children.push({ ...task, nid, path: `${task.path}/${name}` });
      if (type !== FileType.REGULAR || inode.size === 0) continue;
      const file = createClone(tree.clones!, nid);
      if (file === undefined) continue; // another name of the same inode
      try {
        this.#files.writeContent(tree, file, inode);
      } finally {
        closeFile(file);
      }
    }
    return children;
  }

  /** Closes what it has open. */
  finish(): ThreadResult {
    this[Symbol.dispose]();
    return {
      tally: this.#tally,
      losses: this.#losses.listed,
      closed: this.#closed,
      fallbacks: [...this.#files.fallbacks],
    };
  }

  /** An image that is damaged may lead in circles: more directories than it has inodes are too many. */
  #checkSize({ reader }: OpenTree, { tree, path, nid }: DirectoryTask): void {
    const filled = (this.#filled[tree] ?? 0) + 1;
    this.#filled[tree] = filled;
    if (path.length <= MAX_PATH && filled <= reader.superblock.inodeCount) return;
    throw new ShaleError("DATA_LOSS", `Cannot check out inode ${nid}: the image's directories lead in circles`, {
      hint: "Run shale check --repair",
    });
  }

  #tree(number: number): OpenTree {
    let tree = this.#trees[number];
    if (tree === undefined) {
      tree = new OpenTree(this.#job.trees[number]!);
      this.#trees[number] = tree;
    }
    return tree;
  }

  #finish(directory: number, task: DirectoryTask, inode: ErofsInode): void {
    const { wanted, xattrs } = this.#directory(task, inode);
    const full = this.#attributes.wanted(wanted, xattrs, task.path);
    const { privileged, umask } = this.#job.rights;
    const created = OWNER_MAY_ALL & ~umask;
    if (privileged || (full.mode & OWNER_MAY_ALL) === OWNER_MAY_ALL) {
      this.#attributes.applyTo(directory, full, created, task.path);
      return;
    }
    this.#closed.push({ path: task.path, mode: full.mode & PERMISSIONS });
    this.#attributes.applyTo(directory, { ...full, mode: full.mode | OWNER_MAY_ALL }, created, task.path);
  }

  /** A directory that a layer only implies looks as the layers below have it. */
  #directory(task: DirectoryTask, inode: ErofsInode) {
    const xattrs = this.#tree(task.tree).reader.xattrs(inode);
    if (!this.#job.layers) return { wanted: attributesOf(inode), xattrs };
    const lower = (number: number) => this.#tree(number).reader;
    const from = impliedBy(lower, task.tree, task.inside, xattrs);
    if (from === undefined) return { wanted: attributesOf(inode), xattrs };
    const own = xattrs.filter(({ name }) => isMark(name));
    return { wanted: attributesOf(from.inode), xattrs: [...from.xattrs.filter(({ name }) => !isMark(name)), ...own] };
  }

  /** The first name of an inode is made, and kept in the pool under its number for the others, whichever thread meets them. */
  #writeLinked(number: number, directory: number, name: ByteString, inode: ErofsInode, path: ByteString): void {
    const { pool } = this.#job;
    const key = `${number}-${inode.nid}`;
    if (this.#linkFromPool(key, directory, name)) {
      this.#count(inode);
      return;
    }
    this.#write(this.#tree(number), directory, name, inode, path);
    try {
      linkAt(directory, name, pool, key);
    } catch (error) {
      if (errnoOf(error) === "ENOENT") return; // a device or symlink that could not be made
      if (errnoOf(error) !== "EEXIST") throw explainLink(error, path);
      unlinkAt(directory, name); // another thread was faster
      this.#linkFromPool(key, directory, name);
    }
  }

  #linkFromPool(key: string, directory: number, name: ByteString): boolean {
    try {
      linkAt(this.#job.pool, key, directory, name);
      return true;
    } catch (error) {
      if (errnoOf(error) === "ENOENT") return false;
      throw explainLink(error, name);
    }
  }

  #write(tree: OpenTree, directory: number, name: ByteString, inode: ErofsInode, path: ByteString): void {
    const wanted = this.#attributes.wanted(attributesOf(inode), tree.reader.xattrs(inode), path);
    switch (inode.mode & FileType.MASK) {
      case FileType.REGULAR:
        this.#files.write(tree, directory, name, inode, wanted, path);
        break;
      case FileType.SYMLINK:
        if (!this.#makeSymlink(tree.reader.readlink(inode), directory, name, path)) return;
        this.#attributes.applyAt(directory, name, wanted, path);
        break;
      default:
        if (!this.#makeNode(directory, name, inode, path)) return;
        this.#attributes.applyAt(directory, name, wanted, path);
    }
    this.#count(inode);
  }

  #makeSymlink(target: ByteString, directory: number, name: ByteString, path: ByteString): boolean {
    try {
      makeSymlinkAt(target, directory, name);
      return true;
    } catch (error) {
      if (errnoOf(error) !== "ENAMETOOLONG") throw error; // XFS takes 1024 bytes, others a block
      this.#losses.add("symlink", path, `${target.length} bytes`);
      return false;
    }
  }

  #makeNode(directory: number, name: ByteString, inode: ErofsInode, path: ByteString): boolean {
    const { mode, rdevMajor, rdevMinor } = inode;
    try {
      makeNodeAt(directory, name, mode, rdevMajor, rdevMinor);
      return true;
    } catch (error) {
      if (!["EPERM", "EACCES", "EINVAL"].includes(errnoOf(error) ?? "")) throw error;
      this.#losses.add("device", path, `${rdevMajor}:${rdevMinor}`);
      return false;
    }
  }

  #count(inode: ErofsInode): void {
    const type = inode.mode & FileType.MASK;
    if (type === FileType.SYMLINK) this.#tally.symlinks++;
    else if (type !== FileType.REGULAR) this.#tally.others++;
    else {
      this.#tally.files++;
      this.#tally.bytes += inode.size;
    }
  }

  #tell(names: number): void {
    Atomics.add(this.#control, FILES_DONE, BigInt(names));
    Atomics.add(this.#control, BYTES_DONE, BigInt(this.#tally.bytes - this.#told));
    this.#told = this.#tally.bytes;
  }

  [Symbol.dispose](): void {
    this.#files[Symbol.dispose]();
    for (const tree of this.#trees.splice(0)) tree?.[Symbol.dispose]();
  }
}

function isMark(name: Xattr["name"]): boolean {
  return name.startsWith("trusted.overlay.");
}

function explainLink(error: unknown, path: ByteString): unknown {
  if (errnoOf(error) !== "EMLINK") return error;
  return new ShaleError(
    "FAILED_PRECONDITION",
    `Cannot write ${displayBytes(path)}: the image gives one file more names than this file system takes`,
    { cause: error },
  );
}
