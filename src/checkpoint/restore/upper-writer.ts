/** The upper directory of an overlay from what an archive says of changes, in any dialect. */
import { type ByteString, displayBytes, fromUtf8 } from "../../bytes/index.ts";
import { FormatError } from "../../errors/index.ts";
import { isRoot } from "../../sys/index.ts";
import { type ArchiveEntry, cleanPath } from "../archive/index.ts";
import type { LowerLayers } from "../sources/lower.ts";
import { upperXattrName, visibleXattrs } from "../sources/overlay.ts";
import { isDirectoryMode, PLAIN_DIRECTORY, parentOf, TreeWriter, type WrittenTotals } from "./tree-writer.ts";

/** AUFS whiteouts as OCI layers have them: image-spec, layer.md. */
const WHITEOUT = ".wh.";
const OPAQUE = ".wh..wh..opq";
const DELETED_MAX = 1_000_000;

export interface UpperWriterOptions {
  readonly inKernel: boolean;
  readonly signal?: AbortSignal;
}

export class UpperWriter implements Disposable {
  readonly #tree: TreeWriter;
  readonly #lower: LowerLayers;
  readonly #deleted = new Set<ByteString>();
  readonly #opaque = new Set<ByteString>();
  /** Whether deletions below an opaque directory, and what is both deleted and there, were told by the writer itself. */
  #exact = false;
  #whiteouts = 0;

  /** `path` is an empty directory. Parents that the archive doesn't have are made as they are in `lower`. */
  constructor(path: string, lower: LowerLayers, options: UpperWriterOptions) {
    this.#lower = lower;
    this.#tree = new TreeWriter(path, {
      ...options,
      xattrName: upperXattrName,
      parent: (parent) => {
        const found = lower.find(parent);
        if (found === undefined || !isDirectoryMode(found.status.mode)) return PLAIN_DIRECTORY;
        const { mode, uid, gid, mtimeSeconds, mtimeNanoseconds } = found.status;
        const xattrs = visibleXattrs(found.xattrs);
        return { mode: mode & 0o7777, uid, gid, mtimeSeconds, mtimeNanoseconds, xattrs };
      },
    });
  }

  get totals(): WrittenTotals {
    return this.#tree.totals;
  }

  get whiteouts(): number {
    return this.#whiteouts;
  }

  /** An entry of the changes; with `layer` one of an OCI layer, where names that begin with .wh. are deletions. */
  add(file: ArchiveEntry, layer: boolean): void | Promise<void> {
    if (!layer) return this.#tree.add(file);
    const name = file.path.slice(file.path.lastIndexOf("/") + 1);
    if (!name.startsWith(WHITEOUT)) return this.#tree.add(file);
    const parent = parentOf(file.path);
    if (name === OPAQUE) this.#opaque.add(parent);
    else if (!name.startsWith(WHITEOUT + WHITEOUT)) {
      const target = name.slice(WHITEOUT.length);
      if (target === "" || target === "." || target === "..") {
        throw new FormatError("checkpoint archive", `whiteout "${displayBytes(file.path)}"`, "names nothing");
      }
      this.#delete(parent === "" ? target : `${parent}/${target}`);
    }
  }

  /** deleted.files: a JSON list of absolute paths. */
  addDeletedFiles(bytes: Uint8Array): void {
    const fail = (problem: string) => new FormatError("checkpoint archive", "deleted.files", problem);
    let value: unknown;
    try {
      value = JSON.parse(Buffer.from(bytes).toString("utf8"));
    } catch (cause) {
      throw new FormatError("checkpoint archive", "deleted.files", "is no JSON", { cause });
    }
    if (value === null) return; // Go's empty list
    if (!Array.isArray(value)) throw fail("is no list");
    for (const path of value as readonly unknown[]) {
      if (typeof path !== "string" || path.includes("\0")) throw fail("has something that is no path");
      const clean = cleanPath(fromUtf8(path.replace(/^\/+/, "")), (problem) => fail(`has a path that ${problem}`));
      if (clean === "") throw fail("has the root");
      this.#delete(clean);
    }
  }

  /** What shale.json knows: then nothing has to be inferred. */
  addOpaque(paths: readonly ByteString[]): void {
    this.#exact = true;
    for (const path of paths) this.#opaque.add(path);
  }

  /**
   * Everything is there: deletions and attributes follow. What an archive both deletes and has was removed and made again:
   * a directory of this kind hides all that the lower layers have in it (podman, which deletes last, would lose it).
   */
  finish(): void {
    for (const path of [...this.#deleted].sort()) {
      if (this.#tree.hasDirectory(path)) {
        if (!this.#exact) this.#opaque.add(path);
      } else if (!this.#tree.hasFile(path) && !this.#isHidden(path) && this.#parentExists(path)) {
        this.#tree.addWhiteout(path);
        this.#whiteouts++;
      }
    }
    const name = isRoot() ? "trusted.overlay.opaque" : "user.overlay.opaque";
    for (const path of this.#opaque) {
      if (this.#tree.hasFile(path))
        throw new FormatError("checkpoint archive", displayBytes(path), "is opaque, and no directory");
      this.#tree.addDirectoryXattr(path, name, "y");
    }
    this.#tree.finish();
  }

  [Symbol.dispose](): void {
    this.#tree[Symbol.dispose]();
  }

  #delete(path: ByteString): void {
    if (this.#deleted.size >= DELETED_MAX) {
      const problem = `are more than ${DELETED_MAX}`;
      throw new FormatError("checkpoint archive", "deletions", problem, { code: "RESOURCE_EXHAUSTED" });
    }
    this.#deleted.add(path);
  }

  /** Below an opaque directory, or below another deletion, nothing of the lower layers shows. */
  #isHidden(path: ByteString): boolean {
    for (let above = parentOf(path); ; above = parentOf(above)) {
      if (this.#opaque.has(above) || (this.#deleted.has(above) && !this.#tree.hasDirectory(above))) return true;
      if (above === "") return false;
    }
  }

  /** A whiteout makes its parents; ones that exist nowhere would be new directories. */
  #parentExists(path: ByteString): boolean {
    const parent = parentOf(path);
    if (parent === "" || this.#tree.hasDirectory(parent) || !this.#lower.known) return true;
    const found = this.#lower.find(parent);
    return found !== undefined && isDirectoryMode(found.status.mode);
  }
}
