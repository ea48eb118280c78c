/** A thread for one piece of work that would keep containerd waiting: opens the store for itself, works, answers once, ends. */
import { parentPort, workerData } from "node:worker_threads";
import { chainManifest, collectAll, ExportCache } from "../../export/index.ts";
import { Store } from "../../store/index.ts";
import type { BackgroundJob, BackgroundReply } from "./job.ts";

const job = workerData as BackgroundJob;
const answer = (reply: BackgroundReply) => parentPort!.postMessage(reply);
try {
  await using store = Store.open(job.root);
  answer(job.kind === "collect" ? await collect(store) : await makeExports(store, job));
} catch (error) {
  answer({ kind: "failed", message: error instanceof Error ? error.message : String(error) });
}

async function collect(store: Store): Promise<BackgroundReply> {
  const { items, freed } = await collectAll(store);
  return { kind: "done", items: items.length, bytes: freed };
}

async function makeExports(
  store: Store,
  { diffIds, policy }: BackgroundJob & { readonly kind: "export" },
): Promise<BackgroundReply> {
  using operation = store.begin(`export ${diffIds.at(-1)}`);
  const cache = new ExportCache(store);
  const disks = await cache.apply(operation, chainManifest(operation, diffIds), policy);
  return { kind: "done", items: disks.length, bytes: disks.reduce((sum, { sidecar }) => sum + sidecar.size, 0) };
}
