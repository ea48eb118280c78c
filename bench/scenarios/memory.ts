/**
 * Peak memory of shale's pull and mount for every image, and of its pull for two made-up layers; the peers, with their daemons,
 * on one image beside it. Apart from the timed race, because sampling takes some of the processor.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { type Contestant, PEERS, shale, shaleCommand } from "../contestants/index.ts";
import type { BenchImage, Environment } from "../environment.ts";
import { type MadeUpImage, makeManyEntries, makeManyZeros } from "../made-up.ts";
import { peakMemory, timed } from "../measure.ts";
import { atMost, type Goal, megabytes, seconds } from "../report.ts";
import type { Scenario } from "./scenario.ts";

const IMAGE_BAR = 350e6;
const MADE_UP_BAR = 400e6;
/** Peers are measured on this image only. */
const PEER_IMAGE = "python";

export const memory: Scenario = {
  id: "memory",
  summary: "peak memory of pulls, made-up layers of 1,000,000 entries and of 20 GiB of zeros among them",
  async run(environment, { contestants, log }) {
    const goals: Goal[] = [];
    const rows: string[][] = [];
    const add = (who: string, what: string, peak: number, taken: number, bar?: number) => {
      rows.push([`${who}: ${what}`, megabytes(peak), seconds(taken)]);
      if (bar !== undefined) goals.push(atMost(`peak memory, ${what}`, peak, bar, megabytes));
      log(`memory ${what}: ${who} ${megabytes(peak)}`);
    };
    if (contestants.includes(shale)) {
      for (const image of environment.images) {
        const { peak, taken } = await peakOfPull(environment, shale, image);
        add(shale.title, image.name, peak, taken, IMAGE_BAR);
      }
      for (const make of [
        (directory: string) => makeManyEntries(directory, 1_000_000),
        (directory: string) => makeManyZeros(directory, 20 * 2 ** 30),
      ]) {
        const { title, peak, taken } = await peakOfMadeUp(environment, make);
        add(shale.title, title, peak, taken, MADE_UP_BAR);
      }
    }
    for (const contestant of contestants.filter((c) => PEERS.includes(c))) {
      const image = environment.images.find(({ name }) => name === PEER_IMAGE)!;
      const { peak, taken } = await peakOfPull(environment, contestant, image);
      add(contestant.title, image.name, peak, taken);
    }
    return {
      goals,
      tables: [
        {
          title: "Peak memory",
          columns: ["pull", "peak", "time"],
          rows,
          notes: [
            "Largest sum of the resident high-water marks of all processes of a contestant (its daemon too) alive at one time. One run; times are not those of the race.",
          ],
        },
      ],
    };
  },
};

interface Peak {
  readonly peak: number;
  readonly taken: number;
}

async function peakOfPull(environment: Environment, contestant: Contestant, image: BenchImage): Promise<Peak> {
  const directory = mkdtempSync(join(environment.work, "memory-"));
  try {
    await using attempt = await contestant.prepare(environment, directory);
    const { peak, value } = await peakMemory([environment.registryPid], () => timed(() => attempt.pull(image)));
    return { peak, taken: value.seconds };
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

async function peakOfMadeUp(
  environment: Environment,
  make: (directory: string) => MadeUpImage,
): Promise<Peak & { readonly title: string }> {
  const directory = mkdtempSync(join(environment.work, "made-up-"));
  try {
    const { title, reference } = make(join(directory, "oci"));
    const { peak, value } = await peakMemory([environment.registryPid], () =>
      timed(() => shaleCommand(join(directory, "root"), ["pull", "--quiet", reference], environment)),
    );
    return { title, peak, taken: value.seconds };
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}
