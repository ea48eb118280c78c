/** Streams for the tests of this directory. */
import assert from "node:assert/strict";
import { crc32, deflateRawSync } from "node:zlib";
import { FormatError } from "../../errors/index.ts";

/** A source that gives `bytes` in chunks of `size`, in one buffer that is overwritten for each: as a file source may. */
export async function* chunked(bytes: Uint8Array, size: number): AsyncGenerator<Uint8Array> {
  const buffer = Buffer.alloc(Math.min(size, Math.max(bytes.length, 1)));
  for (let at = 0; at < bytes.length; at += size) {
    const length = Math.min(size, bytes.length - at);
    buffer.fill(0xee);
    buffer.set(bytes.subarray(at, at + length));
    yield buffer.subarray(0, length);
  }
}

export async function* pieces(...parts: readonly Uint8Array[]): AsyncGenerator<Uint8Array> {
  for (const part of parts) {
    yield part;
    await Promise.resolve();
  }
}

/** All bytes of a stream; pieces are copied, for each is only valid until the next. */
export async function collect(stream: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const parts: Buffer[] = [];
  for await (const piece of stream) parts.push(Buffer.from(piece));
  return Buffer.concat(parts);
}

export async function failure(work: Promise<unknown>): Promise<FormatError> {
  try {
    await work;
  } catch (error) {
    assert.ok(error instanceof FormatError, `not a FormatError: ${error}`);
    return error;
  }
  throw new assert.AssertionError({ message: "nothing was thrown" });
}

export interface MemberOptions {
  readonly extra?: Uint8Array;
  readonly name?: string;
  readonly comment?: string;
  readonly headerCrc?: boolean;
  readonly level?: number;
}

/** A gzip member, made by hand because node:zlib sets none of the optional fields. RFC 1952, 2.3. */
export function member(content: Uint8Array, options: MemberOptions = {}): Buffer {
  const { extra, name, comment, headerCrc = false, level = 6 } = options;
  const flags = (headerCrc ? 2 : 0) | (extra ? 4 : 0) | (name === undefined ? 0 : 8) | (comment === undefined ? 0 : 16);
  const parts: Uint8Array[] = [Uint8Array.of(0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 0, 3)];
  if (extra) parts.push(Uint8Array.of(extra.length & 0xff, extra.length >> 8), extra);
  for (const text of [name, comment]) if (text !== undefined) parts.push(Buffer.from(`${text}\x00`, "latin1"));
  if (headerCrc) {
    const sum = crc32(Buffer.concat(parts));
    parts.push(Uint8Array.of(sum & 0xff, (sum >> 8) & 0xff));
  }
  const trailer = Buffer.alloc(8);
  trailer.writeUInt32LE(crc32(content), 0);
  trailer.writeUInt32LE(content.length % 2 ** 32, 4);
  return Buffer.concat([...parts, deflateRawSync(content, { level }), trailer]);
}

/** Bytes that do not compress. */
export function noise(length: number, seed = 1): Buffer {
  let state = seed;
  const bytes = Buffer.alloc(length);
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    bytes[i] = state >>> 24;
  }
  return bytes;
}

/** Bytes that compress about as a layer does. */
export function text(length: number, seed = 1): Buffer {
  const random = noise(Math.ceil(length / 4) + 1, seed);
  const words = ["layer ", "blob ", "digest ", "sha256:", "/usr/lib/", "\n", "manifest ", "0x"];
  const parts: string[] = [];
  for (let size = 0, i = 0; size < length; i++) {
    const word = `${words[random[i % random.length]! & 7]}${random[(i * 7) % random.length]! & 15}`;
    parts.push(word);
    size += word.length;
  }
  return Buffer.from(parts.join("")).subarray(0, length);
}
