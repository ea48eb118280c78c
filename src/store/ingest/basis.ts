/**
 * Chunks of layers that came without a TOC: a file that is missing is likely to be there in an older version, at the same
 * path. Such a file is cut as a writer of zstd:chunked would have cut it, and its chunks are sources like any others. Made
 * for one pull and kept nowhere, since the layer that is pulled has them afterwards.
 *
 * Bounded: in bytes that are cut, in layers that are looked at, and by its success: where older versions turn out to have
 * nothing in common, it stops.
 */
import { createHash, type Hash } from "node:crypto";
import type { ByteString } from "../../bytes/index.ts";
import { ShaleError } from "../../errors/index.ts";
import { ErofsReader } from "../../formats/erofs/index.ts";
import { RollingChunker } from "../../formats/zstd-chunked/index.ts";
import { type FileSource, fileSource } from "../../sys/index.ts";
import { isDamage } from "../damage.ts";
import type { Database } from "../database.ts";
import type { Layout } from "../layout.ts";
import type { LocalPlace } from "./toc-plan.ts";

/** Layers that are looked at, the newest first. */
const LAYERS_MAX = 32;
/** Bytes that are cut for one layer that is pulled: about a second of work. */
const BYTES_MAX = 256 * 1024 * 1024;
/** After so many bytes, a tenth of them must have been of use. */
const TRIAL_BYTES = 32 * 1024 * 1024;
/** A file is no version of another that is so many times as long. */
const SIZE_RATIO = 4;

interface Layer {
  readonly id: string;
  /** Undefined for one that can't be read. */
  reader: ErofsReader | undefined;
}

/** Reads bytes of a blob in pieces, each valid until the next. */
type ReadBlob = (
  source: { readonly id: string; readonly inline: boolean },
  offset: number,
  size: number,
) => Iterable<Uint8Array>;

export class BasisChunks implements Disposable {
  readonly #layout: Layout;
  readonly #read: ReadBlob;
  readonly #layers: readonly Layer[];
  readonly #files: FileSource[] = [];
  readonly #places = new Map<string, LocalPlace & { readonly size: number }>();
  /** "BLOB OFFSET" of what was cut. */
  readonly #done = new Set<string>();
  #opened = 0;
  #cut = 0;
  #used = 0;

  constructor(database: Database, layout: Layout, read: ReadBlob) {
    this.#layout = layout;
    this.#read = read;
    this.#layers = database
      .all(
        `SELECT id FROM layers WHERE toc IS NULL AND condemned IS NULL AND damage IS NULL
           ORDER BY committed_at DESC, id DESC LIMIT ?`,
        LAYERS_MAX,
      )
      .map((row) => ({ id: String(row.id), reader: undefined }));
  }

  /** A file of this path and size is missing as a whole: cuts its older versions. */
  prepare(path: ByteString, size: number): void {
    for (const [at, layer] of this.#layers.entries()) {
      if (this.#cut >= BYTES_MAX || (this.#cut >= TRIAL_BYTES && this.#used < this.#cut / 10)) return;
      if (at >= this.#opened) {
        this.#opened = at + 1;
        layer.reader = this.#unlessDamaged(() => this.#open(layer.id));
      }
      const { reader } = layer;
      if (reader === undefined) continue;
      const found = this.#unlessDamaged(() => findFile(reader, path));
      if (found === undefined || found.size > size * SIZE_RATIO || found.size * SIZE_RATIO < size) continue;
      const key = `${found.blob} ${found.offset}`;
      if (this.#done.has(key)) continue;
      this.#done.add(key);
      this.#unlessDamaged(() => this.#cutFile(found));
    }
  }

  find(digest: Uint8Array, size: number): LocalPlace | undefined {
    if (this.#places.size === 0) return undefined;
    const place = this.#places.get(keyOf(digest));
    if (place?.size !== size) return undefined;
    this.#used += size;
    return place;
  }

  [Symbol.dispose](): void {
    for (const file of this.#files) file.close();
  }

  #open(id: string): ErofsReader {
    const image = fileSource(this.#layout.layerImage(id));
    this.#files.push(image);
    return new ErofsReader(image);
  }

  #cutFile({ blob, offset, size }: StoredFile): void {
    let hasher: Hash | undefined;
    let start = 0;
    let at = 0;
    const chunker = new RollingChunker({
      data: (bytes) => {
        hasher ??= createHash("sha256");
        hasher.update(bytes);
        at += bytes.length;
      },
      zeros: (length) => {
        hasher ??= createHash("sha256");
        for (let left = length; left > 0; left -= ZEROS.length)
          hasher.update(ZEROS.subarray(0, Math.min(left, ZEROS.length)));
        at += length;
      },
      cut: (hole) => {
        const digest = hasher?.digest();
        hasher = undefined;
        if (!hole && digest !== undefined) {
          this.#places.set(keyOf(digest), { id: blob, inline: false, offset: offset + start, size: at - start });
        }
        start = at;
      },
    });
    for (const piece of this.#read({ id: blob, inline: false }, offset, size)) chunker.write(piece);
    chunker.end();
    this.#cut += size;
  }

  /** A damaged layer is no source; `check` says why. */
  #unlessDamaged<T>(work: () => T): T | undefined {
    try {
      return work();
    } catch (error) {
      if (ShaleError.is(error, "NOT_FOUND") || ShaleError.is(error, "FAILED_PRECONDITION") || isDamage(error))
        return undefined;
      throw error;
    }
  }
}

interface StoredFile {
  readonly blob: string;
  readonly offset: number;
  readonly size: number;
}

/** A regular file whose content is one payload; NOT_FOUND and the like as `resolve` throws them. */
function findFile(reader: ErofsReader, path: ByteString): StoredFile | undefined {
  const inode = reader.resolve(path, { followSymlinks: false });
  if ((inode.mode & 0o170000) !== 0o100000) return undefined;
  const [extent, more] = reader.extents(inode);
  if (extent === undefined || more !== undefined || extent.device < 0) return undefined;
  return { blob: reader.devices[extent.device]!.tag, offset: extent.offset, size: inode.size };
}

function keyOf(digest: Uint8Array): string {
  return Buffer.from(digest.buffer, digest.byteOffset, digest.byteLength).toString("latin1");
}

const ZEROS = new Uint8Array(64 * 1024);
