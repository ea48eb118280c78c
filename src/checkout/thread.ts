/**
 * One thread of a {@link Crew}: fills the directories that it is given and those in them, and gives half of what it still has
 * to do away when another has nothing. Ends by itself when told to: a thread that calls native code must not be ended from outside.
 */
import { parentPort } from "node:worker_threads";
import { serializeError } from "../store/ingest/serialize-error.ts";
import { newTally } from "./losses.ts";
import { type DirectoryTask, type FromThread, HUNGRY, type ToThread } from "./protocol.ts";
import { TreeWriter } from "./tree-writer.ts";

const port = parentPort!;
let writer: TreeWriter | undefined;
let control: BigInt64Array = new BigInt64Array(0);

port.on("message", (message: ToThread) => {
  try {
    handle(message);
  } catch (error) {
    reply({ kind: "failed", error: serializeError(error) });
  }
});
reply({ kind: "ready" });

function handle(message: ToThread): void {
  switch (message.kind) {
    case "job":
      control = new BigInt64Array(message.job.control);
      writer = new TreeWriter(message.job);
      break;
    case "tasks":
      run(message.tasks);
      break;
    case "finish":
      // Without a writer the job itself failed, which was told.
      reply({
        kind: "result",
        result: writer?.finish() ?? { tally: newTally(), losses: [], closed: [], fallbacks: [] },
      });
      writer = undefined;
      break;
    case "end":
      writer?.[Symbol.dispose]();
      port.close();
  }
}

/** The deepest first: the tasks that wait are then few, and those given away large. */
function run(tasks: readonly DirectoryTask[]): void {
  const pending = [...tasks];
  for (let task = pending.pop(); task !== undefined; task = pending.pop()) {
    for (const child of writer!.fill(task)) pending.push(child);
    if (pending.length > 1 && Atomics.load(control, HUNGRY) > 0n) {
      reply({ kind: "shared", tasks: pending.splice(0, Math.ceil(pending.length / 2)) });
    }
  }
  reply({ kind: "idle" });
}

function reply(message: FromThread): void {
  port.postMessage(message);
}
