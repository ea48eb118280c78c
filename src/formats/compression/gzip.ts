/** The framing of a gzip stream: members, their trailers, padding. RFC 1952, 2.2 and 2.3.1. */
import type { InflateBackend, Inflater } from "./backend.ts";
import { type GzipHeader, parseGzipHeader } from "./gzip-header.ts";
import { InputReader } from "./input.ts";
import { type PieceSink, producePieces } from "./pieces.ts";
import { zlibInflate } from "./zlib-inflate.ts";

/** CRC32 ISIZE, both u32le. */
const TRAILER_SIZE = 8;
/**
 * A member after one that was below this (compressed and not) is first tried on this thread: eStargz makes a member of
 * each file, and a hand-over to the pool takes 25 us (200 us for a node:zlib stream), as long as inflating 10 KiB.
 */
const SMALL = 64 * 1024;

export interface GzipMember {
  readonly header: GzipHeader;
  /** Of the member's first byte in the compressed stream, and its size with header and trailer. */
  readonly offset: number;
  readonly size: number;
  /** Of its first byte in the decompressed stream, and the number of those bytes. */
  readonly contentOffset: number;
  readonly contentSize: number;
}

/**
 * The members of a gzip stream, each given when its end was found (and its checksum was right). Where a member ends can
 * only be found by inflating it. Throws as `decompress` does.
 */
export async function* scanGzipMembers(
  source: AsyncIterable<Uint8Array>,
  options: { readonly inflate?: InflateBackend; readonly signal?: AbortSignal; readonly maximumSize?: number } = {},
): AsyncGenerator<GzipMember, void, undefined> {
  const { inflate = zlibInflate, signal, maximumSize = Number.POSITIVE_INFINITY } = options;
  const found: GzipMember[] = [];
  const pieces = producePieces({ format: "gzip stream", maximumSize, signal }, async (sink) => {
    const input = new InputReader(source, "gzip stream", signal);
    try {
      await gunzip(input, sink, inflate, (member) => found.push(member));
    } finally {
      await input.close();
    }
  });
  for await (const _ of pieces) yield* found.splice(0);
  yield* found;
}

/** Decompresses `input` to its end into `sink`. */
export async function gunzip(
  input: InputReader,
  sink: PieceSink,
  backend: InflateBackend,
  onMember?: (member: GzipMember) => void,
): Promise<void> {
  const inflater = backend.open();
  try {
    let small = false;
    for (let first = true; first || !(await skipPadding(input)); first = false) {
      const offset = input.offset;
      const contentOffset = sink.size;
      const header = await readHeader(input, first);
      const crc = await inflateMember(input, sink, inflater, small, offset);
      const contentSize = sink.size - contentOffset;
      await input.need(TRAILER_SIZE, "trailer");
      const at = input.offset;
      const trailer = input.take(TRAILER_SIZE);
      const view = new DataView(trailer.buffer, trailer.byteOffset, TRAILER_SIZE);
      if (view.getUint32(0, true) !== crc) throw input.fail("CRC-32", "does not match the decompressed bytes", at);
      // ISIZE is the size modulo 2^32
      if (view.getUint32(4, true) !== contentSize % 2 ** 32) {
        throw input.fail("ISIZE", `does not match the ${contentSize} decompressed bytes`, at + 4);
      }
      const size = input.offset - offset;
      small = size < SMALL && contentSize < SMALL;
      onMember?.({ header, offset, size, contentOffset, contentSize });
    }
  } finally {
    inflater.close();
  }
}

async function readHeader(input: InputReader, first: boolean): Promise<GzipHeader> {
  for (;;) {
    if (!first && input.length > 0 && input.rest[0] !== 0x1f) {
      throw input.fail("end", "bytes follow the last member that are none themselves", input.offset);
    }
    const header = parseGzipHeader(input.rest, 0, input.offset);
    if (header !== undefined) {
      input.advance(header.size);
      return header;
    }
    if (!(await input.more())) throw input.truncated("header");
  }
}

/** Inflates one deflate stream; gives the CRC-32 of its bytes. */
async function inflateMember(
  input: InputReader,
  sink: PieceSink,
  inflater: Inflater,
  small: boolean,
  memberOffset: number,
): Promise<number> {
  inflater.reset();
  let again = false;
  for (let trySync = small; ; trySync = false) {
    if (!again && input.length === 0 && !(await input.more())) throw input.truncated("deflate stream");
    if (trySync) await sink.reserve(SMALL);
    const room = sink.room();
    const step =
      (trySync ? inflater.inflateSync(input.rest, room.subarray(0, SMALL)) : undefined) ??
      (await inflater.inflate(input.rest, room));
    if (step.problem !== undefined) {
      // how far a backend had read when it noticed is its own affair, so the offset is that of the member
      const cause = new Error(step.problem);
      throw input.fail("deflate stream", "the member that begins here can't be inflated", memberOffset, cause);
    }
    input.advance(step.consumed);
    again = step.again;
    const wait = step.piece === undefined ? sink.advance(step.produced) : sink.append(step.piece);
    if (wait !== undefined) await wait;
    if (step.ended) return step.crc32;
  }
}

/** Steps over zero bytes up to the next member. True at the end of the stream. */
async function skipPadding(input: InputReader): Promise<boolean> {
  let padded = false;
  for (;;) {
    if (input.length === 0 && !(await input.more())) return true;
    const rest = input.rest;
    if (!padded && rest[0] !== 0) return false;
    padded = true;
    let at = 0;
    while (at < rest.length && rest[at] === 0) at++;
    input.advance(at);
    if (at < rest.length) throw input.fail("end", "bytes follow the zero padding of the last member", input.offset);
  }
}
