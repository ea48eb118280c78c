/**
 * What a layer with a TOC needs that the store does not have. Pure: entries and a way to ask for local bytes in, a plan out.
 *
 * In this order: a whole file that is a payload of the store is referred to, and costs nothing; a chunk whose bytes are
 * somewhere in the store is copied, wherever they are; zeros are zeros; the rest is fetched, each distinct chunk once.
 */
import type { ByteString } from "../../bytes/index.ts";
import { ShaleError } from "../../errors/index.ts";
import type { TocEntry } from "../../formats/toc/index.ts";

/** Bytes in the store. */
export interface LocalPlace {
  /** Of a blob; or, `inline`, of a layer, in whose metadata image they are. */
  readonly id: string;
  readonly inline: boolean;
  readonly offset: number;
}

export interface LocalContent {
  /** A whole payload with this digest. */
  findPayload(digest: Uint8Array, size: number): { readonly blob: string; readonly offset: number } | undefined;
  /** Told of a file that is not there as a whole and has several chunks, before they are asked for. */
  prepare(path: ByteString, size: number): void;
  /**
   * Bytes that are said to have this digest; they are hashed before they are used. `isFile`: a whole file, which
   * `findPayload` was asked for if it could be one.
   */
  findChunk(digest: Uint8Array, size: number, isFile: boolean): LocalPlace | undefined;
}

export interface PlanOptions {
  /** Files up to this size are not referred to: they live in the metadata image. */
  readonly inlineSize: number;
  /** Distinct chunks to fetch, and chunks in all; 24 and 16 bytes of memory each. */
  readonly maximumChunks: number;
}

/** Numbers of a plan, in bytes unless named. */
export interface PlanSummary {
  readonly files: number;
  readonly contentBytes: number;
  /** Of files that are in the store as a whole and are referred to. */
  readonly referredBytes: number;
  readonly referredFiles: number;
  /** Of chunks that are in the store and are copied. */
  readonly copiedBytes: number;
  readonly copiedChunks: number;
  readonly zeroBytes: number;
  /** Of chunks that come more than once in the layer and are fetched once. */
  readonly repeatedBytes: number;
  /** Of chunks that are fetched, decompressed. */
  readonly missingBytes: number;
  readonly missingChunks: number;
  /** The same as they are in the blob. */
  readonly fetchBytes: number;
}

/** Actions of chunks. A number from 0 on is a place in `sources`. */
export const FETCH = -1;
export const ZEROS = -2;
/** In place of a file's source: its content is built from chunks. */
export const BUILD = -1;

/** Columns, by file in the order of the TOC and by chunk of the files that are built. */
export class LayerPlan {
  readonly summary: PlanSummary;
  /** What chunks are copied from. */
  readonly sources: readonly { readonly id: string; readonly inline: boolean }[];
  /** Blobs that files refer to. */
  readonly blobs: readonly string[];
  /** By file: index in `blobs`, or BUILD. */
  readonly fileBlobs: readonly number[];
  /** By file: offset in that blob. */
  readonly fileOffsets: readonly number[];
  /** By chunk of the files that are built: index in `sources`, FETCH or ZEROS. */
  readonly chunkSources: readonly number[];
  /** By the same: offset in that source, or index of what is fetched. */
  readonly chunkOffsets: readonly number[];
  /** What is fetched, rising: half-open ranges of the blob. */
  readonly fetchOffsets: readonly number[];
  readonly fetchEnds: readonly number[];

  constructor(columns: Omit<LayerPlan, never>) {
    this.summary = columns.summary;
    this.sources = columns.sources;
    this.blobs = columns.blobs;
    this.fileBlobs = columns.fileBlobs;
    this.fileOffsets = columns.fileOffsets;
    this.chunkSources = columns.chunkSources;
    this.chunkOffsets = columns.chunkOffsets;
    this.fetchOffsets = columns.fetchOffsets;
    this.fetchEnds = columns.fetchEnds;
  }
}

/** Builds a plan entry by entry, in the order of the TOC. */
export class LayerPlanner {
  readonly #local: LocalContent;
  readonly #options: PlanOptions;
  readonly #sources = new Names<{ readonly id: string; readonly inline: boolean }>();
  readonly #blobs = new Names<string>();
  readonly #fileBlobs: number[] = [];
  readonly #fileOffsets: number[] = [];
  readonly #chunkSources: number[] = [];
  readonly #chunkOffsets: number[] = [];
  readonly #fetchOffsets: number[] = [];
  readonly #fetchEnds: number[] = [];
  /** What is fetched, by digest. */
  readonly #fetched = new Map<string, number>();
  readonly #numbers = {
    files: 0,
    contentBytes: 0,
    referredBytes: 0,
    referredFiles: 0,
    copiedBytes: 0,
    copiedChunks: 0,
    zeroBytes: 0,
    repeatedBytes: 0,
    missingBytes: 0,
    missingChunks: 0,
    fetchBytes: 0,
  };

  constructor(local: LocalContent, options: PlanOptions) {
    this.#local = local;
    this.#options = options;
  }

  /** RESOURCE_EXHAUSTED for a layer with more chunks than the limit. */
  add({ header, digest, chunks }: Pick<TocEntry, "header" | "digest" | "chunks">): void {
    if (chunks.length === 0) return;
    const { size } = header;
    const numbers = this.#numbers;
    numbers.files++;
    numbers.contentBytes += size;
    if (digest !== undefined && size > this.#options.inlineSize) {
      const known = this.#local.findPayload(digest, size);
      if (known !== undefined) {
        this.#fileBlobs.push(this.#blobs.of(known.blob, known.blob));
        this.#fileOffsets.push(known.offset);
        numbers.referredBytes += size;
        numbers.referredFiles++;
        return;
      }
    }
    this.#fileBlobs.push(BUILD);
    this.#fileOffsets.push(0);
    if (chunks.length > 1) this.#local.prepare(header.path, size);
    // eStargz may have no digest of the file: then the one of its only chunk is the file's, and was not asked for
    const isFile = chunks.length === 1 && digest !== undefined;
    for (const chunk of chunks) this.#addChunk(chunk, isFile);
  }

  finish(): LayerPlan {
    return new LayerPlan({
      summary: { ...this.#numbers },
      sources: this.#sources.list,
      blobs: this.#blobs.list,
      fileBlobs: this.#fileBlobs,
      fileOffsets: this.#fileOffsets,
      chunkSources: this.#chunkSources,
      chunkOffsets: this.#chunkOffsets,
      fetchOffsets: this.#fetchOffsets,
      fetchEnds: this.#fetchEnds,
    });
  }

  #addChunk(chunk: TocEntry["chunks"][number], isFile: boolean): void {
    const numbers = this.#numbers;
    if (this.#chunkSources.length >= this.#options.maximumChunks) {
      throw new ShaleError(
        "RESOURCE_EXHAUSTED",
        `Cannot pull parts of the layer: it has more than ${this.#options.maximumChunks} chunks`,
      );
    }
    if (chunk.zeros) {
      this.#push(ZEROS, 0);
      numbers.zeroBytes += chunk.size;
      return;
    }
    const key = Buffer.from(chunk.digest).toString("latin1");
    const fetched = this.#fetched.get(key);
    if (fetched !== undefined) {
      this.#push(FETCH, fetched);
      numbers.repeatedBytes += chunk.size;
      return;
    }
    const place = this.#local.findChunk(chunk.digest, chunk.size, isFile);
    if (place !== undefined) {
      this.#push(this.#sources.of(`${place.inline} ${place.id}`, place), place.offset);
      numbers.copiedBytes += chunk.size;
      numbers.copiedChunks++;
      return;
    }
    this.#push(FETCH, this.#fetchOffsets.length);
    this.#fetched.set(key, this.#fetchOffsets.length);
    // eStargz may keep several files in one member: then it is one range for all of them
    this.#fetchOffsets.push(chunk.blobOffset);
    this.#fetchEnds.push(chunk.blobEnd);
    numbers.missingBytes += chunk.size;
    numbers.missingChunks++;
    numbers.fetchBytes += chunk.blobEnd - chunk.blobOffset;
  }

  #push(source: number, offset: number): void {
    this.#chunkSources.push(source);
    this.#chunkOffsets.push(offset);
  }
}

/** Values numbered in the order of their first use. */
class Names<T> {
  readonly list: T[] = [];
  readonly #numbers = new Map<string, number>();

  of(key: string, value: T): number {
    let number = this.#numbers.get(key);
    if (number === undefined) {
      number = this.list.push(value) - 1;
      this.#numbers.set(key, number);
    }
    return number;
  }
}
