/**
 * The payload table: what a blob of the store says about itself. It stands behind the last payload of `blobs/<id>`, so
 * one fdatasync makes both durable, and a blob can be verified, re-indexed or salvaged without any other file.
 *
 * ```
 * payloads, each at a multiple of 4096, zero-padded      block-mapped by EROFS images
 * records, 48 bytes each, by rising offset:              u64 offset, u64 length, sha256[32]
 * footer, 64 bytes:                                       see FOOTER
 * ```
 *
 * Little-endian. Guarantees of `decode`: offsets are multiples of 4096 and rise without overlap, every range ends before
 * the table, the checksum covers records and footer; anything else is a FormatError. Pure.
 */
import { type ByteSource, bytes, crc32c, safeNumber, struct, text, u32le, u64le } from "../../bytes/index.ts";
import { FormatError } from "../../errors/index.ts";

export const PAYLOAD_ALIGNMENT = 4096;
export const DIGEST_LENGTH = 32;

const FORMAT = "payload table";
const VERSION = 1;
const MAGIC = "shaleblb";

const RECORD = struct("payload record", 48, { offset: u64le(0), length: u64le(8), digest: bytes(16, DIGEST_LENGTH) });

/** The last 64 bytes of a blob. `checksum` is CRC-32C (final inversion) of the records and the footer with itself zero. */
const FOOTER = struct("payload table footer", 64, {
  magic: text(0, 8),
  version: u32le(8),
  checksum: u32le(12),
  count: u64le(16),
  tableOffset: u64le(24),
});

/** Records read at a time: bounds memory whatever the count says. */
const BATCH = 16384;

export interface Payload {
  /** In the blob; a multiple of 4096. */
  readonly offset: number;
  /** Content length; the padding to the next 4096 is not counted. */
  readonly length: number;
  /** SHA-256 of the content. */
  readonly digest: Uint8Array;
}

/** Collects payloads of one ingest in columns (48 bytes each) and finds them by digest. */
export class PayloadTable {
  #offsets = new Float64Array(256);
  #lengths = new Float64Array(256);
  #digests = Buffer.alloc(256 * DIGEST_LENGTH);
  #slots = new Uint32Array(1024);
  #count = 0;

  get count(): number {
    return this.#count;
  }

  /** Offsets must rise. */
  add(offset: number, length: number, digest: Uint8Array): void {
    const at = this.#count++;
    if (at === this.#offsets.length) this.#grow();
    this.#offsets[at] = offset;
    this.#lengths[at] = length;
    this.#digests.set(digest, at * DIGEST_LENGTH);
    if (this.#count * 2 > this.#slots.length) {
      this.#slots = new Uint32Array(this.#slots.length * 2);
      for (let one = 0; one < at; one++) this.#insert(one);
    }
    this.#insert(at);
  }

  /** Offset of the payload with this digest and length, or -1. */
  find(digest: Uint8Array, length: number): number {
    const mask = this.#slots.length - 1;
    for (let slot = prefix(digest, 0) & mask; this.#slots[slot] !== 0; slot = (slot + 1) & mask) {
      const at = this.#slots[slot]! - 1;
      if (this.#lengths[at] === length && this.#sameDigest(at, digest)) return this.#offsets[at]!;
    }
    return -1;
  }

  /** The table and footer, to be written at `tableOffset` (the end of the last payload's padding), in pieces. */
  *encode(tableOffset: number): Generator<Uint8Array> {
    let checksum = 0xffffffff;
    for (let start = 0; start < this.#count; start += BATCH) {
      const end = Math.min(this.#count, start + BATCH);
      const piece = new Uint8Array((end - start) * RECORD.size);
      const view = new DataView(piece.buffer);
      for (let at = start; at < end; at++) {
        const place = (at - start) * RECORD.size;
        view.setBigUint64(place, BigInt(this.#offsets[at]!), true);
        view.setBigUint64(place + 8, BigInt(this.#lengths[at]!), true);
        piece.set(this.#digests.subarray(at * DIGEST_LENGTH, (at + 1) * DIGEST_LENGTH), place + 16);
      }
      checksum = crc32c(piece, checksum);
      yield piece;
    }
    const footer = new Uint8Array(FOOTER.size);
    FOOTER.write(footer, 0, {
      magic: MAGIC,
      version: VERSION,
      count: BigInt(this.#count),
      tableOffset: BigInt(tableOffset),
    });
    FOOTER.write(footer, 0, { checksum: ~crc32c(footer, checksum) >>> 0 });
    yield footer;
  }

  #insert(at: number): void {
    const mask = this.#slots.length - 1;
    let slot = prefix(this.#digests, at * DIGEST_LENGTH) & mask;
    while (this.#slots[slot] !== 0) slot = (slot + 1) & mask;
    this.#slots[slot] = at + 1;
  }

  #sameDigest(at: number, digest: Uint8Array): boolean {
    return this.#digests.compare(digest, 0, DIGEST_LENGTH, at * DIGEST_LENGTH, (at + 1) * DIGEST_LENGTH) === 0;
  }

  #grow(): void {
    const capacity = Math.ceil(this.#offsets.length * 1.5);
    const offsets = new Float64Array(capacity);
    offsets.set(this.#offsets);
    const lengths = new Float64Array(capacity);
    lengths.set(this.#lengths);
    const digests = Buffer.alloc(capacity * DIGEST_LENGTH);
    this.#digests.copy(digests);
    this.#offsets = offsets;
    this.#lengths = lengths;
    this.#digests = digests;
  }
}

/** Digests are uniform, so their first bytes are a hash; crafted prefixes cost work that grows with 2^32 trials each. */
function prefix(digest: Uint8Array, at: number): number {
  return (digest[at]! | (digest[at + 1]! << 8) | (digest[at + 2]! << 16) | (digest[at + 3]! << 24)) >>> 0;
}

export interface PayloadTablePlace {
  readonly count: number;
  /** End of the payload area: what EROFS may map. */
  readonly tableOffset: number;
}

/** Reads the footer only. FormatError when there is none or it contradicts the blob's size. */
export function decodePayloadFooter(blob: ByteSource): PayloadTablePlace {
  return footerOf(blob).place;
}

function footerOf(blob: ByteSource): { place: PayloadTablePlace; raw: Uint8Array; checksum: number } {
  const start = blob.size - FOOTER.size;
  if (start < 0) throw new FormatError(FORMAT, "length", `a blob of ${blob.size} bytes has no footer`);
  const raw = blob.read(start, FOOTER.size).slice();
  const { magic, version, checksum, count, tableOffset } = FOOTER.read(raw);
  if (magic !== MAGIC) throw new FormatError(FORMAT, "magic", "the footer is not there", { offset: start });
  if (version !== VERSION)
    throw new FormatError(FORMAT, "version", `must be ${VERSION}: current value is ${version}`, { offset: start + 8 });
  const place = {
    count: safeNumber(count, FORMAT, "count", start + 16),
    tableOffset: safeNumber(tableOffset, FORMAT, "tableOffset", start + 24),
  };
  if (place.tableOffset % PAYLOAD_ALIGNMENT !== 0 || place.tableOffset + place.count * RECORD.size !== start) {
    throw new FormatError(
      FORMAT,
      "tableOffset",
      `${place.count} records from ${place.tableOffset} do not end at the footer`,
      { offset: start + 24 },
    );
  }
  FOOTER.write(raw, 0, { checksum: 0 });
  return { place, raw, checksum };
}

/** All payloads by rising offset, in batches; the checksum is verified before the generator ends. */
export function* decodePayloads(blob: ByteSource): Generator<Payload> {
  const { place, raw, checksum } = footerOf(blob);
  let register = 0xffffffff;
  let free = 0;
  for (let start = 0; start < place.count; start += BATCH) {
    const count = Math.min(BATCH, place.count - start);
    const base = place.tableOffset + start * RECORD.size;
    const piece = blob.read(base, count * RECORD.size);
    register = crc32c(piece, register);
    const view = new DataView(piece.buffer, piece.byteOffset, piece.byteLength);
    for (let at = 0; at < count; at++) {
      const record = at * RECORD.size;
      const where = base + record;
      const offset = readNumber(view, record + RECORD.fields.offset.offset, "offset", where);
      const length = readNumber(view, record + RECORD.fields.length.offset, "length", where + 8);
      if (offset % PAYLOAD_ALIGNMENT !== 0 || offset < free || length === 0 || offset + length > place.tableOffset) {
        throw new FormatError(
          FORMAT,
          "record",
          `${length} bytes at ${offset} do not fit in ${free}..${place.tableOffset}`,
          { offset: where },
        );
      }
      free = offset + length;
      const digest = record + RECORD.fields.digest.offset;
      yield { offset, length, digest: piece.subarray(digest, digest + DIGEST_LENGTH) };
    }
  }
  if (~crc32c(raw, register) >>> 0 !== checksum) {
    throw new FormatError(FORMAT, "checksum", "does not match", {
      offset: blob.size - FOOTER.size + 12,
      code: "DATA_LOSS",
    });
  }
}

/** A u64 as {@link safeNumber} gives it, without a bigint: there are a hundred thousand in a large blob. */
function readNumber(view: DataView, at: number, field: string, offset: number): number {
  const value = view.getUint32(at + 4, true) * 2 ** 32 + view.getUint32(at, true);
  if (Number.isSafeInteger(value)) return value;
  return safeNumber(view.getBigUint64(at, true), FORMAT, field, offset); // which says what is wrong
}

/** The payload at `offset`; see {@link PayloadFinder}. */
export function findPayload(blob: ByteSource, offset: number): Payload | undefined {
  return new PayloadFinder(blob).find(offset);
}

/**
 * Finds payloads of one blob by their offset, by binary search; asks for the record behind the last one found first, since
 * whoever walks a tree asks in nearly that order. Reads some records only, and so verifies no checksum.
 */
export class PayloadFinder {
  readonly #blob: ByteSource;
  readonly #place: PayloadTablePlace;
  #last = -1;

  constructor(blob: ByteSource) {
    this.#blob = blob;
    this.#place = decodePayloadFooter(blob);
  }

  find(offset: number): Payload | undefined {
    let low = 0;
    let high = this.#place.count - 1;
    let middle = Math.min(this.#last + 1, high);
    while (low <= high) {
      const record = RECORD.read(this.#blob.read(this.#place.tableOffset + middle * RECORD.size, RECORD.size));
      const found = Number(record.offset);
      if (found === offset) {
        this.#last = middle;
        return { offset, length: Number(record.length), digest: record.digest };
      }
      if (found < offset) low = middle + 1;
      else high = middle - 1;
      middle = (low + high) >>> 1;
    }
    return undefined;
  }
}
