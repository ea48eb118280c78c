/**
 * The changes of a container: an overlay's upper directory as what podman keeps in rootfs-diff.tar and deleted.files.
 *
 * Everything that the upper directory has is an entry, directories that were only copied up included: so ownership,
 * permissions and times of image directories are kept, which podman itself loses. Deletions are whiteouts, and all that an
 * opaque directory hides: podman knows no opaque directories, and removes what is in deleted.files after it has unpacked
 * the tar, so that a path may never be in both.
 */
import { type ByteString, displayBytes } from "../../bytes/index.ts";
import { ShaleError } from "../../errors/index.ts";
import type { EntrySource, SourceContent, SourceEntry } from "./entry.ts";
import { type LowerLayers, redirectedDirectory } from "./lower.ts";
import { isOpaque, isWhiteout, overlayXattr, visibleXattrs } from "./overlay.ts";
import { headerOf, LinkFinder, type Tree, type TreeFile } from "./tree.ts";

/** Deletions and opaque directories of one upper directory; each is in memory, in the plan and in the archive. */
const MARKS_MAX = 1_000_000;

export interface UpperMarks {
  /** Paths that podman is to remove, relative. None is also an entry, or above one. */
  readonly deleted: readonly ByteString[];
  /** Whiteouts among them: the others are hidden by an opaque directory. */
  readonly whiteouts: number;
  /** Directories that hide what the lower layers have in them. */
  readonly opaque: readonly ByteString[];
}

export class UpperSource implements EntrySource {
  readonly #tree: Tree;
  readonly #lower: LowerLayers;
  #marks: UpperMarks | undefined;

  constructor(tree: Tree, lower: LowerLayers) {
    this.#tree = tree;
    this.#lower = lower;
  }

  /** Known when the entries have been gone through once. */
  get marks(): UpperMarks {
    if (this.#marks === undefined) throw new RangeError("the marks of an upper directory that was not walked");
    return this.#marks;
  }

  *entries(): Generator<SourceEntry, void, undefined> {
    const links = new LinkFinder();
    const deleted: ByteString[] = [];
    const opaque: ByteString[] = [];
    let whiteouts = 0;
    /** Directories of this walk in which nothing of the lower layers shows: opaque ones, and all below those. */
    const closed = new Set<ByteString>();
    for (const { directory, files } of this.#tree.walk()) {
      this.#check(directory);
      yield { header: headerOf(directory, undefined, visibleXattrs(directory.xattrs)) };
      const marked = isOpaque(directory.xattrs);
      if (marked) opaque.push(directory.path);
      if (marked || closed.has(parentOf(directory.path))) {
        closed.add(directory.path);
        const names = new Set(files.map(({ path }) => path.slice(path.lastIndexOf("/") + 1)));
        for (const name of this.#lower.names(directory.path)) {
          if (!names.has(name)) deleted.push(directory.path === "" ? name : `${directory.path}/${name}`);
        }
      }
      for (const file of files) {
        if (isWhiteout(file)) {
          deleted.push(file.path);
          whiteouts++;
        } else if (file.type !== "socket" && file.type !== "directory") yield this.#entry(file, links);
      }
      if (deleted.length + opaque.length > MARKS_MAX) throw tooMany(this.#tree.path);
    }
    this.#marks = { deleted, whiteouts, opaque };
  }

  #entry(file: TreeFile, links: LinkFinder): SourceEntry {
    const linked = links.find(file);
    const header = headerOf(file, linked, visibleXattrs(file.xattrs));
    if (header.type !== "file" || header.size === 0) return { header };
    return { header, content: this.#content(file) };
  }

  #content(file: TreeFile): SourceContent {
    if (overlayXattr(file.xattrs, "metacopy") === undefined) return this.#tree.content(file);
    const redirect = overlayXattr(file.xattrs, "redirect");
    this.#lower.openContent(file.path, redirect, file.status.size)[Symbol.dispose](); // a plan that can't be kept is none
    return { open: () => this.#lower.openContent(file.path, redirect, file.status.size) };
  }

  #check(directory: TreeFile): void {
    if (overlayXattr(directory.xattrs, "redirect") !== undefined) {
      throw redirectedDirectory(directory.path, this.#tree.path);
    }
  }
}

function parentOf(path: ByteString): ByteString {
  return path.slice(0, Math.max(0, path.lastIndexOf("/")));
}

function tooMany(tree: string): ShaleError {
  return new ShaleError(
    "RESOURCE_EXHAUSTED",
    `Cannot write the changes in ${tree}: more than ${MARKS_MAX} deletions and opaque directories`,
  );
}

/** deleted.files as podman reads it: a JSON list of absolute paths. Names that are not UTF-8 can't be in it. */
export function encodeDeletedFiles(deleted: readonly ByteString[]): Uint8Array {
  return Buffer.from(JSON.stringify(deleted.map((path) => `/${Buffer.from(path, "latin1").toString("utf8")}`)));
}

/** Throws for a deleted path that deleted.files can't say: Go's JSON has no bytes. */
export function checkDeletedFiles(deleted: readonly ByteString[]): void {
  for (const path of deleted) {
    const bytes = Buffer.from(path, "latin1");
    if (Buffer.from(bytes.toString("utf8"), "utf8").equals(bytes)) continue;
    throw new ShaleError(
      "UNIMPLEMENTED",
      `Cannot write the deletion of ${displayBytes(path)}: deleted.files has UTF-8 names only`,
    );
  }
}
