import { createHash } from "node:crypto";
import { toHex } from "../../bytes/index.ts";
import { ShaleError } from "../../errors/index.ts";
import { decompress } from "../compression/index.ts";
import type { TarEntry, TarSink } from "../tar/index.ts";
import { type ChunkEnds, gatherEntries, STATED_ENDS } from "./entries.ts";
import { parseSha256, type TocChunk, type TocEntry } from "./entry.ts";
import { ESTARGZ_TOC_NAME, type EstargzTocHeader, readEstargzToc } from "./estargz-toc.ts";
import { tocError } from "./failure.ts";
import { readJsonList } from "./json-values.ts";
import { DEFAULT_TOC_LIMITS, type TocLimits } from "./limits.ts";
import type { EstargzLocation, TocLocation, ZstdChunkedLocation } from "./location.ts";
import { MemberOffsets } from "./member-offsets.ts";
import { replayTarSplit } from "./replay.ts";
import { decodeTarSplit } from "./tar-split.ts";

/**
 * Bytes `offset` to `offset + length` of the blob, always within `location.region`; asked for several times. Pieces need to
 * stay only until the next one is asked for. Best are pieces of about 1 MiB.
 */
export type ReadRegion = (offset: number, length: number) => AsyncIterable<Uint8Array>;

export interface OpenTocOptions {
  readonly limits?: Partial<TocLimits>;
  /** Told of each entry as it is read through, so that a plan costs no further pass over the JSON. */
  readonly onEntry?: (entry: TocEntry) => void;
  readonly signal?: AbortSignal;
}

/** A content that the sink is to be given before the next one is asked for. */
export interface TocPayload {
  /** What the sink's `entry` was called with. A regular file with content, without segments. */
  readonly entry: TarEntry;
  /** SHA-256 of the content; undefined where an eStargz TOC has digests of chunks alone. */
  readonly digest: Uint8Array | undefined;
  readonly chunks: readonly TocChunk[];
}

/** Numbers of a TOC that was read through once. */
export interface TocSummary {
  readonly entries: number;
  /** Files with content. */
  readonly files: number;
  readonly chunks: number;
  /** Bytes of all contents. */
  readonly contentSize: number;
}

/**
 * The TOC of a layer, verified, that can be gone through any number of times; nothing of it is kept in memory but, for
 * eStargz, 8 bytes a member. Life: `open`, then `entries` and `replay` as often as wanted; there is nothing to close.
 */
export class LayerToc {
  readonly location: TocLocation;
  readonly summary: TocSummary;
  readonly #read: ReadRegion;
  readonly #limits: TocLimits;
  readonly #ends: ChunkEnds;
  readonly #estargz: EstargzTocHeader | undefined;

  /**
   * Verifies the digests of TOC and tar-split, then reads the TOC through once. DATA_LOSS when a digest differs (the
   * transfer may be damaged), FormatError when the TOC is not sound, CANCELLED.
   */
  static async open(location: TocLocation, read: ReadRegion, options: OpenTocOptions = {}): Promise<LayerToc> {
    const { signal, onEntry } = options;
    const limits = { ...DEFAULT_TOC_LIMITS, ...options.limits };
    if (location.format === "estargz") return LayerToc.#openEstargz(location, read, limits, signal, onEntry);
    if (location.digest !== undefined) {
      await verify(read(location.toc.offset, location.toc.length), location.digest, "zstd:chunked TOC");
    }
    const members = new Map<string, unknown>();
    const entries = zstdEntries(location, read, limits, signal, members);
    const summary = await summarize(entries, onEntry);
    const tarSplit = members.get("tarSplitDigest");
    const digest = typeof tarSplit === "string" ? parseSha256(tarSplit) : undefined;
    if (digest === undefined) {
      throw tocError(
        "zstd:chunked",
        "tarSplitDigest",
        "is missing or no SHA-256 digest: the tar-split can't be verified",
      );
    }
    await verify(read(location.tarSplit.offset, location.tarSplit.length), digest, "tar-split");
    return new LayerToc(location, read, limits, STATED_ENDS, summary, undefined);
  }

  static async #openEstargz(
    location: EstargzLocation,
    read: ReadRegion,
    limits: TocLimits,
    signal: AbortSignal | undefined,
    onEntry: OpenTocOptions["onEntry"],
  ): Promise<LayerToc> {
    let header: EstargzTocHeader | undefined;
    const onHeader = (found: EstargzTocHeader) => {
      header = found;
    };
    const { region } = location;
    const json = readEstargzToc(read(region.offset, region.length), limits.tocSize, { signal, onHeader });
    await verify(json, location.digest, "eStargz TOC");
    const offsets = new MemberOffsets(region.offset);
    const summary = await summarize(estargzEntries(location, read, limits, signal, offsets));
    offsets.complete();
    // where a member ends is only known now
    if (onEntry !== undefined)
      for await (const entry of estargzEntries(location, read, limits, signal, offsets)) onEntry(entry);
    return new LayerToc(location, read, limits, offsets, summary, header!);
  }

  private constructor(
    location: TocLocation,
    read: ReadRegion,
    limits: TocLimits,
    ends: ChunkEnds,
    summary: TocSummary,
    estargz: EstargzTocHeader | undefined,
  ) {
    this.location = location;
    this.#read = read;
    this.#limits = limits;
    this.#ends = ends;
    this.summary = summary;
    this.#estargz = estargz;
  }

  /**
   * The files in the order of the TOC, which is that of the blob. The names are those of the TOC; of a name that is not
   * UTF-8 it has only a likeness, so what is built goes by `replay`. CANCELLED.
   */
  entries(options: { readonly signal?: AbortSignal } = {}): AsyncGenerator<TocEntry, void, undefined> {
    const { location } = this;
    const { signal } = options;
    return location.format === "estargz"
      ? estargzEntries(location, this.#read, this.#limits, signal, this.#ends)
      : zstdEntries(location, this.#read, this.#limits, signal, new Map());
  }

  /**
   * Gives the layer's tar to `sink` as the tar decoder would, but for the contents: for each file that has one, after
   * `sink.entry` was called, it gives out what the TOC knows of the content. The caller then hands the content to the sink,
   * in whatever way the two have agreed (the bytes by `payload`, or a reference), and asks for the next; then `endEntry` is
   * called. So an index builder and a recipe writer that take a tar take a TOC.
   *
   * zstd:chunked: headers come from the tar-split, byte for byte as in the tar, through the tar decoder itself, so `raw`
   * and `entry` get what they would get from a whole pull; each entry is compared with the TOC's. eStargz: there is no
   * `raw`, entries are made from the TOC (its times have whole seconds), and its own tar entry, `stargz.index.json`, comes
   * last, as in the tar: nothing vouches for the attributes in its header, so other ones than writers give it are refused
   * (UNIMPLEMENTED). Landmarks are files like others: they are in the tar, and a whole pull has them too.
   *
   * FormatError, with the tar's rules and those of the TOC; CANCELLED.
   */
  replay(sink: TarSink, options: { readonly signal?: AbortSignal } = {}): AsyncGenerator<TocPayload, void, undefined> {
    const { location } = this;
    if (location.format === "estargz") return this.#replayEstargz(location, sink, options);
    const { offset, length, size } = location.tarSplit;
    const tarSplit = decodeTarSplit(
      unzstdExactly(this.#read(offset, length), size, "tar-split", options.signal),
      this.#limits.tarSplitItemSize,
    );
    return replayTarSplit(tarSplit, this.entries(options), sink);
  }

  async *#replayEstargz(
    location: EstargzLocation,
    sink: TarSink,
    options: { readonly signal?: AbortSignal },
  ): AsyncGenerator<TocPayload, void, undefined> {
    for await (const { header, digest, chunks, tocOffset } of this.entries(options)) {
      const entry: TarEntry = { ...header, segments: undefined, headerOffset: tocOffset };
      sink.entry(entry);
      if (header.size > 0) yield { entry, digest, chunks };
      sink.endEntry();
    }
    const { entry, innerOffset } = this.#estargz!;
    checkTocHeader(entry);
    const { region, digest } = location;
    sink.entry(entry);
    if (entry.size > 0) {
      const place = { blobOffset: region.offset, blobEnd: region.offset + region.length, innerOffset, fileOffset: 0 };
      yield { entry, digest, chunks: [{ ...place, size: entry.size, digest, zeros: false }] };
    }
    sink.endEntry();
  }
}

/** As stargz-snapshotter's library writes it, and all that use it: everything that can be is zero. */
function checkTocHeader({ mode, uid, gid, mtimeSeconds, mtimeNanoseconds, xattrs }: TarEntry): void {
  if ([mode, uid, gid, mtimeSeconds, mtimeNanoseconds, xattrs.length].every((value) => value === 0)) return;
  throw tocError("eStargz", `header of ${ESTARGZ_TOC_NAME}`, "has attributes, which no digest covers", {
    code: "UNIMPLEMENTED",
  });
}

async function* zstdEntries(
  location: ZstdChunkedLocation,
  read: ReadRegion,
  limits: TocLimits,
  signal: AbortSignal | undefined,
  members: Map<string, unknown>,
): AsyncGenerator<TocEntry, void, undefined> {
  const { offset, length, size } = location.toc;
  const json = unzstdExactly(read(offset, length), size, "TOC", signal);
  const list = readJsonList(json, "entries", "zstd:chunked", limits.entrySize);
  // the frame around the TOC begins where the last file's bytes end
  yield* gatherEntries(list.elements, "zstd:chunked", offset, STATED_ENDS, limits);
  checkVersion(list.members, "zstd:chunked");
  for (const [key, value] of list.members) members.set(key, value);
}

async function* estargzEntries(
  location: EstargzLocation,
  read: ReadRegion,
  limits: TocLimits,
  signal: AbortSignal | undefined,
  ends: ChunkEnds,
): AsyncGenerator<TocEntry, void, undefined> {
  const { offset, length } = location.region;
  const json = readEstargzToc(read(offset, length), limits.tocSize, { signal });
  const list = readJsonList(json, "entries", "eStargz", limits.entrySize);
  yield* gatherEntries(list.elements, "eStargz", offset, ends, limits);
  checkVersion(list.members, "eStargz");
}

/** Both formats have had version 1 from the start; another one means another document. */
function checkVersion(members: ReadonlyMap<string, unknown>, source: "zstd:chunked" | "eStargz"): void {
  const version = members.get("version");
  if (version !== 1)
    throw tocError(source, "version", `must be 1: current value is ${JSON.stringify(version)?.slice(0, 40)}`);
}

async function summarize(
  entries: AsyncIterable<TocEntry>,
  onEntry: OpenTocOptions["onEntry"] = () => undefined,
): Promise<TocSummary> {
  let count = 0;
  let files = 0;
  let chunks = 0;
  let contentSize = 0;
  for await (const entry of entries) {
    count++;
    onEntry(entry);
    if (entry.chunks.length === 0) continue;
    files++;
    chunks += entry.chunks.length;
    contentSize += entry.header.size;
    if (!Number.isSafeInteger(contentSize)) throw tocError("TOC", "size of all files", "is not below 2^53");
  }
  return { entries: count, files, chunks, contentSize };
}

/** Decompresses what has to be exactly `size` bytes. */
async function* unzstdExactly(
  stored: AsyncIterable<Uint8Array>,
  size: number,
  what: string,
  signal: AbortSignal | undefined,
): AsyncGenerator<Uint8Array, void, undefined> {
  let left = size;
  for await (const piece of decompress(stored, "zstd", { maximumSize: size, ...(signal && { signal }) })) {
    left -= piece.length;
    yield piece;
  }
  if (left !== 0) throw tocError("zstd:chunked", `size of the ${what}`, `is ${size - left}, not ${size} as stated`);
}

async function verify(bytes: AsyncIterable<Uint8Array>, expected: Uint8Array, what: string): Promise<void> {
  const hash = createHash("sha256");
  for await (const piece of bytes) hash.update(piece);
  const found = hash.digest();
  if (found.equals(expected)) return;
  throw new ShaleError(
    "DATA_LOSS",
    `Cannot read the ${what}: expected sha256:${toHex(expected)}, got sha256:${toHex(found)}`,
    { hint: "The transfer or its origin is damaged: try again, or pull the layer whole" },
  );
}
