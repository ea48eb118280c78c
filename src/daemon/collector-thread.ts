/** The thread of collector.ts: opens the store for itself, collects, answers once, ends. */
import { parentPort, workerData } from "node:worker_threads";
import { collectAll } from "../export/index.ts";
import { Store } from "../store/index.ts";
import type { CollectorInput, CollectorReply } from "./collector.ts";

const { root } = workerData as CollectorInput;
const answer = (reply: CollectorReply) => parentPort!.postMessage(reply);
try {
  await using store = Store.open(root);
  const { items, freed } = await collectAll(store);
  answer({ kind: "done", items: items.length, freed });
} catch (error) {
  answer({ kind: "failed", message: error instanceof Error ? error.message : String(error) });
}
