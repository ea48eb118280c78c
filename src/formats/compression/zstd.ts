/**
 * Decompression of a zstd stream, frame by frame (RFC 8878, 3): frames that are at hand together on another thread where a backend
 * can, else small ones at once on this thread; others by a node:zlib stream each, which is given exactly the bytes of its frame.
 */
import { createZstdDecompress, constants as zlibConstants, zstdDecompressSync } from "node:zlib";
import { FormatError } from "../../errors/index.ts";
import type { FramesBackend, FramesDecoder } from "./backend.ts";
import { InputReader } from "./input.ts";
import { PIECE_SIZE, type PieceSink } from "./pieces.ts";
import { STREAM_OPTIONS, StreamPump } from "./pump.ts";
import { parseZstdFrameHeader, ZSTD_WINDOW_MAX, ZstdBlockWalker, type ZstdFrameHeader } from "./zstd-frame.ts";

/**
 * Frames of up to these sizes (compressed, decompressed) are decompressed at once: zstd:chunked makes a frame of each file,
 * and a stream costs 130 us, as much as decompressing 100 KiB; at once it is 13 us.
 */
const SMALL_COMPRESSED = 32 * 1024;
const SMALL = 64 * 1024;
/** Frames with fewer bytes together are not worth a hand-over to another thread. */
const BATCH_MINIMUM = 16 * 1024;
const PARAMS = { [zlibConstants.ZSTD_d_windowLogMax]: Math.log2(ZSTD_WINDOW_MAX) };

export interface ZstdFrame {
  readonly header: ZstdFrameHeader;
  /** Of the frame's first byte in the compressed stream, and its size with header and checksum. */
  readonly offset: number;
  readonly size: number;
}

/** The frames of a zstd stream, found without decompressing. Throws FormatError for bytes that are no frame. */
export async function* scanZstdFrames(
  source: AsyncIterable<Uint8Array>,
  options: { readonly signal?: AbortSignal } = {},
): AsyncGenerator<ZstdFrame, void, undefined> {
  const input = new InputReader(source, "zstd stream", options.signal);
  try {
    for (let first = true; first || (await hasNext(input)); first = false) {
      const offset = input.offset;
      const header = await readHeader(input);
      input.advance(header.size);
      if (header.kind === "skippable") await skip(input, header.dataSize);
      else {
        const walker = new ZstdBlockWalker(header, input.offset);
        while (!walker.done) {
          await input.need(1, "frame");
          input.advance(walker.walk(input.rest));
        }
      }
      yield { header, offset, size: input.offset - offset };
    }
  } finally {
    await input.close();
  }
}

/** Decompresses `input` to its end into `sink`. */
export async function unzstd(input: InputReader, sink: PieceSink, backend?: FramesBackend): Promise<void> {
  const batches = backend && new Batches(backend.open());
  try {
    await decodeFrames(input, sink, batches);
  } finally {
    batches?.close();
  }
}

async function decodeFrames(input: InputReader, sink: PieceSink, batches: Batches | undefined): Promise<void> {
  for (let first = true; first || (await hasNext(input)); first = false) {
    const offset = input.offset;
    const header = await readHeader(input);
    if (await batches?.decode(input, sink)) continue;
    if (header.kind === "skippable") {
      input.advance(header.size);
      await skip(input, header.dataSize);
      continue;
    }
    if (header.dictionaryId !== 0) {
      throw input.fail(
        "dictionary id",
        `needs the dictionary ${header.dictionaryId}, which images can't carry`,
        offset,
      );
    }
    if (header.windowSize > ZSTD_WINDOW_MAX) {
      const problem = `must be at most ${ZSTD_WINDOW_MAX}: current value is ${header.windowSize}`;
      throw new FormatError("zstd stream", "window size", problem, { offset, code: "RESOURCE_EXHAUSTED" });
    }
    if (!(await decodeAtOnce(input, sink, header))) await decodeStreaming(input, sink, header, offset);
  }
}

/** Several frames at a time: zstd:chunked has one for each file, or for each 64 KiB of one. */
class Batches {
  readonly #decoder: FramesDecoder;
  /**
   * Of the stream. What is before it was looked at and is taken frame by frame: it is too little, or something in it can't be
   * decompressed. Looking again at each frame would cost the square of their number.
   */
  #singlyUntil = 0;

  constructor(decoder: FramesDecoder) {
    this.#decoder = decoder;
  }

  /** Decompresses the whole frames that are at hand, up to a piece; false, with nothing done, where there are too few. */
  async decode(input: InputReader, sink: PieceSink): Promise<boolean> {
    if (input.offset < this.#singlyUntil) return false;
    const { size, room } = findFrames(input.rest, input.offset);
    this.#singlyUntil = input.offset + size;
    if (size < BATCH_MINIMUM) return false;
    await sink.reserve(room);
    const produced = await this.#decoder.decompress(input.rest.subarray(0, size), sink.room().subarray(0, room));
    if (produced === undefined) return false;
    input.advance(size);
    await sink.advance(produced);
    return true;
  }

  close(): void {
    this.#decoder.close();
  }
}

/** Bytes of the whole frames that `bytes` begins with, and of the room that they need: a piece at most. */
function findFrames(bytes: Uint8Array, streamOffset: number): { readonly size: number; readonly room: number } {
  let size = 0;
  let room = 0;
  try {
    while (size < bytes.length) {
      const header = parseZstdFrameHeader(bytes, size, streamOffset);
      if (header?.kind !== "frame" || header.dictionaryId !== 0 || header.windowSize > ZSTD_WINDOW_MAX) break;
      const start = size + header.size;
      const walker = new ZstdBlockWalker(header, streamOffset + start);
      const length = walker.walk(bytes.subarray(start));
      const content = header.contentSize ?? walker.contentMax;
      if (!walker.done || room + content > PIECE_SIZE) break;
      size = start + length;
      room += content;
    }
  } catch (error) {
    if (!(error instanceof FormatError)) throw error; // told when that frame's turn comes
  }
  return { size, room };
}

async function hasNext(input: InputReader): Promise<boolean> {
  return input.length > 0 || (await input.more());
}

/** The next frame header; the cursor stays at its first byte. */
async function readHeader(input: InputReader): Promise<ZstdFrameHeader> {
  for (;;) {
    const header = parseZstdFrameHeader(input.rest, 0, input.offset);
    if (header !== undefined) return header;
    if (!(await input.more())) throw input.truncated("frame header");
  }
}

async function skip(input: InputReader, size: number): Promise<void> {
  let left = size;
  while (left > 0) {
    await input.need(1, "skippable frame");
    const step = Math.min(left, input.length);
    input.advance(step);
    left -= step;
  }
}

/** Decompresses a small frame that is at hand as a whole; false, with nothing done, for any other. */
async function decodeAtOnce(
  input: InputReader,
  sink: PieceSink,
  header: ZstdFrameHeader & { kind: "frame" },
): Promise<boolean> {
  if (header.contentSize !== undefined && header.contentSize > SMALL) return false;
  const rest = input.rest.subarray(0, SMALL_COMPRESSED);
  const walker = new ZstdBlockWalker(header, input.offset + header.size);
  const size = header.size + walker.walk(rest.subarray(header.size));
  if (!walker.done) return false;
  let bytes: Uint8Array;
  try {
    bytes = zstdDecompressSync(rest.subarray(0, size), { maxOutputLength: SMALL, params: PARAMS });
  } catch (error) {
    // too large or invalid: the stream tells which
    if (isZstdError(error)) return false;
    throw error;
  }
  await sink.reserve(SMALL);
  sink.room().set(bytes);
  input.advance(size);
  await sink.advance(bytes.length);
  return true;
}

async function decodeStreaming(
  input: InputReader,
  sink: PieceSink,
  header: ZstdFrameHeader & { kind: "frame" },
  offset: number,
): Promise<void> {
  const pump = new StreamPump(createZstdDecompress({ ...STREAM_OPTIONS, params: PARAMS }));
  try {
    const walker = new ZstdBlockWalker(header, offset + header.size);
    pump.write(input.take(header.size));
    await drain(pump, sink);
    while (!walker.done) {
      await input.need(1, "frame");
      const length = walker.walk(input.rest);
      pump.write(input.take(length));
      await drain(pump, sink);
    }
    pump.end();
    await drain(pump, sink);
  } catch (error) {
    if (!isZstdError(error)) throw error;
    throw input.fail("frame", "the frame that begins here can't be decompressed", offset, error);
  } finally {
    pump.close();
  }
}

async function drain(pump: StreamPump, sink: PieceSink): Promise<void> {
  for (;;) {
    const piece = await pump.next();
    if (piece === "drained" || piece === "ended") return;
    await sink.append(piece);
  }
}

/** ZSTD_error_* of the decoder, Z_BUF_ERROR for a frame that is cut, ERR_BUFFER_TOO_LARGE of `maxOutputLength`. */
function isZstdError(error: unknown): boolean {
  if (!(error instanceof Error) || !("code" in error) || typeof error.code !== "string") return false;
  return error.code.startsWith("ZSTD_") || error.code.startsWith("Z_") || error.code === "ERR_BUFFER_TOO_LARGE";
}
