/** `shale rm` of an image of 30,000 files: the whole command, and what it takes beyond starting the program. */
import { mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { shale, shaleCommand } from "../contestants/index.ts";
import { dropCaches, median, timed } from "../measure.ts";
import { atMost, milliseconds } from "../report.ts";
import type { Scenario } from "./scenario.ts";

const BAR = 0.05;

export const rm: Scenario = {
  id: "rm",
  summary: "shale rm of the node image",
  async run({ work, images, signal }, { rounds, contestants, log }) {
    if (!contestants.includes(shale)) return { goals: [], tables: [] };
    const { reference } = images.find(({ name }) => name === "node")!;
    const removals: number[] = [];
    const starts: number[] = [];
    for (let round = 0; round < rounds; round++) {
      const root = mkdtempSync(join(work, "rm-"));
      try {
        await shaleCommand(root, ["pull", "--quiet", "--tls-verify=false", reference], { signal });
        await dropCaches(); // also writes back, so that the removal does not wait for the pull's pages
        await shaleCommand(root, ["images"], { signal }); // programs and database warm
        starts.push((await timed(() => shaleCommand(root, ["version"], { signal }))).seconds);
        removals.push((await timed(() => shaleCommand(root, ["rm", reference], { signal }))).seconds);
        log(`rm: ${milliseconds(removals.at(-1)!)}, of which start ${milliseconds(starts.at(-1)!)}`);
      } finally {
        rmSync(root, { recursive: true, force: true });
      }
    }
    const whole = median(removals);
    const start = median(starts);
    return {
      goals: [
        atMost("rm of node, beyond starting the program", whole - start, BAR, milliseconds),
        { name: "rm of node, the whole command", bar: "-", measured: milliseconds(whole), met: undefined },
      ],
      tables: [],
    };
  },
};
