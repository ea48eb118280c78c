/**
 * Turns the events of one tar into the files of one layer. Per payload: up to the inline limit it is kept for the metadata
 * image; else it is hashed while it goes to the blob, and when the store or this layer has the same bytes already, the
 * blob takes it back and the layer refers to the other place.
 */
import { createHash, hash } from "node:crypto";
import { ShaleError } from "../../errors/index.ts";
import { type ErofsDevice, writeErofs } from "../../formats/erofs/index.ts";
import { LayerIndexBuilder, type LayerNotice } from "../../formats/layer-index/builder.ts";
import { Content, type LayerIndex, NONE } from "../../formats/layer-index/index.ts";
import { type LayerTree, treeFromIndex } from "../../formats/layer-index/merge.ts";
import { isOverlayXattr, isWhiteout } from "../../formats/layer-index/overlay.ts";
import { PAYLOAD_ALIGNMENT, PayloadTable } from "../../formats/payload-table/index.ts";
import type { TarEntry, TarSink } from "../../formats/tar/index.ts";
import { RecipeWriter } from "../../formats/tar-recipe/index.ts";
import { closeFile, createFile, datasync, syncDirectory, writeAt } from "../../sys/index.ts";
import type { NestedSha256, PartHash } from "../../sys/nested-sha256.ts";
import { LIMITS } from "../limits.ts";
import { BlobWriter } from "./blob-writer.ts";
import type { DedupeIndex } from "./dedupe-index.ts";
import { InlineSpool } from "./inline-spool.ts";

/** Of a layer whose tree is kept for a while after it was written: 120 bytes each. */
const TREE_ENTRIES_MAX = 200_000;

/** What one ingest produced, all of it synced; the numbers of the `layers` row. */
export interface WrittenLayer {
  /** Bytes of the blob's payload area; 0: no blob. */
  readonly blobSize: number;
  readonly entries: number;
  readonly contentBytes: number;
  readonly ownBytes: number;
  readonly sharedBytes: number;
  readonly inlineBytes: number;
  /** Its image means the same without layers below: it has no whiteouts, opaque or implied directories. */
  readonly standalone: boolean;
  readonly metadataBytes: number;
  readonly imageSha256: string;
  readonly recipeSha256: string;
  readonly notices: readonly LayerNotice[];
}

export interface LayerPaths {
  readonly blob: string;
  readonly image: string;
  readonly recipe: string;
  readonly spool: string;
  /** Directory that holds image and recipe. */
  readonly layer: string;
}

export class LayerWriter implements TarSink, Disposable {
  readonly #paths: LayerPaths;
  readonly #id: string;
  readonly #dedupe: DedupeIndex;
  readonly #sha256: NestedSha256;
  readonly #builder: LayerIndexBuilder;
  readonly #blob: BlobWriter;
  readonly #spool: InlineSpool;
  readonly #table = new PayloadTable();
  readonly #recipeFile: OutputFile;
  readonly #recipe: RecipeWriter;
  /** Set by `finish`. */
  #tree: LayerTree | undefined;
  #treeTaken = false;
  readonly #devices: string[] = [];
  readonly #deviceNumbers = new Map<string, number>();

  // the current entry
  #entry: TarEntry | undefined;
  #inode = NONE;
  #inline = false;
  #hash: PartHash | undefined;
  /** Logical bytes of the current file that have been produced, and the segment that comes next. */
  #produced = 0;
  #segment = 0;
  #segmentLeft = 0;
  #recipeTold = false;

  #entries = 0;
  #contentBytes = 0;
  #ownBytes = 0;
  #sharedBytes = 0;
  #inlineBytes = 0;

  /** `sha256`: who makes the digests of contents; whose stream it is, and what is given to it, is the caller's affair. */
  constructor(id: string, paths: LayerPaths, dedupe: DedupeIndex, sha256: NestedSha256, seed: number) {
    this.#id = id;
    this.#paths = paths;
    this.#dedupe = dedupe;
    this.#sha256 = sha256;
    this.#builder = new LayerIndexBuilder({ seed });
    this.#blob = new BlobWriter(paths.blob);
    this.#spool = new InlineSpool(paths.spool);
    this.#recipeFile = new OutputFile(paths.recipe);
    this.#recipe = new RecipeWriter((bytes) => this.#recipeFile.write(bytes));
  }

  raw(bytes: Uint8Array): void {
    this.#recipe.raw(bytes);
  }

  entry(entry: TarEntry): void {
    this.#entries++;
    this.#entry = entry;
    this.#inode = this.#builder.add(entry).inode;
    this.#recipeTold = false;
    if (entry.type !== "file" || this.#inode === NONE) return;
    this.#contentBytes += entry.size;
    if (this.#contentBytes > LIMITS.layerContentSize) {
      throw new ShaleError(
        "RESOURCE_EXHAUSTED",
        `Cannot store the layer: its files are larger than ${LIMITS.layerContentSize} bytes in all (holes included)`,
      );
    }
    this.#inline = entry.size <= LIMITS.inlineSize;
    this.#produced = 0;
    this.#segment = 0;
    this.#segmentLeft = entry.segments === undefined ? entry.size : 0;
    if (this.#inline) this.#builder.index.setContent(this.#inode, Content.INLINE, 0, this.#spool.size);
  }

  payload(bytes: Uint8Array): void {
    if (this.#inode === NONE) {
      this.#recipe.raw(bytes);
      return;
    }
    this.#tellRecipe();
    const entry = this.#entry!;
    if (entry.segments === undefined) {
      // The usual small file: all of it in one piece, hashed with one call.
      if (!this.#inline && bytes.length === entry.size) {
        this.#produced = entry.size;
        this.#store(entry.size, this.#sha256.hash(bytes), bytes);
        return;
      }
      this.#produce(bytes);
      return;
    }
    let at = 0;
    while (at < bytes.length) {
      if (this.#segmentLeft === 0) this.#nextSegment(entry);
      const count = Math.min(this.#segmentLeft, bytes.length - at);
      this.#produce(bytes.subarray(at, at + count));
      this.#segmentLeft -= count;
      at += count;
    }
  }

  /**
   * In place of `payload`, for a file without holes whose whole content the caller has in one piece and has hashed:
   * `digest` is its SHA-256.
   */
  content(bytes: Uint8Array, digest: Uint8Array): void {
    if (this.#inode === NONE || this.#inline) {
      this.payload(bytes);
      return;
    }
    this.#tellRecipe();
    this.#produced = bytes.length;
    this.#store(bytes.length, digest, bytes);
  }

  /**
   * As `payload`, for bytes that `file` has at `offset` and keeps, so that blocks may be shared. The descriptor has to stay
   * open until the next call.
   */
  copied(bytes: Uint8Array, file: number, offset: number): void {
    if (!this.canRefer) {
      this.payload(bytes);
      return;
    }
    this.#tellRecipe();
    this.#produced += bytes.length;
    this.#hash ??= this.#sha256.open();
    this.#hash.update(bytes);
    this.#blob.appendCopy(bytes, file, offset);
  }

  /** In place of `payload`: the content of the current file is a payload of the store, found under its digest. */
  refer(size: number, place: { readonly blob: string; readonly offset: number }): void {
    this.#tellRecipe();
    this.#produced = size;
    this.#sharedBytes += size;
    this.#builder.index.setContent(this.#inode, Content.EXTENT, this.#deviceNumber(place.blob), place.offset);
  }

  /** False for an entry that has no place in a layer: it is left out, but for its bytes in the tar. */
  get hasInode(): boolean {
    return this.#inode !== NONE;
  }

  /** Whether the current file can refer to a payload: it has an inode, and its content does not live inside of it. */
  get canRefer(): boolean {
    return this.#inode !== NONE && !this.#inline;
  }

  endEntry(): void {
    const entry = this.#entry!;
    this.#entry = undefined;
    if (entry.type !== "file" || this.#inode === NONE || entry.size === 0) return;
    this.#tellRecipeOf(entry);
    if (this.#produced < entry.size) this.#produceZeros(entry.size - this.#produced);
    if (this.#inline) this.#inlineBytes += entry.size;
    else if (this.#hash !== undefined) {
      const digest = this.#hash.digest();
      this.#hash = undefined;
      this.#store(entry.size, digest, undefined);
    }
  }

  /** Writes metadata image and recipe, and syncs everything. `more`: bytes of other files in the layer's directory. */
  finish(more = 0): WrittenLayer {
    const { index, notices } = this.#builder.finish();
    const blobSize = this.#blob.finish(this.#table);
    const image = new OutputFile(this.#paths.image);
    const devices = this.#devices.map((tag) => this.#device(tag, blobSize));
    const readInline = (inode: number) => this.#spool.read(index.contentOffset(inode), index.size(inode));
    this.#tree = treeFromIndex(index, devices, readInline);
    try {
      const written = writeErofs(index, {
        devices,
        uuid: hash("sha256", this.#id, "buffer").subarray(0, 16),
        readInline,
        write: (bytes) => image.write(bytes),
        keepUnlinked: true,
      });
      this.#recipe.finish(written.nids);
      this.#blob.sync();
      const imageSha256 = image.seal();
      const recipeSha256 = this.#recipeFile.seal();
      syncDirectory(this.#paths.layer);
      return {
        blobSize,
        entries: this.#entries,
        contentBytes: this.#contentBytes,
        ownBytes: this.#ownBytes,
        sharedBytes: this.#sharedBytes,
        inlineBytes: this.#inlineBytes,
        standalone: isStandalone(index),
        metadataBytes: image.size + this.#recipeFile.size + more,
        imageSha256,
        recipeSha256,
        notices,
      };
    } finally {
      image.close();
    }
  }

  /**
   * The tree of the image that was written, for a merge that comes soon: it holds all names and small contents in memory,
   * and outlives the writer. Undefined where that is too much. Call it once, after `finish`.
   */
  takeTree(): LayerTree | undefined {
    if (this.#entries > TREE_ENTRIES_MAX || !this.#spool.isInMemory) return undefined;
    this.#treeTaken = true;
    return this.#tree;
  }

  [Symbol.dispose](): void {
    this.#blob.close();
    this.#recipeFile.close();
    if (!this.#treeTaken) this.#spool.close();
  }

  #device(tag: string, ownSize: number): ErofsDevice {
    return { tag, blocks: (tag === this.#id ? ownSize : this.#dedupe.blobSize(tag)) / PAYLOAD_ALIGNMENT };
  }

  #tellRecipe(): void {
    if (!this.#recipeTold) this.#tellRecipeOf(this.#entry!);
  }

  #tellRecipeOf(entry: TarEntry): void {
    if (this.#recipeTold) return;
    this.#recipeTold = true;
    this.#recipe.payload(this.#inode, entry.size, entry.segments);
  }

  #nextSegment(entry: TarEntry): void {
    const segment = entry.segments![this.#segment++]!;
    this.#produceZeros(segment.offset - this.#produced);
    this.#segmentLeft = segment.length;
  }

  #produce(bytes: Uint8Array): void {
    this.#produced += bytes.length;
    if (this.#inline) {
      this.#spool.append(bytes);
      return;
    }
    this.#hash ??= this.#sha256.open();
    this.#hash.update(bytes);
    this.#blob.append(bytes);
  }

  #produceZeros(length: number): void {
    if (this.#inline) {
      this.#spool.append(ZEROS.subarray(0, length));
    } else {
      this.#hash ??= this.#sha256.open();
      for (let left = length; left > 0; left -= ZEROS.length)
        this.#hash.update(ZEROS.subarray(0, Math.min(left, ZEROS.length)));
      this.#blob.appendZeros(length);
    }
    this.#produced += length;
  }

  /** Decides where a payload that was hashed lives; `bytes` when it was not given to the blob yet. */
  #store(size: number, digest: Uint8Array, bytes: Uint8Array | undefined): void {
    const index = this.#builder.index;
    const known = this.#table.find(digest, size);
    const elsewhere = known < 0 ? this.#dedupe.find(digest, size) : undefined;
    if (known >= 0 || elsewhere !== undefined) {
      if (bytes === undefined) this.#blob.takeBack();
      this.#sharedBytes += size;
      if (elsewhere === undefined) index.setContent(this.#inode, Content.EXTENT, this.#deviceNumber(this.#id), known);
      else index.setContent(this.#inode, Content.EXTENT, this.#deviceNumber(elsewhere.blob), elsewhere.offset);
      return;
    }
    if (bytes !== undefined) this.#blob.append(bytes);
    const offset = this.#blob.keep();
    this.#table.add(offset, size, digest);
    this.#ownBytes += size;
    index.setContent(this.#inode, Content.EXTENT, this.#deviceNumber(this.#id), offset);
  }

  #deviceNumber(blob: string): number {
    let number = this.#deviceNumbers.get(blob);
    if (number === undefined) {
      number = this.#devices.push(blob) - 1;
      this.#deviceNumbers.set(blob, number);
    }
    return number;
  }
}

const ZEROS = new Uint8Array(1024 * 1024);

/** A file written from start to end, hashed on the way. */
class OutputFile {
  readonly #path: string;
  #file: number | undefined;
  readonly #hash = createHash("sha256");
  #size = 0;

  constructor(path: string) {
    this.#path = path;
  }

  get size(): number {
    return this.#size;
  }

  write(bytes: Uint8Array): void {
    this.#file ??= createFile(this.#path);
    writeAt(this.#file, bytes, this.#size);
    this.#hash.update(bytes);
    this.#size += bytes.length;
  }

  /** Syncs and closes; returns the SHA-256 in hexadecimal. */
  seal(): string {
    if (this.#file === undefined) throw new RangeError(`${this.#path} was never written`);
    datasync(this.#file);
    this.close();
    return this.#hash.digest("hex");
  }

  close(): void {
    if (this.#file === undefined) return;
    closeFile(this.#file);
    this.#file = undefined;
  }
}

function isStandalone(index: LayerIndex): boolean {
  const checked = new Set<number>();
  for (let inode = 0; inode < index.inodeCount; inode++) {
    if (isWhiteout(index, inode)) return false;
    const set = index.xattrSetId(inode);
    if (checked.has(set)) continue;
    checked.add(set);
    if (index.xattrs(inode).some((xattr) => isOverlayXattr(xattr.name))) return false;
  }
  return true;
}
