/**
 * Decompression of many zstd frames in one call, by the libzstd that Node itself is linked with: node:zlib takes one frame a call, and a
 * stream or an object for each costs as much as decompressing 100 KiB.
 *
 * Guarantees: {@link loadZstdFrames} gives a backend only after the library has decompressed known frames, on this machine, and has
 * refused damaged ones and too little room. It is undefined where Node keeps these functions to itself.
 *
 * Facts: zstd.h, ZSTD_decompressDCtx(), stable since 1.0: takes any number of whole frames, writes no more than it is given room for,
 * and compares checksums; results above -120 as size_t are errors.
 */
import { createRequire } from "node:module";
import { constants, zstdCompressSync } from "node:zlib";
import type { FramesBackend, FramesDecoder } from "../formats/compression/index.ts";

type Koffi = typeof import("koffi").default;

let koffi: Koffi;

interface Library {
  readonly createContext: () => number;
  readonly freeContext: (context: number) => number;
  /** Of a context, room and its size, frames and their size. */
  readonly decompress: (...numbers: readonly number[]) => number | bigint;
  readonly decompressAside: (...numbers: readonly number[]) => Promise<number | bigint>;
}

const GUARD = 0xa5;

let loaded: { readonly backend: FramesBackend | undefined } | undefined;

/** Looked for once in each thread. */
export function loadZstdFrames(): FramesBackend | undefined {
  loaded ??= { backend: load() };
  return loaded.backend;
}

function load(): FramesBackend | undefined {
  const library = openLibrary();
  if (library === undefined || !passesSelfTest(library)) return undefined;
  return { name: "libzstd", open: () => new Decoder(library) };
}

/** Undefined when the program does not export one of the functions, which is ordinary. */
function openLibrary(): Library | undefined {
  koffi = createRequire(import.meta.url)("koffi") as Koffi;
  try {
    const program = koffi.load(null);
    const decompress = program.func("ZSTD_decompressDCtx", "size_t", [
      "uintptr_t",
      ...["uintptr_t", "size_t"],
      ...["uintptr_t", "size_t"],
    ]);
    return {
      createContext: program.func("ZSTD_createDCtx", "uintptr_t", []),
      freeContext: program.func("ZSTD_freeDCtx", "size_t", ["uintptr_t"]),
      decompress,
      decompressAside: (...numbers) =>
        new Promise((resolve, reject) => {
          decompress.async(...numbers, (error: unknown, result: number | bigint) =>
            error ? reject(error) : resolve(result),
          );
        }),
    };
  } catch {
    return undefined;
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

function argumentsOf(context: number, frames: Uint8Array, room: Uint8Array): readonly number[] {
  return [context, Number(koffi.address(room)), room.length, Number(koffi.address(frames)), frames.length];
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
    return bad.every(({ size, intact }) => size === undefined && intact);
  } finally {
    library.freeContext(context);
  }
}
