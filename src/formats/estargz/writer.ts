import { createHash, type Hash } from "node:crypto";
import { type ByteString, concatBytes } from "../../bytes/index.ts";
import { compressGzipMember, type FrameCompressor } from "../compression/index.ts";
import {
  encodeTarHeader,
  TAR_END,
  TarDecoder,
  type TarEntry,
  type TarHeader,
  type TarSink,
  tarPadding,
} from "../tar/index.ts";
import { TocAnnotation } from "../toc/index.ts";
import {
  ESTARGZ_LANDMARKS,
  ESTARGZ_TOC_NAME,
  encodeEstargzFooter,
  type FrameMark,
  FrameStream,
  NotConvertibleError,
  type Spool,
  sha256Text,
} from "../toc/writing.ts";
import { encodeEntry, obstacleOf } from "./entry-json.ts";

export interface EstargzOptions {
  /** Of kind "gzip". */
  readonly compressor: FrameCompressor;
  /** Called once: for the TOC's JSON on its way to the end of the blob. */
  readonly openSpool: () => Spool;
}

/** Bytes of a file in one member, as stargz-snapshotter and nerdctl have it. */
const CHUNK_SIZE = 4 * 1024 * 1024;
/** A chunk and the headers behind it; more headers begin another member. */
const MAX_MEMBER = CHUNK_SIZE + 1024 * 1024;
/** More than the headers of one entry can have, and the limit of what is kept of bytes that are not known to be a header. */
const MAX_HEADER = 4 * 1024 * 1024;
const LANDMARK_CONTENT = Buffer.from([0x0f]);
const DROPPED: ReadonlySet<ByteString> = new Set([...Object.values(ESTARGZ_LANDMARKS), ESTARGZ_TOC_NAME]);
const ZEROS = new Uint8Array(64 * 1024);
const EMPTY_DIGEST = createHash("sha256").digest();

interface PendingChunk {
  readonly start: FrameMark;
  readonly fileOffset: number;
  readonly statedSize: number;
  readonly digest: Uint8Array;
}

interface PendingEntry {
  readonly entry: TarEntry;
  readonly digest: Uint8Array | undefined;
  readonly chunks: readonly PendingChunk[];
}

/** One blob. Life: `write` to its end, then `result`; or give up, by ending the iteration. */
export class EstargzWriter {
  readonly #frames: FrameStream;
  readonly #level: number;
  readonly #spool: Spool;
  readonly #tocHash = createHash("sha256");
  readonly #tarHash = createHash("sha256");
  readonly #pending: PendingEntry[] = [];
  #entries = 0;
  #tarSize = 0;

  // the source
  #raw: Uint8Array[] = [];
  #rawSize = 0;
  #sourceOffset = 0;

  // the current file
  #entry: TarEntry | undefined;
  #isDropped = false;
  #contentHash: Hash | undefined;
  #chunkHash: Hash | undefined;
  #chunks: PendingChunk[] = [];
  #fileOffset = 0;
  #chunkStart: FrameMark | undefined;
  #chunkLeft = 0;
  #segment = 0;
  #segmentLeft = 0;
  #result: EstargzResult | undefined;

  constructor({ compressor, openSpool }: EstargzOptions) {
    if (compressor.settings.kind !== "gzip") throw new RangeError("a compressor of gzip members is needed");
    this.#level = compressor.settings.level;
    this.#frames = new FrameStream(compressor, MAX_MEMBER);
    this.#spool = openSpool();
  }

  /**
   * The blob of a tar, in pieces that are not written to again. NotConvertibleError (FAILED_PRECONDITION) when the tar has an
   * entry that a TOC can't tell, FormatError when it is no tar, and what `tar` throws.
   */
  async *write(tar: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array, void, undefined> {
    const decoder = new TarDecoder(this.#sink);
    try {
      this.#tellToc(`{"version":1,"entries":`);
      this.#addLandmark();
      for await (const piece of tar) {
        decoder.write(piece);
        yield* this.#frames.drain();
        this.#settle();
      }
      decoder.end();
      yield* this.#frames.finish();
      this.#settle();
      yield* this.#finish(this.#frames.offset);
    } finally {
      await this.#frames.abandon();
    }
  }

  /** Once all of the blob was given out. */
  get result(): EstargzResult {
    if (this.#result === undefined) throw new RangeError("result of a blob that is not complete");
    return this.#result;
  }

  readonly #sink: TarSink = {
    raw: (bytes) => this.#addRaw(bytes),
    entry: (entry) => this.#beginEntry(entry),
    payload: (bytes) => {
      this.#sourceOffset += bytes.length;
      if (!this.#isDropped) this.#addPayload(bytes);
    },
    endEntry: () => this.#endEntry(),
  };

  // the tar that comes in

  #addRaw(bytes: Uint8Array): void {
    this.#raw.push(new Uint8Array(bytes));
    this.#rawSize += bytes.length;
    this.#sourceOffset += bytes.length;
    // what is far behind is padding, a list of names, or zeros after the end: no header that comes has it
    while (this.#rawSize - this.#raw[0]!.length >= MAX_HEADER) this.#rawSize -= this.#raw.shift()!.length;
  }

  #beginEntry(entry: TarEntry): void {
    const raw = concatBytes(this.#raw);
    const header = raw.subarray(raw.length - (this.#sourceOffset - entry.headerOffset));
    this.#raw = [];
    this.#rawSize = 0;
    this.#isDropped = DROPPED.has(entry.path.replace(/^(?:\.?\/)+/, ""));
    this.#entry = entry;
    if (this.#isDropped) return;
    const obstacle = obstacleOf(entry);
    if (obstacle !== undefined) throw new NotConvertibleError(entry.path, obstacle);
    // a header that would mean something else without what is left out (a global header, holes) is written anew
    const isPlain = entry.segments === undefined && entry.unkept?.differsInGo === undefined;
    this.#emit(isPlain ? header : encodeTarHeader(entry));
    this.#beginContent(entry);
  }

  #beginContent(entry: TarEntry): void {
    this.#chunks = [];
    this.#fileOffset = 0;
    this.#segment = 0;
    this.#segmentLeft = entry.segments === undefined ? entry.size : 0;
    if (entry.size > 0) this.#contentHash = createHash("sha256");
  }

  #addPayload(bytes: Uint8Array): void {
    const { segments } = this.#entry!;
    for (let at = 0; at < bytes.length; ) {
      if (this.#segmentLeft === 0) {
        const next = segments![this.#segment++]!;
        this.#addZeros(next.offset - this.#fileOffset);
        this.#segmentLeft = next.length;
      }
      const count = Math.min(this.#segmentLeft, bytes.length - at);
      this.#addContent(bytes.subarray(at, at + count));
      this.#segmentLeft -= count;
      at += count;
    }
  }

  #endEntry(): void {
    if (!this.#isDropped) this.#endContent(this.#entry!);
    this.#entry = undefined;
  }

  #endContent(entry: TarEntry): void {
    if (entry.size > 0) {
      this.#addZeros(entry.size - this.#fileOffset);
      this.#emit(tarPadding(entry.size));
      this.#pending.push({ entry, digest: this.#contentHash!.digest(), chunks: this.#chunks });
      return;
    }
    this.#pending.push({ entry, digest: entry.type === "file" ? EMPTY_DIGEST : undefined, chunks: [] });
  }

  // the tar that goes out

  #addLandmark(): void {
    const entry: TarEntry = { ...plainFile(ESTARGZ_LANDMARKS.none, 1), segments: undefined, headerOffset: 0 };
    this.#emit(encodeTarHeader(entry));
    this.#beginContent(entry);
    this.#addContent(LANDMARK_CONTENT);
    this.#endContent(entry);
  }

  #addZeros(length: number): void {
    for (let left = length; left > 0; left -= ZEROS.length) {
      this.#addContent(ZEROS.subarray(0, Math.min(left, ZEROS.length)));
    }
  }

  #addContent(bytes: Uint8Array): void {
    this.#contentHash!.update(bytes);
    for (let at = 0; at < bytes.length; ) {
      if (this.#chunkStart === undefined) {
        this.#chunkStart = this.#frames.cut();
        this.#chunkHash = createHash("sha256");
        this.#chunkLeft = CHUNK_SIZE;
      }
      const count = Math.min(this.#chunkLeft, bytes.length - at);
      const part = bytes.subarray(at, at + count);
      this.#chunkHash!.update(part);
      this.#emit(part);
      this.#chunkLeft -= count;
      this.#fileOffset += count;
      at += count;
      if (this.#chunkLeft === 0 || this.#fileOffset === this.#contentSize) this.#endChunk();
    }
  }

  #endChunk(): void {
    const size = CHUNK_SIZE - this.#chunkLeft;
    this.#chunks.push({
      start: this.#chunkStart!,
      fileOffset: this.#fileOffset - size,
      statedSize: size === CHUNK_SIZE ? size : 0,
      digest: this.#chunkHash!.digest(),
    });
    this.#chunkStart = undefined;
  }

  /** Of the file at hand; the landmark is none of the source. */
  get #contentSize(): number {
    return this.#entry?.size ?? LANDMARK_CONTENT.length;
  }

  #emit(bytes: Uint8Array): void {
    this.#tarHash.update(bytes);
    this.#tarSize += bytes.length;
    this.#frames.append(bytes);
  }

  // TOC and footer

  #settle(): void {
    let done = 0;
    for (; done < this.#pending.length; done++) {
      const { entry, digest, chunks } = this.#pending[done]!;
      if (chunks.length > 0 && chunks.at(-1)!.start.offset === undefined) break;
      const written = chunks.map(({ start, ...chunk }) => ({ ...chunk, blobOffset: start.offset! }));
      this.#tellToc(`${this.#entries++ === 0 ? "[" : ","}${encodeEntry(entry, digest, written)}`);
    }
    this.#pending.splice(0, done);
  }

  #tellToc(text: string): void {
    const bytes = Buffer.from(text);
    this.#tocHash.update(bytes);
    this.#spool.append(bytes);
  }

  async *#finish(tocOffset: number): AsyncGenerator<Uint8Array, void, undefined> {
    this.#tellToc("]}");
    const header = encodeTarHeader(plainFile(ESTARGZ_TOC_NAME, this.#spool.size));
    const count = (bytes: Uint8Array) => {
      this.#tarHash.update(bytes);
      this.#tarSize += bytes.length;
      return bytes;
    };
    const spool = this.#spool;
    function* pieces(): Generator<Uint8Array, void, undefined> {
      yield count(header);
      for (const piece of spool.read()) yield count(piece);
      yield count(tarPadding(spool.size));
      yield count(TAR_END);
    }
    // one member: stargz-snapshotter reads no further
    yield* compressGzipMember(pieces(), this.#level);
    yield encodeEstargzFooter(tocOffset);
    this.#result = {
      tarDigest: this.#tarHash.digest(),
      tarSize: this.#tarSize,
      annotations: {
        [TocAnnotation.ESTARGZ_DIGEST]: sha256Text(this.#tocHash.digest()),
        [TocAnnotation.ESTARGZ_SIZE]: `${this.#tarSize}`,
      },
    };
  }
}

export interface EstargzResult {
  /** SHA-256 of the tar that the blob decompresses to: the layer's new diffId. */
  readonly tarDigest: Uint8Array;
  readonly tarSize: number;
  /** Of the layer's descriptor. */
  readonly annotations: Readonly<Record<string, string>>;
}

/** As stargz-snapshotter writes its own files: everything that can be is zero. */
function plainFile(path: ByteString, size: number): TarHeader {
  return {
    ...{ type: "file", path, linkTarget: "", mode: 0, uid: 0, gid: 0, size, mtimeSeconds: 0, mtimeNanoseconds: 0 },
    ...{ rdevMajor: 0, rdevMinor: 0, xattrs: [] },
  };
}
