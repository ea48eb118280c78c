/** Files of an image without mounting it: listed, described and read through our own EROFS reader. Needs no root. */
import { createHash, hash } from "node:crypto";
import { type ByteString, displayBytes, fromUtf8, toHex } from "../bytes/index.ts";
import { ShaleError } from "../errors/index.ts";
import type { ErofsInode } from "../formats/erofs/index.ts";
import { FileType } from "../formats/layer-index/index.ts";
import type { ManifestRecord, OpenTree, StoreOperation } from "../store/index.ts";

/** One file of an image. Names and targets are bytes; `displayBytes` makes them text. */
export interface ImageFile {
  /** Absolute inside the image. */
  readonly path: ByteString;
  readonly inode: ErofsInode;
  readonly target: ByteString | undefined;
}

export interface FileDetails extends ImageFile {
  readonly xattrs: readonly { readonly name: ByteString; readonly value: ByteString }[];
  /** "sha256:..." of a regular file's content. */
  readonly digest: string | undefined;
  readonly stored: { readonly blob: string; readonly offset: number } | "inline" | undefined;
}

const PIECE = 1024 * 1024;

/** Opens an image's tree. FAILED_PRECONDITION for an image without layers: it has no files. */
export function openImageTree(operation: StoreOperation, manifest: ManifestRecord): ImageTree {
  if (manifest.layers.length === 0) {
    throw new ShaleError("FAILED_PRECONDITION", `Cannot read files of ${manifest.digest}: the image has no layers`);
  }
  return new ImageTree(operation.openChain(manifest.layers.map((layer) => layer.diffId)));
}

export class ImageTree implements Disposable {
  readonly #tree: OpenTree;

  constructor(tree: OpenTree) {
    this.#tree = tree;
  }

  get tree(): OpenTree {
    return this.#tree;
  }

  /** NOT_FOUND when the image has no such path. Links on the way are followed inside the image; the last one on request. */
  get(path: string, options: { readonly followSymlinks?: boolean } = {}): ImageFile {
    const bytes = fromUtf8(path);
    const inode = this.#tree.reader.resolve(bytes, { followSymlinks: options.followSymlinks ?? false });
    return this.#file(absolute(bytes), inode);
  }

  /** The entries of a directory, or the file itself; with `recursive` everything below, in order. */
  *list(path: string, options: { readonly recursive?: boolean } = {}): Generator<ImageFile> {
    const start = this.get(path, { followSymlinks: true });
    if ((start.inode.mode & FileType.MASK) !== FileType.DIRECTORY) {
      yield start;
      return;
    }
    yield* this.#below(start, options.recursive ?? false);
  }

  *#below(directory: ImageFile, recursive: boolean): Generator<ImageFile> {
    const prefix = directory.path === "/" ? "/" : `${directory.path}/`;
    for (const entry of this.#tree.reader.directory(directory.inode)) {
      const file = this.#file(prefix + entry.name, this.#tree.reader.inode(entry.nid));
      yield file;
      if (recursive && (file.inode.mode & FileType.MASK) === FileType.DIRECTORY) yield* this.#below(file, true);
    }
  }

  describe(path: string): FileDetails {
    const file = this.get(path);
    const { inode } = file;
    const xattrs = this.#tree.reader.xattrs(inode);
    if ((inode.mode & FileType.MASK) !== FileType.REGULAR)
      return { ...file, xattrs, digest: undefined, stored: undefined };
    if (inode.size === 0) return { ...file, xattrs, digest: `sha256:${hash("sha256", "")}`, stored: undefined };
    const payload = this.#tree.payload(inode);
    if (payload !== "inline") {
      const { blob, offset, digest } = payload;
      return { ...file, xattrs, digest: `sha256:${toHex(digest)}`, stored: { blob, offset } };
    }
    const digest = hash("sha256", this.#tree.reader.read(inode, 0, inode.size), "hex");
    return { ...file, xattrs, digest: `sha256:${digest}`, stored: "inline" };
  }

  /**
   * A regular file's bytes in pieces. The digest is checked as they go by: DATA_LOSS after the last piece, or before the
   * first where the file is at most one piece. INVALID_ARGUMENT when it is no regular file.
   */
  *read(path: string): Generator<Uint8Array> {
    const { inode, path: found } = this.get(path, { followSymlinks: true });
    const act = `Cannot read ${displayBytes(found)}`;
    if ((inode.mode & FileType.MASK) !== FileType.REGULAR) {
      throw new ShaleError("INVALID_ARGUMENT", `${act}: it is not a regular file`);
    }
    if (inode.size === 0) return;
    const payload = this.#tree.payload(inode);
    const hasher = createHash("sha256");
    for (let at = 0; at < inode.size; at += PIECE) {
      const piece = this.#tree.reader.read(inode, at, Math.min(PIECE, inode.size - at));
      hasher.update(piece);
      if (
        at + piece.length >= inode.size &&
        payload !== "inline" &&
        Buffer.compare(hasher.digest(), payload.digest) !== 0
      ) {
        throw new ShaleError("DATA_LOSS", `${act}: its stored bytes are damaged`, { hint: "Run shale check --repair" });
      }
      yield piece;
    }
  }

  [Symbol.dispose](): void {
    this.#tree[Symbol.dispose]();
  }

  #file(path: ByteString, inode: ErofsInode): ImageFile {
    const isLink = (inode.mode & FileType.MASK) === FileType.SYMLINK;
    return { path, inode, target: isLink ? this.#tree.reader.readlink(inode) : undefined };
  }
}

/** "/a/b" for "a//b/", "./a/b" and the like, for display; resolving is the reader's. */
function absolute(path: ByteString): ByteString {
  return `/${path
    .split("/")
    .filter((part) => part !== "" && part !== ".")
    .join("/")}`;
}
