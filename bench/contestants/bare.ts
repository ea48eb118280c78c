/**
 * The bare work of a pull, as the floor that no puller with the same libraries can go far below: for every layer, all
 * layers at once, read the compressed blob, SHA-256 it, inflate it, SHA-256 the result, write it sequentially to one file and
 * fdatasync that.
 *
 * What it has and leaves out: it inflates as shale does (formats/compression, with ISA-L where the machine has it). Each
 * layer has a worker thread that hashes and writes while inflation runs ahead on another thread, in 1 MiB chunks, so that
 * two cores are busy even when one layer is most of the image. The blobs are read from the
 * registry's own files, in the same cache state as for the contestants, but without HTTP, without a process start, and
 * without looking into the tar. It writes the whole tar (headers and duplicate files too), so a deduplicating store writes
 * somewhat less. Threads are started before the clock.
 */
import { once } from "node:events";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { ShaleError } from "../../src/errors/index.ts";
import { loadIsal } from "../../src/sys/isal.ts";
import type { BareRequest, BareResult } from "./bare-worker.ts";
import type { Attempt, Contestant } from "./contestant.ts";

/** Layers of an image that run at the same time; the images here have at most three. */
const WORKERS = 4;

export const bare: Contestant = {
  id: "bare",
  title: "bare work",
  version: async () => loadIsal()?.name ?? `node:zlib ${process.versions.zlib}`,
  async prepare(_environment, directory): Promise<Attempt> {
    const workers = await Promise.all(
      Array.from({ length: WORKERS }, async () => {
        const worker = new Worker(new URL("./bare-worker.ts", import.meta.url));
        await once(worker, "message"); // says that its modules are loaded
        return worker;
      }),
    );
    return {
      async pull({ name, layers }) {
        if (layers.length > workers.length)
          throw new RangeError(`${layers.length} layers for ${workers.length} threads`);
        await Promise.all(
          layers.map(async ({ path, digest }, i) => {
            const request: BareRequest = { from: path, to: join(directory, `${name}-${i}`) };
            workers[i]!.postMessage(request);
            const [result]: BareResult[] = await once(workers[i]!, "message");
            if (result?.compressed !== digest) throw new ShaleError("DATA_LOSS", `Cannot read ${path}: digest differs`);
          }),
        );
        return undefined;
      },
      async [Symbol.asyncDispose]() {
        await Promise.all(workers.map((worker) => worker.terminate()));
      },
    };
  },
};
