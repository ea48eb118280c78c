/**
 * tar-split: a tar without its file contents, as a sequence of JSON objects, one a line. github.com/vbatts/tar-split,
 * tar/storage/entry.go. What Go's encoder writes, this one writes: the same bytes for the same tar.
 *
 * | type | meaning |
 * |---|---|
 * | 2 | bytes of the tar: headers, padding, the end of the archive |
 * | 1 | the content of the file whose header was in the bytes before; also for what has no content |
 */
import { type ByteString, fromUtf8 } from "../../bytes/index.ts";
import { tocError } from "./failure.ts";
import { goString } from "./json-text.ts";
import { readJsonSequence } from "./json-values.ts";
import { DEFAULT_TOC_LIMITS } from "./limits.ts";

export type TarSplitItem =
  | { readonly kind: "bytes"; readonly bytes: Uint8Array; readonly offset: number }
  | {
      readonly kind: "content";
      readonly name: ByteString;
      /** Bytes of it in the tar. */
      readonly size: number;
      /** CRC-64 (ISO) of the content; undefined without content. Against accidents only. */
      readonly crc64: Uint8Array | undefined;
      readonly offset: number;
    };

/**
 * The items of a decompressed tar-split, each of at most `itemSize` bytes of JSON; `offset` is where an item begins in it.
 * Throws FormatError. Whether they make a tar is for the tar decoder to say (see LayerToc.replay).
 */
export async function* decodeTarSplit(
  pieces: AsyncIterable<Uint8Array>,
  itemSize: number = DEFAULT_TOC_LIMITS.tarSplitItemSize,
): AsyncGenerator<TarSplitItem, void, undefined> {
  for await (const { value, offset } of readJsonSequence(pieces, "tar-split", itemSize)) {
    yield decodeItem(value, offset);
  }
}

function decodeItem(value: unknown, offset: number): TarSplitItem {
  const fail = (field: string, problem: string) => tocError("tar-split", field, problem, { offset });
  const base64 = (key: string, text: unknown): Uint8Array | undefined => {
    if (text === undefined || text === null || text === "") return undefined;
    if (typeof text !== "string" || !/^[A-Za-z0-9+/]*={0,2}$/.test(text)) throw fail(key, "is not base64");
    return Buffer.from(text, "base64");
  };
  if (typeof value !== "object" || value === null) throw fail("item", "is no object");
  const item: { type?: unknown; name?: unknown; name_raw?: unknown; size?: unknown; payload?: unknown } = value;
  const payload = base64("payload", item.payload);
  if (item.type === 2) {
    if (payload === undefined) throw fail("payload", "of bytes is empty");
    return { kind: "bytes", bytes: payload, offset };
  }
  if (item.type !== 1) throw fail("type", "is neither 1 nor 2");
  const size = item.size ?? 0;
  if (typeof size !== "number" || !Number.isSafeInteger(size) || size < 0) throw fail("size", "is no size");
  const raw = base64("name_raw", item.name_raw);
  if (raw !== undefined)
    return { kind: "content", name: Buffer.from(raw).toString("latin1"), size, crc64: payload, offset };
  if (typeof item.name !== "string" || item.name === "") throw fail("name", "is missing");
  return { kind: "content", name: fromUtf8(item.name), size, crc64: payload, offset };
}

/** Writes items; the result is one line. */
export class TarSplitEncoder {
  #position = 0;

  bytes(bytes: Uint8Array): string {
    return `{"type":2,"payload":"${base64Of(bytes)}","position":${this.#position++}}\n`;
  }

  /** `crc64` is undefined for what has no content. RangeError for a name that is not UTF-8: see `isPlainText`. */
  content(name: ByteString, size: number, crc64: Uint8Array | undefined): string {
    const payload = crc64 === undefined ? "null" : `"${base64Of(crc64)}"`;
    const sizeMember = size === 0 ? "" : `"size":${size},`;
    return `{"type":1,"name":${goString(name)},${sizeMember}"payload":${payload},"position":${this.#position++}}\n`;
  }
}

function base64Of(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("base64");
}
