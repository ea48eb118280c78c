/**
 * The ingest pool: at most one worker thread a core, each with one layer at a time; more layers wait their turn, so
 * memory is bounded whatever the image. Threads start with the first job and end with `close`.
 */
import { availableParallelism } from "node:os";
import { MessageChannel, type MessagePort, Worker } from "node:worker_threads";
import { ShaleError } from "../../errors/index.ts";
import { threadEnvironment } from "../../sys/index.ts";
import type { MergedImage } from "../merge-image.ts";
import type { Arrivals } from "./arrivals.ts";
import {
  type AssembleJob,
  type AssembleOutcome,
  type ChunkRows,
  type ChunkScanJob,
  CONTROL_CONSUMED,
  CONTROL_SIZE,
  CONTROL_STOP,
  type IngestJob,
  type IngestResult,
  type JobResult,
  type MergeJob,
  type PlanAnswer,
  type PlanOffer,
  type WorkerJob,
  type WorkerReply,
} from "./protocol.ts";
import { deserializeError } from "./serialize-error.ts";

/** Worker heap ceiling in MiB: 1,000,000 entries live in typed arrays outside of it. */
const WORKER_HEAP_MIB = 256;
/** And of the young generation, as V8 has it by itself: the daemon runs with a small one (the launcher), which is not meant for ingests. */
const WORKER_YOUNG_MIB = 48;

/** What the pool adds to a request. */
type Added = "kind" | "number" | "control";

interface Watched {
  /** Told about four times a second: compressed bytes consumed so far. */
  readonly onConsumed?: (bytes: number) => void;
}

export interface IngestRequest extends Omit<IngestJob, Added>, Watched {}

export interface AssembleRequest extends Omit<AssembleJob, Added | "port">, Watched {
  /**
   * Told what is missing; where the parts will be marked as they come, or undefined to leave it. Does not throw, and
   * returns at once: fetching goes on beside the work.
   */
  readonly onPlan: (offer: PlanOffer) => Arrivals | undefined;
}

export type ChunkScanRequest = Omit<ChunkScanJob, Added>;
export type MergeRequest = Omit<MergeJob, Added>;

type WithoutAdded<J> = J extends WorkerJob ? Omit<J, "number" | "control"> : never;

interface Waiting {
  readonly job: WithoutAdded<WorkerJob>;
  readonly transfer: readonly MessagePort[];
  readonly onConsumed: ((bytes: number) => void) | undefined;
  readonly signal: AbortSignal | undefined;
  readonly resolve: (result: JobResult) => void;
  readonly reject: (error: unknown) => void;
}

interface Running {
  readonly waiting: Waiting;
  readonly number: number;
  /** Asks the worker to give up; it answers as for any failure. */
  readonly stop: () => void;
  readonly end: () => void;
}

interface Thread {
  readonly worker: Worker;
  running: Running | undefined;
  /**
   * Resolves when the thread has loaded and does nothing, or is dead. Only then may it be terminated: Node aborts the whole
   * process when a native module (koffi) loads, or returns from a call, in a thread that is being terminated.
   */
  quiet: PromiseWithResolvers<void>;
  /** Ends it when nothing comes for a while. */
  idle: NodeJS.Timeout | undefined;
}

/** Starting a thread takes 50 to 100 ms: pulls that follow one another find theirs. */
const IDLE_MS = 15_000;

export class IngestPool implements AsyncDisposable {
  readonly #limit: number;
  readonly #idleMs: number;
  /** Those that did something last come first: their code is compiled and their memory is at hand. */
  readonly #threads: Thread[] = [];
  readonly #queue: Waiting[] = [];
  #numbers = 0;
  #closed = false;

  /** `idleMs`: how long a thread without work is kept. */
  constructor(limit = availableParallelism(), idleMs = IDLE_MS) {
    this.#limit = limit;
    this.#idleMs = idleMs;
  }

  /** Starts the threads before the first job, so that their start overlaps with the network. */
  warm(count: number): void {
    while (this.#threads.length < Math.min(count, this.#limit)) this.#start();
  }

  /**
   * Ingests one layer. Settles after the worker has stopped touching the staging directory, also when aborted.
   * DATA_LOSS for bytes that are not what they should be, INVALID_ARGUMENT and RESOURCE_EXHAUSTED from the formats.
   */
  async ingest(request: IngestRequest, options: { readonly signal?: AbortSignal } = {}): Promise<IngestResult> {
    const { onConsumed, ...job } = request;
    const result = await this.#run({ ...job, kind: "ingest" }, [], onConsumed, options.signal);
    if (!("diffId" in result)) throw new RangeError("the answer to another job");
    return result;
  }

  /** Writes the merged image of a chain. Before ingests that wait, and beside them if need be: a container waits for it. */
  async merge(request: MergeRequest): Promise<MergedImage> {
    const result = await this.#run({ ...request, kind: "merge" }, [], undefined, undefined);
    if (!("sha256" in result)) throw new RangeError("the answer to another job");
    return result;
  }

  /**
   * Puts one layer together from its TOC. FormatError's codes and DATA_LOSS where that can't be done for what the TOC says;
   * the layer can still be pulled whole then. ABORTED when `Arrivals.fail` was called.
   */
  async assemble(request: AssembleRequest, options: { readonly signal?: AbortSignal } = {}): Promise<AssembleOutcome> {
    const { onConsumed, onPlan, ...job } = request;
    const { port1, port2 } = new MessageChannel();
    port1.on("message", (offer: PlanOffer) => {
      port1.postMessage({ arrived: onPlan(offer)?.shared } satisfies PlanAnswer);
    });
    try {
      const result = await this.#run({ ...job, kind: "assemble", port: port2 }, [port2], onConsumed, options.signal);
      if (!("kind" in result)) throw new RangeError("the answer to another job");
      return result;
    } finally {
      port1.close();
    }
  }

  /** Finds the chunks of a layer that is in the store. DATA_LOSS and the like when it is damaged. */
  async scanChunks(request: ChunkScanRequest, options: { readonly signal?: AbortSignal } = {}): Promise<ChunkRows> {
    const result = await this.#run({ ...request, kind: "chunk scan" }, [], undefined, options.signal);
    if (!("digests" in result)) throw new RangeError("the answer to another job");
    return result;
  }

  #run(
    job: WithoutAdded<WorkerJob>,
    transfer: readonly MessagePort[],
    onConsumed: Waiting["onConsumed"],
    signal: AbortSignal | undefined,
  ): Promise<JobResult> {
    if (this.#closed) return Promise.reject(new ShaleError("FAILED_PRECONDITION", "Cannot ingest: the pool is closed"));
    return new Promise((resolve, reject) => {
      const waiting = { job, transfer, onConsumed, signal, resolve, reject };
      if (job.kind === "merge") this.#queue.unshift(waiting);
      else this.#queue.push(waiting);
      this.#next();
    });
  }

  /** Ends the threads that have nothing to do: what they used stays with them for as long as they live. */
  async rest(): Promise<void> {
    const idle = this.#threads.filter((thread) => thread.running === undefined);
    for (const thread of idle) this.#threads.splice(this.#threads.indexOf(thread), 1);
    await Promise.all(idle.map(end));
  }

  /** Stops what is under way and ends the threads, each as soon as it has let go of its staging directory. */
  async close(): Promise<void> {
    this.#closed = true;
    for (const waiting of this.#queue.splice(0)) {
      waiting.reject(new ShaleError("CANCELLED", "Stopped before it began"));
    }
    const threads = [...this.#threads];
    for (const thread of threads) thread.running?.stop();
    await Promise.all(threads.map(end));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #start(): Thread {
    const worker = new Worker(
      new URL(import.meta.url.endsWith(".ts") ? "./worker.ts" : "./worker.js", import.meta.url),
      {
        resourceLimits: { maxOldGenerationSizeMb: WORKER_HEAP_MIB, maxYoungGenerationSizeMb: WORKER_YOUNG_MIB },
        env: threadEnvironment(),
      },
    );
    const thread: Thread = { worker, running: undefined, quiet: Promise.withResolvers(), idle: undefined };
    worker.unref();
    worker.on("message", (reply: WorkerReply) => this.#onReply(thread, reply));
    worker.on("error", (error) => this.#onDeath(thread, error));
    worker.on("exit", (code) => this.#onDeath(thread, new Error(`the ingest thread ended with code ${code}`)));
    this.#threads.push(thread);
    return thread;
  }

  #next(): void {
    while (this.#queue.length > 0) {
      const free = this.#threads.find((thread) => thread.running === undefined);
      const limit = this.#queue[0]!.job.kind === "merge" ? this.#limit + 1 : this.#limit;
      if (free === undefined && this.#threads.length >= limit) return;
      this.#give(free ?? this.#start(), this.#queue.shift()!);
    }
  }

  #give(thread: Thread, waiting: Waiting): void {
    const { signal, job, onConsumed } = waiting;
    clearTimeout(thread.idle);
    const shared = new SharedArrayBuffer(CONTROL_SIZE);
    const control = new BigInt64Array(shared);
    const stop = () => Atomics.store(control, CONTROL_STOP, 1n);
    if (signal?.aborted) stop();
    signal?.addEventListener("abort", stop, { once: true });
    const timer = onConsumed && setInterval(() => onConsumed(Number(Atomics.load(control, CONTROL_CONSUMED))), 250);
    const end = () => {
      clearInterval(timer);
      signal?.removeEventListener("abort", stop);
      onConsumed?.(Number(Atomics.load(control, CONTROL_CONSUMED)));
    };
    const number = ++this.#numbers;
    thread.running = { waiting, number, stop, end };
    thread.quiet = Promise.withResolvers();
    thread.worker.ref();
    thread.worker.postMessage({ ...job, number, control: shared } satisfies WorkerJob, waiting.transfer);
  }

  #onReply(thread: Thread, reply: WorkerReply): void {
    const running = thread.running;
    if (reply.kind === "ready") {
      if (running === undefined) {
        thread.quiet.resolve();
        this.#rest(thread);
      }
      return;
    }
    if (running === undefined || running.number !== reply.number) return;
    thread.running = undefined;
    thread.quiet.resolve();
    thread.worker.unref();
    running.end();
    this.#threads.unshift(...this.#threads.splice(this.#threads.indexOf(thread), 1));
    if (reply.kind === "done") running.waiting.resolve(reply.result);
    else running.waiting.reject(deserializeError(reply.error));
    this.#next();
    if (thread.running === undefined) this.#rest(thread);
  }

  /** A daemon lives for months: it gives back what a pull's threads hold (tens of MB each) once it does nothing more. */
  #rest(thread: Thread): void {
    clearTimeout(thread.idle);
    thread.idle = setTimeout(() => {
      const at = this.#threads.indexOf(thread);
      if (thread.running !== undefined || at < 0) return;
      this.#threads.splice(at, 1);
      void end(thread);
    }, this.#idleMs);
    thread.idle.unref();
  }

  #onDeath(thread: Thread, error: unknown): void {
    thread.quiet.resolve();
    const at = this.#threads.indexOf(thread);
    if (at >= 0) this.#threads.splice(at, 1);
    const running = thread.running;
    if (running === undefined) return;
    thread.running = undefined;
    running.end();
    const memory = error instanceof Error && "code" in error && error.code === "ERR_WORKER_OUT_OF_MEMORY";
    running.waiting.reject(
      new ShaleError(
        memory ? "RESOURCE_EXHAUSTED" : "INTERNAL",
        `Cannot store layer ${"digest" in running.waiting.job ? running.waiting.job.digest : running.waiting.job.id}: the ingest thread died`,
        {
          cause: error,
        },
      ),
    );
    if (!this.#closed) this.#next();
  }
}

async function end(thread: Thread): Promise<void> {
  // Threads are unreferenced while they have nothing to do; whoever waits for one to load must not see the loop run empty.
  thread.worker.ref();
  await thread.quiet.promise;
  await thread.worker.terminate();
}
