/**
 * What inflates: the port between the gzip framing here and an implementation of DEFLATE (RFC 1951). An implementation
 * knows nothing of gzip. It is passed in by the caller, so that this module stays free of native libraries.
 */

export interface InflateBackend {
  /** For logs and benchmarks: "zlib", "isa-l". */
  readonly name: string;
  /** A new inflater, ready for its first stream. Each has its own state; several may be at work at a time. */
  open(): Inflater;
}

/** Inflates one raw deflate stream after another. Not to be called again before the last call has settled. */
export interface Inflater {
  /**
   * Inflates from the start of `input`, on another thread, and leaves the rest to the next call. Decompressed bytes are
   * put into `room` (not empty) or, where the implementation owns its buffers, handed out as `piece`. `input` may be
   * empty when the last step said `again`.
   */
  inflate(input: Uint8Array, room: Uint8Array): Promise<InflateStep>;
  /**
   * The same on the calling thread, for streams of a few KiB where a hand-over to another thread costs more than the
   * work. Fills at most `room`. Undefined, without any effect, when the implementation can't do that for this input.
   */
  inflateSync(input: Uint8Array, room: Uint8Array): InflateStep | undefined;
  /** Forgets the stream at hand; the next call begins a new one. */
  reset(): void;
  /** Frees everything. Not to be called while a call is under way. */
  close(): void;
}

export interface InflateStep {
  /** Bytes of `input` that were used. Negative (by less than 8) when an earlier step had buffered more than it needed. */
  readonly consumed: number;
  /** Bytes put into `room`. */
  readonly produced: number;
  /** Bytes in a buffer of the implementation, never filled again. */
  readonly piece?: Uint8Array;
  /** Ask again with what is left of `input`, even if that is nothing, before giving more. */
  readonly again: boolean;
  /** Whether the deflate stream has ended; what follows `consumed` belongs to the caller. */
  readonly ended: boolean;
  /** Why the bytes are no deflate stream; then nothing else here means anything. The framing says where. */
  readonly problem?: string;
  /** CRC-32 (RFC 1952, 8) of all bytes of this deflate stream; meaningful when `ended`. */
  readonly crc32: number;
}

/** What takes whole zstd frames at a time, where the machine has something for it. */
export interface FramesBackend {
  readonly name: string;
  /** A new encoder, for zstd's `level`. */
  openEncoder(level: number): FrameEncoder;
  /** A new decoder. Each has its own state; several may be at work at a time. */
  open(): FramesDecoder;
}

/** Not to be called again before the last call has settled. */
export interface FramesDecoder {
  /**
   * Decompresses `frames`, which are whole zstd frames one behind another, into `room`, on another thread; their checksums are compared.
   * The number of bytes; undefined when they are damaged or `room` is too small: nothing else is told about either.
   */
  decompress(frames: Uint8Array, room: Uint8Array): Promise<number | undefined>;
  /** The same on the calling thread, for a few KiB. */
  decompressSync(frames: Uint8Array, room: Uint8Array): number | undefined;
  /** Frees everything. Not to be called while a call is under way. */
  close(): void;
}

/** Not to be called again before the last call has settled. */
export interface FrameEncoder {
  /**
   * One frame of `content`, with its size and a checksum, into `room`, on another thread. Equal bytes give equal frames, but not
   * those of node:zlib. The number of bytes; undefined when `room` is too small.
   */
  compress(content: Uint8Array, room: Uint8Array): Promise<number | undefined>;
  /** Frees everything. Not to be called while a call is under way. */
  close(): void;
}
