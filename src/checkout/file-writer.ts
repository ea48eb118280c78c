/**
 * One regular file into a directory, by the cheapest means that works: a link to what another checkout has, blocks shared with
 * the store, a copy. A means that the file systems do not have is given up for the rest of the checkout, and named.
 */
import type { ByteString } from "../bytes/index.ts";
import { errnoOf, ShaleError } from "../errors/index.ts";
import type { ErofsExtent, ErofsInode } from "../formats/erofs/index.ts";
import { fingerprintOf, isOfTheHost, LinkSources } from "../store/link-sources.ts";
import {
  closeFile,
  copyRange,
  createFileAt,
  dataRanges,
  findAt,
  reflinkFile,
  shareRange,
  truncate,
  writeAt,
} from "../sys/index.ts";
import type { Attributes, Wanted } from "./attributes.ts";
import { type Blob, openClone, type OpenTree } from "./open-tree.ts";
import { PAYLOAD_ALIGNMENT } from "../formats/payload-table/index.ts";
import { type CheckoutJob, STOP, type Tally } from "./protocol.ts";

/** Copied between two looks at whether to stop. */
const PIECE_SIZE = 64 * 1024 * 1024;
/** The store makes holes of runs of zeros from this size on: a smaller file has none. */
const SMALLEST_HOLE = 64 * 1024;
/** Names that a source may get by a file with several: ext4 takes 65,000, btrfs 65,535. */
const MAXIMUM_LINKS = 32_000;
/** This pair of places can't do it, so no later file will. */
const NEVER = new Set(["EXDEV", "EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "ENOTTY", "EINVAL"]);

export class FileWriter implements Disposable {
  readonly #job: CheckoutJob;
  readonly #control: BigInt64Array;
  readonly #tally: Tally;
  readonly #attributes: Attributes;
  readonly #sources: LinkSources | undefined;
  readonly fallbacks = new Set<string>();
  #hardlink: boolean;

  constructor(job: CheckoutJob, tally: Tally, attributes: Attributes) {
    this.#job = job;
    this.#control = new BigInt64Array(job.control);
    this.#tally = tally;
    this.#attributes = attributes;
    this.#sources = job.sources === undefined ? undefined : new LinkSources(job.sources);
    this.#hardlink = this.#sources !== undefined;
  }

  /** `name` must be free in `directory`. */
  write(
    tree: OpenTree,
    directory: number,
    name: ByteString,
    inode: ErofsInode,
    wanted: Wanted,
    path: ByteString,
  ): void {
    // An empty file shares nothing worth a link; one with labels of the host would not be found again.
    const shares = this.#hardlink && inode.size > 0 && !wanted.xattrs.some((xattr) => isOfTheHost(xattr.name));
    const fingerprint = shares ? fingerprintOf(tree.digest(inode), wanted) : undefined;
    const options = {
      // An inode with several names must find room for all of them.
      maximumLinks: inode.links > 1 ? Math.max(0, MAXIMUM_LINKS - inode.links) : Infinity,
      verify: this.#job.verify,
    };
    if (
      fingerprint !== undefined &&
      this.#unlessImpossible(() => this.#sources!.link(fingerprint, wanted, directory, name, options))
    ) {
      this.#tally.linked++;
      this.#tally.linkedBytes += inode.size;
      return;
    }
    const complete = this.#create(tree, directory, name, inode, wanted, path);
    // One that lacks something would be a source that is not what its name says.
    if (fingerprint === undefined || !complete || !this.#hardlink) return;
    if (this.#unlessImpossible(() => this.#sources!.publish(fingerprint, wanted, directory, name, options))) {
      this.#tally.published++;
    } else if (findAt(directory, name) === undefined) {
      // Given up for another's source, which could not be linked then.
      this.#create(tree, directory, name, inode, wanted, path);
    }
  }

  #unlessImpossible(run: () => boolean): boolean {
    try {
      return run();
    } catch (error) {
      const code = errnoOf(error) ?? "";
      if (code !== "EMLINK" && !NEVER.has(code)) throw error;
      if (code !== "EMLINK") this.#hardlink = false;
      this.fallbacks.add(`hardlink: ${code}`);
      return false;
    }
  }

  /** False when it is not all that is wanted. */
  #create(
    tree: OpenTree,
    directory: number,
    name: ByteString,
    inode: ErofsInode,
    wanted: Wanted,
    path: ByteString,
  ): boolean {
    const mode = wanted.mode & 0o777; // set-ID bits come after the owner
    const file = createFileAt(directory, name, mode);
    try {
      if (inode.size > 0) this.#count(this.#fill(tree, file, inode), inode.size);
      return this.#attributes.applyTo(file, wanted, this.#attributes.created(mode), path);
    } finally {
      closeFile(file);
    }
  }

  #count(how: "copied" | "reflinked", size: number): void {
    this.#tally[how]++;
    this.#tally[`${how}Bytes`] += size;
  }

  #fill(tree: OpenTree, file: number, inode: ErofsInode): "copied" | "reflinked" {
    if (tree.clones !== undefined && this.#shareClone(tree.clones, file, inode.nid)) return "reflinked";
    return this.writeContent(tree, file, inode);
  }

  /** False when there is none. */
  #shareClone(clones: number, file: number, nid: number): boolean {
    let clone: number;
    try {
      clone = openClone(clones, nid);
    } catch (error) {
      if (errnoOf(error) !== "ENOENT") throw error;
      return false;
    }
    try {
      reflinkFile(clone, file);
      return true;
    } finally {
      closeFile(clone);
    }
  }

  /** Content from blob or image into an empty file. Whole blocks are shared where they can be, the rest is copied. */
  writeContent(tree: OpenTree, file: number, inode: ErofsInode): "copied" | "reflinked" {
    const extent = tree.extent(inode);
    if (extent === undefined) {
      writeAt(file, tree.reader.read(inode, 0, inode.size), 0);
      return "copied";
    }
    const blob = tree.blob(extent.device);
    const shared = this.#job.reflink ? extent.length - (extent.length % PAYLOAD_ALIGNMENT) : 0;
    // Sharing the last block and cutting it to size would copy it, and on XFS wait for the disk.
    if (shared > 0) shareRange(blob.file, extent.offset, file, 0, shared);
    this.#copy(blob, extent, file, shared);
    return shared > 0 ? "reflinked" : "copied";
  }

  #copy(blob: Blob, { offset, length }: ErofsExtent, file: number, from: number): void {
    const sparse = blob.sparse && length - from >= SMALLEST_HOLE;
    for (let done = from; done < length; done += PIECE_SIZE) {
      const size = Math.min(PIECE_SIZE, length - done);
      if (done > from) this.throwIfStopped();
      const ranges = sparse ? dataRanges(blob.file, offset + done, size) : [{ offset: offset + done, length: size }];
      for (const range of ranges) {
        copyRange(blob.file, range.offset, file, range.offset - offset, range.length, { reflink: false });
      }
    }
    if (sparse) truncate(file, length);
  }

  throwIfStopped(): void {
    if (Atomics.load(this.#control, STOP) !== 0n) throw new ShaleError("CANCELLED", "Stopped on request");
  }

  [Symbol.dispose](): void {
    this.#tally.replaced += this.#sources?.replaced ?? 0;
    this.#sources?.[Symbol.dispose]();
  }
}
