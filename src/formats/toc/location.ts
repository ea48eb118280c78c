/**
 * Where a layer's TOC is: what the annotations of its descriptor and the footer of its blob say.
 *
 * Everything here is a peer's word: checked against the blob's size and the limits before anything is asked for.
 */
import { struct, safeNumber, text, toHex, u64le } from "../../bytes/index.ts";
import { type FormatError, ShaleError } from "../../errors/index.ts";
import { parseGzipHeader } from "../compression/index.ts";
import { parseSha256 } from "./entry.ts";
import { tocError } from "./failure.ts";
import type { TocLimits } from "./limits.ts";
import { DEFAULT_TOC_LIMITS } from "./limits.ts";

/** Annotations of a layer's descriptor. */
export const TocAnnotation = {
  /** Digest of the compressed TOC. containers/storage, pkg/chunked/internal/minimal/compression.go. */
  ZSTD_CHECKSUM: "io.github.containers.zstd-chunked.manifest-checksum",
  /** "offset:compressed size:size:1". */
  ZSTD_POSITION: "io.github.containers.zstd-chunked.manifest-position",
  /** "offset:compressed size:size". */
  ZSTD_TAR_SPLIT_POSITION: "io.github.containers.zstd-chunked.tarsplit-position",
  /** Digest of the TOC's JSON. stargz-snapshotter, estargz/types.go. */
  ESTARGZ_DIGEST: "containerd.io/snapshot/stargz/toc.digest",
  /** Bytes of the tar. */
  ESTARGZ_SIZE: "io.containers.estargz.uncompressed-size",
} as const;

/** A range of the blob. */
export interface BlobRange {
  readonly offset: number;
  readonly length: number;
}

export type TocLocation = ZstdChunkedLocation | EstargzLocation;

export interface ZstdChunkedLocation {
  readonly format: "zstd:chunked";
  readonly blobSize: number;
  /** What to fetch, in one request: TOC and tar-split, which follow one another. */
  readonly region: BlobRange;
  /** The zstd frame itself, without the skippable frame around it. `size` is decompressed. */
  readonly toc: BlobRange & { readonly size: number };
  readonly tarSplit: BlobRange & { readonly size: number };
  /**
   * SHA-256 of the compressed TOC. Undefined when only the footer told: nothing that is trusted names this TOC then, and
   * what was built with it is to be believed when the rebuilt tar has the expected diffId, not before.
   */
  readonly digest: Uint8Array | undefined;
}

export interface EstargzLocation {
  readonly format: "estargz";
  readonly blobSize: number;
  /** What to fetch, in one request: the gzip members of the TOC's tar entry, up to the footer. */
  readonly region: BlobRange;
  /** SHA-256 of the TOC's JSON. */
  readonly digest: Uint8Array;
}

/** What the annotations of a layer say of its TOC; for eStargz the footer has to say where it is. */
export type TocPointer =
  | { readonly format: "zstd:chunked"; readonly location: ZstdChunkedLocation }
  | { readonly format: "estargz"; readonly digest: Uint8Array };

/** Frame header and data. 64 bytes of data are what containers/storage writes since 2021. */
export const ZSTD_FOOTER_SIZE = 72;
export const ESTARGZ_FOOTER_SIZE = 51;
/** Of the frame around TOC, tar-split and footer: RFC 8878, 3.1.2. */
export const SKIPPABLE_HEADER_SIZE = 8;

const SKIPPABLE_MAGIC = 0x184d2a50n;
/** containers/storage, footerDataToBlob(); the frame header is ours to check. */
export const ZSTD_FOOTER = struct("zstd:chunked footer", ZSTD_FOOTER_SIZE, {
  /** The magic of a skippable frame below, its data's size above. */
  frame: u64le(0),
  tocOffset: u64le(8),
  tocStored: u64le(16),
  tocSize: u64le(24),
  type: u64le(32),
  tarSplitOffset: u64le(40),
  tarSplitStored: u64le(48),
  tarSplitSize: u64le(56),
  magic: text(64, 8),
});
export const ZSTD_FOOTER_FRAME = SKIPPABLE_MAGIC + (BigInt(ZSTD_FOOTER_SIZE - SKIPPABLE_HEADER_SIZE) << 32n);
export const ZSTD_FOOTER_MAGIC = "GNUlInUx";
/** The only type of TOC there is: the JSON of CRFS. */
export const ZSTD_TOC_TYPE = 1;

/** An empty stored block, then CRC-32 and size, both 0. */
const EMPTY_MEMBER_END = "010000ffff0000000000000000";
const ESTARGZ_MAGIC = "STARGZ";
const EXTERNAL_TOC_MAGIC = "STARGZEXTERNALTOC";

/**
 * The TOC that a layer's annotations name; undefined for a layer without one. FormatError INVALID_ARGUMENT for annotations
 * that are malformed or name two, RESOURCE_EXHAUSTED over the limits; UNIMPLEMENTED for a zstd:chunked layer without a
 * tar-split (of before 2023), whose tar can't be rebuilt. A layer that is refused can still be pulled whole.
 */
export function findTocPointer(
  annotations: Readonly<Record<string, string>>,
  blobSize: number,
  limits: Partial<TocLimits> = {},
): TocPointer | undefined {
  const checksum = annotations[TocAnnotation.ZSTD_CHECKSUM];
  const estargz = annotations[TocAnnotation.ESTARGZ_DIGEST];
  if (checksum !== undefined && estargz !== undefined) {
    throw tocError("TOC", "annotations", "name a zstd:chunked TOC and an eStargz TOC");
  }
  if (estargz !== undefined) {
    const digest = parseSha256(estargz);
    if (digest === undefined) throw tocError("eStargz", TocAnnotation.ESTARGZ_DIGEST, "is no SHA-256 digest");
    return { format: "estargz", digest };
  }
  if (checksum === undefined) return undefined;
  const digest = parseSha256(checksum);
  if (digest === undefined) throw tocError("zstd:chunked", TocAnnotation.ZSTD_CHECKSUM, "is no SHA-256 digest");
  const [offset, stored, size, type] = numbers(annotations, TocAnnotation.ZSTD_POSITION, 4);
  if (type !== ZSTD_TOC_TYPE) throw tocError("zstd:chunked", "manifest type", `${type} is not known`);
  if (annotations[TocAnnotation.ZSTD_TAR_SPLIT_POSITION] === undefined) throw withoutTarSplit();
  const [splitOffset, splitStored, splitSize] = numbers(annotations, TocAnnotation.ZSTD_TAR_SPLIT_POSITION, 3);
  const location = checkedLocation(
    { offset: offset!, length: stored!, size: size! },
    { offset: splitOffset!, length: splitStored!, size: splitSize! },
    blobSize,
    digest,
    { ...DEFAULT_TOC_LIMITS, ...limits },
  );
  return { format: "zstd:chunked", location };
}

/**
 * Where the TOC is by a zstd:chunked footer: `tail` are the last bytes of the blob, at least ZSTD_FOOTER_SIZE if it has as
 * many. Undefined when the blob has no such footer (any zstd layer may come here). Throws as `findTocPointer`.
 */
export function findZstdChunkedFooter(
  tail: Uint8Array,
  blobSize: number,
  limits: Partial<TocLimits> = {},
): ZstdChunkedLocation | undefined {
  if (tail.length < ZSTD_FOOTER_SIZE) return undefined;
  const footer = ZSTD_FOOTER.read(tail, tail.length - ZSTD_FOOTER_SIZE);
  if (footer.magic !== ZSTD_FOOTER_MAGIC || footer.frame !== ZSTD_FOOTER_FRAME) return undefined;
  const number = (field: string, value: bigint) => safeNumber(value, "zstd:chunked footer", field);
  if (footer.type !== BigInt(ZSTD_TOC_TYPE)) {
    throw tocError("zstd:chunked", "manifest type", `${footer.type} is not known`);
  }
  if (footer.tarSplitOffset === 0n) throw withoutTarSplit();
  return checkedLocation(
    {
      offset: number("TOC offset", footer.tocOffset),
      length: number("TOC length", footer.tocStored),
      size: number("TOC size", footer.tocSize),
    },
    {
      offset: number("tar-split offset", footer.tarSplitOffset),
      length: number("tar-split length", footer.tarSplitStored),
      size: number("tar-split size", footer.tarSplitSize),
    },
    blobSize,
    undefined,
    { ...DEFAULT_TOC_LIMITS, ...limits },
  );
}

/**
 * Where the TOC of an eStargz layer is: `tail` are the last bytes of the blob, at least ESTARGZ_FOOTER_SIZE if it has as
 * many; `digest` is the annotation's. UNIMPLEMENTED for a legacy stargz footer and for a TOC outside of the blob,
 * FormatError for anything else that is no footer.
 */
export function decodeEstargzFooter(
  tail: Uint8Array,
  blobSize: number,
  digest: Uint8Array,
  limits: Partial<TocLimits> = {},
): EstargzLocation {
  const { tocSize } = { ...DEFAULT_TOC_LIMITS, ...limits };
  const offset = estargzTocOffset(tail);
  const length = blobSize - ESTARGZ_FOOTER_SIZE - offset;
  if (length <= 0) throw tocError("eStargz", "TOC offset", `${offset} is not in the blob of ${blobSize} bytes`);
  if (length > tocSize) throw overLimit("eStargz", "TOC", length, tocSize);
  return { format: "estargz", blobSize, region: { offset, length }, digest };
}

/** The footer of a blob whose TOC begins at `tocOffset`. */
export function encodeEstargzFooter(tocOffset: number): Uint8Array {
  const subfield = `${tocOffset.toString(16).padStart(16, "0")}${ESTARGZ_MAGIC}`;
  const footer = Buffer.alloc(ESTARGZ_FOOTER_SIZE);
  // FLG: FEXTRA; OS: unknown; then XLEN, SI1, SI2, LEN
  footer.set([0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 26, 0, 0x53, 0x47, 22, 0], 0);
  footer.write(subfield, 16, "latin1");
  footer.write(EMPTY_MEMBER_END, 38, "hex");
  return footer;
}

function estargzTocOffset(tail: Uint8Array): number {
  const last = (size: number) => tail.subarray(Math.max(0, tail.length - size));
  const extra = extraOf(last(ESTARGZ_FOOTER_SIZE));
  // subfield "SG" of 22 bytes: 16 hexadecimal digits and the magic
  const match = extra?.startsWith("SG\x16\0") ? /^([0-9a-f]{16})STARGZ$/.exec(extra.slice(4)) : null;
  if (match !== null) {
    const offset = Number(`0x${match[1]}`);
    if (!Number.isSafeInteger(offset)) throw tocError("eStargz", "TOC offset", "is not below 2^53");
    return offset;
  }
  if (/^[0-9a-f]{16}STARGZ$/.test(extraOf(last(47)) ?? "")) {
    throw refused("a legacy stargz footer of 47 bytes, whose TOC has no digests");
  }
  if (extraOf(last(46))?.endsWith(EXTERNAL_TOC_MAGIC)) throw refused("its TOC in another image");
  const problem = `must be an empty gzip member with ${ESTARGZ_MAGIC} in its extra field`;
  throw tocError("eStargz", "footer", problem);
}

/** The extra field of a footer that is one empty gzip member and nothing else, as latin1. */
function extraOf(bytes: Uint8Array): string | undefined {
  // ID1 ID2 CM: parseGzipHeader would throw, and this is only a look
  if (bytes.length < 12 || bytes[0] !== 0x1f || bytes[1] !== 0x8b || bytes[2] !== 8 || bytes[3] !== 4) return undefined;
  const header = parseGzipHeader(bytes, 0);
  if (header?.extra === undefined) return undefined;
  if (toHex(bytes.subarray(header.size)) !== EMPTY_MEMBER_END) return undefined;
  return Buffer.from(header.extra).toString("latin1");
}

function checkedLocation(
  toc: ZstdChunkedLocation["toc"],
  tarSplit: ZstdChunkedLocation["tarSplit"],
  blobSize: number,
  digest: Uint8Array | undefined,
  limits: TocLimits,
): ZstdChunkedLocation {
  for (const [name, { length, size }, limit] of [
    ["TOC", toc, limits.tocSize],
    ["tar-split", tarSplit, limits.tarSplitSize],
  ] as const) {
    if (length === 0 || size === 0) throw tocError("zstd:chunked", name, "is empty");
    if (length > limit) throw overLimit("zstd:chunked", name, length, limit);
    if (size > limit) throw overLimit("zstd:chunked", name, size, limit);
  }
  const end = tarSplit.offset + tarSplit.length;
  if (toc.offset < SKIPPABLE_HEADER_SIZE || end > blobSize) {
    throw tocError("zstd:chunked", "positions", `${toc.offset}..${end} are not in the blob of ${blobSize} bytes`);
  }
  if (tarSplit.offset !== toc.offset + toc.length + SKIPPABLE_HEADER_SIZE) {
    throw tocError("zstd:chunked", "tar-split offset", `${tarSplit.offset} is not behind the TOC at ${toc.offset}`);
  }
  const region = { offset: toc.offset, length: end - toc.offset };
  return { format: "zstd:chunked", blobSize, region, toc, tarSplit, digest };
}

/** "1:22:333" as numbers. */
function numbers(annotations: Readonly<Record<string, string>>, key: string, count: number): number[] {
  const value = annotations[key];
  if (value === undefined) throw tocError("zstd:chunked", key, "is missing");
  const parts = /^\d{1,16}(?::\d{1,16}){0,3}$/.test(value) ? value.split(":").map(Number) : [];
  if (parts.length !== count || !parts.every(Number.isSafeInteger)) {
    throw tocError(
      "zstd:chunked",
      key,
      `must be ${count} numbers: current value is ${JSON.stringify(value.slice(0, 100))}`,
    );
  }
  return parts;
}

function overLimit(source: "zstd:chunked" | "eStargz", name: string, size: number, limit: number): FormatError {
  return tocError(source, name, `has ${size} bytes, the limit is ${limit}`, { code: "RESOURCE_EXHAUSTED" });
}

function withoutTarSplit(): FormatError {
  return tocError("zstd:chunked", "tar-split", "is missing: without it the layer's tar can't be rebuilt", {
    code: "UNIMPLEMENTED",
    hint: "The layer can be pulled whole",
  });
}

function refused(what: string): ShaleError {
  return new ShaleError("UNIMPLEMENTED", `Cannot read a part of the eStargz layer: it has ${what}`, {
    hint: "The layer can be pulled whole, or converted anew with shale convert",
  });
}
