/**
 * Bytes: random-access sources, byte strings, sets of ranges, hexadecimal and CRC-32C. Pure; knows no format and no file.
 */
export { crc32c } from "./crc32c.ts";
export { type ByteRange, RangeSet } from "./range-set.ts";
export * from "./struct.ts";

/**
 * Random access to immutable bytes. Synchronous: a local read costs about 5 us synchronously and 20 us otherwise.
 * `read` returns exactly `length` bytes (which may be a view of a cache: callers don't write to it) and throws
 * ShaleError DATA_LOSS when the source is shorter.
 */
export interface ByteSource {
  readonly size: number;
  read(offset: number, length: number): Uint8Array;
}

/**
 * A string whose every UTF-16 unit is one byte (latin1). File names, link targets and xattr names are bytes on Linux, not
 * UTF-8; this keeps them exact, comparable with `<` in byte order, and usable as Map keys.
 */
export type ByteString = string;

export function byteString(bytes: Uint8Array): ByteString {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("latin1");
}

export function bytesOf(text: ByteString): Uint8Array {
  return Buffer.from(text, "latin1");
}

/** UTF-8 text as a ByteString, e.g. a path typed by the user. */
export function fromUtf8(text: string): ByteString {
  return Buffer.from(text, "utf8").toString("latin1");
}

/** For people: UTF-8 where valid, otherwise the bytes that are not, and control characters, as \xNN. */
export function displayBytes(text: ByteString): string {
  const buffer = Buffer.from(text, "latin1");
  const decoded = buffer.toString("utf8");
  const exact = Buffer.from(decoded, "utf8").equals(buffer);
  const shown = exact ? decoded : text;
  // biome-ignore lint/suspicious/noControlCharactersInRegex: escaping them is the point
  return shown.replace(exact ? /[\u0000-\u001f\u007f]/g : /[\u0000-\u001f\u007f-\u00ff]/g, (c) => {
    return `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`;
  });
}

export function toHex(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("hex");
}

export function concatBytes(parts: readonly Uint8Array[]): Uint8Array {
  return parts.length === 1 ? parts[0]! : Buffer.concat(parts);
}

/** Rounds up to a multiple of `unit`; exact for numbers below 2^53 (no 32-bit operators). */
export function alignUp(value: number, unit: number): number {
  const rest = value % unit;
  return rest === 0 ? value : value + (unit - rest);
}

/** Smaller buffers may be parts of a pool that others have parts of. */
const OWN_BUFFER = 256 * 1024;

/**
 * Frees the memory of large bytes at once, in place of when the garbage collector comes to it: it counts buffers lightly, and lets
 * tens of megabytes of them pile up. The bytes, and all views of the same buffer, are empty afterwards. Small ones are left alone.
 */
export function releaseBytes(bytes: Uint8Array): void {
  if (bytes.buffer instanceof ArrayBuffer && bytes.buffer.byteLength >= OWN_BUFFER) bytes.buffer.transfer(0);
}

/** A ByteSource over bytes in memory. */
export function memorySource(bytes: Uint8Array): ByteSource {
  return {
    size: bytes.byteLength,
    read(offset, length) {
      if (offset < 0 || length < 0 || offset + length > bytes.byteLength) {
        throw new RangeError(`read ${offset}+${length} of ${bytes.byteLength}`);
      }
      return bytes.subarray(offset, offset + length);
    },
  };
}
