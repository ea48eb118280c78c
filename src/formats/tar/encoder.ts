/**
 * Writes tar headers: ustar where everything fits, otherwise a PAX extended header before it with just the records that
 * are needed. The same entry gives the same bytes. POSIX.1-2017 pax.
 */
import type { ByteString } from "../../bytes/index.ts";
import type { TarEntryType, TarHeader } from "./entry.ts";
import { BLOCK_SIZE, checksum, FIELDS, type HeaderField } from "./header.ts";

const ZEROS = new Uint8Array(2 * BLOCK_SIZE);
/** End of archive: two zero blocks. Not written to by anyone. */
export const TAR_END: Uint8Array = ZEROS;

const FLAGS: Readonly<Record<TarEntryType, string>> = {
  file: "0",
  hardlink: "1",
  symlink: "2",
  character: "3",
  block: "4",
  directory: "5",
  fifo: "6",
};

/** The zero bytes that follow a payload of `size` bytes: 0 to 511. Not to be written to. */
export function tarPadding(size: number): Uint8Array {
  return ZEROS.subarray(0, (BLOCK_SIZE - (size % BLOCK_SIZE)) % BLOCK_SIZE);
}

/** Where a header is written, so that the content behind it begins at a multiple of `alignment` (itself one of 512). */
export interface TarPlace {
  readonly offset: number;
  readonly alignment: number;
}

/**
 * All header blocks of one entry. A file's `size` bytes and their padding follow them; a sparse file is written with its
 * holes as zeros. A directory's path gets a slash at its end. With a place, a record `comment` fills the extended header up to
 * the alignment: POSIX has it ignored, and of all readers none warns of it. RangeError for what no tar can say (NUL in a
 * path, a negative owner).
 */
export function encodeTarHeader(entry: TarHeader, place?: TarPlace): Uint8Array {
  const { path, size, split, records } = partsOf(entry);
  const filler = place === undefined ? 0 : fillerLength(records, place);
  if (filler > 0) records.set("comment", " ".repeat(filler));
  const body = records.size === 0 ? 0 : paxLength(records);
  const extended = body === 0 ? 0 : BLOCK_SIZE + roundUp(body);
  // One buffer for all of it, from Node's pool: a tree has tens of thousands of entries.
  const bytes = Buffer.allocUnsafe(extended + BLOCK_SIZE).fill(0);
  if (body > 0) {
    const base = entry.path.replace(/\/+$/, "").split("/").at(-1) ?? "";
    const name = `PaxHeaders/${base}`.slice(0, FIELDS.name.length);
    encodeBlock(bytes, 0, { ...NO_VALUES, name, flag: "x", mode: 0o644, size: body });
    writePax(bytes, BLOCK_SIZE, records);
  }
  encodeBlock(bytes, extended, {
    name: split?.name ?? path.slice(0, FIELDS.name.length),
    prefix: split?.prefix ?? "",
    linkName: entry.linkTarget.slice(0, FIELDS.linkName.length),
    flag: FLAGS[entry.type],
    mode: entry.mode,
    uid: fits(entry.uid, FIELDS.uid) ? entry.uid : 0,
    gid: fits(entry.gid, FIELDS.gid) ? entry.gid : 0,
    size: fits(size, FIELDS.size) ? size : 0,
    mtime: fits(entry.mtimeSeconds, FIELDS.mtime) ? entry.mtimeSeconds : 0,
    devMajor: fits(entry.rdevMajor, FIELDS.devMajor) ? entry.rdevMajor : 0,
    devMinor: fits(entry.rdevMinor, FIELDS.devMinor) ? entry.rdevMinor : 0,
  });
  return bytes;
}

/** The length of what {@link encodeTarHeader} gives, without making it: what a plan needs to know. */
export function tarHeaderLength(entry: TarHeader, place?: TarPlace): number {
  const { records } = partsOf(entry);
  const body = records.size === 0 ? 0 : paxLength(records);
  const length = (body === 0 ? 0 : BLOCK_SIZE + roundUp(body)) + BLOCK_SIZE;
  if (place === undefined) return length;
  const missing = missingTo(place, length);
  return length + (missing > 0 && records.size === 0 ? fillFromNothing(missing, place) : missing);
}

interface HeaderParts {
  readonly path: ByteString;
  readonly size: number;
  /** Undefined when the path needs a record. */
  readonly split: { readonly name: ByteString; readonly prefix: ByteString } | undefined;
  /** What a ustar header has no room for. */
  readonly records: Map<string, ByteString>;
}

function partsOf(entry: TarHeader): HeaderParts {
  const path = entry.type === "directory" && !entry.path.endsWith("/") ? `${entry.path}/` : entry.path;
  const size = entry.type === "file" ? entry.size : 0;
  check(entry, path, size);
  const records = new Map<string, ByteString>();
  const split = splitPath(path);
  if (split === undefined) records.set("path", path);
  if (entry.linkTarget.length > FIELDS.linkName.length) records.set("linkpath", entry.linkTarget);
  if (!fits(size, FIELDS.size)) records.set("size", `${size}`);
  if (!fits(entry.uid, FIELDS.uid)) records.set("uid", `${entry.uid}`);
  if (!fits(entry.gid, FIELDS.gid)) records.set("gid", `${entry.gid}`);
  if (entry.mtimeNanoseconds !== 0 || !fits(entry.mtimeSeconds, FIELDS.mtime)) records.set("mtime", formatTime(entry));
  if (!fits(entry.rdevMajor, FIELDS.devMajor)) records.set("SCHILY.devmajor", `${entry.rdevMajor}`);
  if (!fits(entry.rdevMinor, FIELDS.devMinor)) records.set("SCHILY.devminor", `${entry.rdevMinor}`);
  for (const { name, value } of entry.xattrs) {
    // A key ends at its first "=", so such a name needs libarchive's form, which is percent-encoded.
    if (!name.includes("=")) records.set(`SCHILY.xattr.${name}`, value);
    else records.set(`LIBARCHIVE.xattr.${percentEncode(name)}`, Buffer.from(value, "latin1").toString("base64"));
  }
  const texts = [records.get("path"), records.get("linkpath")];
  if (texts.some((text) => text !== undefined && !isUtf8(text))) records.set("hdrcharset", "BINARY");
  return { path, size, split, records };
}

const COMMENT = " comment=\n".length;
const SPACE = 0x20;
const NEWLINE = 0x0a;

/** Length of the `comment` that makes the headers end at a multiple of the alignment; 0 when they do without one. */
function fillerLength(records: ReadonlyMap<string, ByteString>, place: TarPlace): number {
  const body = records.size === 0 ? 0 : paxLength(records);
  const blocks = roundUp(body);
  let missing = missingTo(place, (body === 0 ? 0 : BLOCK_SIZE + blocks) + BLOCK_SIZE);
  if (missing === 0) return 0;
  // The first record brings a header block of its own.
  if (body === 0) missing = fillFromNothing(missing, place) - BLOCK_SIZE;
  const record = blocks + missing - body; // at least one block, so any length of its own digits fits
  return record - COMMENT - `${record}`.length;
}

/** From the end of headers of that length to the next multiple of the alignment. */
function missingTo({ offset, alignment }: TarPlace, length: number): number {
  return (alignment - ((offset + length) % alignment)) % alignment;
}

/** What an extended header adds that has nothing but a comment: two blocks at least. */
function fillFromNothing(missing: number, { alignment }: TarPlace): number {
  let added = missing;
  while (added < 2 * BLOCK_SIZE) added += alignment;
  return added;
}

function roundUp(length: number): number {
  return Math.ceil(length / BLOCK_SIZE) * BLOCK_SIZE;
}

/** Records in byte order of their keys, each "LENGTH KEY=VALUE\n" with a length that counts its own digits. */
export function encodePax(records: ReadonlyMap<string, ByteString>): Uint8Array {
  const bytes = Buffer.allocUnsafe(paxLength(records));
  writePax(bytes, 0, records);
  return bytes;
}

function paxLength(records: ReadonlyMap<string, ByteString>): number {
  let length = 0;
  for (const [key, value] of records) length += recordLength(key, value);
  return length;
}

function writePax(bytes: Buffer, at: number, records: ReadonlyMap<string, ByteString>): void {
  const keys = records.size === 1 ? records.keys() : [...records.keys()].sort();
  let end = at;
  for (const key of keys) {
    const value = records.get(key)!;
    end += bytes.write(`${recordLength(key, value)} ${key}=`, end, "latin1");
    if (key === "comment")
      bytes.fill(SPACE, end, end + value.length); // thousands of them, and half of an encoder's time as text
    else bytes.write(value, end, "latin1");
    end += value.length;
    bytes[end++] = NEWLINE;
  }
}

function recordLength(key: string, value: ByteString): number {
  const rest = key.length + value.length + " =\n".length;
  const length = rest + `${rest}`.length;
  return `${length}`.length + rest === length ? length : rest + `${length}`.length;
}

interface BlockValues {
  readonly name: ByteString;
  readonly prefix: ByteString;
  readonly linkName: ByteString;
  readonly flag: string;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly size: number;
  readonly mtime: number;
  readonly devMajor: number;
  readonly devMinor: number;
}

const NO_VALUES: BlockValues = {
  ...{
    name: "",
    prefix: "",
    linkName: "",
    flag: "",
    mode: 0,
    uid: 0,
    gid: 0,
    size: 0,
    mtime: 0,
    devMajor: 0,
    devMinor: 0,
  },
};

const INT32_RANGE = 2 ** 31;

/** Into zeros. */
function encodeBlock(bytes: Buffer, at: number, values: BlockValues): void {
  const text = (value: ByteString, { offset }: HeaderField) => {
    if (value !== "") bytes.write(value, at + offset, "latin1");
  };
  const octal = (value: number, { offset, length }: HeaderField) => {
    const start = at + offset;
    let last = start + length - 2;
    let left = value;
    for (; left >= INT32_RANGE; left = Math.floor(left / 8)) bytes[last--] = 0x30 + (left % 8);
    for (let i = last; i >= start; i--, left >>= 3) bytes[i] = 0x30 + (left & 7); // nearly all of them: three times as fast
  };
  text(values.name, FIELDS.name);
  octal(values.mode, FIELDS.mode);
  octal(values.uid, FIELDS.uid);
  octal(values.gid, FIELDS.gid);
  octal(values.size, FIELDS.size);
  octal(values.mtime, FIELDS.mtime);
  text(values.flag, FIELDS.type);
  text(values.linkName, FIELDS.linkName);
  text("ustar\x0000", FIELDS.magic);
  octal(values.devMajor, FIELDS.devMajor);
  octal(values.devMinor, FIELDS.devMinor);
  text(values.prefix, FIELDS.prefix);
  // six digits, NUL, space: as every tar since v7 writes it
  const { offset } = FIELDS.checksum;
  octal(checksum(bytes, at), { ...FIELDS.checksum, length: 7 });
  bytes[at + offset + 7] = 0x20;
}

function check(entry: TarHeader, path: ByteString, size: number): void {
  const { mode, uid, gid, mtimeSeconds, mtimeNanoseconds, rdevMajor, rdevMinor } = entry;
  if (path === "" || path.includes("\0") || entry.linkTarget.includes("\0"))
    throw new RangeError("path or link target");
  if (entry.type === "file" && path.endsWith("/")) throw new RangeError("the path of a file ends in a slash");
  for (const value of [mode, uid, gid, size, rdevMajor, rdevMinor, mtimeNanoseconds]) {
    if (!Number.isSafeInteger(value) || value < 0) throw new RangeError(`${value} in the header of ${path}`);
  }
  if (mode > 0o7777 || mtimeNanoseconds > 999_999_999 || !Number.isSafeInteger(mtimeSeconds)) {
    throw new RangeError(`mode or mtime in the header of ${path}`);
  }
}

/** Octal digits and a NUL. */
function fits(value: number, { length }: HeaderField): boolean {
  return value >= 0 && value < 8 ** (length - 1);
}

/** Name and prefix of a ustar header, divided at a slash; undefined when no slash divides the path well. */
function splitPath(path: ByteString): { name: ByteString; prefix: ByteString } | undefined {
  if (path.length <= FIELDS.name.length) return { name: path, prefix: "" };
  const slash = path.indexOf("/", path.length - FIELDS.name.length - 1);
  if (slash <= 0 || slash > FIELDS.prefix.length || slash === path.length - 1) return undefined;
  return { name: path.slice(slash + 1), prefix: path.slice(0, slash) };
}

/** The decimal form of the time; before the epoch "-0.5" is half a second before it. */
function formatTime({ mtimeSeconds, mtimeNanoseconds }: TarHeader): string {
  if (mtimeNanoseconds === 0) return `${mtimeSeconds}`;
  const negative = mtimeSeconds < 0;
  const whole = negative ? -(mtimeSeconds + 1) : mtimeSeconds;
  const part = negative ? 1_000_000_000 - mtimeNanoseconds : mtimeNanoseconds;
  return `${negative ? "-" : ""}${whole}.${`${part}`.padStart(9, "0").replace(/0+$/, "")}`;
}

function isUtf8(text: ByteString): boolean {
  const bytes = Buffer.from(text, "latin1");
  return Buffer.from(bytes.toString("utf8"), "utf8").equals(bytes);
}

function percentEncode(name: ByteString): string {
  return name.replace(/[^A-Za-z0-9._-]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase().padStart(2, "0")}`);
}
