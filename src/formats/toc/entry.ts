/**
 * One element of a TOC's list as typed values. zstd:chunked: containers/storage, pkg/chunked/internal/minimal,
 * FileMetadata. eStargz: stargz-snapshotter, docs/estargz.md, TOCEntry. Both are the JSON of CRFS with additions.
 */
import { type ByteString, displayBytes, fromUtf8 } from "../../bytes/index.ts";
import type { ErrorCode, FormatError } from "../../errors/index.ts";
import type { Xattr } from "../layer-index/index.ts";
import { DEFAULT_TAR_LIMITS, type TarEntryType, type TarHeader } from "../tar/index.ts";
import { type TocSource, tocError } from "./failure.ts";
import type { JsonValue } from "./json-values.ts";
import type { TocLimits } from "./limits.ts";

export interface TocChunk {
  /** In the blob, of the frame or member that has the chunk: a point where a decompressor can begin. */
  readonly blobOffset: number;
  /** In the blob, where bytes follow that the chunk does not need; the next frame or member begins there or before. */
  readonly blobEnd: number;
  /** Decompressed bytes between `blobOffset` and the chunk: eStargz may keep several files in one member. */
  readonly innerOffset: number;
  readonly fileOffset: number;
  /** Decompressed bytes, more than 0. */
  readonly size: number;
  /** SHA-256 of the decompressed bytes. */
  readonly digest: Uint8Array;
  /** All zeros, so that there is nothing to fetch. It is in the blob nevertheless. */
  readonly zeros: boolean;
}

/** A file of the layer as the TOC tells of it. */
export interface TocEntry {
  readonly header: TarHeader;
  /** SHA-256 of the content; undefined without content, and where an eStargz TOC has digests of chunks alone. */
  readonly digest: Uint8Array | undefined;
  /** In the order of the file, without gaps: together they are the content. */
  readonly chunks: readonly TocChunk[];
  /** Where the TOC tells of it: bytes from the start of the JSON. */
  readonly tocOffset: number;
}

/** An element before chunks are gathered: what a "chunk" has, and for all other types a header. */
export interface TocElement {
  readonly header: TarHeader | undefined;
  readonly name: ByteString;
  readonly digest: Uint8Array | undefined;
  readonly offset: number;
  /** Of the file's last frame; 0 in eStargz. */
  readonly endOffset: number;
  readonly innerOffset: number;
  readonly chunkOffset: number;
  /** 0: up to the end of the file. */
  readonly chunkSize: number;
  readonly chunkDigest: Uint8Array | undefined;
  readonly zeros: boolean;
  readonly tocOffset: number;
}

const TYPES: ReadonlyMap<string, TarEntryType> = new Map([
  ["reg", "file"],
  ["dir", "directory"],
  ["symlink", "symlink"],
  ["hardlink", "hardlink"],
  ["char", "character"],
  ["block", "block"],
  ["fifo", "fifo"],
]);

const KNOWN = [
  ...["type", "name", "linkName", "mode", "size", "uid", "gid", "modtime", "accesstime", "changetime"],
  ...["devMajor", "devMinor", "xattrs", "digest", "offset", "endOffset", "innerOffset"],
  ...["chunkSize", "chunkOffset", "chunkDigest", "chunkType", "userName", "groupName"],
];
const KNOWN_EXACT: ReadonlySet<string> = new Set(KNOWN);
const KNOWN_FOLDED: ReadonlySet<string> = new Set(KNOWN.map((key) => key.toLowerCase()));

const NO_XATTRS: readonly Xattr[] = [];

/** FormatError for what is no element of a TOC. Unknown members are ignored, unless they differ from a known one in case. */
export function decodeElement(json: JsonValue, source: TocSource, limits: TocLimits): TocElement {
  return new ElementReader(json, source, limits).read();
}

class ElementReader {
  readonly #object: Readonly<Record<string, unknown>>;
  readonly #offset: number;
  readonly #source: TocSource;
  readonly #limits: TocLimits;
  #name: ByteString | undefined;

  constructor(json: JsonValue, source: TocSource, limits: TocLimits) {
    this.#offset = json.offset;
    this.#source = source;
    this.#limits = limits;
    if (!isRecord(json.value)) throw this.#fail("entry", "is no object");
    this.#object = json.value;
    for (const key in this.#object) {
      // Go's readers match without case: they would see another TOC than we do
      if (!KNOWN_EXACT.has(key) && KNOWN_FOLDED.has(key.toLowerCase())) {
        throw this.#fail(JSON.stringify(key), "differs from the name of a member in case only");
      }
    }
  }

  read(): TocElement {
    const type = this.#text("type");
    const isChunk = type === "chunk";
    const name = this.#path("name");
    this.#name = name;
    if (name === "" && !isChunk) throw this.#fail("name", "is empty");
    const digest = this.#text("digest");
    const chunkDigest = this.#text("chunkDigest");
    const chunkType = this.#text("chunkType");
    if (chunkType !== "" && chunkType !== "zeros") throw this.#fail("chunkType", `${quote(chunkType)} is not known`);
    return {
      header: isChunk ? undefined : this.#header(type, name),
      name,
      digest: digest === "" ? undefined : this.#sha256("digest", digest),
      offset: this.#size("offset"),
      endOffset: this.#size("endOffset"),
      innerOffset: this.#size("innerOffset"),
      chunkOffset: this.#size("chunkOffset"),
      chunkSize: this.#size("chunkSize"),
      chunkDigest: chunkDigest === "" ? undefined : this.#sha256("chunkDigest", chunkDigest),
      zeros: chunkType === "zeros",
      tocOffset: this.#offset,
    };
  }

  #header(typeName: string, path: ByteString): TarHeader {
    const type = TYPES.get(typeName);
    if (type === undefined) throw this.#fail("type", `${quote(typeName)} is not known`);
    const linkTarget = this.#path("linkName");
    const isLink = type === "symlink" || type === "hardlink";
    if (isLink && linkTarget === "") throw this.#fail("linkName", "is missing");
    const size = this.#size("size");
    if (size > DEFAULT_TAR_LIMITS.fileSize) {
      throw this.#fail("size", `${size} is more than ${DEFAULT_TAR_LIMITS.fileSize} bytes`, "RESOURCE_EXHAUSTED");
    }
    const special = type === "character" || type === "block";
    const { seconds, nanoseconds } = this.#time("modtime");
    return {
      type,
      path,
      linkTarget: isLink ? linkTarget : "",
      // some tars keep the file type in the mode as well, and then the TOC does
      mode: this.#size("mode") % 0o10000,
      uid: this.#size("uid"),
      gid: this.#size("gid"),
      size: type === "file" ? size : 0,
      mtimeSeconds: seconds,
      mtimeNanoseconds: nanoseconds,
      rdevMajor: special ? this.#size("devMajor") : 0,
      rdevMinor: special ? this.#size("devMinor") : 0,
      xattrs: this.#xattrs(),
    };
  }

  /** Absent is "": Go leaves empty texts out. */
  #text(key: string): string {
    const value = this.#object[key];
    if (value === undefined || value === null) return "";
    if (typeof value !== "string") throw this.#fail(key, "is no string");
    return value;
  }

  #path(key: string): ByteString {
    const text = this.#text(key);
    const path = isAscii(text) ? text : fromUtf8(text);
    if (path.length > this.#limits.pathLength) {
      throw this.#fail(key, `has more than ${this.#limits.pathLength} bytes`, "RESOURCE_EXHAUSTED");
    }
    if (path.includes("\0")) throw this.#fail(key, "has a NUL");
    return path;
  }

  /** Absent is 0: Go leaves zeros out. */
  #size(key: string): number {
    const value = this.#object[key];
    if (value === undefined || value === null) return 0;
    if (typeof value !== "number" || !Number.isSafeInteger(value) || value < 0) {
      throw this.#fail(key, "is no whole number of 0..2^53-1");
    }
    return value;
  }

  #sha256(key: string, text: string): Uint8Array {
    const digest = parseSha256(text);
    if (digest === undefined) throw this.#fail(key, `must be "sha256:" and 64 digits: current value is ${quote(text)}`);
    return digest;
  }

  /** RFC 3339. Absent is the epoch: Go's writers leave its zero time out, and tars say 0 for it. */
  #time(key: string): { seconds: number; nanoseconds: number } {
    const text = this.#text(key);
    if (text === "") return { seconds: 0, nanoseconds: 0 };
    const match = /^(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d))$/.exec(text);
    if (match === null) throw this.#fail(key, `${quote(text)} is no time of RFC 3339`);
    const [year, month, day, hour, minute, second] = match.slice(1, 7).map(Number) as [number, ...number[]];
    // Date.UTC takes years below 100 for those of the last century: 400 years are always 146,097 days
    const whole = Date.UTC(year + 400, month! - 1, day, hour, minute, second) / 1000 - 146_097 * 86_400;
    const zone =
      match[8] === undefined ? 0 : (Number(match[9]) * 60 + Number(match[10])) * (match[8] === "-" ? -60 : 60);
    const seconds = whole - zone;
    if (seconds === GO_ZERO_TIME && match[7] === undefined) return { seconds: 0, nanoseconds: 0 };
    return { seconds, nanoseconds: Number((match[7] ?? "").padEnd(9, "0")) };
  }

  #xattrs(): readonly Xattr[] {
    const value = this.#object.xattrs;
    if (value === undefined || value === null) return NO_XATTRS;
    if (!isRecord(value)) throw this.#fail("xattrs", "is no object");
    const xattrs: Xattr[] = [];
    for (const key of Object.keys(value)) {
      const encoded = value[key];
      const name = fromUtf8(key);
      const field = `xattr ${JSON.stringify(key.slice(0, 80))}`;
      if (name === "" || name.includes("\0") || name.length > DEFAULT_TAR_LIMITS.xattrNameLength) {
        throw this.#fail(
          field,
          `has a name that is empty, has a NUL, or more than ${DEFAULT_TAR_LIMITS.xattrNameLength} bytes`,
        );
      }
      if (typeof encoded !== "string" || !/^[A-Za-z0-9+/]*={0,2}$/.test(encoded))
        throw this.#fail(field, "is not base64");
      const bytes = Buffer.from(encoded, "base64").toString("latin1");
      if (bytes.length > DEFAULT_TAR_LIMITS.xattrValueLength) {
        throw this.#fail(field, `has more than ${DEFAULT_TAR_LIMITS.xattrValueLength} bytes`, "RESOURCE_EXHAUSTED");
      }
      xattrs.push({ name, value: bytes });
    }
    return xattrs;
  }

  #fail(field: string, problem: string, code?: ErrorCode): FormatError {
    const of = this.#name === undefined || this.#name === "" ? "" : ` of "${displayBytes(this.#name.slice(0, 300))}"`;
    return tocError(this.#source, `${field}${of}`, problem, { offset: this.#offset, ...(code && { code }) });
  }
}

/** January 1 of year 1, the zero of Go's time.Time. */
const GO_ZERO_TIME = -62_135_596_800;

/** The 32 bytes of "sha256:<64 lower-case hexadecimal digits>", undefined for anything else. */
export function parseSha256(text: string): Uint8Array | undefined {
  return /^sha256:[0-9a-f]{64}$/.test(text) ? Buffer.from(text.slice(7), "hex") : undefined;
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isAscii(text: string): boolean {
  for (let i = 0; i < text.length; i++) if (text.charCodeAt(i) > 0x7f) return false;
  return true;
}

function quote(text: string): string {
  return JSON.stringify(text.length > 100 ? `${text.slice(0, 80)}...` : text);
}
