/** Work that runs in a thread of its own, since it reads metadata images and writes or unlinks files while containerd is answered. */
import { Worker } from "node:worker_threads";
import { ShaleError } from "../../errors/index.ts";
import type { ExportPolicy } from "../../export/index.ts";
import type { DiffId } from "../../oci/index.ts";
import { threadEnvironment } from "../../sys/index.ts";

export type BackgroundJob =
  | { readonly kind: "collect"; readonly root: string }
  | {
      readonly kind: "export";
      readonly root: string;
      /** Lowest first. */
      readonly diffIds: readonly DiffId[];
      readonly policy: ExportPolicy;
    };

/** Items and bytes that were freed, or made. */
export interface BackgroundResult {
  readonly items: number;
  readonly bytes: number;
}

/** What the thread says, once. */
export type BackgroundReply =
  | ({ readonly kind: "done" } & BackgroundResult)
  | { readonly kind: "failed"; readonly message: string };

/** Resolves when the thread has ended. It is never broken off: ending a thread with native code loaded takes the process along. */
export function runInBackground(job: BackgroundJob): Promise<BackgroundResult> {
  const file = import.meta.url.endsWith(".ts") ? "./thread.ts" : "./thread.js";
  const act = job.kind === "collect" ? "collect garbage" : "make disks";
  return new Promise((resolve, reject) => {
    const fail = (message: string, cause?: unknown) =>
      reject(new ShaleError("INTERNAL", `Cannot ${act} in ${job.root}: ${message}`, { cause }));
    const worker = new Worker(new URL(file, import.meta.url), { workerData: job, env: threadEnvironment() });
    let reply: BackgroundReply | undefined;
    worker.on("message", (message: BackgroundReply) => {
      reply = message;
    });
    worker.on("error", (error: unknown) => fail(error instanceof Error ? error.message : String(error), error));
    worker.on("exit", () => {
      if (reply?.kind === "done") resolve(reply);
      else fail(reply?.message ?? "its thread ended without an answer");
    });
  });
}
