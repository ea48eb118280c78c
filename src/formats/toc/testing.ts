/** For tests of this and other modules: vectors of peers, blobs in memory as what they are fetched from, layers made up. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { gunzipSync, zstdDecompressSync } from "node:zlib";
import type { TarEntry, TarSink } from "../tar/index.ts";
import {
  decodeEstargzFooter,
  ESTARGZ_FOOTER_SIZE,
  findTocPointer,
  LayerToc,
  type ReadRegion,
  type TocChunk,
  type TocLocation,
  type TocPayload,
} from "./index.ts";

const DIRECTORY = join(import.meta.dirname, "testdata");

export interface Vector {
  readonly blob: Buffer;
  readonly annotations: Readonly<Record<string, string>>;
  readonly diffId: string;
}

export function readVector(name: "skopeo.zstd-chunked" | "ctr-remote.estargz"): Vector {
  const all: Record<string, Omit<Vector, "blob">> = JSON.parse(readFileSync(join(DIRECTORY, "vectors.json"), "utf8"));
  return { ...all[name]!, blob: readFileSync(join(DIRECTORY, name)) };
}

export function locate(blob: Uint8Array, annotations: Readonly<Record<string, string>>): TocLocation {
  const pointer = findTocPointer(annotations, blob.length);
  if (pointer === undefined) throw new Error("no TOC in the annotations");
  return pointer.format === "zstd:chunked"
    ? pointer.location
    : decodeEstargzFooter(blob.subarray(-ESTARGZ_FOOTER_SIZE), blob.length, pointer.digest);
}

/** Pieces that are overwritten when the next one is asked for, as those of a file may be. */
export function regionOf(blob: Uint8Array, pieceSize = 1024 * 1024): ReadRegion {
  return async function* (offset, length) {
    const piece = Buffer.alloc(Math.min(pieceSize, Math.max(1, length)));
    for (let at = 0; at < length; at += pieceSize) {
      const count = Math.min(pieceSize, length - at);
      piece.set(blob.subarray(offset + at, offset + at + count));
      yield piece.subarray(0, count);
      piece.fill(0xee);
    }
  };
}

export function openToc(
  blob: Uint8Array,
  annotations: Readonly<Record<string, string>>,
  pieceSize?: number,
): Promise<LayerToc> {
  return LayerToc.open(locate(blob, annotations), regionOf(blob, pieceSize));
}

/** The bytes of a chunk, from its range of the blob alone. */
export function readChunk(blob: Uint8Array, format: TocLocation["format"], chunk: TocChunk): Buffer {
  const stored = blob.subarray(chunk.blobOffset, chunk.blobEnd);
  const bytes = format === "estargz" ? gunzipSync(stored) : zstdDecompressSync(stored);
  return bytes.subarray(chunk.innerOffset, chunk.innerOffset + chunk.size);
}

export interface Replayed {
  readonly entries: readonly TarEntry[];
  readonly payloads: readonly TocPayload[];
  /** What went to `raw`, and the contents from their chunks, in order: for zstd:chunked, the tar. */
  readonly tar: Buffer;
}

/** Replays a TOC, taking every content from its chunks. */
export async function replay(toc: LayerToc, blob: Uint8Array): Promise<Replayed> {
  const entries: TarEntry[] = [];
  const payloads: TocPayload[] = [];
  const parts: Buffer[] = [];
  let isOpen = false;
  const sink: TarSink = {
    raw: (bytes) => parts.push(Buffer.from(bytes)),
    entry(entry) {
      if (isOpen) throw new Error("entry() before endEntry()");
      isOpen = true;
      entries.push(entry);
    },
    payload() {
      throw new Error("payload() of a TOC");
    },
    endEntry() {
      if (!isOpen) throw new Error("endEntry() without entry()");
      isOpen = false;
    },
  };
  for await (const payload of toc.replay(sink)) {
    if (!isOpen || payload.entry !== entries.at(-1)) throw new Error("a payload without its entry");
    payloads.push(payload);
    for (const chunk of payload.chunks) parts.push(readChunk(blob, toc.location.format, chunk));
  }
  return { entries, payloads, tar: Buffer.concat(parts) };
}
