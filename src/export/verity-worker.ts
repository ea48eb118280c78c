/** One thread of {@link VerityThreads}: waits for a {@link HashJob}, answers "done" or the error, and ends. Without a job it ends, too. */
import { parentPort } from "node:worker_threads";
import { serializeError } from "../store/ingest/serialize-error.ts";
import { NO_JOB, type WorkerAnswer } from "./verity-protocol.ts";
import { type HashJob, SegmentRunner } from "./verity-segments.ts";

parentPort!.once("message", (job: HashJob | typeof NO_JOB) => {
  if (job !== NO_JOB) parentPort!.postMessage(run(job));
});

function run(job: HashJob): WorkerAnswer {
  try {
    const runner = new SegmentRunner(job);
    while (runner.next());
    return { kind: "done" };
  } catch (error) {
    return { kind: "failed", error: serializeError(error) };
  }
}
