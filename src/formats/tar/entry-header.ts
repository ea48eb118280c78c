/** One header block, together with what extended headers said before it, as an entry. Which meaning is given to what: index.ts. */
import type { ByteString } from "../../bytes/index.ts";
import type { FormatError } from "../../errors/index.ts";
import type { Xattr } from "../layer-index/index.ts";
import { type TarEntry, type TarEntryType, type TarUnkept, tarError } from "./entry.ts";
import type { ExtendedHeaders } from "./extended-headers.ts";
import { type Dialect, dialectOf, FIELDS, type HeaderField, numberField, textField } from "./header.ts";
import type { TarLimits } from "./limits.ts";
import { type PaxHeader, type PaxTime, xattrList } from "./pax.ts";

/** An entry whose sparse map may still be to come: its size is then that of the stored bytes. */
export type Draft = { -readonly [K in keyof TarEntry]: TarEntry[K] };

export interface EntryHeader {
  readonly draft: Draft;
  readonly dialect: Dialect;
  /** Bytes of data behind the header that mean nothing to a layer. */
  readonly dumpSize: number;
}

const NO_XATTRS: readonly Xattr[] = [];
const TYPES: Readonly<Record<string, TarEntryType>> = {
  "\0": "file", // v7
  "0": "file",
  "1": "hardlink",
  "2": "symlink",
  "3": "character",
  "4": "block",
  "5": "directory",
  "6": "fifo",
  "7": "file", // contiguous
  S: "file", // old GNU sparse
  D: "directory", // GNU incremental: a directory whose data lists its names
};
const REFUSED: Readonly<Record<string, string>> = {
  M: "is the rest of a file from another volume",
  N: "is a list of long names of an old GNU tar",
  A: "is a Solaris ACL",
  E: "is a Solaris extended attribute file",
  I: "is an inode without data (star)",
  s: "is a socket, and a layer can't hold one",
};
/** Type bits that some writers keep in the mode field; S_IFSOCK, stat(2). */
const FILE_TYPE_BITS = 0o170000;
const SOCKET_BITS = 0o140000;

/** The entry of a header block at `start` of `block`, `offset` of the tar, whose checksum was found right. FormatError. */
export function readEntryHeader(
  flag: string,
  block: Buffer,
  start: number,
  offset: number,
  said: ExtendedHeaders,
  limits: TarLimits,
): EntryHeader {
  const dialect = dialectOf(block, start);
  const headerOffset = said.firstOffset < 0 ? offset : said.firstOffset;
  const { pax, longName, global } = said;
  const sparse = pax.sparse;
  if (longName !== undefined && pax.path !== undefined && longName !== pax.path) {
    throw tarError("name", "differs between a GNU long name and a PAX path", headerOffset, { path: longName });
  }
  const path = sparse?.name ?? longName ?? pax.path ?? headerPath(block, start, dialect);
  let type = TYPES[flag];
  if (type === undefined) {
    const code = block[start + FIELDS.type.offset]!;
    const problem = REFUSED[flag] ?? "is not known";
    throw tarError("type flag", `${flag >= "!" && flag <= "~" ? flag : `byte ${code}`} ${problem}`, headerOffset, {
      path,
    });
  }
  if (path === "") throw tarError("name", "is empty", headerOffset);
  const number = (field: HeaderField) => countField(block, start, field, headerOffset, path);

  const fullMode = number(FIELDS.mode);
  const modeField = fullMode % 0o1000000;
  if (type === "file" && (modeField & FILE_TYPE_BITS) === SOCKET_BITS) {
    throw tarError("mode", "is that of a socket, and a layer can't hold one", headerOffset, { path });
  }
  let linkTarget = "";
  if (type === "hardlink" || type === "symlink") {
    linkTarget = said.longLink ?? pax.linkPath ?? textField(block, start, FIELDS.linkName);
    if (linkTarget === "") throw tarError("link name", "is empty", headerOffset, { path });
  }
  let stored = pax.size ?? number(FIELDS.size);
  if (type === "file" && path.charCodeAt(path.length - 1) === 0x2f) {
    // Before ustar a directory was a file with a slash at its end. With data, readers disagree on where it ends.
    if (stored !== 0 || flag === "S" || sparse !== undefined) {
      throw tarError("name", "of a file with content ends in a slash", headerOffset, { path });
    }
    type = "directory";
  }
  const dumpSize = flag === "D" ? stored : 0;
  // Links, directories and special files have no data, whatever their size field says: POSIX has it ignored (it may
  // be a directory's allocation, or a hard link's file size), and Go, which containerd and podman unpack with, does.
  if (type !== "file") stored = 0;
  if (stored > limits.fileSize) throw tooLarge(stored, limits, headerOffset, path);

  const unkept = unkeptOf(type, flag, fullMode, pax, global, dialect, block, start);
  const time: PaxTime | undefined = pax.mtime ?? global.mtime;
  const special = type === "character" || type === "block";
  const draft: Draft = {
    type,
    path,
    linkTarget,
    mode: modeField & 0o7777,
    uid: pax.uid ?? global.uid ?? number(FIELDS.uid),
    gid: pax.gid ?? global.gid ?? number(FIELDS.gid),
    size: stored,
    mtimeSeconds: time === undefined ? timeField(block, start, headerOffset, path) : time.seconds,
    mtimeNanoseconds: time === undefined ? 0 : time.nanoseconds,
    rdevMajor: special ? (pax.devMajor ?? (dialect === "v7" ? 0 : number(FIELDS.devMajor))) : 0,
    rdevMinor: special ? (pax.devMinor ?? (dialect === "v7" ? 0 : number(FIELDS.devMinor))) : 0,
    xattrs: pax.xattrs === undefined ? NO_XATTRS : xattrList(pax.xattrs),
    segments: undefined,
    headerOffset,
    ignoredRecords: pax.ignored,
    ...(unkept && { unkept }),
  };
  if (pax.realSize !== undefined && type === "file" && pax.realSize !== stored) {
    throw tarError("SCHILY.realsize", "differs from the size: star's sparse files are not supported", headerOffset, {
      path,
    });
  }
  return { draft, dialect, dumpSize };
}

/** A field that may not be negative. */
export function countField(
  block: Buffer,
  start: number,
  field: HeaderField,
  offset: number,
  path: ByteString | undefined,
): number {
  const value = numberField(block, start, field);
  if (!(value >= 0)) {
    const problem = value < 0 ? `${value} is negative` : "is neither octal nor base-256 below 2^53";
    throw tarError(field.name, problem, offset, { path });
  }
  return value;
}

function timeField(block: Buffer, start: number, offset: number, path: ByteString): number {
  const value = numberField(block, start, FIELDS.mtime);
  if (Number.isNaN(value)) throw tarError("mtime", "is neither octal nor base-256 below 2^53", offset, { path });
  return value;
}

export function tooLarge(size: number, limits: TarLimits, offset: number, path: ByteString): FormatError {
  return tarError("size", `${size} is more than ${limits.fileSize} bytes`, offset, {
    path,
    code: "RESOURCE_EXHAUSTED",
  });
}

/** Undefined for the usual header, which says nothing of the kind. */
function unkeptOf(
  type: TarEntryType,
  flag: string,
  fullMode: number,
  pax: PaxHeader,
  global: PaxHeader,
  dialect: Dialect,
  block: Buffer,
  start: number,
): TarUnkept | undefined {
  let differsInGo: string | undefined;
  if (flag === "7" || flag === "D") differsInGo = `its type flag is ${flag}`;
  else if (pax.foreign !== undefined) differsInGo = `it has a record ${pax.foreign}`;
  else if (global.mtime !== undefined || global.uid !== undefined || global.gid !== undefined) {
    differsInGo = "a global header counts for it";
  } else if (type !== "file" && (pax.size ?? numberField(block, start, FIELDS.size)) !== 0) {
    differsInGo = `it is a ${type} with a size`;
  } else if (type !== "character" && type !== "block" && dialect !== "v7" && hasDevice(block, start)) {
    differsInGo = `it is a ${type} with a device number`;
  }
  // where one of them is 0, Go takes the field for unused
  const fields =
    dialect === "gnu"
      ? ([FIELDS.gnuAccessTime, FIELDS.gnuChangeTime] as const)
      : dialect === "star"
        ? ([FIELDS.starAccessTime, FIELDS.starChangeTime] as const)
        : undefined;
  const timeOf = (told: string | undefined, field: HeaderField | undefined) =>
    told ??
    (field === undefined || block[start + field.offset] === 0 ? undefined : `${numberField(block, start, field)}`);
  const accessTime = timeOf(pax.accessTime, fields?.[0]);
  const changeTime = timeOf(pax.changeTime, fields?.[1]);
  const modeField = fullMode > 0o7777 ? fullMode : undefined;
  if (modeField === undefined && accessTime === undefined && changeTime === undefined && differsInGo === undefined) {
    return undefined;
  }
  return { modeField, accessTime, changeTime, differsInGo };
}

function hasDevice(block: Buffer, start: number): boolean {
  return numberField(block, start, FIELDS.devMajor) > 0 || numberField(block, start, FIELDS.devMinor) > 0;
}

function headerPath(block: Buffer, start: number, dialect: Dialect): ByteString {
  const name = textField(block, start, FIELDS.name);
  if (dialect === "v7" || dialect === "gnu") return name; // GNU keeps access and change time where the prefix is
  const prefix = textField(block, start, dialect === "star" ? FIELDS.starPrefix : FIELDS.prefix);
  return prefix === "" ? name : `${prefix}/${name}`;
}
