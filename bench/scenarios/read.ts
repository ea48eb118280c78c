/**
 * Reading a whole root file system with `tar c | cat`, cold and warm: through shale's mount, and of the same tree unpacked
 * on the file system under test (by umoci, so that the order on disk is an unpacker's).
 */
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { type Contestant, shale } from "../contestants/index.ts";
import { umoci } from "../contestants/umoci.ts";
import type { BenchImage, Environment } from "../environment.ts";
import { dropCaches, interleave, median, timed } from "../measure.ts";
import { run } from "../process.ts";
import { type Goal, seconds, times } from "../report.ts";
import type { Scenario } from "./scenario.ts";

const IMAGES = ["python", "node"];

interface Reading {
  readonly cold: number[];
  readonly warm: number[];
}

export const read: Scenario = {
  id: "read",
  summary: "reading the whole tree through the mount and from an unpacked directory",
  async run(environment, { rounds, contestants, log }) {
    const goals: Goal[] = [];
    const rows: string[][] = [];
    const readers = [umoci, shale].filter((c) => contestants.includes(c));
    for (const image of environment.images.filter(({ name }) => IMAGES.includes(name))) {
      const readings = await readTrees(environment, image, readers, rounds, log);
      const unpacked = readings.get(umoci);
      const mounted = readings.get(shale);
      for (const state of ["cold", "warm"] as const) {
        const plain = unpacked && median(unpacked[state]);
        const own = mounted && median(mounted[state]);
        const ratio = plain !== undefined && own !== undefined ? times(plain / own) : "-";
        const show = (value: number | undefined) => (value === undefined ? "-" : seconds(value));
        rows.push([`${image.name}, ${state}`, show(own), show(plain), ratio]);
        if (ratio !== "-") {
          goals.push({
            name: `read ${image.name}, ${state}: unpacked / mount`,
            bar: "-",
            measured: ratio,
            met: undefined,
          });
        }
      }
    }
    return {
      goals,
      tables: [
        {
          title: "Reading the whole tree (tar c | cat)",
          columns: ["tree", "shale mount", "unpacked", "unpacked / mount"],
          rows,
          notes: [
            "Cold: caches dropped before. Warm: the same again directly after. Above 1.00 x the mount is faster.",
          ],
        },
      ],
    };
  },
};

async function readTrees(
  environment: Environment,
  image: BenchImage,
  readers: readonly Contestant[],
  rounds: number,
  log: (line: string) => void,
): Promise<Map<Contestant, Reading>> {
  const directory = mkdtempSync(join(environment.work, "read-"));
  await using stack = new AsyncDisposableStack();
  stack.defer(() => rmSync(directory, { recursive: true, force: true }));
  const roots = new Map<Contestant, string>();
  for (const reader of readers) {
    const place = join(directory, reader.id);
    mkdirSync(place);
    const attempt = stack.use(await reader.prepare(environment, place));
    roots.set(reader, (await attempt.pull(image))!); // both make a root file system
  }
  const readings = new Map<Contestant, Reading>(readers.map((reader) => [reader, { cold: [], warm: [] }]));
  for (const reader of interleave(readers, rounds)) {
    const root = roots.get(reader)!;
    await dropCaches();
    await run(["tar", "--version"]);
    for (const state of ["cold", "warm"] as const) {
      // GNU tar notices /dev/null as its output and reads nothing: hence the pipe.
      const command = ["bash", "-o", "pipefail", "-c", 'tar -C "$0" -c . | cat >/dev/null', root];
      const { seconds: taken } = await timed(() => run(command, { signal: environment.signal }));
      readings.get(reader)![state].push(taken);
      log(`read ${image.name} ${state}: ${reader.title} ${seconds(taken)}`);
    }
  }
  return readings;
}
