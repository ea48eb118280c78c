/**
 * Exports of the node image: the verity tree against veritysetup, disk and tree against mkfs.erofs and veritysetup, and a disk on XFS,
 * whose payloads are shared with the store.
 */
import { mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { shale, shaleCommand } from "../contestants/index.ts";
import type { BenchImage } from "../environment.ts";
import { dropCaches, median, syncFileSystem, timed } from "../measure.ts";
import { enterPeerTree } from "../peer-tree.ts";
import { hasCommand, run } from "../process.ts";
import { atLeast, atMost, type Goal, megabytes, seconds, times } from "../report.ts";
import type { Scenario } from "./scenario.ts";

const TREE_BAR = 1;
const TWO_CORES_BAR = 1.5;
const PEER_BAR = 3;
const XFS_BAR = 2;
/** Metadata image and the file system's own bookkeeping; payloads are some hundred times as much. */
const XFS_NEW_BYTES_BAR = 0.1;
const SALT = "00".repeat(32);

export const exports: Scenario = {
  id: "export",
  summary: "shale export of the node image, against mkfs.erofs and veritysetup",
  async run({ work, images, signal }, { rounds, contestants, log }) {
    if (!contestants.includes(shale)) return { goals: [], tables: [] };
    const missing = ["veritysetup", "mkfs.xfs"].filter((command) => !hasCommand(command));
    if (missing.length > 0) {
      log(`export: left out, ${missing.join(", ")} not installed`);
      return { goals: [], tables: [] };
    }
    const node = images.find(({ name }) => name === "node")!;
    const place = mkdtempSync(join(work, "export-"));
    await using cleanup = new AsyncDisposableStack();
    cleanup.defer(() => rmSync(place, { recursive: true, force: true }));
    const command = (root: string, args: readonly string[]) => shaleCommand(root, [...args, "--quiet"], { signal });
    // The newest mkfs.erofs: that of Debian 12 takes no tar.
    const peers = cleanup.use(await enterPeerTree(place, ["sleep", "infinity"], { signal }));
    const root = join(place, "store");
    await command(root, ["pull", "--tls-verify=false", node.reference]);
    const disk = join(place, "disk");
    const tar = join(place, "tar");
    await command(root, ["export", node.reference, "-o", disk]);
    await command(root, ["export", node.reference, "--format", "tar", "-o", tar]);

    const taken = new Map<string, number[]>();
    const measure = async (name: string, work: () => Promise<unknown>) => {
      await syncFileSystem(place);
      const { seconds: time } = await timed(work);
      taken.set(name, [...(taken.get(name) ?? []), time]);
      log(`export: ${name} ${seconds(time)}`);
    };
    const verity = (jobs: number, out: string) => [
      "verity",
      disk,
      "--salt",
      SALT,
      "-j",
      `${jobs}`,
      "-o",
      join(place, out),
    ];
    for (let round = 0; round < rounds; round++) {
      await run(["dd", `if=${disk}`, "of=/dev/null", "bs=4M", "status=none"], { signal }); // warm for all of them: hashing is measured, not the disk
      await measure("veritysetup", () =>
        run(["veritysetup", "format", disk, join(place, "peer-tree"), `--salt=${SALT}`]),
      );
      await measure("shale, one thread", () => command(root, verity(1, "tree-1")));
      await measure("shale, two threads", () => command(root, verity(2, "tree-2")));
      await measure("peer disk", async () => {
        const image = join(place, "peer-disk");
        await peers.exec(["mkfs.erofs", "--tar=f", "--quiet", peers.inside(image), peers.inside(tar)], { signal });
        await run([
          "veritysetup",
          "format",
          image,
          image,
          `--hash-offset=${Math.ceil(statSync(image).size / 4096) * 4096}`,
        ]);
        await run(["sync", image]);
      });
      await measure("shale disk", () =>
        command(root, ["export", node.reference, "--verity", "-o", join(place, "own-disk")]),
      );
    }
    const of = (name: string) => median(taken.get(name)!);
    const goals: Goal[] = [
      atLeast(
        "verity tree, one thread: veritysetup / shale",
        of("veritysetup") / of("shale, one thread"),
        TREE_BAR,
        times,
      ),
      atLeast(
        "verity tree, two threads: veritysetup / shale",
        of("veritysetup") / of("shale, two threads"),
        TWO_CORES_BAR,
        times,
      ),
      atLeast(
        "disk with verity: mkfs.erofs + veritysetup / shale",
        of("peer disk") / of("shale disk"),
        PEER_BAR,
        times,
      ),
      ...(await onXfs(place, node, command, rounds, log)),
    ];
    const rows = [...taken.keys()].map((name) => [name, seconds(of(name))]);
    return {
      goals,
      tables: [
        {
          title: "Export of the node image",
          columns: ["step", "median"],
          rows: [...rows, ["size of the disk", megabytes(statSync(disk).size)]],
          notes: [
            "Whole commands, the start of Node included. Pages are warm. The peer starts from the flattened tar.",
          ],
        },
      ],
    };
  },
};

/** A store and a disk on an XFS loop file: time, and what the disk takes beyond the store. */
async function onXfs(
  place: string,
  node: BenchImage,
  command: (root: string, args: readonly string[]) => Promise<unknown>,
  rounds: number,
  log: (line: string) => void,
): Promise<Goal[]> {
  const image = join(place, "xfs.img");
  const mount = join(place, "xfs");
  writeFileSync(image, "");
  mkdirSync(mount);
  await run(["truncate", "-s", "8G", image]);
  await run(["mkfs.xfs", "-q", image]);
  await run(["mount", "-o", "loop", image, mount]);
  try {
    const root = join(mount, "store");
    await command(root, ["pull", "--tls-verify=false", node.reference]);
    const used = async () => {
      await syncFileSystem(mount);
      return Number((await run(["df", "-B1", "--output=used", mount])).split("\n")[1]);
    };
    const times: number[] = [];
    let size = 0;
    let grown = 0;
    for (let round = 0; round <= rounds; round++) {
      const disk = join(mount, `disk-${round}`);
      if (round === 1) await dropCaches();
      const before = await used();
      const { seconds: time } = await timed(() => command(root, ["export", node.reference, "-o", disk]));
      grown = (await used()) - before;
      size = statSync(disk).size;
      log(`export on XFS: ${seconds(time)}, ${megabytes(grown)} of ${megabytes(size)} new`);
      if (round > 0) times.push(time); // the first one makes the merged image, too
    }
    return [
      atMost("disk on XFS without verity", median(times), XFS_BAR, seconds),
      atMost(
        "new bytes of a disk on XFS, of its size",
        grown / size,
        XFS_NEW_BYTES_BAR,
        (part) => `${(part * 100).toFixed(1)} %`,
      ),
    ];
  } finally {
    await run(["umount", mount]);
  }
}
