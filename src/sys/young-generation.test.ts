import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";

const MODULE = new URL("./young-generation.ts", import.meta.url).href;

/** MB that the new space of the main thread, and of a thread with the limits of an ingest, grow to. */
function grown(flags: readonly string[]): { readonly main: number; readonly thread: number } {
  const churn = `
    let kept = [];
    for (let i = 0; i < 1e6; i++) {
      kept.push({ i, list: [i] });
      if (kept.length > 50_000) kept = [];
    }
    const { getHeapSpaceStatistics } = await import("node:v8");
    const size = getHeapSpaceStatistics().find((one) => one.space_name === "new_space").space_size / 1e6;`;
  const program = `
    import { Worker } from "node:worker_threads";
    import { giveThreadsTheirYoungGeneration } from ${JSON.stringify(MODULE)};
    giveThreadsTheirYoungGeneration();
    const inThread = ${JSON.stringify(`${churn} (await import("node:worker_threads")).parentPort.postMessage(size);`)};
    const worker = new Worker(inThread, { eval: true, resourceLimits: { maxYoungGenerationSizeMb: 48 } });
    worker.on("message", async (thread) => {
      ${churn}
      console.log(JSON.stringify({ main: size, thread }));
    });`;
  const args = [...flags, "--disable-warning=ExperimentalWarning", "--input-type=module", "-e", program];
  return JSON.parse(execFileSync(process.execPath, args, { encoding: "utf8" }));
}

test("threads of a daemon with a small young generation have the usual one", () => {
  const { main, thread } = grown(["--max-semi-space-size=1"]);
  assert.ok(main < 4, `main ${main} MB`);
  assert.ok(thread > 4, `thread ${thread} MB`);
  assert.ok(grown([]).main > 4, "without the flag nothing is set");
});
