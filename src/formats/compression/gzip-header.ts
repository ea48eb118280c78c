/** The header of a gzip member. RFC 1952, 2.3 and 2.3.1. */
import { crc32 } from "node:zlib";
import { FormatError } from "../../errors/index.ts";

const FORMAT = "gzip stream";
/** ID1 ID2 CM FLG MTIME(4) XFL OS. */
const FIXED_SIZE = 10;
const DEFLATE = 8;
const FTEXT = 0x01;
const FHCRC = 0x02;
const FEXTRA = 0x04;
const FNAME = 0x08;
const FCOMMENT = 0x10;
/** "must be zero" in RFC 1952; a decoder must refuse them, for they may mean another layout. */
const RESERVED = 0xe0;
/** FEXTRA takes 64 KiB at most; the rest is for name and comment, which have no limit of their own. */
const SIZE_MAX = 256 * 1024;

export interface GzipHeader {
  /** Bytes from ID1 to the first byte of the deflate stream. */
  readonly size: number;
  /** Seconds since the epoch; 0 says nothing. */
  readonly mtime: number;
  readonly extraFlags: number;
  readonly os: number;
  readonly isText: boolean;
  /** The bytes of the FEXTRA field: subfields of (SI1, SI2, length u16le, data). A view. */
  readonly extra: Uint8Array | undefined;
  /** Latin-1, without the zero that ends it. */
  readonly name: string | undefined;
  readonly comment: string | undefined;
}

/**
 * Parses the header at `offset`; undefined when `bytes` ends within a header that is sound so far. `streamOffset` is where
 * `bytes` begins in the stream, for messages. Throws FormatError.
 */
export function parseGzipHeader(bytes: Uint8Array, offset: number, streamOffset = 0): GzipHeader | undefined {
  const fail = (field: string, problem: string, at: number) =>
    new FormatError(FORMAT, field, problem, { offset: streamOffset + at });
  const cut = () => {
    if (bytes.length - offset <= SIZE_MAX) return undefined;
    throw new FormatError(FORMAT, "header", `is over the limit of ${SIZE_MAX} bytes`, {
      offset: streamOffset + offset,
      code: "RESOURCE_EXHAUSTED",
    });
  };

  // what is there is checked before more is asked for, so that garbage of one byte is not a truncated header
  const available = bytes.length - offset;
  if (available >= 1 && bytes[offset] !== 0x1f) throw fail("magic", "this is no gzip member", offset);
  if (available >= 2 && bytes[offset + 1] !== 0x8b) throw fail("magic", "this is no gzip member", offset);
  if (available >= 3 && bytes[offset + 2] !== DEFLATE) {
    throw fail("compression method", `must be ${DEFLATE}: current value is ${bytes[offset + 2]}`, offset + 2);
  }
  if (available >= 4 && (bytes[offset + 3]! & RESERVED) !== 0) {
    throw fail("flags", `reserved bits are set: current value is 0x${bytes[offset + 3]!.toString(16)}`, offset + 3);
  }
  if (available < FIXED_SIZE) return undefined;

  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const flags = bytes[offset + 3]!;
  let at = offset + FIXED_SIZE;
  let extra: Uint8Array | undefined;
  if (flags & FEXTRA) {
    if (at + 2 > bytes.length) return undefined;
    const length = view.getUint16(at, true);
    at += 2;
    if (at + length > bytes.length) return undefined;
    extra = bytes.subarray(at, at + length);
    at += length;
  }
  const texts: (string | undefined)[] = [];
  for (const flag of [FNAME, FCOMMENT]) {
    if (!(flags & flag)) {
      texts.push(undefined);
      continue;
    }
    const end = bytes.indexOf(0, at);
    if (end < 0) return cut();
    texts.push(Buffer.from(bytes.buffer, bytes.byteOffset + at, end - at).toString("latin1"));
    at = end + 1;
  }
  if (flags & FHCRC) {
    if (at + 2 > bytes.length) return cut();
    const expected = view.getUint16(at, true);
    const actual = crc32(bytes.subarray(offset, at)) & 0xffff;
    if (actual !== expected) throw fail("header CRC", "does not match the header", at);
    at += 2;
  }
  if (at - offset > SIZE_MAX) return cut();
  return {
    size: at - offset,
    mtime: view.getUint32(offset + 4, true),
    extraFlags: bytes[offset + 8]!,
    os: bytes[offset + 9]!,
    isText: (flags & FTEXT) !== 0,
    extra,
    name: texts[0],
    comment: texts[1],
  };
}
