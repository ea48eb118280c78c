/** The tar entry that holds an eStargz TOC. stargz-snapshotter, docs/estargz.md: the last entry, `stargz.index.json`. */
import { decompress } from "../compression/index.ts";
import { type TarEntry, TarDecoder, type TarSink } from "../tar/index.ts";
import { tocError } from "./failure.ts";

export const ESTARGZ_TOC_NAME = "stargz.index.json";
/** Of the two files of one byte that say how far to read ahead: up to here, or not at all. */
export const ESTARGZ_LANDMARKS = { prefetch: ".prefetch.landmark", none: ".no.prefetch.landmark" } as const;
/** Header, padding and end of the archive around the JSON, generously. */
const AROUND = 64 * 1024;

/** What stands before the JSON. */
export interface EstargzTocHeader {
  readonly entry: TarEntry;
  /** Decompressed bytes from the start of the TOC's member to the JSON. */
  readonly innerOffset: number;
}

/**
 * The JSON in the TOC's gzip members. `onHeader` is called before the first piece. Pieces are valid until the next. Throws
 * FormatError for anything but one tar entry of that name, and for more than `limit` bytes of JSON.
 */
export async function* readEstargzToc(
  stored: AsyncIterable<Uint8Array>,
  limit: number,
  options: { readonly signal?: AbortSignal | undefined; readonly onHeader?: (header: EstargzTocHeader) => void } = {},
): AsyncGenerator<Uint8Array, void, undefined> {
  const { signal, onHeader } = options;
  const pieces: Uint8Array[] = [];
  let before = 0;
  let header: TarEntry | undefined;
  const sink: TarSink = {
    raw: (bytes) => {
      if (header === undefined) before += bytes.length;
    },
    entry: (entry) => {
      if (header !== undefined) throw tocError("eStargz", "TOC", "is followed by another tar entry");
      if (entry.path !== ESTARGZ_TOC_NAME || entry.type !== "file" || entry.segments !== undefined) {
        throw tocError("eStargz", "TOC", `begins with another tar entry than ${ESTARGZ_TOC_NAME}`);
      }
      if (entry.size > limit) {
        throw tocError("eStargz", "TOC", `has ${entry.size} bytes, the limit is ${limit}`, {
          code: "RESOURCE_EXHAUSTED",
        });
      }
      header = entry;
      onHeader?.({ entry, innerOffset: before });
    },
    payload: (bytes) => pieces.push(bytes),
    endEntry: () => undefined,
  };
  const decoder = new TarDecoder(sink);
  const limits = { maximumSize: limit + AROUND, ...(signal && { signal }) };
  for await (const piece of decompress(stored, "gzip", limits)) {
    decoder.write(piece);
    yield* pieces;
    pieces.length = 0;
  }
  decoder.end();
  if (header === undefined) throw tocError("eStargz", "TOC", "has no tar entry");
}
