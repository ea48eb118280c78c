/** Compression of frames on threads of its own, one a core: a conversion is mostly this. Threads start when they are first needed. */
import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import { ShaleError } from "../errors/index.ts";
import type { CompressedBatch, FrameBatch, FrameCompressor, FrameSettings } from "../formats/compression/index.ts";
import { threadEnvironment } from "../sys/index.ts";
import type { FrameAnswer, FrameJob } from "./frame-worker.ts";

/** Every frame leaves some garbage; collected late, it is 100 MB a thread. */
const YOUNG_MIB = 4;

interface Waiting {
  readonly job: FrameJob;
  readonly resolve: (batch: CompressedBatch) => void;
  readonly reject: (error: unknown) => void;
}

interface Thread {
  readonly worker: Worker;
  running: Waiting | undefined;
}

export class FrameThreads implements FrameCompressor, AsyncDisposable {
  readonly settings: FrameSettings;
  readonly lanes: number;
  readonly #threads: Thread[] = [];
  readonly #queue: Waiting[] = [];
  #closed = false;

  constructor(settings: FrameSettings, lanes = availableParallelism()) {
    this.settings = settings;
    this.lanes = lanes;
  }

  compress({ bytes, lengths }: FrameBatch): Promise<CompressedBatch> {
    if (this.#closed) return Promise.reject(new RangeError("compress() after the threads were ended"));
    return new Promise((resolve, reject) => {
      this.#queue.push({ job: { bytes, lengths, settings: this.settings }, resolve, reject });
      this.#dispatch();
    });
  }

  /** Ends the threads; what they have under way is rejected with CANCELLED. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    const stopped = new ShaleError("CANCELLED", "Stopped compressing");
    for (const { reject } of this.#queue.splice(0)) reject(stopped);
    await Promise.all(
      this.#threads.splice(0).map(async (thread) => {
        thread.running?.reject(stopped);
        thread.running = undefined;
        await thread.worker.terminate();
      }),
    );
  }

  #dispatch(): void {
    while (this.#queue.length > 0) {
      let thread = this.#threads.find(({ running }) => running === undefined);
      if (thread === undefined) {
        if (this.#threads.length >= this.lanes) return;
        thread = this.#start();
      }
      const next = this.#queue.shift()!;
      thread.running = next;
      thread.worker.postMessage(next.job, [next.job.bytes.buffer as ArrayBuffer]);
    }
  }

  #start(): Thread {
    const name = import.meta.url.endsWith(".ts") ? "./frame-worker.ts" : "./frame-worker.js";
    const worker = new Worker(new URL(name, import.meta.url), {
      resourceLimits: { maxYoungGenerationSizeMb: YOUNG_MIB },
      env: threadEnvironment(),
    });
    const thread: Thread = { worker, running: undefined };
    this.#threads.push(thread);
    thread.worker.on("message", ({ bytes, lengths, spare }: FrameAnswer) => {
      const done = thread.running;
      thread.running = undefined;
      done?.resolve({ bytes, lengths, spare });
      this.#dispatch();
    });
    const died = (cause?: unknown) => {
      const at = this.#threads.indexOf(thread);
      if (at >= 0) this.#threads.splice(at, 1);
      thread.running?.reject(new ShaleError("INTERNAL", "Cannot compress: a thread died", { cause }));
      thread.running = undefined;
    };
    thread.worker.on("error", died);
    thread.worker.on("exit", () => died());
    return thread;
  }
}
