/**
 * The store's bytes as a source for a layer that is put together from parts. The caller holds a lease since before it asks,
 * so what is found stays there; whether it is still what it was is for the reader to hash.
 */
import type { ByteString } from "../../bytes/index.ts";
import { closeFile, openFile, readAt } from "../../sys/index.ts";
import type { Database } from "../database.ts";
import type { Layout } from "../layout.ts";
import { BasisChunks } from "./basis.ts";
import type { DedupeIndex } from "./dedupe-index.ts";
import type { LocalContent, LocalPlace } from "./toc-plan.ts";

/** Files that are open at a time; a layer's sources may be in hundreds of blobs. */
const OPEN_FILES = 64;
/** The largest piece that is read at once. */
export const READ_PIECE = 1024 * 1024;

export class StoreContent implements LocalContent, Disposable {
  readonly #database: Database;
  readonly #layout: Layout;
  readonly #dedupe: DedupeIndex;
  readonly #hasChunks: boolean;
  readonly #basis: BasisChunks;
  /** In the order of their last use. */
  readonly #files = new Map<string, number>();
  #buffer = Buffer.alloc(0);

  constructor(database: Database, layout: Layout, dedupe: DedupeIndex) {
    this.#database = database;
    this.#layout = layout;
    this.#dedupe = dedupe;
    this.#basis = new BasisChunks(database, layout, (source, offset, size) => this.read(source, offset, size));
    this.#hasChunks = database.get("SELECT 1 FROM chunks LIMIT 1") !== undefined;
  }

  findPayload(digest: Uint8Array, size: number) {
    return this.#dedupe.find(digest, size);
  }

  prepare(path: ByteString, size: number): void {
    this.#basis.prepare(path, size);
  }

  findChunk(digest: Uint8Array, size: number, isFile: boolean): LocalPlace | undefined {
    if (this.#hasChunks) {
      const row = this.#database.get("SELECT layer, inline, offset, length FROM chunks WHERE digest = ?", digest);
      if (row !== undefined && row.length === size) {
        return { id: String(row.layer), inline: row.inline === 1, offset: Number(row.offset) };
      }
    }
    if (isFile) return undefined;
    const place = this.#basis.find(digest, size);
    if (place !== undefined) return place;
    const payload = this.#dedupe.find(digest, size);
    return payload && { id: payload.blob, inline: false, offset: payload.offset };
  }

  /** The bytes in pieces, each valid until the next; fewer than `size` where the file ends before. System errors. */
  *read(
    source: { readonly id: string; readonly inline: boolean },
    offset: number,
    size: number,
  ): Generator<Uint8Array> {
    const file = this.#open(source.inline ? this.#layout.layerImage(source.id) : this.#layout.blob(source.id));
    if (this.#buffer.length < Math.min(size, READ_PIECE)) this.#buffer = Buffer.allocUnsafeSlow(READ_PIECE);
    for (let at = 0; at < size; ) {
      const count = readAt(file, this.#buffer.subarray(0, Math.min(READ_PIECE, size - at)), offset + at);
      if (count === 0) return;
      at += count;
      yield this.#buffer.subarray(0, count);
    }
  }

  /** The open file of a source, for copies without reading; valid until the next call. */
  file(source: { readonly id: string; readonly inline: boolean }): number {
    return this.#open(source.inline ? this.#layout.layerImage(source.id) : this.#layout.blob(source.id));
  }

  [Symbol.dispose](): void {
    this.#basis[Symbol.dispose]();
    for (const file of this.#files.values()) closeFile(file);
    this.#files.clear();
  }

  #open(path: string): number {
    let file = this.#files.get(path);
    if (file !== undefined) this.#files.delete(path);
    else {
      if (this.#files.size >= OPEN_FILES) {
        const [oldest, fd] = this.#files.entries().next().value!;
        closeFile(fd);
        this.#files.delete(oldest);
      }
      file = openFile(path);
    }
    this.#files.set(path, file);
    return file;
  }
}
