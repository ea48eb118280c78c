/**
 * One regular file into a directory, by the cheapest means that works: a link to what another checkout has, blocks shared with
 * the store, a copy. A means that the file systems do not have is given up for the rest of the checkout, and named.
 */
import { type ByteString, alignUp } from "../bytes/index.ts";
import { errnoOf, ShaleError } from "../errors/index.ts";
import type { ErofsExtent, ErofsInode } from "../formats/erofs/index.ts";
import { fingerprintOf, isOfTheHost, LinkSources } from "../store/link-sources.ts";
import {
  closeFile,
  copyRange,
  createFileAt,
  dataRanges,
  shareRange,
  truncate,
  writeAt,
} from "../sys/index.ts";
import type { Attributes, Wanted } from "./attributes.ts";
import type { Blob, OpenTree } from "./open-tree.ts";
import { PAYLOAD_ALIGNMENT } from "../formats/payload-table/index.ts";
import { BYTES_DONE, type CheckoutJob, STOP, type Tally } from "./protocol.ts";

/** Copied between two looks at whether to stop. */
const PIECE_SIZE = 64 * 1024 * 1024;
/** The store makes holes of runs of zeros from this size on: a smaller file has none. */
const SMALLEST_HOLE = 64 * 1024;
/** A source of a file with several names must have room for all of them: ext4 takes 65,000, btrfs 65,535. */
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
  #reflink: boolean;

  constructor(job: CheckoutJob, tally: Tally, attributes: Attributes) {
    this.#job = job;
    this.#control = new BigInt64Array(job.control);
    this.#tally = tally;
    this.#attributes = attributes;
    this.#sources = job.sources === undefined ? undefined : new LinkSources(job.sources);
    this.#hardlink = this.#sources !== undefined;
    this.#reflink = job.link !== "copy";
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
    if (fingerprint !== undefined && this.#link(fingerprint, wanted, directory, name, inode.links)) {
      this.#tally.linked++;
      this.#tally.linkedBytes += inode.size;
      return;
    }
    this.#create(tree, directory, name, inode, wanted, path);
    if (fingerprint === undefined || !this.#hardlink) return;
    if (this.#publish(fingerprint, wanted, directory, name)) return;
    this.#create(tree, directory, name, inode, wanted, path);
  }

  #link(fingerprint: ByteString, wanted: Wanted, directory: number, name: ByteString, links: number): boolean {
    const maximumLinks = links > 1 ? Math.max(0, MAXIMUM_LINKS - links) : Infinity;
    return this.#unlessImpossible(() =>
      this.#sources!.link(fingerprint, wanted, directory, name, { maximumLinks, verify: this.#job.verify }),
    );
  }

  /** False when the name is free again. */
  #publish(fingerprint: ByteString, wanted: Wanted, directory: number, name: ByteString): boolean {
    let gone = false;
    this.#unlessImpossible(() => {
      gone = !this.#sources!.publish(fingerprint, wanted, directory, name);
      return true;
    });
    return !gone;
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

  #create(
    tree: OpenTree,
    directory: number,
    name: ByteString,
    inode: ErofsInode,
    wanted: Wanted,
    path: ByteString,
  ): void {
    const mode = wanted.mode & 0o777; // set-ID bits come after the owner
    const file = createFileAt(directory, name, mode);
    try {
      if (inode.size > 0) this.#fill(tree, file, inode);
      this.#attributes.applyTo(file, wanted, this.#attributes.created(mode), path);
    } finally {
      closeFile(file);
    }
  }

  #fill(tree: OpenTree, file: number, inode: ErofsInode): void {
    const extent = tree.extent(inode);
    if (extent === undefined) {
      writeAt(file, tree.reader.read(inode, 0, inode.size), 0);
      this.#count("copied", inode.size);
      return;
    }
    const blob = tree.blob(extent.device);
    if (this.#reflink && inode.size > PAYLOAD_ALIGNMENT && this.#share(blob, extent, file)) {
      this.#count("reflinked", inode.size);
      return;
    }
    this.#copy(blob, extent, file);
    this.#count("copied", inode.size);
  }

  #count(how: "copied" | "reflinked", size: number): void {
    this.#tally[how]++;
    this.#tally[`${how}Bytes`] += size;
  }

  #share(blob: Blob, { offset, length }: ErofsExtent, file: number): boolean {
    try {
      shareRange(blob.file, offset, file, 0, alignUp(length, PAYLOAD_ALIGNMENT));
    } catch (error) {
      const code = errnoOf(error) ?? "";
      if (!NEVER.has(code)) throw error;
      this.#reflink = false;
      if (this.#job.link !== "auto") this.fallbacks.add(`reflink: ${code}`);
      return false;
    }
    if (length % PAYLOAD_ALIGNMENT !== 0) truncate(file, length); // the blob's padding
    return true;
  }

  #copy(blob: Blob, { offset, length }: ErofsExtent, file: number): void {
    const sparse = blob.sparse && length >= SMALLEST_HOLE;
    for (let done = 0; done < length; done += PIECE_SIZE) {
      const size = Math.min(PIECE_SIZE, length - done);
      if (done > 0) this.throwIfStopped();
      const ranges = sparse ? dataRanges(blob.file, offset + done, size) : [{ offset: offset + done, length: size }];
      for (const range of ranges) {
        copyRange(blob.file, range.offset, file, range.offset - offset, range.length, { reflink: false });
      }
      if (length > PIECE_SIZE) Atomics.add(this.#control, BYTES_DONE, BigInt(size));
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
