/**
 * Checkouts of the node image on an ext4 and an XFS of their own: time against `umoci raw unpack` and `tar x`, what a second one
 * takes on the disk, and in memory.
 *
 * All start from what a pull leaves: umoci and tar from the compressed layers of an OCI layout, shale from its store. Pages are
 * warm. Each writes to a new directory, and nothing is removed until the end: ext4 searches long for inodes that were not in
 * use in the last five seconds. All times are to the disk (syncfs).
 */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { shale, shaleCommand } from "../contestants/index.ts";
import { dropCaches, median, syncFileSystem, timed } from "../measure.ts";
import { enterPeerTree } from "../peer-tree.ts";
import { hasCommand, run } from "../process.ts";
import { atLeast, atMost, type Findings, type Goal, megabytes, seconds, times } from "../report.ts";
import type { Scenario, ScenarioOptions } from "./scenario.ts";

const COPY_BAR = 3;
const SHARE_BAR = 5;
const SECOND_BAR = 0.03;
const RESIDENT_BAR = 0.99;
const percent = (part: number): string => `${(part * 100).toFixed(2)} %`;

export const checkout: Scenario = {
  id: "checkout",
  summary: "shale checkout of the node image, against umoci and tar",
  async run({ work, layout, signal }, options) {
    if (!options.contestants.includes(shale)) return { goals: [], tables: [] };
    const missing = ["mkfs.xfs", "mkfs.ext4", "fincore"].filter((command) => !hasCommand(command));
    if (missing.length > 0) {
      options.log(`checkout: left out, ${missing.join(", ")} not installed`);
      return { goals: [], tables: [] };
    }
    const ext4 = await onLoopFile(work, "ext4", layout, options, signal);
    const xfs = await onLoopFile(work, "xfs", layout, options, signal);
    return { goals: [...ext4.goals, ...xfs.goals], tables: [...ext4.tables, ...xfs.tables] };
  },
};

/** How the second and later checkouts share, and what `--link` says for it. */
const SHARING = { ext4: "hardlink", xfs: "reflink" } as const;

async function onLoopFile(
  work: string,
  type: keyof typeof SHARING,
  layout: string,
  { rounds, log }: ScenarioOptions,
  signal: AbortSignal,
): Promise<Findings> {
  const place = mkdtempSync(join(work, `checkout-${type}-`));
  const image = join(place, "image");
  const mount = join(place, "mnt");
  mkdirSync(mount);
  writeFileSync(image, "");
  await using cleanup = new AsyncDisposableStack();
  cleanup.defer(() => rmSync(place, { recursive: true, force: true }));
  await run(["truncate", "-s", "40G", image]);
  await run([`mkfs.${type}`, "-q", image]);
  await run(["mount", "-o", "loop", image, mount]);
  cleanup.defer(async () => {
    await run(["umount", mount]);
  });

  const reference = `oci:${join(mount, "layout")}:node`;
  await run(["skopeo", "copy", "-q", `oci:${layout}:node`, reference], { signal });
  const root = join(mount, "store");
  await shaleCommand(root, ["pull", "-q", reference], { signal });
  const layers = await layersOf(join(mount, "layout"));
  const tars = layers.map((_, number) => join(mount, `layer-${number}.tar`));
  for (const [number, path] of layers.entries()) {
    await run(["sh", "-c", 'gzip -dc "$1" >"$2"', "sh", path, tars[number]!], { signal });
  }
  const peers = cleanup.use(await enterPeerTree(mount, ["sleep", "infinity"], { signal }));
  const used = async () => {
    await syncFileSystem(mount);
    return Number((await run(["df", "-B1", "--output=used", mount])).split("\n")[1]);
  };

  let count = 0;
  const taken = new Map<string, number[]>();
  const measure = async (name: string, make: (target: string) => Promise<unknown>): Promise<string> => {
    await syncFileSystem(mount);
    const target = join(mount, `tree-${count++}`);
    const { seconds: time } = await timed(async () => {
      await make(target);
      await syncFileSystem(mount);
    });
    taken.set(name, [...(taken.get(name) ?? []), time]);
    log(`checkout on ${type}: ${name} ${seconds(time)}`);
    return target;
  };
  const own = (link: string) => (target: string) =>
    shaleCommand(root, ["checkout", "-q", "--link", link, reference, target], { signal });
  const unpack = (paths: readonly string[], mode: string) => async (target: string) => {
    mkdirSync(target);
    for (const path of paths) {
      await run(["tar", mode, path, "-C", target, "-p", "--numeric-owner", "--xattrs", "--xattrs-include=*"], {
        signal,
      });
    }
  };

  const link = SHARING[type];
  await own("copy")(join(mount, "warm-up")); // programs, and the merged image
  const before = await used();
  const first = await measure(`shale, first by ${link}`, own(link));
  const between = await used();
  const second = await measure(`shale, by ${link}`, own(link));
  const after = await used();
  for (let round = 0; round < rounds; round++) {
    await measure("umoci raw unpack", (target) =>
      peers.exec(["umoci", "raw", "unpack", "--image", "/share/layout:node", peers.inside(target)], { signal }),
    );
    await measure("shale, by copy", own("copy"));
    await measure("bare: cp -a of a checkout", (target) =>
      run(["cp", "-a", "--reflink=never", first, target], { signal }),
    );
    await measure("tar x, of gzip", unpack(layers, "-xzf"));
    await measure(`shale, by ${link}`, own(link));
    await measure("tar x, of plain tars", unpack(tars, "-xf"));
  }
  const of = (name: string) => median(taken.get(name)!);
  const bytes = Number(
    await run(["sh", "-c", 'find "$1" -type f -printf "%s\\n" | awk "{ sum += \\$1 } END { print sum }"', "sh", first]),
  );
  // Hard links: the first one takes the files. Reflinks: it shares with the store, so that its files' sizes are the measure.
  const whole = type === "ext4" ? between - before : bytes;
  const goals: Goal[] = [];
  const against = ["umoci raw unpack", "tar x, of gzip"];
  for (const peer of against) {
    if (type === "ext4") {
      goals.push(atLeast(`checkout by copy: ${peer} / shale`, of(peer) / of("shale, by copy"), COPY_BAR, times));
    }
    const ratio = of(peer) / of(`shale, by ${link}`);
    goals.push(atLeast(`checkout by ${link} on ${type}: ${peer} / shale`, ratio, SHARE_BAR, times));
  }
  const part = (after - between) / whole;
  goals.push(atMost(`second checkout by ${link} on ${type}, of the first`, part, SECOND_BAR, percent));
  if (type === "ext4") {
    await dropCaches();
    await run(["sh", "-c", 'find "$1" -type f -exec cat {} + >/dev/null', "sh", first], { signal });
    const resident = await residentBytes(second);
    goals.push({
      ...atLeast(
        "second checkout by hardlink: in memory once the first was read",
        resident / bytes,
        RESIDENT_BAR,
        percent,
      ),
    });
    log(`checkout: fincore finds ${megabytes(resident)} of ${megabytes(bytes)} of the unread one`);
  }
  const rows = [...taken.keys()].map((name) => [name, seconds(of(name))]);
  return {
    goals,
    tables: [
      {
        title: `Checkout of the node image on ${type}`,
        columns: ["step", "median"],
        rows: [
          ...rows,
          ["sizes of the files", megabytes(bytes)],
          ["disk, first", megabytes(between - before)],
          ["disk, second", megabytes(after - between)],
        ],
        notes: [
          "Whole commands, the start of Node included, to the disk (syncfs). Pages are warm.",
          "tar x handles no whiteouts; of plain tars means that decompression is not counted. Disk by df.",
        ],
      },
    ],
  };
}

async function layersOf(layout: string): Promise<string[]> {
  const manifest = JSON.parse(await run(["skopeo", "inspect", "--raw", `oci:${layout}:node`])) as {
    readonly layers: readonly { readonly digest: string }[];
  };
  return manifest.layers.map(({ digest }) => join(layout, "blobs", digest.replace(":", "/")));
}

/** Bytes of the files below a directory that are in the page cache, as fincore(1) tells. */
async function residentBytes(directory: string): Promise<number> {
  const command = 'find "$1" -type f -size +0 -exec fincore --bytes --noheadings --output RES,SIZE {} +';
  const lines = (await run(["sh", "-c", command, "sh", directory])).trim().split("\n");
  // RES is in whole pages.
  return lines.reduce((sum, line) => {
    const [resident, size] = line.trim().split(/\s+/).map(Number);
    return sum + Math.min(resident!, size!);
  }, 0);
}
