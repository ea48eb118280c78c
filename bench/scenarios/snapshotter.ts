/**
 * shale as containerd's snapshotter, against the overlayfs snapshotter of the same containerd (2.1).
 *
 * Both are driven by the machine of the snapshotter's own tests: a containerd in namespaces of its own, the daemon on the
 * host. Both pull by the transfer service; unpigz is in containerd's tree.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { mapConcurrent } from "../../src/async/index.ts";
import { type SnapshotsMethods, snapshotsMethods } from "../../src/daemon/services/messages.ts";
import { RpcClient } from "../../src/rpc/index.ts";
import { Machine, type MachineOptions, type Way } from "../../tests/snapshotter/testing/machine.ts";
import type { BenchImage, Environment } from "../environment.ts";
import { dropCaches, interleave, median, syncFileSystem, timed } from "../measure.ts";
import { PEER_TREE } from "../peer-tree.ts";
import {
  atLeast,
  atMost,
  type Findings,
  type Goal,
  megabytes,
  milliseconds,
  seconds,
  type Table,
  times,
} from "../report.ts";
import type { Scenario } from "./scenario.ts";

const RACED = ["python", "node"];
const CONTAINERS = 100;
const SNAPSHOTS = [1, 1_000, 20_000];
const CYCLES = 10_000;

interface Racer {
  readonly id: string;
  readonly title: string;
  readonly snapshotter: "shale" | "overlayfs";
  readonly way: Way;
}

const RACERS: readonly Racer[] = [
  { id: "remote", title: "shale, remote", snapshotter: "shale", way: "remote" },
  { id: "differ", title: "shale, differ", snapshotter: "shale", way: "differ" },
  { id: "overlayfs", title: "overlayfs", snapshotter: "overlayfs", way: "plain" },
];

export const snapshotter: Scenario = {
  id: "snapshotter",
  summary: "containerd 2.1 with shale's snapshotter and with overlayfs: pull and run, 100 containers, calls, memory",
  async run(environment, { rounds, log }): Promise<Findings> {
    const parts = [
      await racePulls(environment, rounds, log),
      await manyContainers(environment, log),
      await manySnapshots(environment, log),
    ];
    return { goals: parts.flatMap((part) => part.goals), tables: parts.flatMap((part) => part.tables) };
  },
};

function startMachine(environment: Environment, way: Way, options: Partial<MachineOptions> = {}): Promise<Machine> {
  return Machine.start({ generation: "2.1", way, tree: PEER_TREE, parent: environment.work, ...options });
}

// --- pull, unpack, run true

interface Taken {
  /** Until `true` had ended. */
  readonly run: number;
  /** And everything was durable (syncfs). */
  readonly durable: number;
}

async function racePulls(environment: Environment, rounds: number, log: (line: string) => void): Promise<Findings> {
  const images = environment.images.filter(({ name }) => RACED.includes(name));
  const goals: Goal[] = [];
  const rows: string[][] = [];
  for (const image of images) {
    const runs = new Map<string, Taken[]>(RACERS.map(({ id }) => [id, []]));
    for (const racer of interleave(RACERS, rounds)) {
      const taken = await pullAndRun(environment, racer, image);
      runs.get(racer.id)!.push(taken);
      log(`snapshotter: ${image.name}, ${racer.title}: ${seconds(taken.run)}, durable ${seconds(taken.durable)}`);
    }
    const middle = (id: string, of: keyof Taken) => median(runs.get(id)!.map((taken) => taken[of]));
    for (const { id, title } of RACERS) {
      const ratio = (of: keyof Taken) => times(middle("overlayfs", of) / middle(id, of));
      rows.push([
        ...[image.name, title, seconds(middle(id, "run")), ratio("run")],
        ...[seconds(middle(id, "durable")), ratio("durable")],
      ]);
    }
    const faster = (id: string) => middle("overlayfs", "run") / middle(id, "run");
    goals.push(atLeast(`pull + unpack + run ${image.name}: overlayfs / remote`, faster("remote"), 3, times));
    goals.push(atLeast(`pull + unpack + run ${image.name}: overlayfs / differ`, faster("differ"), 1.5, times));
  }
  const table: Table = {
    title: "ctr pull, unpack and run of `true`, cold",
    columns: ["image", "snapshotter", "until it has run", "overlayfs / it", "and durable", "overlayfs / it"],
    rows,
    notes: [
      `Median of ${rounds}, interleaved. Empty stores, caches dropped before, then a tiny image pulled, so that no program is read from a cold disk.`,
      "overlayfs leaves its files to the page cache; shale's layers are durable when they are committed. The last two columns include syncfs.",
    ],
  };
  return { goals, tables: [table] };
}

async function pullAndRun(environment: Environment, { snapshotter, way }: Racer, image: BenchImage): Promise<Taken> {
  await using machine = await startMachine(environment, way);
  await dropCaches();
  await machine.pull(environment.warmUp.reference, snapshotter);
  const started = process.hrtime.bigint();
  const since = () => Number(process.hrtime.bigint() - started) / 1e9;
  await machine.pull(image.reference, snapshotter);
  await machine.runContainer(image.reference, "bench", ["/bin/true"], { snapshotter });
  const run = since();
  await syncFileSystem(machine.directory);
  return { run, durable: since() };
}

// --- 100 containers

async function manyContainers(environment: Environment, log: (line: string) => void): Promise<Findings> {
  const image = environment.images.find(({ name }) => name === "python")!;
  const rows: string[][] = [];
  for (const racer of RACERS.filter(({ id }) => id !== "differ")) {
    const { snapshotter } = racer;
    await using machine = await startMachine(environment, racer.way);
    await machine.pull(image.reference, snapshotter);
    const ids = Array.from({ length: CONTAINERS }, (_, i) => `many-${i}`);
    const words = ["run", "-d", "--null-io", "--snapshotter", snapshotter, image.reference];
    await dropCaches();
    const cached = pageCache();
    const made = await timed(() => mapConcurrent(ids, 4, (id) => machine.mustCtr(...words, id, "sleep", "100000")));
    // The same files in each: the page cache has them once, or once a container.
    const read = ["sh", "-c", "cat /usr/lib/python3/dist-packages/numpy/core/*.py >/dev/null"];
    await mapConcurrent(ids, 4, (id) =>
      machine.mustCtr("tasks", "exec", "--exec-id", "read", "--fifo-dir", machine.fifoDirectory, id, ...read),
    );
    const cache = pageCache() - cached;
    const host = machine.mounts().length;
    const mounts = (await machine.inside(["cat", "/proc/mounts"])).stdout.split("\n").length;
    const memory = residentMemory(machine.daemon.pid);
    const removed = await timed(async () => {
      await mapConcurrent(ids, 4, (id) => machine.mustCtr("tasks", "rm", "-f", id));
      await mapConcurrent(ids, 4, (id) => machine.mustCtr("containers", "rm", id));
    });
    rows.push([
      ...[racer.title, seconds(made.seconds), seconds(removed.seconds), String(mounts), String(host)],
      ...[snapshotter === "shale" ? megabytes(memory) : "-", megabytes(cache)],
    ]);
    log(
      `snapshotter: ${CONTAINERS} containers, ${racer.title}: ${seconds(made.seconds)}, removed in ${seconds(removed.seconds)}`,
    );
  }
  const table: Table = {
    title: `${CONTAINERS} containers of one image (python)`,
    columns: [
      "snapshotter",
      "run",
      "remove",
      "/proc/mounts where containerd is",
      "made by shale",
      "daemon",
      "page cache",
    ],
    rows,
    notes: [
      "Four at a time; containerd, runc and its shims are most of the time. Page cache: growth while they start and read the same files.",
    ],
  };
  return { goals: [], tables: [table] };
}

// --- calls, start, memory

async function manySnapshots(environment: Environment, log: (line: string) => void): Promise<Findings> {
  const goals: Goal[] = [];
  const rows: string[][] = [];
  await using machine = await startMachine(environment, "plain");
  // Its collector would remove what it has not been told of.
  await machine.stopContainerd();
  const methods = snapshotsMethods();
  const middles: number[] = [];
  let there = 0;
  for (const count of SNAPSHOTS) {
    using client = new RpcClient(machine.socket);
    const missing = Array.from({ length: count - there }, (_, i) => there + i);
    await mapConcurrent(missing, 32, (i) => commitOne(client, methods, `seed-${i}`));
    there = count;
    const calls: Record<"Prepare" | "Commit" | "Remove", number[]> = { Prepare: [], Commit: [], Remove: [] };
    const timedCall = async (name: keyof typeof calls, call: () => Promise<unknown>) => {
      calls[name].push((await timed(call)).seconds);
    };
    for (let i = 0; i < 300; i++) {
      const [key, name] = [`key-${count}-${i}`, `name-${count}-${i}`];
      await timedCall("Prepare", () =>
        client.unary(methods.Prepare, { snapshotter: "shale", key, parent: "seed-0", labels: {} }),
      );
      await timedCall("Commit", () => client.unary(methods.Commit, { snapshotter: "shale", key, name, labels: {} }));
      await timedCall("Remove", () => client.unary(methods.Remove, { snapshotter: "shale", key: name }));
    }
    await client.unary(methods.Cleanup, { snapshotter: "shale" }, { timeoutMs: 600_000 });
    const sums = calls.Prepare.map((prepare, i) => prepare + calls.Commit[i]! + calls.Remove[i]!);
    middles.push(quantile(sums, 0.5));
    rows.push([
      count.toLocaleString("en"),
      ...[calls.Prepare, calls.Commit, calls.Remove, sums].flatMap((list) => [
        fine(quantile(list, 0.5)),
        fine(quantile(list, 0.99)),
      ]),
    ]);
    log(
      `snapshotter: ${count} snapshots: Prepare + Commit + Remove ${fine(quantile(sums, 0.5))}, p99 ${fine(quantile(sums, 0.99))}`,
    );
  }
  goals.push(atMost("Prepare + Commit + Remove, p50: 20,000 snapshots / 1", middles.at(-1)! / middles[0]!, 1.5, times));

  const starts: number[] = [];
  for (let i = 0; i < 5; i++) {
    await machine.stopDaemon();
    starts.push((await timed(() => machine.startDaemon({}, { wait: "socket" }))).seconds);
  }
  goals.push(atMost("daemon: start to serving with 20,000 snapshots", median(starts), 0.5, milliseconds));
  const idle = residentMemory(machine.daemon.pid);
  goals.push(atMost("daemon: resident memory when idle, 20,000 snapshots", idle, 120e6, megabytes));

  using client = new RpcClient(machine.socket);
  const cycles = async (count: number) => {
    for (let i = 0; i < count; i++) {
      const key = `cycle-${i}`;
      await client.unary(methods.Prepare, { snapshotter: "shale", key, parent: "seed-0", labels: {} });
      await client.unary(methods.Remove, { snapshotter: "shale", key });
      if (i % 100 === 99) await client.unary(methods.Cleanup, { snapshotter: "shale" }, { timeoutMs: 600_000 });
    }
  };
  await cycles(CYCLES / 10); // caches and compiled code reach their size
  const before = residentMemory(machine.daemon.pid);
  const { seconds: taken } = await timed(() => cycles(CYCLES));
  const after = residentMemory(machine.daemon.pid);
  goals.push(
    atMost(
      `daemon: memory after ${CYCLES.toLocaleString("en")} Prepare and Remove / before`,
      after / before,
      1.1,
      times,
    ),
  );
  log(
    `snapshotter: ${CYCLES} cycles in ${seconds(taken)}: ${megabytes(before)} before, ${megabytes(after)} after; idle ${megabytes(idle)}`,
  );
  const table: Table = {
    title: "Calls of a daemon with many snapshots",
    columns: ["snapshots", ...["Prepare", "Commit", "Remove", "all three"].flatMap((name) => [`${name} p50`, "p99"])],
    rows,
    notes: [
      "Over gRPC, one after the other, each durable when it is answered. Snapshots are directories without content.",
      `Idle: ${megabytes(idle)}. ${CYCLES.toLocaleString("en")} cycles of Prepare and Remove: ${megabytes(before)} before, ${megabytes(after)} after, ${seconds(taken)}.`,
    ],
  };
  return { goals, tables: [table] };
}

async function commitOne(client: RpcClient, methods: SnapshotsMethods, name: string): Promise<void> {
  await client.unary(methods.Prepare, { snapshotter: "shale", key: `${name}-key`, parent: "", labels: {} });
  await client.unary(methods.Commit, { snapshotter: "shale", key: `${name}-key`, name, labels: {} });
}

function quantile(values: readonly number[], q: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))]!;
}

const fine = (value: number): string => `${(value * 1000).toFixed(2)} ms`;

function residentMemory(pid: number): number {
  return 1024 * Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(join("/proc", String(pid), "status"), "utf8"))?.[1]);
}

function pageCache(): number {
  return 1024 * Number(/^Cached:\s+(\d+) kB$/m.exec(readFileSync("/proc/meminfo", "utf8"))?.[1]);
}
