import { createHash, type Hash } from "node:crypto";
import { ShaleError } from "../../errors/index.ts";
import type { FrameCompressor } from "../compression/index.ts";
import { TAR_END, TarDecoder, type TarEntry, type TarSink } from "../tar/index.ts";
import { TocAnnotation } from "../toc/index.ts";
import {
  Crc64,
  DocumentWriter,
  type FrameMark,
  FrameStream,
  NotConvertibleError,
  PathSet,
  sha256Text,
  SKIPPABLE_HEADER_SIZE,
  type Spool,
  TarSplitEncoder,
  ZSTD_FOOTER,
  ZSTD_FOOTER_FRAME,
  ZSTD_FOOTER_MAGIC,
  ZSTD_FOOTER_SIZE,
  ZSTD_TOC_TYPE,
} from "../toc/writing.ts";
import { RollingChunker } from "./chunker.ts";
import { encodeEntry, obstacleOf, type WrittenChunk } from "./entry-json.ts";

export interface ZstdChunkedOptions {
  /** Of kind "zstd". */
  readonly compressor: FrameCompressor;
  /** Called twice: for the TOC and the tar-split on their way to the end of the blob. */
  readonly openSpool: () => Spool;
}

interface PendingChunk {
  readonly start: FrameMark;
  readonly fileOffset: number;
  readonly size: number;
  readonly zeros: boolean;
  readonly digest: Uint8Array;
}

/** An entry whose frames are still being compressed. */
interface PendingEntry {
  readonly entry: TarEntry;
  readonly content:
    | { readonly digest: Uint8Array; readonly chunks: readonly PendingChunk[]; readonly end: FrameMark }
    | undefined;
}

/** A frame of header bytes, or of a chunk that is longer: several in a row are one chunk to every reader. */
const MAX_FRAME = 1024 * 1024;
/** Zeros behind the end of the archive come in items of this; headers are smaller, but for the largest xattrs. */
const MAX_ITEM = 4 * 1024 * 1024;
const ZEROS = new Uint8Array(64 * 1024);

/** One blob. Life: `write` to its end, then `annotations`; or give up, by ending the iteration. */
export class ZstdChunkedWriter {
  readonly #frames: FrameStream;
  readonly #tocSpool: Spool;
  readonly #tarSplitSpool: Spool;
  readonly #toc: DocumentWriter;
  readonly #tarSplit: DocumentWriter;
  readonly #encoder = new TarSplitEncoder();
  readonly #paths = new PathSet();
  readonly #pending: PendingEntry[] = [];
  #entries = 0;

  // bytes of headers and padding that are no item of the tar-split yet
  #raw: Uint8Array[] = [];
  #rawSize = 0;
  #tarOffset = 0;
  #padding = 0;

  // the current file
  readonly #chunker: RollingChunker;
  #entry: TarEntry | undefined;
  #contentHash: Hash | undefined;
  #crc: Crc64 | undefined;
  #chunks: PendingChunk[] = [];
  #chunkStart: FrameMark | undefined;
  #chunkHash: Hash | undefined;
  #chunkSize = 0;
  #fileOffset = 0;
  #annotations: Readonly<Record<string, string>> | undefined;

  constructor({ compressor, openSpool }: ZstdChunkedOptions) {
    if (compressor.settings.kind !== "zstd") throw new RangeError("a compressor of zstd frames is needed");
    this.#frames = new FrameStream(compressor, MAX_FRAME);
    this.#tocSpool = openSpool();
    this.#tarSplitSpool = openSpool();
    this.#toc = new DocumentWriter(compressor, this.#tocSpool);
    this.#tarSplit = new DocumentWriter(compressor, this.#tarSplitSpool);
    this.#chunker = new RollingChunker({
      data: (bytes) => this.#chunkData(bytes),
      zeros: (length) => this.#chunkZeros(length),
      cut: (hole) => this.#cutChunk(hole),
    });
  }

  /**
   * The blob of a tar, in pieces that are not written to again. NotConvertibleError (FAILED_PRECONDITION) when the tar has an
   * entry that a TOC can't tell, FormatError when it is no tar, and what `tar` throws.
   */
  async *write(tar: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array, void, undefined> {
    const decoder = new TarDecoder(this.#sink);
    try {
      this.#toc.write(`{"version":1,"entries":`);
      for await (const piece of tar) {
        decoder.write(piece);
        yield* this.#frames.drain();
        await this.#settle();
      }
      decoder.end();
      // not even the end of an archive: its tar-split would be empty, which readers refuse
      if (this.#tarOffset === 0) throw new NotConvertibleError("", "the tar has no bytes");
      this.#endArchive();
      yield* this.#frames.finish();
      await this.#settle();
      yield* this.#finish(this.#frames.offset);
    } finally {
      await Promise.all([this.#frames.abandon(), this.#toc.abandon(), this.#tarSplit.abandon()]);
    }
  }

  /** Of the layer's descriptor, once all of the blob was given out. */
  get annotations(): Readonly<Record<string, string>> {
    if (this.#annotations === undefined) throw new RangeError("annotations of a blob that is not complete");
    return this.#annotations;
  }

  readonly #sink: TarSink = {
    raw: (bytes) => this.#addRaw(bytes),
    entry: (entry) => this.#beginEntry(entry),
    payload: (bytes) => {
      this.#tarOffset += bytes.length;
      this.#contentHash!.update(bytes);
      this.#crc!.update(bytes);
      this.#chunker.write(bytes);
    },
    endEntry: () => this.#endEntry(),
  };

  // the tar

  #addRaw(bytes: Uint8Array): void {
    this.#frames.append(bytes);
    this.#raw.push(new Uint8Array(bytes));
    this.#rawSize += bytes.length;
    this.#tarOffset += bytes.length;
    if (this.#rawSize >= MAX_ITEM) this.#endRaw();
  }

  /** The bytes so far are an item. */
  #endRaw(): void {
    if (this.#rawSize > 0) this.#tarSplit.write(this.#encoder.bytes(Buffer.concat(this.#raw)));
    this.#raw = [];
    this.#rawSize = 0;
  }

  /** tar-split has what Go's reader looks at, padding and the two zero blocks, in one item, and what follows in another. */
  #endArchive(): void {
    const raw = Buffer.concat(this.#raw);
    const end = this.#padding + TAR_END.length;
    this.#raw = [raw.subarray(0, end)];
    this.#rawSize = Math.min(end, raw.length);
    this.#endRaw();
    this.#raw = [raw.subarray(end)];
    this.#rawSize = raw.length - Math.min(end, raw.length);
    this.#endRaw();
  }

  #beginEntry(entry: TarEntry): void {
    const obstacle = obstacleOf(entry);
    if (obstacle !== undefined) throw new NotConvertibleError(entry.path, obstacle);
    if (!this.#paths.add(entry.path)) throw new NotConvertibleError(entry.path, "it is there twice");
    // an item has the padding of the file before and one entry's headers: what else there is, no reader expects
    if (this.#tarOffset - this.#rawSize + this.#padding !== entry.headerOffset) {
      throw new NotConvertibleError(entry.path, "headers stand before it that belong to no file");
    }
    this.#endRaw();
    this.#entry = entry;
    this.#padding = (512 - (entry.size % 512)) % 512;
    if (entry.size === 0) return;
    this.#contentHash = createHash("sha256");
    this.#crc = new Crc64();
    this.#chunks = [];
    this.#fileOffset = 0;
  }

  #endEntry(): void {
    const entry = this.#entry!;
    this.#entry = undefined;
    if (entry.size === 0) {
      this.#tarSplit.write(this.#encoder.content(entry.path, 0, undefined));
      this.#pending.push({ entry, content: undefined });
      return;
    }
    this.#chunker.end();
    this.#tarSplit.write(this.#encoder.content(entry.path, entry.size, this.#crc!.digest()));
    const content = { digest: this.#contentHash!.digest(), chunks: this.#chunks, end: this.#frames.cut() };
    this.#pending.push({ entry, content });
  }

  // chunks

  #chunkData(bytes: Uint8Array): void {
    this.#openChunk();
    this.#chunkHash!.update(bytes);
    this.#chunkSize += bytes.length;
    this.#frames.append(bytes);
  }

  #chunkZeros(length: number): void {
    this.#openChunk();
    for (let left = length; left > 0; left -= ZEROS.length) {
      this.#chunkHash!.update(ZEROS.subarray(0, Math.min(left, ZEROS.length)));
    }
    this.#chunkSize += length;
    this.#frames.appendZeros(length);
  }

  #openChunk(): void {
    if (this.#chunkStart !== undefined) return;
    this.#chunkStart = this.#frames.cut();
    this.#chunkHash = createHash("sha256");
    this.#chunkSize = 0;
  }

  #cutChunk(zeros: boolean): void {
    const size = this.#chunkSize;
    const digest = this.#chunkHash!.digest();
    this.#chunks.push({ start: this.#chunkStart!, fileOffset: this.#fileOffset, size, zeros, digest });
    this.#fileOffset += size;
    this.#chunkStart = undefined;
  }

  // TOC, tar-split, footer

  /** Tells the TOC of the entries whose frames came out. */
  async #settle(): Promise<void> {
    let done = 0;
    for (; done < this.#pending.length; done++) {
      const { entry, content } = this.#pending[done]!;
      if (content !== undefined && content.end.offset === undefined) break;
      this.#toc.write(this.#entries++ === 0 ? "[" : ",");
      this.#toc.write(
        encodeEntry(
          entry,
          content && { digest: content.digest, chunks: content.chunks.map(placed), blobEnd: content.end.offset! },
        ),
      );
    }
    this.#pending.splice(0, done);
    await this.#toc.settle();
    await this.#tarSplit.settle();
  }

  async *#finish(offset: number): AsyncGenerator<Uint8Array, void, undefined> {
    const tarSplitDigest = await this.#tarSplit.finish();
    // Go writes a list that was never begun as null
    this.#toc.write(this.#entries === 0 ? "null" : "]");
    this.#toc.write(`,"tarSplitDigest":"${sha256Text(tarSplitDigest)}"}`);
    const tocDigest = await this.#toc.finish();
    const toc = { offset: offset + SKIPPABLE_HEADER_SIZE, stored: this.#tocSpool.size, size: this.#toc.size };
    const tarSplit = {
      offset: toc.offset + toc.stored + SKIPPABLE_HEADER_SIZE,
      stored: this.#tarSplitSpool.size,
      size: this.#tarSplit.size,
    };
    yield skippableHeader(toc.stored);
    yield* copies(this.#tocSpool.read());
    yield skippableHeader(tarSplit.stored);
    yield* copies(this.#tarSplitSpool.read());
    const footer = Buffer.alloc(ZSTD_FOOTER_SIZE);
    ZSTD_FOOTER.write(footer, 0, {
      frame: ZSTD_FOOTER_FRAME,
      tocOffset: BigInt(toc.offset),
      tocStored: BigInt(toc.stored),
      tocSize: BigInt(toc.size),
      type: BigInt(ZSTD_TOC_TYPE),
      tarSplitOffset: BigInt(tarSplit.offset),
      tarSplitStored: BigInt(tarSplit.stored),
      tarSplitSize: BigInt(tarSplit.size),
      magic: ZSTD_FOOTER_MAGIC,
    });
    yield footer;
    this.#annotations = {
      [TocAnnotation.ZSTD_CHECKSUM]: sha256Text(tocDigest),
      [TocAnnotation.ZSTD_POSITION]: `${toc.offset}:${toc.stored}:${toc.size}:${ZSTD_TOC_TYPE}`,
      [TocAnnotation.ZSTD_TAR_SPLIT_POSITION]: `${tarSplit.offset}:${tarSplit.stored}:${tarSplit.size}`,
    };
  }
}

function placed({ start, ...chunk }: PendingChunk): WrittenChunk {
  return { ...chunk, blobOffset: start.offset! };
}

/** RFC 8878, 3.1.2. */
function skippableHeader(size: number): Uint8Array {
  if (size > 0xffffffff) {
    throw new ShaleError("RESOURCE_EXHAUSTED", `Cannot write the table of contents: ${size} bytes fit in no frame`);
  }
  const header = Buffer.alloc(SKIPPABLE_HEADER_SIZE);
  header.writeUInt32LE(0x184d2a50, 0);
  header.writeUInt32LE(size, 4);
  return header;
}

function* copies(pieces: Iterable<Uint8Array>): Generator<Uint8Array, void, undefined> {
  for (const piece of pieces) yield new Uint8Array(piece);
}
