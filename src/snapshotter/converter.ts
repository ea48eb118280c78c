/**
 * Makes layers of directories that other differs filled, one at a time in the background. Mounts given out before go on with
 * the directory; those to come show the layer, and the directory goes when the last of the others is gone.
 */
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { throwIfAborted } from "../async/index.ts";
import { ShaleError } from "../errors/index.ts";
import type { DiffId } from "../oci/index.ts";
import type { SnapshotRegister, Store } from "../store/index.ts";
import { closeFile, createFile, truncate, writeAt } from "../sys/index.ts";
import { UPPER } from "./mount-lists.ts";
import type { SnapshotterEvent } from "./types.ts";
import { upperTar } from "./upper-tar.ts";

/** Bytes gathered before a write, and written between two turns of the event loop. */
const GATHER = 1024 * 1024;

export class Converter {
  readonly #store: Store;
  readonly #register: SnapshotRegister;
  readonly #report: (event: SnapshotterEvent) => void;
  readonly #stop = new AbortController();
  readonly #queue: number[] = [];
  #running: Promise<void> | undefined;

  constructor(store: Store, register: SnapshotRegister, report: (event: SnapshotterEvent) => void) {
    this.#store = store;
    this.#register = register;
    this.#report = report;
  }

  /** The committed snapshot `id`, whose directory nobody writes to any more. */
  add(id: number): void {
    if (this.#stop.signal.aborted) return;
    this.#queue.push(id);
    this.#start();
  }

  #start(): void {
    this.#running ??= this.#run().finally(() => {
      this.#running = undefined;
      if (this.#queue.length > 0) this.#start(); // came between the loop's last look and now
    });
  }

  async settled(): Promise<void> {
    while (this.#running !== undefined) await this.#running;
  }

  /** What was not done is found by the next process. */
  async close(): Promise<void> {
    this.#stop.abort(new ShaleError("CANCELLED", "Stopped on request"));
    this.#queue.length = 0;
    await this.#running;
  }

  async #run(): Promise<void> {
    for (let id = this.#queue.shift(); id !== undefined; id = this.#queue.shift()) {
      const snapshot = this.#register.findById(id);
      if (snapshot?.kind !== "committed" || !snapshot.directory || snapshot.diffId !== undefined) continue;
      const began = performance.now();
      try {
        const diffId = await this.#convert(id, snapshot.name);
        if (diffId === undefined) continue; // removed meanwhile
        this.#report({ kind: "converted", key: snapshot.name, diffId, durationMs: performance.now() - began });
      } catch (error) {
        if (this.#stop.signal.aborted) return;
        // It stays the directory that it is: that works as well, only without what layers have over it.
        if (ShaleError.is(error, "FAILED_PRECONDITION")) {
          this.#report({ kind: "not-converted", key: snapshot.name, why: error.message });
        } else this.#report({ kind: "trouble", what: `Cannot make a layer of snapshot ${snapshot.name}`, error });
      }
    }
  }

  async #convert(id: number, name: string): Promise<DiffId | undefined> {
    const { signal } = this.#stop;
    using operation = this.#store.begin(`convert snapshot ${name}`);
    const path = join(operation.temporaryDirectory(), "tar");
    const length = await spool(path, upperTar(join(this.#register.directoryOf(id), UPPER)), signal);
    const ingested = await operation.ingest({ path, offset: 0, length }, {}, { signal });
    operation.commitLayers([ingested]);
    const diffId = ingested.diffId as DiffId; // computed by us
    const replaced = this.#register.replaceDirectory(id, diffId);
    operation.indexLayers();
    return replaced ? diffId : undefined;
  }
}

/** Writes the tar to a file, zeros as holes; answers its length. */
async function spool(path: string, pieces: Iterable<Uint8Array>, signal: AbortSignal): Promise<number> {
  const file = createFile(path);
  try {
    const buffer = Buffer.alloc(GATHER);
    const zeros = Buffer.alloc(GATHER);
    let filled = 0;
    let size = 0;
    const flush = () => {
      const part = buffer.subarray(0, filled);
      if (!part.equals(zeros.subarray(0, filled))) writeAt(file, part, size);
      size += filled;
      filled = 0;
    };
    for (const piece of pieces) {
      for (let at = 0; at < piece.length; ) {
        const count = Math.min(piece.length - at, GATHER - filled);
        buffer.set(piece.subarray(at, at + count), filled);
        filled += count;
        at += count;
        if (filled < GATHER) continue;
        flush();
        await setImmediate();
        throwIfAborted(signal);
      }
    }
    flush();
    truncate(file, size);
    return size;
  } finally {
    closeFile(file);
  }
}
