/**
 * PAX extended headers: records "LENGTH KEY=VALUE\n". POSIX.1-2017 pax, "pax Extended Header"; GNU tar manual, "PAX
 * sparse formats"; star(5) for SCHILY.*; libarchive's archive_write_set_format_pax.c for LIBARCHIVE.xattr.
 *
 * Values are bytes; `hdrcharset` changes nothing. An empty value takes an earlier record of the same key back, so that
 * the ustar field counts again (as Go does); only an xattr may be empty, as GNU tar writes those.
 */
import type { ByteString } from "../../bytes/index.ts";
import type { ErrorCode, FormatError } from "../../errors/index.ts";
import type { Xattr } from "../layer-index/index.ts";
import type { TarLimits } from "./limits.ts";

export type Fail = (field: string, problem: string, code?: ErrorCode) => FormatError;

export interface PaxTime {
  readonly seconds: number;
  readonly nanoseconds: number;
}

/** Everything that extended headers said about one entry; what was not said is undefined. */
export interface PaxHeader {
  path?: ByteString | undefined;
  linkPath?: ByteString | undefined;
  size?: number | undefined;
  uid?: number | undefined;
  gid?: number | undefined;
  mtime?: PaxTime | undefined;
  devMajor?: number | undefined;
  devMinor?: number | undefined;
  /** star's size with holes; its sparse format is not supported. */
  realSize?: number | undefined;
  sparse?: PaxSparse | undefined;
  xattrs?: Map<ByteString, ByteString> | undefined;
  ignored?: ByteString[] | undefined;
  /** As written: nothing here depends on them. */
  accessTime?: string | undefined;
  changeTime?: string | undefined;
  /** A record that Go's archive/tar does not know, and that changes what is kept. */
  foreign?: ByteString | undefined;
}

export interface PaxSparse {
  major?: number | undefined;
  minor?: number | undefined;
  name?: ByteString | undefined;
  size?: number | undefined;
  /** offset, length, offset, length...; undefined in format 1.0, where the map is in the payload. */
  map?: number[] | undefined;
}

/** Keys that can only be about one entry. In a global header they would move or resize every file that follows. */
const PER_ENTRY = /^(path|linkpath|size|SCHILY\.(xattr|acl|realsize|dev)|LIBARCHIVE\.xattr\.|GNU\.sparse\.|RHT\.)/;

/** Keys that say something of the file which is lost here; all other unknown keys (atime, uname, comment) are not. */
const LOST = /^(SCHILY\.(acl\.|fflags)|RHT\.security\.selinux|LIBARCHIVE\.symlinktype|MSWINDOWS\.|GNU\.dumpdir)/;

/**
 * Adds the records of one header, bytes `start` to `stop`, to `header`. `global` refuses keys that are about one file: no known tool writes
 * them, Go ignores global headers and GNU tar applies them, so that such a tar would mean two things.
 */
export function decodePax(
  bytes: Buffer,
  start: number,
  stop: number,
  header: PaxHeader,
  global: boolean,
  limits: TarLimits,
  fail: Fail,
): void {
  let at = start;
  while (at < stop) {
    const space = bytes.indexOf(0x20, at);
    const length = space < 0 || space - at > 10 ? Number.NaN : decimal(bytes, at, space);
    const end = at + length;
    if (!(length > space - at + 3) || end > stop || bytes[end - 1] !== 0x0a) {
      throw fail("extended header", `record at its byte ${at - start} has no valid length`);
    }
    const equals = bytes.indexOf(0x3d, space + 1);
    if (equals < 0 || equals >= end || equals === space + 1) {
      throw fail("extended header", `record at its byte ${at - start} has no key`);
    }
    const key = bytes.toString("latin1", space + 1, equals);
    if (global && PER_ENTRY.test(key)) throw fail(`global extended header record ${key}`, "would change every file");
    decodeRecord(key, bytes, equals + 1, end - 1, header, limits, fail);
    at = end;
  }
}

function decodeRecord(
  key: ByteString,
  body: Buffer,
  start: number,
  end: number,
  header: PaxHeader,
  limits: TarLimits,
  fail: Fail,
): void {
  const empty = start === end;
  const integer = () => (empty ? undefined : integerValue(key, body, start, end, fail));
  const path = () => (empty ? undefined : pathValue(key, body, start, end, limits, fail));
  switch (key) {
    case "path":
      header.path = path();
      return;
    case "linkpath":
      header.linkPath = path();
      return;
    case "size":
      header.size = integer();
      return;
    case "uid":
      header.uid = integer();
      return;
    case "gid":
      header.gid = integer();
      return;
    case "mtime":
      header.mtime = empty ? undefined : timeValue(key, body.toString("latin1", start, end), fail);
      return;
    case "atime":
      header.accessTime = empty ? undefined : body.toString("latin1", start, end);
      return;
    case "ctime":
      header.changeTime = empty ? undefined : body.toString("latin1", start, end);
      return;
    case "SCHILY.devmajor":
      header.devMajor = integer();
      header.foreign = key;
      return;
    case "SCHILY.devminor":
      header.devMinor = integer();
      header.foreign = key;
      return;
    case "SCHILY.realsize":
      header.realSize = integer();
      return;
  }
  if (key.startsWith("SCHILY.xattr.")) {
    addXattr(header, key.slice(13), body, start, end, limits, fail);
  } else if (key.startsWith("LIBARCHIVE.xattr.")) {
    header.foreign = key;
    const name = percentDecoded(key.slice(17));
    if (name === undefined) throw fail(`record ${key}`, "is not percent-encoded");
    const text = body.toString("latin1", start, end);
    if (!/^[A-Za-z0-9+/]*={0,2}$/.test(text)) throw fail(`record ${key}`, "is not base64");
    const value = Buffer.from(text, "base64");
    addXattr(header, name, value, 0, value.length, limits, fail);
  } else if (key.startsWith("GNU.sparse.")) {
    header.sparse ??= {};
    decodeSparse(key, body, start, end, header.sparse, limits, fail);
  } else if (LOST.test(key)) {
    header.ignored ??= [];
    if (!header.ignored.includes(key)) header.ignored.push(key);
  }
}

function decodeSparse(
  key: ByteString,
  body: Buffer,
  start: number,
  end: number,
  sparse: PaxSparse,
  limits: TarLimits,
  fail: Fail,
): void {
  switch (key) {
    case "GNU.sparse.major":
      sparse.major = integerValue(key, body, start, end, fail);
      return;
    case "GNU.sparse.minor":
      sparse.minor = integerValue(key, body, start, end, fail);
      return;
    case "GNU.sparse.name":
      sparse.name = start === end ? undefined : pathValue(key, body, start, end, limits, fail);
      return;
    case "GNU.sparse.size":
    case "GNU.sparse.realsize":
      sparse.size = integerValue(key, body, start, end, fail);
      return;
    case "GNU.sparse.numblocks": // the map says it
      return;
    case "GNU.sparse.offset": // 0.0: offset and numbytes take turns
    case "GNU.sparse.numbytes": {
      sparse.map ??= [];
      if (sparse.map.length % 2 !== (key === "GNU.sparse.offset" ? 0 : 1)) {
        throw fail(`record ${key}`, "is out of turn: offset and numbytes alternate");
      }
      addToMap(sparse.map, integerValue(key, body, start, end, fail), limits, fail);
      return;
    }
    case "GNU.sparse.map": {
      // 0.1: all of it in one record; a second one replaces the first
      const map: number[] = [];
      for (let at = start; at < end; ) {
        const comma = body.indexOf(0x2c, at);
        const stop = comma < 0 || comma >= end ? end : comma;
        addToMap(map, integerValue(key, body, at, stop, fail), limits, fail);
        at = stop + 1;
      }
      sparse.map = map;
      return;
    }
    default:
      throw fail(`record ${key}`, "is not known, and sparse records decide where data goes");
  }
}

export function addToMap(map: number[], value: number, limits: TarLimits, fail: Fail): void {
  if (map.length >= limits.sparseSegments * 2) {
    throw fail("sparse map", `has more than ${limits.sparseSegments} segments`, "RESOURCE_EXHAUSTED");
  }
  map.push(value);
}

function addXattr(
  header: PaxHeader,
  name: ByteString,
  bytes: Buffer,
  start: number,
  end: number,
  limits: TarLimits,
  fail: Fail,
): void {
  if (name === "" || name.includes("\0")) throw fail("xattr name", "is empty or has a NUL");
  if (name.length > limits.xattrNameLength) {
    throw fail("xattr name", `has more than ${limits.xattrNameLength} bytes`, "RESOURCE_EXHAUSTED");
  }
  if (end - start > limits.xattrValueLength) {
    throw fail(`xattr ${name}`, `has more than ${limits.xattrValueLength} bytes`, "RESOURCE_EXHAUSTED");
  }
  header.xattrs ??= new Map();
  header.xattrs.set(name, bytes.toString("latin1", start, end)); // a copy: a slice of a string would keep all of it alive
}

export function xattrList(xattrs: Map<ByteString, ByteString>): readonly Xattr[] {
  return Array.from(xattrs, ([name, value]) => ({ name, value }));
}

function pathValue(key: ByteString, body: Buffer, start: number, end: number, limits: TarLimits, fail: Fail) {
  if (end - start > limits.pathLength) {
    throw fail(`record ${key}`, `has more than ${limits.pathLength} bytes`, "RESOURCE_EXHAUSTED");
  }
  const value = body.toString("latin1", start, end);
  if (value.includes("\0")) throw fail(`record ${key}`, "has a NUL");
  return value;
}

function integerValue(key: ByteString, body: Buffer, start: number, end: number, fail: Fail): number {
  const value = decimal(body, start, end);
  if (!(value <= Number.MAX_SAFE_INTEGER)) throw fail(`record ${key}`, "is not a number below 2^53");
  return value;
}

/** Decimal digits and nothing else, at least one; NaN otherwise. */
function decimal(body: Buffer, start: number, end: number): number {
  if (start >= end || end - start > 20) return Number.NaN;
  let value = 0;
  for (let i = start; i < end; i++) {
    const digit = body[i]! - 0x30;
    if (digit < 0 || digit > 9) return Number.NaN;
    value = value * 10 + digit;
  }
  return value;
}

/** "-1.5" is 1.5 seconds before the epoch: second -2, nanosecond 500,000,000. Digits after the ninth are cut off. */
function timeValue(key: ByteString, text: string, fail: Fail): PaxTime {
  const match = /^(-?)(\d{1,16})(?:\.(\d*))?$/.exec(text);
  const whole = Number(match?.[2]);
  if (match === null || !(whole < Number.MAX_SAFE_INTEGER)) throw fail(`record ${key}`, "is not a time");
  const nanoseconds = Number((match[3] ?? "").slice(0, 9).padEnd(9, "0"));
  if (match[1] === "") return { seconds: whole, nanoseconds };
  return nanoseconds === 0
    ? { seconds: 0 - whole, nanoseconds }
    : { seconds: -whole - 1, nanoseconds: 1_000_000_000 - nanoseconds };
}

function percentDecoded(text: ByteString): ByteString | undefined {
  if (/%(?![0-9A-Fa-f]{2})/.test(text)) return undefined;
  return text.replace(/%(..)/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
}
