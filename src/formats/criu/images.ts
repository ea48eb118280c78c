/**
 * CRIU image files: criu/include/magic.h, criu/image.c, lib/pycriu/images/images.py. A file is one or two magic numbers
 * and entries, each a 32-bit length and a protocol-buffer message; all little-endian. inventory.img has its own magic only,
 * those of images of version 1.1 have IMG_COMMON before it, statistics IMG_SERVICE; memory (pages-N.img) is raw pages.
 */
import { FormatError } from "../../errors/index.ts";
import { LIMITS } from "./limits.ts";
import type { Message, MessageOf, Table } from "./wire.ts";

const IMG_COMMON = 0x54564319;
const IMG_SERVICE = 0x55105940;

export const MAGIC = {
  inventory: 0x58313116,
  pstree: 0x50273030,
  core: 0x55053847,
  mm: 0x57492820,
  pagemap: 0x56084025,
  files: 0x56303138,
  "reg-files": 0x50363636,
  utsns: 0x54473203,
  stats: 0x57093306,
} as const;

export type ImageKind = keyof typeof MAGIC;

/** What the magic numbers at the start of a file say; undefined for any other file. Eight bytes tell. */
export function detectImage(head: Uint8Array): ImageKind | undefined {
  const view = viewOf(head);
  if (head.length < 4) return undefined;
  const first = view.getUint32(0, true);
  const own = first === IMG_COMMON || first === IMG_SERVICE ? (head.length < 8 ? 0 : view.getUint32(4, true)) : first;
  const found = Object.entries(MAGIC).find(([, magic]) => magic === own);
  return found?.[0] as ImageKind | undefined; // a key of MAGIC
}

/**
 * The entries of an image of this kind, in order. `name` is the file's, for messages. FormatError for another kind, for a
 * length beyond the end, and RESOURCE_EXHAUSTED over a limit.
 */
export function* imageEntries(bytes: Uint8Array, kind: ImageKind, name: string): Generator<Uint8Array, void, void> {
  const fail = (field: string, problem: string, offset: number) =>
    new FormatError(`CRIU image ${name}`, field, problem, { offset });
  if (bytes.length > LIMITS.imageSize) throw overLimit(name, `${bytes.length} bytes`, LIMITS.imageSize);
  if (detectImage(bytes) !== kind) throw fail("magic", `is not that of ${kind}`, 0);
  const view = viewOf(bytes);
  const first = view.getUint32(0, true);
  let at = first === IMG_COMMON || first === IMG_SERVICE ? 8 : 4;
  for (let count = 0; at < bytes.length; count++) {
    if (count >= LIMITS.entries) throw overLimit(name, `more than ${count} entries`, LIMITS.entries);
    if (bytes.length - at < 4) throw fail("length", "is cut off", at);
    const length = view.getUint32(at, true);
    if (length > bytes.length - at - 4) throw fail("length", `is ${length}, beyond the end of the file`, at);
    at += 4;
    yield bytes.subarray(at, at + length);
    at += length;
  }
}

export function* decodeImage<T extends Table>(
  bytes: Uint8Array,
  kind: ImageKind,
  message: Message<T>,
  name: string,
): Generator<MessageOf<T>, void, void> {
  for (const entry of imageEntries(bytes, kind, name)) yield message.decode(entry);
}

/** The first entry of an image that has one. */
export function decodeSingle<T extends Table>(
  bytes: Uint8Array,
  kind: ImageKind,
  message: Message<T>,
  name: string,
): MessageOf<T> {
  for (const entry of decodeImage(bytes, kind, message, name)) return entry;
  throw new FormatError(`CRIU image ${name}`, "entries", "there are none");
}

export function overLimit(name: string, found: string, limit: number): FormatError {
  return new FormatError(`CRIU image ${name}`, "size", `${found} are over the limit of ${limit}`, {
    code: "RESOURCE_EXHAUSTED",
  });
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
