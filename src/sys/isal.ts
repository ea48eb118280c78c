/**
 * Inflate by ISA-L (Intel's Intelligent Storage Acceleration Library, libisal.so.2; Debian: libisal2), found at run time
 * and never required. Faster than node:zlib, and the CRC-32 is made on the pool's thread too.
 *
 * Guarantees: `loadIsal` gives a backend only after the library on this machine has inflated known vectors, cut in many
 * ways, to the right bytes, positions and checksum. The library promises the layout of its state for one soname only, and
 * that in a header that we don't have here: the self-test checks each field that is used, on a state with room to spare.
 *
 * Facts: igzip_lib.h of ISA-L 2.30, struct inflate_state and ISAL_*. Needs a 64-bit little-endian machine.
 */
import { createRequire } from "node:module";
import { arch } from "node:process";
import { crc32, deflateRawSync } from "node:zlib";
import type { InflateBackend, Inflater, InflateStep } from "../formats/compression/index.ts";

const LIBRARY = "libisal.so.2";
/** Where Debian's libisal2 exists with this layout; both are 64-bit and little-endian. */
const ARCHITECTURES: readonly string[] = ["x64", "arm64"];

/** struct inflate_state: byte offsets of the fields used here; 87368 bytes in all. */
const STATE_SIZE = 87368;
const NEXT_OUT = 0; // pointer
const AVAIL_OUT = 8; // u32
const NEXT_IN = 16; // pointer
const AVAIL_IN = 32; // u32
const READ_IN_LENGTH = 36; // i32, bits that were taken from the input but not used yet
const BLOCK_STATE = 21160; // enum isal_block_state
const CRC_FLAG = 21172; // u32
const CRC = 21176; // u32
/** Room for a version whose state is larger: the self-test finds that out without writing over anything else. */
const STATE_ROOM = 4 * STATE_SIZE;
const GUARD = 0xa5;

/** isal_block_state: all is decompressed and in the output. */
const ISAL_BLOCK_FINISH = 5;
/** crc_flag: no gzip header or trailer in the input, but make the CRC-32. */
const ISAL_GZIP_NO_HDR = 2;
/** Return values; negative ones mean that the input is invalid. */
const PROBLEMS: Readonly<Record<string, string>> = {
  "-1": "invalid block",
  "-2": "invalid symbol",
  "-3": "invalid distance",
};

interface Library {
  readonly init: (state: Uint8Array) => void;
  readonly reset: (state: Uint8Array) => void;
  readonly inflate: (state: Uint8Array) => number;
  readonly inflateAsync: (state: Uint8Array) => Promise<number>;
}

type Koffi = typeof import("koffi").default;

let koffi: Koffi;
let loaded: { readonly backend: InflateBackend | undefined } | undefined;

/** The backend, or undefined where the library is absent or not one that we know. Looked for once in each thread. */
export function loadIsal(): InflateBackend | undefined {
  loaded ??= { backend: load() };
  return loaded.backend;
}

function load(): InflateBackend | undefined {
  if (!ARCHITECTURES.includes(arch)) return undefined;
  koffi = createRequire(import.meta.url)("koffi") as Koffi; // as the other libraries do: import would load it a second time
  const library = openLibrary();
  if (library === undefined || !passesSelfTest(library)) return undefined;
  return { name: "isa-l", open: () => new IsalInflater(library) };
}

/** Undefined when there is no such library or it lacks a function: both are ordinary, node:zlib then does the work. */
function openLibrary(): Library | undefined {
  let handle: ReturnType<Koffi["load"]>;
  let inflate: ReturnType<typeof handle.func>;
  let init: ReturnType<typeof handle.func>;
  let reset: ReturnType<typeof handle.func>;
  try {
    handle = koffi.load(LIBRARY);
    init = handle.func("void isal_inflate_init(void *state)");
    reset = handle.func("void isal_inflate_reset(void *state)");
    inflate = handle.func("int isal_inflate(void *state)");
  } catch {
    return undefined;
  }
  return {
    init: (state) => init(state),
    reset: (state) => reset(state),
    inflate: (state) => inflate(state),
    inflateAsync: (state) =>
      new Promise((resolve, reject) => {
        inflate.async(state, (error: unknown, result: number) => (error ? reject(error) : resolve(result)));
      }),
  };
}

/**
 * One `struct inflate_state`. The library holds raw pointers into `#state`, the input and the room for as long as a call
 * runs. The awaiting frame of `inflate` refers to all three, so none is collected; and Node waits for the pool's work
 * before it frees the memory of a worker that is terminated.
 */
class IsalInflater implements Inflater {
  readonly #library: Library;
  readonly #state = Buffer.allocUnsafeSlow(STATE_SIZE);
  readonly #view = new DataView(this.#state.buffer, this.#state.byteOffset, STATE_SIZE);

  constructor(library: Library) {
    this.#library = library;
    library.init(this.#state);
    this.#view.setUint32(CRC_FLAG, ISAL_GZIP_NO_HDR, true);
  }

  async inflate(input: Uint8Array, room: Uint8Array): Promise<InflateStep> {
    this.#prepare(input, room);
    return this.#finish(await this.#library.inflateAsync(this.#state), input, room);
  }

  inflateSync(input: Uint8Array, room: Uint8Array): InflateStep {
    this.#prepare(input, room);
    return this.#finish(this.#library.inflate(this.#state), input, room);
  }

  reset(): void {
    this.#library.reset(this.#state);
    // reset leaves crc_flag alone in 2.30, which is not written anywhere
    this.#view.setUint32(CRC_FLAG, ISAL_GZIP_NO_HDR, true);
  }

  close(): void {
    // the state is ordinary memory of this process and goes with this object
  }

  #prepare(input: Uint8Array, room: Uint8Array): void {
    this.#view.setBigUint64(NEXT_IN, input.length === 0 ? 0n : koffi.address(input), true);
    this.#view.setUint32(AVAIL_IN, input.length, true);
    this.#view.setBigUint64(NEXT_OUT, koffi.address(room), true);
    this.#view.setUint32(AVAIL_OUT, room.length, true);
  }

  #finish(result: number, input: Uint8Array, room: Uint8Array): InflateStep {
    const view = this.#view;
    const ended = view.getUint32(BLOCK_STATE, true) === ISAL_BLOCK_FINISH;
    const left = view.getUint32(AVAIL_IN, true);
    // whole bytes in the bit buffer belong to what follows the deflate stream
    const buffered = ended ? Math.trunc(view.getInt32(READ_IN_LENGTH, true) / 8) : 0;
    const availOut = view.getUint32(AVAIL_OUT, true);
    const step = {
      consumed: input.length - left - buffered,
      produced: room.length - availOut,
      again: !ended && availOut === 0,
      ended,
      crc32: view.getUint32(CRC, true),
    };
    return result < 0 ? { ...step, problem: PROBLEMS[result] ?? `isal_inflate gave ${result}` } : step;
  }
}

/**
 * Inflates vectors with dynamic, fixed and stored blocks, whole and in small cuts, and compares everything that is used
 * later. Takes about a millisecond. False means an unknown version.
 */
function passesSelfTest(library: Library): boolean {
  if (!stateFits(library)) return false;
  let seed = 1;
  const noise = Uint8Array.from({ length: 3000 }, () => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
    return seed >>> 24;
  });
  const text = Buffer.from(Array.from({ length: 400 }, (_, i) => `${i * 7919}: layer ${i % 13}\n`).join(""));
  const vectors = [
    { content: text, deflated: deflateRawSync(text, { level: 6 }) },
    { content: text, deflated: deflateRawSync(text, { strategy: 4 }) }, // Z_FIXED
    { content: noise, deflated: deflateRawSync(noise, { level: 0 }) },
  ];
  const cuts = [
    { input: 1 << 20, room: 1 << 20 },
    { input: 7, room: 1 << 20 },
    { input: 1 << 20, room: 11 },
    { input: 61, room: 257 },
  ];
  const inflater = new IsalInflater(library);
  for (const { content, deflated } of vectors) {
    for (const cut of cuts) {
      inflater.reset();
      if (!inflatesTo(inflater, content, deflated, cut)) return false;
    }
  }
  inflater.reset();
  return inflater.inflateSync(Uint8Array.of(0x07, 0xff), Buffer.alloc(16)).problem !== undefined;
}

/** Whether the library keeps within STATE_SIZE, and clears all fields that it is to clear. */
function stateFits(library: Library): boolean {
  const state = Buffer.alloc(STATE_ROOM, GUARD);
  const view = new DataView(state.buffer, state.byteOffset, state.byteLength);
  const room = Buffer.alloc(64);
  const input = deflateRawSync("shale", { level: 6 });
  library.init(state);
  if (view.getUint32(CRC_FLAG, true) !== 0 || view.getUint32(BLOCK_STATE, true) !== 0) return false;
  if (view.getInt32(READ_IN_LENGTH, true) !== 0) return false;
  // an unknown layout would make the library follow other pointers than these: all that it can read here are these two
  view.setUint32(AVAIL_IN, input.length, true);
  view.setUint32(AVAIL_OUT, room.length, true);
  view.setBigUint64(NEXT_IN, koffi.address(input), true);
  view.setBigUint64(NEXT_OUT, koffi.address(room), true);
  if (library.inflate(state) !== 0 || room.toString("latin1", 0, 5) !== "shale") return false;
  return state.subarray(STATE_SIZE).every((byte) => byte === GUARD);
}

function inflatesTo(
  inflater: IsalInflater,
  content: Uint8Array,
  deflated: Uint8Array,
  cut: { readonly input: number; readonly room: number },
): boolean {
  const follower = Buffer.from("what follows the stream");
  const input = Buffer.concat([deflated, follower]);
  const output = Buffer.alloc(content.length + 1);
  let at = 0;
  let end = Math.min(cut.input, input.length);
  let size = 0;
  for (let calls = 0; calls < 3 * input.length + content.length; calls++) {
    const room = output.subarray(size, Math.min(size + cut.room, output.length));
    const step = inflater.inflateSync(input.subarray(at, end), room);
    if (step.problem !== undefined) return false;
    at += step.consumed;
    size += step.produced;
    if (step.ended) {
      return at === deflated.length && step.crc32 === crc32(content) && output.subarray(0, size).equals(content);
    }
    if (at < 0 || at > input.length || size >= output.length) return false;
    if (!step.again) {
      if (at !== end || end === input.length) return false;
      end = Math.min(end + cut.input, input.length);
    }
  }
  return false;
}
