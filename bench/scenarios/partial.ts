/**
 * Pulling in parts: python-rebuilt as zstd:chunked into stores that have python, over lines of several rates and latencies,
 * against the whole pull of the same image and against the partial pull of containers/storage.
 *
 * The images are made by skopeo of the peer tree. Before each run: a store with python alone, caches dropped. Timed: the
 * pull, and syncfs(2) of the file system. Bytes are those that the proxy passed on, heads and manifests included.
 */
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { peerVersion } from "../contestants/peer-version.ts";
import { shaleCommand } from "../contestants/shale.ts";
import type { Environment } from "../environment.ts";
import { dropCaches, median, syncFileSystem, timed } from "../measure.ts";
import { enterPeerTree, type PeerTree } from "../peer-tree.ts";
import { run } from "../process.ts";
import { atLeast, atMost, type Goal, megabytes, seconds, times } from "../report.ts";
import { type Line, startThrottledProxy } from "../throttled-proxy.ts";
import type { Scenario } from "./scenario.ts";

const MBIT = 125_000;
const LINES: readonly Line[] = [100, 1000, Number.POSITIVE_INFINITY].flatMap((mbit) =>
  [1, 20, 100].map((latencyMs) => ({
    name: `${Number.isFinite(mbit) ? `${mbit} Mbit/s` : "no limit"}, ${latencyMs} ms`,
    rate: mbit * MBIT,
    latencyMs,
  })),
);
const HELD = "python";
const PULLED = "python-rebuilt";

/** One way of pulling; `directory` is empty. `prepare` gives it a store with HELD, `pull` is timed. */
interface Way {
  readonly title: string;
  readonly pull: (host: string) => Promise<void>;
  /** Gives the store back as it was prepared. */
  readonly reset: () => Promise<void>;
}

interface Measured {
  readonly seconds: number;
  readonly bytes: number;
}

export const partial: Scenario = {
  id: "partial",
  summary: "python-rebuilt as zstd:chunked into a store that has python, over several lines",
  async run(environment, { rounds, log }) {
    const registry = environment.warmUp.reference.split("/", 1)[0]!;
    await publishChunked(environment, registry, log);
    const directory = mkdtempSync(join(environment.work, "partial-"));
    const share = join(directory, "share");
    mkdirSync(share);
    await using tree = await enterPeerTree(share, ["sleep", "infinity"], { signal: environment.signal });
    try {
      const ways = [
        await shaleWay("shale, in parts", environment, registry, join(directory, "parts"), []),
        await shaleWay("shale, whole", environment, registry, join(directory, "whole"), ["--whole"]),
        await podmanWay(`podman ${await peerVersion("podman")}, in parts`, environment, registry, tree, share),
      ];
      const outlook = await forecast(environment, registry, join(directory, "parts"));
      const measured: Measured[][] = [];
      for (const line of LINES) {
        const row: Measured[] = [];
        for (const way of ways) {
          const runs: Measured[] = [];
          for (let round = 0; round < rounds; round++) {
            runs.push(await timePull(registry, line, way, directory));
            await way.reset();
          }
          row.push({ seconds: median(runs.map((one) => one.seconds)), bytes: median(runs.map((one) => one.bytes)) });
          log(`partial, ${line.name}: ${way.title} ${seconds(row.at(-1)!.seconds)}, ${megabytes(row.at(-1)!.bytes)}`);
        }
        measured.push(row);
      }
      return findings(ways, measured, outlook, rounds);
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  },
};

interface Outlook {
  /** Bytes of the missing chunks and of the TOC region. */
  readonly needed: number;
}

function findings(ways: readonly Way[], measured: readonly (readonly Measured[])[], outlook: Outlook, rounds: number) {
  const goals: Goal[] = [];
  const bytes = Math.max(...measured.map(([own]) => own!.bytes));
  goals.push(
    atMost("partial pull: bytes fetched / missing chunks + TOC", bytes / outlook.needed, 1.02, (x) => x.toFixed(4)),
  );
  for (const [at, line] of LINES.entries()) {
    const [own, whole, podman] = measured[at]!;
    if (line.rate <= 100 * MBIT) {
      goals.push(atLeast(`partial pull, ${line.name}: whole / in parts`, whole!.seconds / own!.seconds, 1, times));
    }
    goals.push(atLeast(`partial pull, ${line.name}: podman / shale`, podman!.seconds / own!.seconds, 3, times));
  }
  return {
    goals,
    tables: [
      {
        title: `Pull in parts: ${PULLED} as zstd:chunked, with ${HELD} in the store`,
        columns: ["line", ...ways.flatMap(({ title }) => [title, "bytes"]), "whole / parts", "podman / shale"],
        rows: LINES.map(({ name }, at) => {
          const row = measured[at]!;
          const [own, whole, podman] = row;
          return [
            name,
            ...row.flatMap((one) => [seconds(one.seconds), megabytes(one.bytes)]),
            times(whole!.seconds / own!.seconds),
            times(podman!.seconds / own!.seconds),
          ];
        }),
        notes: [
          `Median of ${rounds}. Rate and round trip are those of a loopback proxy; missing chunks and TOC are ${megabytes(outlook.needed)}.`,
        ],
      },
    ],
  };
}

/** Both images as zstd:chunked, made once by skopeo of the peer tree and kept beside the others. */
async function publishChunked(environment: Environment, registry: string, log: (line: string) => void): Promise<void> {
  const { layout, signal } = environment;
  const chunked = `${layout}-chunked`;
  if (!existsSync(join(chunked, "index.json"))) {
    log("making the zstd:chunked images");
    await using tree = await enterPeerTree(join(layout, ".."), ["sleep", "infinity"], { signal });
    for (const name of [HELD, PULLED]) {
      const from = `oci:${tree.inside(layout)}:${name}`;
      const to = `oci:${tree.inside(`${chunked}.new`)}:${name}`;
      await tree.exec(["skopeo", "copy", "-q", "--dest-compress-format", "zstd:chunked", from, to], { signal });
    }
    await run(["mv", `${chunked}.new`, chunked]);
  }
  for (const name of [HELD, PULLED]) {
    const to = `docker://${registry}/${name}:chunked`;
    await run(["skopeo", "copy", "-q", "--dest-tls-verify=false", "--preserve-digests", `oci:${chunked}:${name}`, to], {
      signal,
    });
  }
}

async function timePull(registry: string, line: Line, way: Way, directory: string): Promise<Measured> {
  await using proxy = await startThrottledProxy(registry, line);
  await dropCaches();
  const { seconds: taken } = await timed(async () => {
    await way.pull(proxy.address);
    await syncFileSystem(directory);
  });
  return { seconds: taken, bytes: proxy.receivedBytes };
}

async function shaleWay(
  title: string,
  { signal }: Environment,
  registry: string,
  root: string,
  more: readonly string[],
): Promise<Way> {
  const pull = (host: string, name: string, options: readonly string[] = []) =>
    shaleCommand(root, ["pull", "--quiet", "--tls-verify=false", ...options, `${host}/${name}:chunked`], { signal });
  const restore = async () => {
    rmSync(root, { recursive: true, force: true });
    await run(["cp", "-a", `${root}.held`, root]);
  };
  await pull(registry, HELD);
  await run(["mv", root, `${root}.held`]);
  await restore();
  return {
    title,
    pull: async (host) => void (await pull(host, PULLED, more)),
    reset: restore,
  };
}

async function forecast({ signal }: Environment, registry: string, root: string): Promise<Outlook> {
  const text = await shaleCommand(
    root,
    ["--json", "pull", "--dry-run", "--tls-verify=false", `${registry}/${PULLED}:chunked`],
    { signal },
  );
  const { outlooks } = JSON.parse(text) as {
    readonly outlooks: readonly {
      readonly layers: readonly {
        readonly parts?: { readonly tocBytes: number; readonly plan: { readonly fetchBytes: number } };
      }[];
    }[];
  };
  const parts = outlooks.flatMap(({ layers }) => layers.flatMap((layer) => layer.parts ?? []));
  return { needed: parts.reduce((sum, { tocBytes, plan }) => sum + tocBytes + plan.fetchBytes, 0) };
}

async function podmanWay(
  title: string,
  { signal }: Environment,
  registry: string,
  tree: PeerTree,
  share: string,
): Promise<Way> {
  writeFileSync(
    join(share, "storage.conf"),
    `[storage]
driver = "overlay"
graphroot = "/share/root"
runroot = "/run/storage"
[storage.options.pull_options]
enable_partial_images = "true"
use_hard_links = "false"
ostree_repos = ""
`,
  );
  const podman = (args: readonly string[]) =>
    tree.exec(["env", "CONTAINERS_STORAGE_CONF=/share/storage.conf", "podman", ...args], { signal });
  await podman(["pull", "-q", "--tls-verify=false", `${registry}/${HELD}:chunked`]);
  let pulled = "";
  return {
    title,
    async pull(host) {
      pulled = `${host}/${PULLED}:chunked`;
      await podman(["pull", "-q", "--tls-verify=false", pulled]);
    },
    reset: async () => void (await podman(["rmi", "-f", pulled])),
  };
}
