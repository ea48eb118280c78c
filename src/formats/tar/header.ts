/**
 * The 512-byte header block: one table of fields for reading and writing.
 *
 * Sources: POSIX.1-2017 pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format" (struct oldgnu_header,
 * struct sparse_header, base-256 numbers); star(5) for the layout with "tar\0" at 508.
 */
export const BLOCK_SIZE = 512;

export interface HeaderField {
  readonly name: string;
  readonly offset: number;
  readonly length: number;
}

function field(name: string, offset: number, length: number): HeaderField {
  return { name, offset, length };
}

export const FIELDS = {
  name: field("name", 0, 100),
  mode: field("mode", 100, 8),
  uid: field("uid", 108, 8),
  gid: field("gid", 116, 8),
  size: field("size", 124, 12),
  mtime: field("mtime", 136, 12),
  checksum: field("checksum", 148, 8),
  type: field("type flag", 156, 1),
  linkName: field("link name", 157, 100),
  magic: field("magic", 257, 8),
  devMajor: field("major device number", 329, 8),
  devMinor: field("minor device number", 337, 8),
  prefix: field("prefix", 345, 155),
  /** star ends its prefix earlier: access and change time follow. */
  starPrefix: field("prefix", 345, 131),
  starTrailer: field("trailer", 508, 4),
  starAccessTime: field("access time", 476, 12),
  starChangeTime: field("change time", 488, 12),
  gnuAccessTime: field("access time", 345, 12),
  gnuChangeTime: field("change time", 357, 12),
  /** Old GNU sparse: 4 pairs (offset, length) here, 21 in each extension block from byte 0. */
  sparse: field("sparse map", 386, 96),
  sparseExtended: field("sparse extension flag", 482, 1),
  sparseRealSize: field("real size", 483, 12),
  extensionSparse: field("sparse map", 0, 504),
  extensionExtended: field("sparse extension flag", 504, 1),
} as const;

export const SPARSE_NUMBER_LENGTH = 12;

/** What the magic says; it decides which fields after byte 257 have a meaning. */
export type Dialect = "v7" | "ustar" | "star" | "gnu";

export function dialectOf(block: Buffer, at: number): Dialect {
  const magic = at + FIELDS.magic.offset;
  // "ustar", then NUL (POSIX; the version digits are not checked, as nobody does) or two spaces and NUL (GNU).
  if (block[magic] !== 0x75 || block[magic + 1] !== 0x73 || block[magic + 2] !== 0x74) return "v7";
  if (block[magic + 3] !== 0x61 || block[magic + 4] !== 0x72) return "v7";
  if (block[magic + 5] === 0x20) return block[magic + 6] === 0x20 && block[magic + 7] === 0 ? "gnu" : "v7";
  if (block[magic + 5] !== 0) return "v7";
  const trailer = at + FIELDS.starTrailer.offset;
  const star =
    block[trailer] === 0x74 && block[trailer + 1] === 0x61 && block[trailer + 2] === 0x72 && block[trailer + 3] === 0;
  return star ? "star" : "ustar";
}

/** The bytes up to the first NUL. */
export function textField(block: Buffer, at: number, { offset, length }: HeaderField): string {
  const start = at + offset;
  let end = start;
  for (const limit = start + length; end < limit && block[end] !== 0; end++);
  return start === end ? "" : block.toString("latin1", start, end);
}

/**
 * An octal or base-256 number; NaN when it is neither, or not exact as a number. Octal digits may have spaces and NULs
 * before them and end at a NUL or a space; an empty field is 0. Base-256 (GNU): the first bit is set, the rest is a
 * big-endian two's complement number.
 */
export function numberField(block: Buffer, at: number, { offset, length }: HeaderField): number {
  let i = at + offset;
  const end = i + length;
  if (block[i]! & 0x80) return base256(block, i, end);
  while (i < end && (block[i] === 0x20 || block[i] === 0)) i++;
  let value = 0;
  for (; i < end; i++) {
    const digit = block[i]! - 0x30;
    if (digit < 0 || digit > 7) break;
    value = value * 8 + digit; // at most 12 digits: 2^36
  }
  if (i === end || block[i] === 0) return value;
  for (; i < end; i++) if (block[i] !== 0x20 && block[i] !== 0) return Number.NaN;
  return value;
}

function base256(block: Buffer, start: number, end: number): number {
  const invert = block[start]! & 0x40 ? 0xff : 0;
  let value = (block[start]! ^ invert) & 0x3f;
  for (let i = start + 1; i < end; i++) value = value * 256 + (block[i]! ^ invert);
  if (value > Number.MAX_SAFE_INTEGER) return Number.NaN;
  return invert === 0 ? value : -value - 1;
}

/**
 * True when the checksum field holds the sum of the block's bytes, its own 8 counted as spaces. Some old tars summed
 * signed bytes; both are accepted, as by GNU tar, Go and libarchive.
 */
export function checksumMatches(block: Buffer, at: number): boolean {
  const stored = numberField(block, at, FIELDS.checksum);
  const unsigned = checksum(block, at);
  if (stored === unsigned) return true;
  let signed = unsigned;
  const field = at + FIELDS.checksum.offset;
  for (let i = at; i < at + BLOCK_SIZE; i++) {
    if (block[i]! > 127 && (i < field || i >= field + FIELDS.checksum.length)) signed -= 256;
  }
  return stored === signed;
}

/** An aligned copy, so that the sum takes four bytes a step: this loop is half the time of a small entry. */
const SUM_WORDS = new Uint32Array(BLOCK_SIZE / 4);
const SUM_BYTES = Buffer.from(SUM_WORDS.buffer);

/** Whether these bytes begin with a header block: a tar does, and hardly anything else has its checksum right. */
export function startsWithHeader(bytes: Uint8Array): boolean {
  if (bytes.length < BLOCK_SIZE) return false;
  const block = Buffer.from(bytes.buffer, bytes.byteOffset, BLOCK_SIZE);
  return !isZero(block, 0, BLOCK_SIZE) && checksumMatches(block, 0);
}

export function checksum(block: Buffer, at: number): number {
  block.copy(SUM_BYTES, 0, at, at + BLOCK_SIZE);
  SUM_BYTES.fill(0x20, FIELDS.checksum.offset, FIELDS.checksum.offset + FIELDS.checksum.length);
  // Two 16-bit lanes; each gets 256 bytes, at most 65280.
  let lanes = 0;
  for (let i = 0; i < SUM_WORDS.length; i++) {
    const word = SUM_WORDS[i]!;
    lanes = (lanes + (word & 0x00ff00ff) + ((word >>> 8) & 0x00ff00ff)) | 0;
  }
  return (lanes & 0xffff) + (lanes >>> 16);
}

const ZERO_BLOCK = Buffer.alloc(BLOCK_SIZE);

export function isZero(bytes: Buffer, start: number, end: number): boolean {
  for (let at = start; at < end; at += BLOCK_SIZE) {
    const length = Math.min(BLOCK_SIZE, end - at);
    if (bytes.compare(ZERO_BLOCK, 0, length, at, at + length) !== 0) return false;
  }
  return true;
}
