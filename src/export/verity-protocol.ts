/** What {@link VerityThreads} and its threads say to each other: a `HashJob` or {@link NO_JOB}, and for a job a {@link WorkerAnswer}. */

import type { serializeError } from "../store/ingest/serialize-error.ts";

/** There is nothing to do: the thread ends. */
export const NO_JOB = null;

export type WorkerAnswer =
  | { readonly kind: "done" }
  | { readonly kind: "failed"; readonly error: ReturnType<typeof serializeError> };
