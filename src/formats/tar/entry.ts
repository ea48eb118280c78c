import type { ByteString } from "../../bytes/index.ts";
import { displayBytes } from "../../bytes/index.ts";
import type { ErrorCode } from "../../errors/index.ts";
import { FormatError } from "../../errors/index.ts";
import type { Xattr } from "../layer-index/index.ts";

export type TarEntryType = "file" | "directory" | "symlink" | "hardlink" | "character" | "block" | "fifo";

/** A run of stored payload bytes and its place in the file. */
export interface Segment {
  readonly offset: number;
  readonly length: number;
}

/** What a tar header says of one file. Paths and names are as written in the tar: nothing is normalised. */
export interface TarHeader {
  readonly type: TarEntryType;
  /** Not empty, without NUL. */
  readonly path: ByteString;
  /** Of a symlink or hard link; else "". */
  readonly linkTarget: ByteString;
  /** Permission bits, 0..07777. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Bytes of a regular file, holes included; 0 for all other types. */
  readonly size: number;
  /** Whole seconds since the epoch, rounded down; may be negative. */
  readonly mtimeSeconds: number;
  /** 0..999,999,999, counted up from `mtimeSeconds`. */
  readonly mtimeNanoseconds: number;
  /** Of a character or block device; else 0. */
  readonly rdevMajor: number;
  readonly rdevMinor: number;
  /** Names are unique. */
  readonly xattrs: readonly Xattr[];
}

/** What a header says that no layer keeps. A table of contents repeats it, so that who converts a layer has to know. */
export interface TarUnkept {
  /** The mode field, where it has more than permission bits: old writers put the file type there too. */
  readonly modeField?: number | undefined;
  /** Decimal seconds, as PAX writes them ("-1.5"); not checked. */
  readonly accessTime?: string | undefined;
  readonly changeTime?: string | undefined;
  /** Why Go's archive/tar, which other tools read and write layers with, sees another entry than we do. */
  readonly differsInGo?: string | undefined;
}

export interface TarEntry extends TarHeader {
  /** Where the stored payload bytes go in the file, ascending and without overlap; undefined when there are no holes. */
  readonly segments: readonly Segment[] | undefined;
  /** Offset in the tar of the entry's first header block, its extended headers included. */
  readonly headerOffset: number;
  /** PAX records about this file that a TarEntry has no place for (ACLs in text form, file flags); for a notice. */
  readonly ignoredRecords?: readonly ByteString[];
  readonly unkept?: TarUnkept;
}

/**
 * Receives a tar in pieces. Arguments of `raw` and `payload` are views of the decoder's input: valid during the call.
 * All bytes of the tar arrive exactly once, in order, through `raw` or `payload`; how they are cut means nothing.
 */
export interface TarSink {
  /** Everything that is not file content: headers, extended headers, sparse maps, padding, end blocks and what follows. */
  raw(bytes: Uint8Array): void;
  /** A new entry; all its headers were given to `raw` before. */
  entry(entry: TarEntry): void;
  /** Stored content of the current entry, a regular file; for a sparse one its segments back to back. Never empty. */
  payload(bytes: Uint8Array): void;
  /** The current entry has all its payload. Called once for every entry. */
  endEntry(): void;
}

/** "Cannot read tar: size of "usr/bin/x" at byte 1536: ..." */
export function tarError(
  field: string,
  problem: string,
  offset: number,
  options: { readonly path?: ByteString | undefined; readonly code?: ErrorCode | undefined } = {},
): FormatError {
  const name = options.path === undefined ? field : `${field} of "${displayBytes(shorten(options.path))}"`;
  return new FormatError(
    "tar",
    name,
    problem,
    options.code === undefined ? { offset } : { offset, code: options.code },
  );
}

/** A hostile path must not become a hostile message. */
function shorten(path: ByteString): ByteString {
  return path.length <= 300 ? path : `${path.slice(0, 140)}...${path.slice(-140)}`;
}
