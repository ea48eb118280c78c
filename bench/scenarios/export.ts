/**
 * Exports of the node image: the verity tree against veritysetup, disk and tree against mkfs.erofs and veritysetup, and a disk on XFS,
 * whose payloads are shared with the store.
 */
import { mkdirSync, mkdtempSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { shale, shaleCommand } from "../contestants/index.ts";
import type { BenchImage } from "../environment.ts";
import { dropCaches, interleave, median, syncFileSystem, timed } from "../measure.ts";
import { enterPeerTree, type PeerTree } from "../peer-tree.ts";
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
    // Pages of the input warm, whatever the kernel reclaimed meanwhile: exporting is measured, not the disk's reading.
    const measure = async (name: string, input: string, work: () => Promise<unknown>) => {
      await syncFileSystem(place);
      await run(["find", input, "-type", "f", "-exec", "dd", "if={}", "of=/dev/null", "bs=4M", "status=none", ";"]);
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
      for (const name of ["peer-tree", "tree-1", "tree-2"]) rmSync(join(place, name), { force: true });
      await measure("veritysetup", disk, () =>
        run(["veritysetup", "format", disk, join(place, "peer-tree"), `--salt=${SALT}`]),
      );
      await measure("shale, one thread", disk, () => command(root, verity(1, "tree-1")));
      await measure("shale, two threads", disk, () => command(root, verity(2, "tree-2")));
    }
    // In turns: a disk that takes a burst faster than what follows it would favour whoever is first.
    const disks = [
      () =>
        measure("bare copy, synced", disk, () =>
          run(["dd", `if=${disk}`, `of=${join(place, "copy")}`, "bs=1M", "conv=fsync", "status=none"], { signal }),
        ),
      () => measure("peer disk", tar, () => peerDisk(peers, tar, join(place, "peer-disk"), signal)),
      () =>
        measure("shale disk", root, () =>
          command(root, ["export", node.reference, "--verity", "-o", join(place, "own-disk")]),
        ),
    ];
    for (const make of interleave(disks, rounds)) {
      for (const name of ["copy", "peer-disk", "own-disk"]) rmSync(join(place, name), { force: true });
      await make();
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
        "disk with verity, no reflinks: mkfs.erofs + veritysetup / shale",
        of("peer disk") / of("shale disk"),
        PEER_BAR,
        times,
      ),
    ];
    goals.push(
      ...(await onXfs({ place, node, command, rounds, signal, measure, log })),
      atLeast(
        "disk with verity on XFS: mkfs.erofs + veritysetup / shale",
        of("peer disk on XFS") / of("shale disk on XFS"),
        PEER_BAR,
        times,
      ),
    );
    const rows = [...taken.keys()].map((name) => [name, seconds(of(name))]);
    return {
      goals,
      tables: [
        {
          title: "Export of the node image",
          columns: ["step", "median"],
          rows: [...rows, ["size of the disk", megabytes(statSync(disk).size)]],
          notes: [
            "Whole commands, the start of Node included; input in memory, output synced. The peer starts from the flattened tar.",
          ],
        },
      ],
    };
  },
};

/** mkfs.erofs from the flattened tar, then veritysetup, until the result is as durable as an export of shale. */
async function peerDisk(peers: PeerTree, tar: string, image: string, signal: AbortSignal): Promise<void> {
  await peers.exec(["mkfs.erofs", "--tar=f", "--quiet", peers.inside(image), peers.inside(tar)], { signal });
  const hashOffset = Math.ceil(statSync(image).size / 4096) * 4096;
  await run(["veritysetup", "format", image, image, `--hash-offset=${hashOffset}`], { signal });
  await run(["sync", image], { signal });
}

interface XfsRun {
  readonly place: string;
  readonly node: BenchImage;
  readonly rounds: number;
  readonly signal: AbortSignal;
  command(root: string, args: readonly string[]): Promise<unknown>;
  /** Times `work` under a name, with the files below `input` in memory. */
  measure(name: string, input: string, work: () => Promise<unknown>): Promise<void>;
  log(line: string): void;
}

/** A store and disks on an XFS loop file: time, and what a disk takes beyond the store. */
async function onXfs(xfs: XfsRun): Promise<readonly Goal[]> {
  const { place, node, command, rounds, signal, measure, log } = xfs;
  const image = join(place, "xfs.img");
  const mount = join(place, "xfs");
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
    const taken: number[] = [];
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
      if (round > 0) taken.push(time); // the first one makes the merged image, too
    }
    const tar = join(mount, "tar");
    await command(root, ["export", node.reference, "--format", "tar", "-o", tar]);
    await using peers = await enterPeerTree(mount, ["sleep", "infinity"], { signal });
    for (let round = 0; round < rounds; round++) {
      for (const name of ["peer-disk", "own-disk"]) rmSync(join(mount, name), { force: true });
      await measure("peer disk on XFS", tar, () => peerDisk(peers, tar, join(mount, "peer-disk"), signal));
      await measure("shale disk on XFS", root, () =>
        command(root, ["export", node.reference, "--verity", "-o", join(mount, "own-disk")]),
      );
    }
    return [
      atMost("disk on XFS without verity", median(taken), XFS_BAR, seconds),
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
