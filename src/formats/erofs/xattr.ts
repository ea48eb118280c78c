import { type ByteString, byteString } from "../../bytes/index.ts";
import { ShaleError } from "../../errors/index.ts";
import type { Xattr } from "../layer-index/index.ts";
import { fail, XATTR_ENTRY, XATTR_HEADER } from "./format.ts";

/**
 * Extended attributes: after the inode, each name as a number for its prefix and the rest. Linux fs/erofs/xattr.h.
 */

/** name_index -> prefix. An index that stands for a whole name has an empty rest. */
const PREFIXES: ReadonlyMap<number, string> = new Map([
  [1, "user."],
  [2, "system.posix_acl_access"],
  [3, "system.posix_acl_default"],
  [4, "trusted."],
  [6, "security."],
]);
const WHOLE_NAMES = new Set([2, 3]);

export const LONG_PREFIX = 0x80;
const MAX_REST = 255;
const MAX_VALUE = 0xffff;
/** i_xattr_icount has 16 bits and counts units of 4 bytes after the header, plus one. */
const MAX_AREA = XATTR_HEADER.size + 4 * 0xfffe;

/** True when EROFS can hold an xattr of this name: user.*, trusted.*, security.* and the POSIX ACLs. */
export function canStoreXattr(name: ByteString): boolean {
  return split(name) !== undefined;
}

/** The bytes that follow an inode; empty for no xattrs. ShaleError when EROFS has no place for one of them. */
export function encodeXattrs(xattrs: readonly Xattr[]): Uint8Array {
  if (xattrs.length === 0) return new Uint8Array(0);
  let size = XATTR_HEADER.size;
  const entries = xattrs.map(({ name, value }) => {
    const parts = split(name);
    if (!parts) {
      throw new ShaleError("INVALID_ARGUMENT", `Cannot write xattr ${JSON.stringify(name)}: EROFS has no such prefix`);
    }
    if (value.length > MAX_VALUE) throw tooLarge(name, `a value of ${value.length} bytes`, MAX_VALUE);
    const at = size;
    size = entryEnd(at, parts.rest.length, value.length);
    return { ...parts, value, at };
  });
  if (size > MAX_AREA) throw tooLarge(xattrs[0]!.name, `${size} bytes on one inode`, MAX_AREA);
  const area = Buffer.alloc(size);
  for (const { index, rest, value, at } of entries) {
    XATTR_ENTRY.write(area, at, { nameLength: rest.length, nameIndex: index, valueLength: value.length });
    area.write(rest, at + XATTR_ENTRY.size, "latin1");
    area.write(value, at + XATTR_ENTRY.size + rest.length, "latin1");
  }
  return area;
}

/** i_xattr_icount of an area of `size` bytes, and back. */
export function xattrCount(size: number): number {
  return size === 0 ? 0 : (size - XATTR_HEADER.size) / 4 + 1;
}
export function xattrAreaSize(count: number): number {
  return count === 0 ? 0 : XATTR_HEADER.size + 4 * (count - 1);
}

/** A prefix beyond the built-in ones, from the image's own table: `base` is an index of a built-in prefix. */
export interface LongPrefix {
  readonly base: number;
  readonly infix: ByteString;
}

/** Decodes the entry at `at` of `area`; `next` is where the following one begins. `place` is the area's image offset. */
export function decodeXattr(
  area: Uint8Array,
  at: number,
  longPrefixes: readonly LongPrefix[],
  place: number,
): { readonly xattr: Xattr; readonly next: number } {
  const { nameLength, nameIndex, valueLength } = XATTR_ENTRY.read(area, at);
  const name = at + XATTR_ENTRY.size;
  const value = name + nameLength;
  if (value + valueLength > area.length) throw fail("xattr", "ends after its area", place + at);
  const rest = byteString(area.subarray(name, value));
  return {
    xattr: {
      name: prefixOf(nameIndex, longPrefixes, place + at) + rest,
      value: byteString(area.subarray(value, value + valueLength)),
    },
    next: entryEnd(at, nameLength, valueLength),
  };
}

function prefixOf(index: number, longPrefixes: readonly LongPrefix[], place: number): ByteString {
  if (index & LONG_PREFIX) {
    const long = longPrefixes[index & ~LONG_PREFIX];
    if (!long) throw fail("xattr name index", `long prefix ${index & ~LONG_PREFIX} is not in the table`, place);
    return prefixOf(long.base & ~LONG_PREFIX, longPrefixes, place) + long.infix;
  }
  const prefix = PREFIXES.get(index);
  if (prefix === undefined) throw fail("xattr name index", `${index} is no known prefix`, place);
  return prefix;
}

function split(name: ByteString): { readonly index: number; readonly rest: ByteString } | undefined {
  for (const [index, prefix] of PREFIXES) {
    if (WHOLE_NAMES.has(index)) {
      if (name === prefix) return { index, rest: "" };
    } else if (name.startsWith(prefix) && name.length > prefix.length && name.length - prefix.length <= MAX_REST) {
      return { index, rest: name.slice(prefix.length) };
    }
  }
  return undefined;
}

function entryEnd(at: number, nameLength: number, valueLength: number): number {
  return (at + XATTR_ENTRY.size + nameLength + valueLength + 3) & ~3;
}

function tooLarge(name: ByteString, what: string, limit: number): ShaleError {
  return new ShaleError("RESOURCE_EXHAUSTED", `Cannot write xattr ${JSON.stringify(name)}: ${what}, limit ${limit}`);
}
