/**
 * The work during which crash.test.ts kills: every kind of change that snapshots go through. Each step can be run again after
 * a crash, whether it was done or not, and leads to the same state. For tests only.
 */
import assert from "node:assert/strict";
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ShaleError } from "../../errors/index.ts";
import { chainIdOf, type DiffId, digestOf } from "../../oci/index.ts";
import { Store, type StoreOperation } from "../../store/index.ts";
import { collect, type Files, ingest, noise, tar } from "../../store/testing/fixtures.ts";
import { openSnapshotter } from "../index.ts";
import type { RemoteLayers, SnapshotMount, Snapshotter } from "../types.ts";

const REF = "containerd.io/snapshot.ref";

export const LAYERS: readonly Files[] = [
  { "./": "", "etc/": "", "etc/one": "1", big: noise(30_000, "one") },
  { "./": "", "etc/": "", "etc/two": "2", ".wh.big": "" },
  { "./": "", remote: noise(9000, "remote") },
];

const DIFF_IDS = LAYERS.map((files) => digestOf(tar(files)) as string as DiffId);
export const CHAIN = chainIdOf(DIFF_IDS.slice(0, 2)) as string;
export const REMOTE_CHAIN = chainIdOf(DIFF_IDS) as string;

async function put(operation: StoreOperation, scratch: string, number: number): Promise<DiffId> {
  const diffId = DIFF_IDS[number]!;
  if (operation.claimLayer(diffId) === undefined) {
    operation.commitLayers([await ingest(operation, join(scratch, `${number}.tar`), tar(LAYERS[number]!))]);
  }
  return diffId;
}

/** Resolves also when it has been done before. */
async function again(run: () => Promise<unknown>, ...codes: readonly string[]): Promise<void> {
  try {
    await run();
  } catch (error) {
    if (!ShaleError.is(error) || !codes.includes(error.code)) throw error;
  }
}

const has = (snapshotter: Snapshotter, name: string) => [...snapshotter.list([`name=="${name}"`])].length > 0;

function upperOf(mounts: readonly SnapshotMount[]): string {
  const [mount] = mounts;
  return mount!.options.find((option) => option.startsWith("upperdir="))?.slice("upperdir=".length) ?? mount!.source;
}

/** Opens ROOT's snapshotter and hands it to `use`. */
export async function opened<T>(root: string, use: (snapshotter: Snapshotter, store: Store) => Promise<T>): Promise<T> {
  await using store = Store.open(root, { create: true });
  const scratch = `${root}-scratch`;
  mkdirSync(scratch, { recursive: true });
  const remote: RemoteLayers = {
    async fetch({ chainId }, act) {
      if (chainId !== REMOTE_CHAIN) return undefined;
      using operation = store.begin("fetch");
      return act(operation, await put(operation, scratch, 2));
    },
  };
  await using snapshotter = await openSnapshotter(store, { remote, convertPlain: true });
  return await use(snapshotter, store);
}

export function runSteps(root: string): Promise<void> {
  return opened(root, async (snapshotter, store) => {
    const scratch = `${root}-scratch`;
    for (const [number, name, parent] of [
      [0, "layer-0", ""],
      [1, "layer-1", "layer-0"],
    ] as const) {
      if (has(snapshotter, name)) continue;
      await again(() => snapshotter.prepare(`extract-${number}`, parent, {}), "ALREADY_EXISTS");
      using operation = store.begin("apply");
      snapshotter.attachLayer(`extract-${number}`, operation, await put(operation, scratch, number));
      await snapshotter.commit(name, `extract-${number}`, { number: `${number}` });
    }
    await again(
      () => snapshotter.prepare("extract-remote", "layer-1", { [REF]: REMOTE_CHAIN }),
      "ALREADY_EXISTS", // of the remote snapshot
    );
    if (!has(snapshotter, "plain")) {
      await again(() => snapshotter.prepare("extract-plain", "layer-1", {}), "ALREADY_EXISTS");
      const upper = upperOf(await snapshotter.mounts("extract-plain"));
      writeFileSync(join(upper, "plain"), noise(5000, "plain"));
      await snapshotter.commit("plain", "extract-plain", {});
    }
    await again(() => snapshotter.prepare("container", "plain", {}), "ALREADY_EXISTS");
    await again(() => snapshotter.view("view", "layer-1", {}), "ALREADY_EXISTS");
    writeFileSync(join(upperOf(await snapshotter.mounts("container")), "written"), "by the container");
    snapshotter.update({ name: "container", labels: { updated: "1" } }, ["labels.updated"]);
    await snapshotter.settled();
    await again(() => snapshotter.prepare("short", "plain", {}), "ALREADY_EXISTS");
    writeFileSync(join(upperOf(await snapshotter.mounts("short")), "gone"), "");
    await snapshotter.remove("short");
    await again(() => snapshotter.remove("view"), "NOT_FOUND");
    await snapshotter.cleanup();
    await again(async () => collect(store), "FAILED_PRECONDITION");
    assert.ok(existsSync(join(root, "snapshots")));
  });
}
