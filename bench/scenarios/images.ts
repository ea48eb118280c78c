/**
 * `shale images` in a store of 50,000 layers: the whole command, and what it takes beyond starting the program. Pulling so many
 * layers would take minutes, so the store's own test helper writes them.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { seedStore } from "../../src/store/testing/seed.ts";
import { shale, shaleCommand } from "../contestants/index.ts";
import { median, timed } from "../measure.ts";
import { atMost, milliseconds } from "../report.ts";
import type { Scenario } from "./scenario.ts";

const LAYERS = 50_000;
const BAR = 0.2;

export const images: Scenario = {
  id: "images",
  summary: `shale images with ${LAYERS.toLocaleString("en")} layers in the store`,
  async run({ work, signal }, { rounds, contestants, log }) {
    if (!contestants.includes(shale)) return { goals: [], tables: [] };
    const name = "images with 50,000 layers, the whole command";
    const root = mkdtempSync(join(work, "images-"));
    try {
      await seedStore(root, LAYERS);
      const lists: number[] = [];
      const starts: number[] = [];
      for (let round = 0; round <= rounds; round++) {
        const start = await timed(() => shaleCommand(root, ["version"], { signal }));
        const list = await timed(() => shaleCommand(root, ["images"], { signal }));
        if (round === 0) continue; // warms programs and the database's pages
        starts.push(start.seconds);
        lists.push(list.seconds);
        log(`images: ${milliseconds(list.seconds)}, of which start ${milliseconds(start.seconds)}`);
      }
      const whole = median(lists);
      const beyond = { name: "images with 50,000 layers, beyond starting the program", bar: "-", met: undefined };
      return {
        goals: [atMost(name, whole, BAR, milliseconds), { ...beyond, measured: milliseconds(whole - median(starts)) }],
        tables: [],
      };
    } finally {
      rmSync(root, { recursive: true, force: true });
    }
  },
};
