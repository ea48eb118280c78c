import { type ByteString, byteString } from "../../bytes/index.ts";
import { ShaleError } from "../../errors/index.ts";
import type { Xattr } from "../layer-index/index.ts";
import { xxh32 } from "./xxh32.ts";

/**
 * Extended attributes as libcomposefs lays them out: those with several uses once, in an area of their own behind the inodes, in
 * descending order; the others behind their inode, in ascending order; and a filter of the names at each inode.
 */

/** Prefixes and their index in an entry, in the order in which they are tried. Linux fs/erofs/xattr.h. */
const PREFIXES: readonly (readonly [string, number])[] = [
  ["user.", 1],
  ["system.posix_acl_access", 2],
  ["system.posix_acl_default", 3],
  ["trusted.", 4],
  ["security.", 6],
];
const OVERLAY = "trusted.overlay.";
/** Takes one level off when it is mounted, so that the tree may itself hold layers of an overlay. */
const ESCAPE = "trusted.overlay.overlay.";
const ENTRY_HEADER = 4;
const BODY_HEADER = 12;
/** EROFS_XATTR_FILTER_SEED of erofs_fs.h: picked so that common names differ. */
const FILTER_SEED = 0x25bbe08f;
/** The count of shared xattrs at an inode has 7 bits. */
const MAX_SHARED = 128;
const MAX_ICOUNT = 0xffff;

/** Where an object is below the directory of objects: "ab/cdef...". */
export function objectPath(digestHex: string): string {
  return `${digestHex.slice(0, 2)}/${digestHex.slice(2)}`;
}

/** What overlayfs reads to find the content of a file, with the digest that it may demand of it. */
export function overlayXattrs(digest: Uint8Array): Xattr[] {
  const hex = Buffer.from(digest).toString("hex");
  // struct ovl_metacopy: version 0, length, flags 0, FS_VERITY_HASH_ALG_SHA256, digest
  const metacopy = String.fromCharCode(0, 4 + digest.length, 0, 1) + byteString(digest);
  return [
    { name: `${OVERLAY}metacopy`, value: metacopy },
    { name: `${OVERLAY}redirect`, value: `/${objectPath(hex)}` },
  ];
}

/** On the root: none of the directory of objects shows. */
export const OPAQUE_ROOT: Xattr = { name: `${OVERLAY}opaque`, value: "y" };

/** The tree's own overlay xattrs, one level deeper. */
export function escapeXattrs(xattrs: readonly Xattr[]): readonly Xattr[] {
  if (!xattrs.some(({ name }) => name.startsWith(OVERLAY))) return xattrs;
  return xattrs.map((x) => (x.name.startsWith(OVERLAY) ? { ...x, name: ESCAPE + x.name.slice(OVERLAY.length) } : x));
}

export function sortXattrs(xattrs: readonly Xattr[]): readonly Xattr[] {
  return [...xattrs].sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
}

/** Which xattrs are used more than once, and where they are in the shared area. */
export class SharedXattrs {
  readonly #uses = new Map<string, { readonly xattr: Xattr; count: number; offset: number }>();
  #area: Uint8Array = new Uint8Array(0);

  count(xattrs: readonly Xattr[]): void {
    for (const xattr of xattrs) {
      const key = keyOf(xattr);
      const use = this.#uses.get(key);
      if (use === undefined) this.#uses.set(key, { xattr, count: 1, offset: -1 });
      else use.count++;
    }
  }

  /** Places them; after the last `count`. */
  place(): void {
    const shared = [...this.#uses.values()].filter(({ count }) => count > 1);
    shared.sort((a, b) => compareDescending(a.xattr, b.xattr));
    let size = 0;
    for (const use of shared) {
      use.offset = size;
      size += entrySize(use.xattr);
    }
    const area = Buffer.alloc(size);
    for (const { xattr, offset } of shared) writeEntry(area, offset, xattr);
    this.#area = area;
  }

  get area(): Uint8Array {
    return this.#area;
  }

  /** What follows an inode; `sharedBase` is the byte that shared ids count from, modulo the block that they begin in. */
  body(xattrs: readonly Xattr[], sharedBase: number): Uint8Array {
    if (xattrs.length === 0) return new Uint8Array(0);
    const { shared, own } = this.#split(xattrs);
    const body = Buffer.alloc(bodySize(shared.length, own));
    body.writeUInt32LE(filterOf(xattrs), 0);
    body[4] = shared.length;
    shared.forEach((offset, i) => {
      body.writeUInt32LE((sharedBase + offset) / 4, BODY_HEADER + 4 * i);
    });
    let at = BODY_HEADER + 4 * shared.length;
    for (const xattr of own) at += writeEntry(body, at, xattr);
    return body;
  }

  /** Bytes of `body`. RESOURCE_EXHAUSTED when an inode can't have that many. */
  bodySize(xattrs: readonly Xattr[]): number {
    if (xattrs.length === 0) return 0;
    const { shared, own } = this.#split(xattrs);
    const size = bodySize(shared.length, own);
    if (icountOf(size) > MAX_ICOUNT) {
      throw new ShaleError(
        "RESOURCE_EXHAUSTED",
        `Cannot write a composefs image: ${size} bytes of xattrs on one inode`,
      );
    }
    return size;
  }

  #split(xattrs: readonly Xattr[]): { readonly shared: number[]; readonly own: Xattr[] } {
    const shared: number[] = [];
    const own: Xattr[] = [];
    for (const xattr of xattrs) {
      const { offset } = this.#uses.get(keyOf(xattr))!;
      if (offset >= 0 && shared.length < MAX_SHARED) shared.push(offset);
      else own.push(xattr);
    }
    return { shared, own };
  }
}

/** i_xattr_icount: units of 4 bytes after the header, plus one. */
export function icountOf(size: number): number {
  return size === 0 ? 0 : (size - BODY_HEADER) / 4 + 1;
}

function keyOf({ name, value }: Xattr): string {
  return `${name}\0${value}`;
}

function compareDescending(a: Xattr, b: Xattr): number {
  if (a.name !== b.name) return a.name < b.name ? 1 : -1;
  if (a.value.length !== b.value.length) return b.value.length - a.value.length;
  return a.value < b.value ? 1 : -1;
}

function split(name: ByteString): { readonly index: number; readonly rest: ByteString } {
  for (const [prefix, index] of PREFIXES)
    if (name.startsWith(prefix)) return { index, rest: name.slice(prefix.length) };
  return { index: 0, rest: name };
}

function bodySize(shared: number, own: readonly Xattr[]): number {
  return own.reduce((size, xattr) => size + entrySize(xattr), BODY_HEADER + 4 * shared);
}

function entrySize({ name, value }: Xattr): number {
  return (ENTRY_HEADER + split(name).rest.length + value.length + 3) & ~3;
}

function writeEntry(target: Buffer, at: number, { name, value }: Xattr): number {
  const { index, rest } = split(name);
  target[at] = rest.length;
  target[at + 1] = index;
  target.writeUInt16LE(value.length, at + 2);
  target.write(rest, at + ENTRY_HEADER, "latin1");
  target.write(value, at + ENTRY_HEADER + rest.length, "latin1");
  return entrySize({ name, value });
}

/** A clear bit says that a name with this hash may be there. */
function filterOf(xattrs: readonly Xattr[]): number {
  let filter = 0xffffffff;
  for (const { name } of xattrs) {
    const { index, rest } = split(name);
    filter &= ~(1 << (xxh32(rest, FILTER_SEED + index) & 31));
  }
  return filter >>> 0;
}
