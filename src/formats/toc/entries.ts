/** A TOC's elements gathered to files: a "reg" and the "chunk" elements behind it, checked against each other and the blob. */
import type { FormatError } from "../../errors/index.ts";
import { displayBytes } from "../../bytes/index.ts";
import { decodeElement, type TocChunk, type TocElement, type TocEntry } from "./entry.ts";
import { type TocSource, tocError } from "./failure.ts";
import type { JsonValue } from "./json-values.ts";
import type { TocLimits } from "./limits.ts";

/** Says where the compressed bytes of a chunk end. */
export interface ChunkEnds {
  /** `next`: of the chunk that follows in the same file. Undefined: `offset` can't be where a chunk is. */
  endOf(element: TocElement, next: TocElement | undefined, first: TocElement): number | undefined;
}

/** zstd:chunked: a frame ends where the next of the file begins, the last one at the file's `endOffset`. */
export const STATED_ENDS: ChunkEnds = {
  endOf: (_, next, first) => next?.offset ?? first.endOffset,
};

/**
 * Files in the order of the TOC. FormatError unless the chunks of each file are its content without gaps, all bytes lie
 * before `limit` in the blob, and no file begins before the one ahead of it ended: every writer streams, so other TOCs
 * are made by hand, to have bytes fetched many times.
 */
export async function* gatherEntries(
  elements: AsyncIterable<JsonValue>,
  source: TocSource,
  limit: number,
  ends: ChunkEnds,
  limits: TocLimits,
): AsyncGenerator<TocEntry, void, undefined> {
  const gather = new Gatherer(source, limit, ends, limits);
  for await (const json of elements) {
    const complete = gather.add(decodeElement(json, source, limits));
    if (complete !== undefined) yield complete;
  }
  const last = gather.finish();
  if (last !== undefined) yield last;
}

class Gatherer {
  readonly #source: TocSource;
  readonly #limit: number;
  readonly #ends: ChunkEnds;
  readonly #limits: TocLimits;
  #parts: TocElement[] = [];
  /** No compressed byte of what follows is before this. */
  #floor = 0;

  constructor(source: TocSource, limit: number, ends: ChunkEnds, limits: TocLimits) {
    this.#source = source;
    this.#limit = limit;
    this.#ends = ends;
    this.#limits = limits;
  }

  /** The entry before, when this element begins another. */
  add(element: TocElement): TocEntry | undefined {
    if (element.header !== undefined) {
      const complete = this.finish();
      this.#parts.push(element);
      return complete;
    }
    const first = this.#parts[0];
    if (first === undefined) throw this.#fail(element, "type", "a chunk comes before every file");
    if (element.name !== "" && element.name !== first.name) {
      throw this.#fail(
        element,
        "name",
        `differs from that of the file ahead, "${displayBytes(first.name.slice(0, 300))}"`,
      );
    }
    if (this.#parts.length >= this.#limits.chunksPerFile) {
      throw tocError(this.#source, "file", `has more than ${this.#limits.chunksPerFile} chunks`, {
        offset: element.tocOffset,
        code: "RESOURCE_EXHAUSTED",
      });
    }
    this.#parts.push(element);
    return undefined;
  }

  finish(): TocEntry | undefined {
    const parts = this.#parts;
    const first = parts[0];
    if (first?.header === undefined) return undefined;
    this.#parts = [];
    const { header, digest, tocOffset } = first;
    if (header.size === 0) {
      if (parts.length > 1) throw this.#fail(first, "chunks", "of a file without content");
      return { header, digest: undefined, chunks: [], tocOffset };
    }
    const chunks: TocChunk[] = [];
    let at = 0;
    for (const [i, part] of parts.entries()) {
      const size = part.chunkSize === 0 ? header.size - part.chunkOffset : part.chunkSize;
      if (part.chunkOffset !== at || size <= 0 || size > header.size - at) {
        throw this.#fail(
          part,
          "chunk",
          `of ${size} bytes at ${part.chunkOffset} does not follow at ${at} of ${header.size}`,
        );
      }
      // a file in one piece need not give its digest twice
      const chunkDigest = part.chunkDigest ?? (parts.length === 1 ? digest : undefined);
      if (chunkDigest === undefined) throw this.#fail(part, "chunkDigest", "is missing");
      if (parts.length === 1 && digest !== undefined && Buffer.compare(chunkDigest, digest) !== 0) {
        throw this.#fail(part, "chunkDigest", "of a file in one piece is not that of the file");
      }
      chunks.push({
        ...this.#place(part, parts[i + 1], first),
        fileOffset: at,
        size,
        digest: chunkDigest,
        zeros: part.zeros,
      });
      at += size;
    }
    if (at !== header.size) throw this.#fail(first, "chunks", `have ${at} bytes, the file has ${header.size}`);
    return { header, digest: digest ?? (chunks.length === 1 ? chunks[0]!.digest : undefined), chunks, tocOffset };
  }

  #place(
    part: TocElement,
    next: TocElement | undefined,
    first: TocElement,
  ): Pick<TocChunk, "blobOffset" | "blobEnd" | "innerOffset"> {
    const { offset, innerOffset } = part;
    const end = this.#ends.endOf(part, next, first);
    if (end === undefined || offset < this.#floor || end <= offset || end > this.#limit) {
      throw this.#fail(
        part,
        "offset",
        `${offset}..${end} is not in the blob's ${this.#floor}..${this.#limit} that is left`,
      );
    }
    // a member of several files is theirs until another begins
    this.#floor = first.endOffset === 0 ? offset : end;
    return { blobOffset: offset, blobEnd: end, innerOffset };
  }

  #fail(element: TocElement, field: string, problem: string): FormatError {
    const name = displayBytes(element.name.slice(0, 300));
    return tocError(this.#source, `${field} of "${name}"`, problem, { offset: element.tocOffset });
  }
}
