/**
 * A layer put together from its TOC: headers from the tar-split, contents from the store where it has them, the rest from
 * the parts of the blob that were fetched. The same writer as for a whole pull gets the same calls, so what comes out is
 * the same layer, and its tar is hashed on the way: a layer is sealed only when it has the diffId.
 *
 * An eStargz TOC has no headers, so there is no tar to hash. Each content is held against every digest that the TOC gives of
 * it instead, wherever it comes from, and a TOC that contradicts itself is refused: the tree is a function of the TOC.
 *
 * Two steps. The plan goes to the main thread, which decides whether it is worth it, and fetches; then contents are taken
 * in the order of the tar, each as soon as its parts are there. Wrong bytes, local or fetched, end the attempt with a list
 * of them: the main thread takes them out of use and tries again.
 */
import { createHash, type Hash, randomBytes } from "node:crypto";
import { join } from "node:path";
import { once } from "node:events";
import { type ByteRange, displayBytes } from "../../bytes/index.ts";
import { errnoOf, FormatError, ShaleError } from "../../errors/index.ts";
import { decompress, decompressZstdChunk, type FramesDecoder, gunzipAtOnce } from "../../formats/compression/index.ts";
import { LayerToc, type TocChunk, type TocPayload } from "../../formats/toc/index.ts";
import { closeFile, crashPoint, makeDirectory, openFile, readAt } from "../../sys/index.ts";
import { openNestedSha256 } from "../../sys/nested-sha256.ts";
import { loadZstdFrames } from "../../sys/zstd-frames.ts";
import type { Database } from "../database.ts";
import { Layout } from "../layout.ts";
import { LIMITS } from "../limits.ts";
import { awaitArrival, hasArrived } from "./arrivals.ts";
import { storeDedupeIndex } from "./dedupe-index.ts";
import { LayerWriter } from "./layer-writer.ts";
import { READ_PIECE, StoreContent } from "./local-content.ts";
import {
  type AssembleJob,
  type AssembleOutcome,
  type BadSource,
  CONTROL_CONSUMED,
  type PlanAnswer,
  type PlanOffer,
} from "./protocol.ts";
import { keepToc } from "./toc-file.ts";
import { BUILD, FETCH, type LayerPlan, LayerPlanner, ZEROS } from "./toc-plan.ts";

/** Chunks up to this size, both ways, are decompressed at once; larger ones as a stream. */
const AT_ONCE = READ_PIECE;
/** What decompressZstdChunk() and gunzipAtOnce() allocate behind a chunk, and buffers that Node may have cut from a larger one. */
const CHUNK_ROOM = { "zstd:chunked": 64, estargz: 4096 } as const;
const POOLED_BELOW = 16 * 1024;
/**
 * Bytes of eStargz members that are decompressed only to come to chunks behind them: this, and so many times the content.
 * Usual members are decompressed once for all of their chunks; a hostile one has a gigabyte before each byte.
 */
const SKIPPED_MAX = 64 * 1024 * 1024;
const SKIPPED_RATIO = 4;
const ZERO_PIECE = Buffer.alloc(READ_PIECE);

/** Bytes that are not what they should be; ends the attempt. */
class WrongBytes extends Error {
  readonly local: boolean;
  readonly chunk: TocChunk | undefined;

  constructor(local: boolean, chunk: TocChunk | undefined, problem: string, cause?: unknown) {
    super(problem, { cause });
    this.local = local;
    this.chunk = chunk;
  }
}

export async function assemble(
  job: AssembleJob,
  database: Database,
  check: () => void,
  signal: AbortSignal,
): Promise<AssembleOutcome> {
  const dedupe = storeDedupeIndex(database);
  using content = new StoreContent(database, new Layout(job.root), dedupe);
  const file = openFile(job.file);
  try {
    const planner = new LayerPlanner(content, {
      inlineSize: LIMITS.inlineSize,
      maximumChunks: LIMITS.tocChunks,
    });
    const toc = await LayerToc.open(job.location, (offset, length) => readFilePieces(file, offset, length), {
      signal,
      onEntry: (entry) => planner.add(entry),
    });
    const plan = planner.finish();
    const arrived = await offer(job, plan);
    if (arrived === undefined) return { kind: "declined", plan: plan.summary };
    using assembly = new Assembly(job, file, toc, plan, content, arrived, check, signal);
    return await assembly.run(dedupe);
  } finally {
    closeFile(file);
    job.port.close();
  }
}

/** Asks the main thread; undefined when the layer is not to be put together. */
async function offer(job: AssembleJob, plan: LayerPlan): Promise<SharedArrayBuffer | undefined> {
  const message: PlanOffer = {
    summary: plan.summary,
    offsets: Float64Array.from(plan.fetchOffsets),
    ends: Float64Array.from(plan.fetchEnds),
  };
  const answer = once(job.port, "message");
  job.port.postMessage(message, [message.offsets.buffer, message.ends.buffer]);
  const [{ arrived }] = (await answer) as [PlanAnswer];
  return arrived;
}

class Assembly implements Disposable {
  readonly #job: AssembleJob;
  readonly #file: number;
  readonly #toc: LayerToc;
  readonly #plan: LayerPlan;
  readonly #content: StoreContent;
  readonly #arrived: SharedArrayBuffer;
  readonly #check: () => void;
  readonly #signal: AbortSignal;
  readonly #sha256 = openNestedSha256();
  readonly #consumed: BigInt64Array;
  #tarSize = 0;
  #fileAt = 0;
  #chunk = 0;
  #compressed: Buffer = Buffer.alloc(0);
  #skipped = 0;
  readonly #frames: FramesDecoder | undefined;
  /** The member that was decompressed last, where several chunks are in it. */
  #member: { readonly offset: number; readonly bytes: Uint8Array } | undefined;

  constructor(
    job: AssembleJob,
    file: number,
    toc: LayerToc,
    plan: LayerPlan,
    content: StoreContent,
    arrived: SharedArrayBuffer,
    check: () => void,
    signal: AbortSignal,
  ) {
    this.#job = job;
    this.#file = file;
    this.#toc = toc;
    this.#plan = plan;
    this.#content = content;
    this.#arrived = arrived;
    this.#check = check;
    this.#signal = signal;
    this.#consumed = new BigInt64Array(job.control);
    this.#frames = toc.location.format === "zstd:chunked" ? loadZstdFrames()?.open() : undefined;
  }

  [Symbol.dispose](): void {
    this.#frames?.close();
  }

  async run(dedupe: ReturnType<typeof storeDedupeIndex>): Promise<AssembleOutcome> {
    const job = this.#job;
    const layer = join(job.directory, "layer");
    makeDirectory(layer);
    using writer = new LayerWriter(
      job.id,
      {
        blob: join(job.directory, "blob"),
        spool: join(job.directory, "spool"),
        layer,
        image: join(layer, "meta.erofs"),
        recipe: join(layer, "tar.headers"),
      },
      dedupe,
      this.#sha256,
      randomBytes(4).readUInt32LE(),
    );
    const sink = {
      raw: (bytes: Uint8Array) => {
        this.#hashTar(bytes);
        this.#sha256.settle();
        writer.raw(bytes);
      },
      entry: (entry: TocPayload["entry"]) => writer.entry(entry),
      payload: (bytes: Uint8Array) => writer.payload(bytes),
      endEntry: () => writer.endEntry(),
    };
    try {
      for await (const payload of this.#toc.replay(sink, { signal: this.#signal })) {
        this.#check();
        if (this.#isByToc && !writer.hasInode) throw misplaced(payload.entry.path);
        const at = this.#fileAt++;
        const blob = this.#plan.fileBlobs[at];
        if (blob === undefined) await this.#copyToc(payload, writer);
        else if (blob === BUILD) await this.#build(payload, writer);
        else this.#refer(payload, writer, this.#plan.blobs[blob]!, this.#plan.fileOffsets[at]!);
        this.#tell(payload.chunks.at(-1)!.blobEnd);
      }
      const diffId = `sha256:${this.#sha256.digest().toString("hex")}`;
      if (!this.#isByToc && diffId !== job.diffId) {
        throw new WrongBytes(true, undefined, `its tar is ${diffId}, not ${job.diffId}`);
      }
    } catch (error) {
      if (error instanceof WrongBytes) return await this.#again(error);
      throw error;
    }
    crashPoint("assemble:written");
    const kept = keepToc(join(layer, "toc"), this.#file, this.#toc.location);
    return {
      kind: "done",
      plan: this.#plan.summary,
      result: {
        ...writer.finish(kept),
        id: job.id,
        directory: job.directory,
        form: "tree",
        digest: job.digest,
        diffId: job.diffId,
        tarSize: this.#isByToc ? 0 : this.#tarSize,
        size: job.location.blobSize,
        toc: job.location,
      },
    };
  }

  /** Every digest of a content that the TOC gives is compared; there is no tar. */
  get #isByToc(): boolean {
    return this.#toc.location.format === "estargz";
  }

  #hashTar(bytes: Uint8Array): void {
    if (this.#isByToc) return;
    this.#sha256.give(bytes);
    this.#tarSize += bytes.length;
    if (this.#tarSize > LIMITS.layerTarSize) {
      throw new ShaleError(
        "RESOURCE_EXHAUSTED",
        `Cannot store the layer: its tar is over ${LIMITS.layerTarSize} bytes`,
      );
    }
  }

  /** The content of a file is in the store: it is read for the digest of the tar, or those of the TOC, and not written. */
  #refer({ entry, chunks, digest }: TocPayload, writer: LayerWriter, blob: string, offset: number): void {
    if (!writer.canRefer) throw new RangeError(`a reference for ${entry.path}`);
    const check = this.#isByToc ? new ContentCheck(entry.path, digest, chunks) : undefined;
    for (const piece of this.#readLocal({ id: blob, inline: false }, offset, entry.size, chunks[0])) {
      this.#hashTar(piece);
      this.#sha256.settle();
      check?.update(piece);
    }
    if (check?.isContent() === false) throw wrong(true, chunks[0]);
    check?.requireChunks();
    writer.refer(entry.size, { blob, offset });
  }

  async #build({ entry, chunks, digest }: TocPayload, writer: LayerWriter): Promise<void> {
    const whole = chunks.length === 1;
    // of a file in one piece there is one digest only: formats/toc
    const check = this.#isByToc && !whole ? new ContentCheck(entry.path, digest, []) : undefined;
    for (const chunk of chunks) {
      const at = this.#chunk++;
      const source = this.#plan.chunkSources[at]!;
      const offset = this.#plan.chunkOffsets[at]!;
      if (source === ZEROS) {
        for (let left = chunk.size; left > 0; left -= ZERO_PIECE.length) {
          this.#give(ZERO_PIECE.subarray(0, Math.min(left, ZERO_PIECE.length)), writer);
        }
        continue;
      }
      if (source === FETCH) awaitArrival(this.#arrived, offset, this.#check);
      const bytes = source === FETCH ? this.#chunkAtOnce(chunk, offset) : this.#localAtOnce(chunk, source, offset);
      if (bytes !== undefined) {
        this.#hashTar(bytes);
        const found = this.#sha256.hash(bytes);
        if (!found.equals(chunk.digest)) throw wrong(source !== FETCH, chunk);
        check?.update(bytes);
        if (source >= 0) writer.copied(bytes, this.#content.file(this.#plan.sources[source]!), offset);
        else if (whole) writer.content(bytes, found);
        else writer.payload(bytes);
        this.#sha256.settle();
        if (source === FETCH && bytes.buffer !== this.#member?.bytes.buffer) {
          release(bytes, CHUNK_ROOM[this.#toc.location.format]);
        }
        continue;
      }
      const hasher = createHash("sha256");
      const pieces = source === FETCH ? this.#chunkPieces(chunk, offset) : this.#localPieces(chunk, source, offset);
      for await (const piece of pieces) {
        hasher.update(piece);
        check?.update(piece);
        this.#give(piece, writer);
      }
      if (!hasher.digest().equals(chunk.digest)) throw wrong(source !== FETCH, chunk);
    }
    if (check?.isContent() === false) throw contradiction(entry.path);
  }

  /** The content of the tar entry that is the TOC itself: no plan has it, and it was verified when it was opened. */
  async #copyToc({ chunks }: TocPayload, writer: LayerWriter): Promise<void> {
    const [chunk] = chunks;
    const hasher = createHash("sha256");
    for await (const piece of this.#pieces(chunk!, chunk!.blobOffset, chunk!.blobEnd)) {
      hasher.update(piece);
      writer.payload(piece);
    }
    if (!hasher.digest().equals(chunk!.digest)) throw wrong(false, undefined);
  }

  #give(bytes: Uint8Array, writer: LayerWriter): void {
    this.#hashTar(bytes);
    writer.payload(bytes);
    this.#sha256.settle();
  }

  // local bytes

  #localAtOnce(chunk: TocChunk, source: number, offset: number): Uint8Array | undefined {
    if (chunk.size > AT_ONCE) return undefined;
    for (const piece of this.#readLocal(this.#plan.sources[source]!, offset, chunk.size, chunk)) return piece;
    return undefined;
  }

  async *#localPieces(chunk: TocChunk, source: number, offset: number): AsyncGenerator<Uint8Array> {
    yield* this.#readLocal(this.#plan.sources[source]!, offset, chunk.size, chunk);
  }

  /** Exactly `size` bytes, or WrongBytes. */
  *#readLocal(
    source: { readonly id: string; readonly inline: boolean },
    offset: number,
    size: number,
    chunk: TocChunk | undefined,
  ): Generator<Uint8Array> {
    let left = size;
    try {
      for (const piece of this.#content.read(source, offset, size)) {
        left -= piece.length;
        yield piece;
      }
    } catch (error) {
      if (["EIO", "ENOENT"].includes(errnoOf(error) ?? "")) throw wrong(true, chunk, error);
      throw error;
    }
    if (left > 0) throw wrong(true, chunk);
  }

  // fetched bytes

  /** A chunk of usual size; undefined for one that has to be decompressed as a stream. */
  #chunkAtOnce(chunk: TocChunk, index: number): Uint8Array | undefined {
    const { fetchOffsets, fetchEnds } = this.#plan;
    const [offset, end] = [fetchOffsets[index]!, fetchEnds[index]!];
    const { innerOffset, size } = chunk;
    const last = innerOffset + size;
    if (this.#member?.offset === offset && this.#member.bytes.length >= last) {
      return this.#member.bytes.subarray(innerOffset, last);
    }
    if (last > AT_ONCE || end - offset > AT_ONCE) return undefined;
    if (this.#compressed.length < end - offset) this.#compressed = Buffer.allocUnsafeSlow(AT_ONCE);
    const bytes = this.#compressed.subarray(0, end - offset);
    if (readAt(this.#file, bytes, offset) !== bytes.length) throw wrong(false, chunk);
    if (this.#toc.location.format === "estargz") {
      // several files in one member: it is kept for the next one
      const isShared = innerOffset > 0 || fetchOffsets[index + 1] === offset;
      const member = gunzipAtOnce(bytes, isShared ? AT_ONCE : size);
      if (member === undefined || member.length < last) return undefined;
      if (isShared) this.#member = { offset, bytes: member };
      return member.subarray(innerOffset, last);
    }
    try {
      return decompressZstdChunk(bytes, size, this.#frames);
    } catch (error) {
      // Damaged, or of several frames, which a stream takes: it tells which.
      if (error instanceof FormatError) return undefined;
      throw error;
    }
  }

  /** At most `chunk.size` bytes: fewer do not have its digest. */
  #chunkPieces(chunk: TocChunk, index: number): AsyncGenerator<Uint8Array> {
    return this.#pieces(chunk, this.#plan.fetchOffsets[index]!, this.#plan.fetchEnds[index]!);
  }

  async *#pieces(chunk: TocChunk, offset: number, end: number): AsyncGenerator<Uint8Array> {
    const compression = this.#toc.location.format === "zstd:chunked" ? "zstd" : "gzip";
    const stored = readFilePieces(this.#file, offset, end - offset);
    let skip = chunk.innerOffset;
    let left = chunk.size;
    this.#skipped += skip;
    if (this.#skipped > SKIPPED_MAX + SKIPPED_RATIO * this.#plan.summary.contentBytes) {
      throw new ShaleError(
        "RESOURCE_EXHAUSTED",
        `Cannot put the layer together: its chunks lie behind ${this.#skipped} other bytes in their gzip members`,
      );
    }
    try {
      for await (const piece of decompress(stored, compression, { signal: this.#signal })) {
        const from = Math.min(skip, piece.length);
        skip -= from;
        const part = piece.subarray(from, from + left);
        left -= part.length;
        if (part.length > 0) yield part;
        if (left === 0) return;
      }
    } catch (error) {
      if (error instanceof FormatError) throw wrong(false, chunk, error);
      throw error;
    }
  }

  // when something is wrong

  /** What the next attempt has to do without: all that is wrong by now, so that one more is enough as a rule. */
  async #again(error: WrongBytes): Promise<AssembleOutcome> {
    const badSources: BadSource[] = [];
    const badRanges = new Map<number, ByteRange>();
    if (error.chunk !== undefined && !error.local) {
      badRanges.set(error.chunk.blobOffset, { offset: error.chunk.blobOffset, end: error.chunk.blobEnd });
    }
    await this.#survey(badSources, badRanges);
    if (badSources.length === 0 && badRanges.size === 0) {
      // Every byte has the digest that the TOC gives, and still the tar is another: TOC and config contradict.
      throw new ShaleError("DATA_LOSS", `Cannot put layer ${this.#job.digest} together: ${error.message}`, {
        cause: error,
      });
    }
    const plan = this.#plan.summary;
    return { kind: "again", plan, problem: error.message, badSources, badRanges: [...badRanges.values()] };
  }

  /** Hashes every local byte of the plan, and every part that has come. */
  async #survey(badSources: BadSource[], badRanges: Map<number, ByteRange>): Promise<void> {
    let file = 0;
    let chunkAt = 0;
    for await (const { header, digest, chunks } of this.#toc.entries({ signal: this.#signal })) {
      if (chunks.length === 0) continue;
      this.#check();
      const at = file++;
      const blob = this.#plan.fileBlobs[at]!;
      if (blob !== BUILD) {
        const source = { id: this.#plan.blobs[blob]!, inline: false, offset: this.#plan.fileOffsets[at]! };
        this.#examine(source, header.size, digest!, badSources);
        continue;
      }
      for (const chunk of chunks) {
        const index = chunkAt++;
        const source = this.#plan.chunkSources[index]!;
        const offset = this.#plan.chunkOffsets[index]!;
        if (source >= 0) {
          this.#examine({ ...this.#plan.sources[source]!, offset }, chunk.size, chunk.digest, badSources);
        } else if (source === FETCH && !badRanges.has(chunk.blobOffset) && hasArrived(this.#arrived, offset)) {
          if (!(await this.#isRight(chunk, offset))) {
            badRanges.set(chunk.blobOffset, { offset: chunk.blobOffset, end: chunk.blobEnd });
          }
        }
      }
    }
  }

  async #isRight(chunk: TocChunk, index: number): Promise<boolean> {
    const hasher = createHash("sha256");
    try {
      for await (const piece of this.#chunkPieces(chunk, index)) hasher.update(piece);
    } catch (error) {
      if (error instanceof WrongBytes) return false;
      throw error;
    }
    return hasher.digest().equals(chunk.digest);
  }

  #examine(
    source: { readonly id: string; readonly inline: boolean; readonly offset: number },
    size: number,
    digest: Uint8Array,
    bad: BadSource[],
  ): void {
    const hasher = createHash("sha256");
    try {
      for (const piece of this.#content.read(source, source.offset, size)) hasher.update(piece);
      if (hasher.digest().equals(digest)) return;
    } catch (error) {
      if (errnoOf(error) === undefined) throw error;
    }
    const { id, inline, offset } = source;
    bad.push({ id, inline, offset, digest: Uint8Array.from(digest) });
  }

  #tell(consumed: number): void {
    Atomics.store(this.#consumed, CONTROL_CONSUMED, BigInt(consumed));
  }
}

function wrong(local: boolean, chunk: TocChunk | undefined, cause?: unknown): WrongBytes {
  const what = local ? "bytes in the store" : "the bytes that were fetched";
  return new WrongBytes(local, chunk, `${what} are not those that the TOC names`, cause);
}

/** Holds a content against all that an eStargz TOC says of it: the digest of the file, and those of its chunks. */
class ContentCheck {
  readonly #path: string;
  readonly #digest: Uint8Array | undefined;
  readonly #chunks: readonly TocChunk[];
  readonly #whole = createHash("sha256");
  #chunk: Hash | undefined;
  #at = 0;
  #left = 0;
  #isRight = true;

  /** `chunks`: those that are not compared elsewhere. */
  constructor(path: string, digest: Uint8Array | undefined, chunks: readonly TocChunk[]) {
    this.#path = path;
    this.#digest = digest;
    this.#chunks = chunks.length > 1 ? chunks : [];
  }

  update(bytes: Uint8Array): void {
    if (this.#digest !== undefined) this.#whole.update(bytes);
    for (let from = 0; from < bytes.length && this.#at < this.#chunks.length; ) {
      const chunk = this.#chunks[this.#at]!;
      if (this.#chunk === undefined) {
        this.#chunk = createHash("sha256");
        this.#left = chunk.size;
      }
      const count = Math.min(this.#left, bytes.length - from);
      this.#chunk.update(bytes.subarray(from, from + count));
      from += count;
      this.#left -= count;
      if (this.#left > 0) continue;
      this.#isRight &&= this.#chunk.digest().equals(chunk.digest);
      this.#chunk = undefined;
      this.#at++;
    }
  }

  /** Whether it has the digest of the file, if there is one. */
  isContent(): boolean {
    return this.#digest === undefined || this.#whole.digest().equals(this.#digest);
  }

  /** Throws when the file is right and one of its chunks is not. */
  requireChunks(): void {
    if (!this.#isRight) throw contradiction(this.#path);
  }
}

/** Of the TOC with itself: what is built from it would depend on what the store has. */
function contradiction(path: string): ShaleError {
  return new ShaleError(
    "INVALID_ARGUMENT",
    `Cannot put the layer together: the digests of "${displayBytes(path.slice(0, 300))}" and of its chunks contradict each other`,
  );
}

/** Nothing but the tar's digest would cover its content, and `check` finds contents by their order. */
function misplaced(path: string): ShaleError {
  return new ShaleError(
    "UNIMPLEMENTED",
    `Cannot put the layer together: "${displayBytes(path.slice(0, 300))}" has content and no place in a layer`,
  );
}

/**
 * Gives the memory of a decompressed chunk back at once: a garbage collector that is left to find tens of thousands of them
 * lets memory grow by hundreds of MiB. Small ones share a buffer.
 */
function release(bytes: Uint8Array, room: number): void {
  const { buffer } = bytes;
  const isWhole = bytes.byteOffset === 0 && buffer.byteLength - bytes.byteLength <= room;
  if (isWhole && buffer.byteLength > POOLED_BELOW && buffer instanceof ArrayBuffer) buffer.transfer(0);
}

async function* readFilePieces(file: number, offset: number, length: number): AsyncGenerator<Uint8Array> {
  const buffer = Buffer.allocUnsafeSlow(Math.max(1, Math.min(READ_PIECE, length)));
  for (let at = 0; at < length; ) {
    const count = readAt(file, buffer.subarray(0, Math.min(buffer.length, length - at)), offset + at);
    if (count === 0) return;
    at += count;
    yield buffer.subarray(0, count);
  }
}
