/**
 * Cold pull: from the reference to a root file system that is readable and durable, all contestants interleaved with the
 * bare work.
 *
 * Before each run: fresh store, everything written back, page cache dropped (the registry's blobs are cold for all alike),
 * then an image of one directory is pulled, so that no program or library is read from a cold disk. Timed: the pull, the mount, reading one file through it, and syncfs(2) of the file system.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { type Contestant, PEERS } from "../contestants/index.ts";
import type { BenchImage, Environment } from "../environment.ts";
import { dropCaches, interleave, median, syncFileSystem, timed } from "../measure.ts";
import { atLeast, atMost, type Goal, seconds, times } from "../report.ts";
import type { Scenario } from "./scenario.ts";

const RACED = ["python", "node"];

export const pull: Scenario = {
  id: "pull",
  summary: "cold pull of python and node until mounted, readable and durable",
  async run(environment, { rounds, contestants, log }) {
    const images = environment.images.filter(({ name }) => RACED.includes(name));
    const goals: Goal[] = [];
    const measured = new Map<string, number[]>();
    const runsOf = (contestant: Contestant, image: BenchImage) => {
      const key = `${contestant.id} ${image.name}`;
      const runs = measured.get(key) ?? [];
      measured.set(key, runs);
      return runs;
    };
    for (const image of images) {
      for (const contestant of interleave(contestants, rounds)) {
        const taken = await timePull(environment, contestant, image);
        runsOf(contestant, image).push(taken);
        log(`pull ${image.name}: ${contestant.title} ${seconds(taken)}`);
      }
    }
    const medianOf = (id: string, image: BenchImage) => {
      const contestant = contestants.find((c) => c.id === id);
      return contestant && median(runsOf(contestant, image));
    };
    for (const image of images) {
      const own = medianOf("shale", image);
      const floor = medianOf("bare", image);
      const peers = contestants.filter((c) => PEERS.includes(c)).map((c) => median(runsOf(c, image)));
      if (own === undefined) continue;
      if (peers.length > 0) {
        goals.push(atLeast(`pull ${image.name}: best peer / shale`, Math.min(...peers) / own, 4, times));
      }
      if (floor !== undefined) goals.push(atMost(`pull ${image.name}: shale / bare work`, own / floor, 1.3, times));
    }
    const ratio = (contestant: Contestant, image: BenchImage) => {
      const own = medianOf("shale", image) ?? medianOf("bare", image);
      return own === undefined ? "-" : times(median(runsOf(contestant, image)) / own);
    };
    const against = contestants.some((c) => c.id === "shale") ? "to shale" : "to bare work";
    return {
      goals,
      tables: [
        {
          title: "Cold pull until readable and durable",
          columns: ["contestant", ...images.flatMap(({ name }) => [name, `${name} min-max`, against])],
          rows: contestants.map((contestant) => [
            contestant.title,
            ...images.flatMap((image) => {
              const runs = runsOf(contestant, image);
              const span = `${Math.min(...runs).toFixed(2)}-${Math.max(...runs).toFixed(2)}`;
              return [seconds(median(runs)), span, ratio(contestant, image)];
            }),
          ]),
          notes: [
            `Median of ${rounds} runs each, interleaved. Fresh store, caches dropped before, syncfs inside the timed part.`,
          ],
        },
      ],
    };
  },
};

/** One attempt in a directory of its own, which is deleted. */
async function timePull(environment: Environment, contestant: Contestant, image: BenchImage): Promise<number> {
  const directory = mkdtempSync(join(environment.work, `${contestant.id}-`));
  try {
    await using attempt = await contestant.prepare(environment, directory);
    await dropCaches();
    await attempt.pull(environment.warmUp);
    const { seconds: taken } = await timed(async () => {
      const root = await attempt.pull(image);
      if (root !== undefined) await readFile(join(root, "etc/debian_version"));
      await syncFileSystem(directory);
    });
    return taken;
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}
