/** One thread of {@link VerityThreads}: waits for a {@link HashJob}, answers "done" or the error, and ends. */
import { parentPort } from "node:worker_threads";
import { errnoOf, ShaleError } from "../errors/index.ts";
import { type HashJob, SegmentRunner } from "./verity-segments.ts";

/** An error as it crosses threads, where classes are lost. */
export type WorkerAnswer =
  | { readonly kind: "done" }
  | { readonly kind: "failed"; readonly code: string | undefined; readonly message: string; readonly ours: boolean };

parentPort!.once("message", (job: HashJob) => {
  parentPort!.postMessage(run(job));
});

function run(job: HashJob): WorkerAnswer {
  try {
    const runner = new SegmentRunner(job);
    while (runner.next());
    return { kind: "done" };
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    const ours = ShaleError.is(error);
    return { kind: "failed", code: ours ? error.code : errnoOf(error), message: error.message, ours };
  }
}
