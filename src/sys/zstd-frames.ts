/**
 * Whole zstd frames in one call, by the libzstd that Node itself is linked with: node:zlib takes one frame a call, and makes a
 * stream or an object and new memory for each, which costs as much as decompressing 100 KiB.
 *
 * Guarantees: {@link loadZstdFrames} gives a backend only after the library has decompressed known frames, on this machine, has
 * refused damaged ones and too little room, and has compressed to what node:zlib decompresses. It is undefined where Node keeps these functions to itself.
 *
 * Facts: zstd.h, ZSTD_decompressDCtx(), stable since 1.0: takes any number of whole frames, writes no more than it is given room for,
 * and compares checksums; ZSTD_compress2(), stable since 1.4; results above -120 as size_t are errors.
 */
import { createRequire } from "node:module";
import { constants, zstdCompressSync, zstdDecompressSync } from "node:zlib";
import type { FrameEncoder, FramesBackend, FramesDecoder } from "../formats/compression/index.ts";

type Koffi = typeof import("koffi").default;

let koffi: Koffi;

interface Library {
  readonly createContext: () => number;
  readonly freeContext: (context: number) => number;
  /** Of a context, room and its size, frames and their size. */
  readonly decompress: (...numbers: readonly number[]) => number | bigint;
  readonly decompressAside: (...numbers: readonly number[]) => Promise<number | bigint>;
  readonly createEncoder: () => number;
  readonly freeEncoder: (context: number) => number;
  readonly setParameter: (context: number, parameter: number, value: number) => number | bigint;
  /** As `decompressAside`. */
  readonly compressAside: (...numbers: readonly number[]) => Promise<number | bigint>;
  readonly compress: (...numbers: readonly number[]) => number | bigint;
}

const GUARD = 0xa5;
/** RFC 8878, 3.1.1.1.1. */
const FRAME_DESCRIPTOR = 4;
const CHECKSUM_FLAG = 4;

let loaded: { readonly backend: FramesBackend | undefined } | undefined;

/** Looked for once in each thread. */
export function loadZstdFrames(): FramesBackend | undefined {
  loaded ??= { backend: load() };
  return loaded.backend;
}

function load(): FramesBackend | undefined {
  const library = openLibrary();
  if (library === undefined || !passesSelfTest(library)) return undefined;
  return {
    name: "libzstd",
    open: () => new Decoder(library),
    openEncoder: (level) => new Encoder(library, level),
  };
}

/** Undefined when the program does not export one of the functions, which is ordinary. */
function openLibrary(): Library | undefined {
  koffi = createRequire(import.meta.url)("koffi") as Koffi;
  try {
    const program = koffi.load(null);
    const work = ["uintptr_t", ...["uintptr_t", "size_t"], ...["uintptr_t", "size_t"]];
    const decompress = program.func("ZSTD_decompressDCtx", "size_t", work);
    const compress = program.func("ZSTD_compress2", "size_t", work);
    return {
      createContext: program.func("ZSTD_createDCtx", "uintptr_t", []),
      freeContext: program.func("ZSTD_freeDCtx", "size_t", ["uintptr_t"]),
      decompress,
      decompressAside: (...numbers) => aside(decompress, numbers),
      createEncoder: program.func("ZSTD_createCCtx", "uintptr_t", []),
      freeEncoder: program.func("ZSTD_freeCCtx", "size_t", ["uintptr_t"]),
      setParameter: program.func("ZSTD_CCtx_setParameter", "size_t", ["uintptr_t", "int", "int"]),
      compress,
      compressAside: (...numbers) => aside(compress, numbers),
    };
  } catch {
    return undefined;
  }
}

function aside(
  native: ReturnType<ReturnType<Koffi["load"]>["func"]>,
  numbers: readonly number[],
): Promise<number | bigint> {
  return new Promise((resolve, reject) => {
    native.async(...numbers, (error: unknown, result: number | bigint) => (error ? reject(error) : resolve(result)));
  });
}

class Encoder implements FrameEncoder {
  readonly #library: Library;
  #context: number;

  constructor(library: Library, level: number) {
    this.#library = library;
    this.#context = library.createEncoder();
    if (this.#context === 0) throw new RangeError("no memory for a zstd context");
    for (const [parameter, value] of [
      [constants.ZSTD_c_compressionLevel, level],
      [constants.ZSTD_c_checksumFlag, 1],
      [constants.ZSTD_c_contentSizeFlag, 1],
    ] as const) {
      // the value that it took; errors are the last numbers that a size_t has
      const taken = library.setParameter(this.#context, parameter, value);
      if (taken !== 0 && taken !== value)
        throw new RangeError(`zstd does not take ${value} for its parameter ${parameter}`);
    }
  }

  /** See {@link Decoder.decompress}. */
  async compress(content: Uint8Array, room: Uint8Array): Promise<number | undefined> {
    const result = await this.#library.compressAside(...argumentsOf(this.#context, content, room));
    return sizeOf(result, room);
  }

  compressSync(content: Uint8Array, room: Uint8Array): number | undefined {
    return sizeOf(this.#library.compress(...argumentsOf(this.#context, content, room)), room);
  }

  close(): void {
    if (this.#context === 0) return;
    this.#library.freeEncoder(this.#context);
    this.#context = 0;
  }
}

class Decoder implements FramesDecoder {
  readonly #library: Library;
  #context: number;

  constructor(library: Library) {
    this.#library = library;
    this.#context = library.createContext();
    if (this.#context === 0) throw new RangeError("no memory for a zstd context");
  }

  /** The awaiting frame refers to both memories; see IsalInflater for threads that are terminated. */
  async decompress(frames: Uint8Array, room: Uint8Array): Promise<number | undefined> {
    const result = await this.#library.decompressAside(...argumentsOf(this.#context, frames, room));
    return sizeOf(result, room);
  }

  decompressSync(frames: Uint8Array, room: Uint8Array): number | undefined {
    return sizeOf(this.#library.decompress(...argumentsOf(this.#context, frames, room)), room);
  }

  close(): void {
    if (this.#context === 0) return;
    this.#library.freeContext(this.#context);
    this.#context = 0;
  }
}

function argumentsOf(context: number, input: Uint8Array, room: Uint8Array): readonly number[] {
  return [context, Number(koffi.address(room)), room.length, Number(koffi.address(input)), input.length];
}

/** Errors are the last numbers that a size_t has. */
function sizeOf(result: number | bigint, room: Uint8Array): number | undefined {
  return typeof result === "number" && result <= room.length ? result : undefined;
}

function passesSelfTest(library: Library): boolean {
  const first = Buffer.from("a frame with a checksum; ".repeat(40));
  const second = Buffer.from(Uint8Array.from({ length: 3000 }, (_, i) => (i * i) >> 5));
  const content = Buffer.concat([first, second]);
  const frames = Buffer.concat([
    zstdCompressSync(first, { params: { [constants.ZSTD_c_checksumFlag]: 1 } }),
    zstdCompressSync(second),
  ]);
  const damaged = Buffer.from(frames);
  damaged[30]! ^= 1;
  const context = library.createContext();
  if (context === 0) return false;
  try {
    const give = (bytes: Buffer, length: number) => {
      const memory = Buffer.alloc(content.length + 64, GUARD);
      const room = memory.subarray(0, length);
      const size = sizeOf(library.decompress(...argumentsOf(context, bytes, room)), room);
      return { size, memory, intact: memory.subarray(length).every((byte) => byte === GUARD) };
    };
    const whole = give(frames, content.length);
    if (whole.size !== content.length || !whole.intact || !whole.memory.subarray(0, content.length).equals(content)) {
      return false;
    }
    const bad = [
      give(frames, content.length - 1),
      give(damaged, content.length),
      give(frames.subarray(0, -1), content.length),
    ];
    return bad.every(({ size, intact }) => size === undefined && intact) && encodes(library, content);
  } finally {
    library.freeContext(context);
  }
}

function encodes(library: Library, content: Buffer): boolean {
  let encoder: Encoder;
  try {
    encoder = new Encoder(library, 1);
  } catch {
    return false; // one that has other parameters
  }
  try {
    const room = Buffer.alloc(content.length + 64, GUARD);
    const size = encoder.compressSync(content, room);
    if (size === undefined || (room[FRAME_DESCRIPTOR]! & CHECKSUM_FLAG) === 0) return false;
    if (!zstdDecompressSync(room.subarray(0, size)).equals(content)) return false;
    const small = room.fill(GUARD).subarray(0, size - 1);
    if (encoder.compressSync(content, small) !== undefined) return false;
    return room.subarray(small.length).every((byte) => byte === GUARD);
  } finally {
    encoder.close();
  }
}
