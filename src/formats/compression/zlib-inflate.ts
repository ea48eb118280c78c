/**
 * The inflate backend of node:zlib, there on every machine. One InflateRaw stream for each member: a Gunzip stream would
 * walk members itself, but tells neither where they end nor what is wrong with what follows the last.
 */
import { crc32, createInflateRaw, inflateRawSync } from "node:zlib";
import type { InflateBackend, Inflater, InflateStep } from "./backend.ts";
import { STREAM_OPTIONS, StreamPump } from "./pump.ts";

/** Compressed bytes to try on this thread. What does not end within them was tried in vain, at a cost of 0.3 ms. */
const SYNC_INPUT = 32 * 1024;

export const zlibInflate: InflateBackend = { name: "zlib", open: () => new ZlibInflater() };

class ZlibInflater implements Inflater {
  #pump: StreamPump | undefined;
  #crc = 0;
  /** Whether the input at hand was given to the stream already, and the stream's total before that. */
  #given = false;
  #before = 0;

  async inflate(input: Uint8Array, _room: Uint8Array): Promise<InflateStep> {
    this.#pump ??= new StreamPump(createInflateRaw(STREAM_OPTIONS));
    const pump = this.#pump;
    if (!this.#given) {
      this.#before = pump.consumed;
      pump.write(input);
      this.#given = true;
    }
    let result: Uint8Array | "drained" | "ended";
    try {
      result = await pump.next();
    } catch (error) {
      if (isZlibError(error)) return step({ problem: error.message });
      throw error;
    }
    if (result === "drained") {
      this.#given = false;
      return step({ consumed: input.length });
    }
    if (result === "ended") {
      const consumed = pump.consumed - this.#before;
      const crc = this.#crc;
      this.reset();
      return step({ consumed, ended: true, crc32: crc });
    }
    this.#crc = crc32(result, this.#crc);
    return step({ piece: result, again: true });
  }

  inflateSync(input: Uint8Array, room: Uint8Array): InflateStep | undefined {
    if (this.#pump !== undefined) return undefined;
    try {
      const { bytes, consumed } = inflateAtOnce(input.subarray(0, SYNC_INPUT), room.length);
      room.set(bytes);
      return step({ consumed, produced: bytes.length, ended: true, crc32: crc32(bytes) });
    } catch (error) {
      // too long, cut, or invalid: the stream tells which, and is right about it
      if (isZlibError(error) || isTooLarge(error)) return undefined;
      throw error;
    }
  }

  reset(): void {
    this.close();
    this.#crc = 0;
    this.#given = false;
  }

  close(): void {
    this.#pump?.close();
    this.#pump = undefined;
  }
}

function step(values: Partial<InflateStep>): InflateStep {
  return { consumed: 0, produced: 0, again: false, ended: false, crc32: 0, ...values };
}

function inflateAtOnce(input: Uint8Array, limit: number): { bytes: Uint8Array; consumed: number } {
  // `info` is documented, but the types of node:zlib don't know what it does to the result
  const result: unknown = inflateRawSync(input, { info: true, maxOutputLength: limit });
  if (typeof result !== "object" || result === null || !("buffer" in result) || !("engine" in result)) {
    throw new TypeError("node:zlib does not give { buffer, engine } for { info: true }");
  }
  const { buffer, engine } = result;
  if (!(buffer instanceof Uint8Array)) throw new TypeError("node:zlib gives no buffer");
  if (typeof engine !== "object" || engine === null || !("bytesWritten" in engine)) {
    throw new TypeError("node:zlib gives no engine");
  }
  return { bytes: buffer, consumed: Number(engine.bytesWritten) };
}

function isZlibError(error: unknown): error is Error & { readonly code: string } {
  return error instanceof Error && "code" in error && typeof error.code === "string" && error.code.startsWith("Z_");
}

function isTooLarge(error: unknown): boolean {
  return error instanceof Error && "code" in error && error.code === "ERR_BUFFER_TOO_LARGE";
}
