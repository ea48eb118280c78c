/** A snapshotter on a store of its own, layers to put into it, and the client's part: performing mounts. For tests only. */
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmdirSync } from "node:fs";
import { join } from "node:path";
import type { DiffId } from "../../oci/index.ts";
import { Store, type StoreOperation } from "../../store/index.ts";
import { type Files, ingest, tar } from "../../store/testing/fixtures.ts";
import { mountInfo, unmount } from "../../sys/index.ts";
import { withTemporaryDirectory } from "../../sys/testing/filesystems.ts";
import { openSnapshotter } from "../index.ts";
import type { SnapshotMount, Snapshotter, SnapshotterEvent, SnapshotterOptions } from "../types.ts";

export interface Bench {
  readonly root: string;
  readonly scratch: string;
  store: Store;
  snapshotter: Snapshotter;
  readonly events: SnapshotterEvent[];
  /** Closes both and opens them again, as a restart of the daemon. */
  restart(options?: SnapshotterOptions): Promise<void>;
  /** Puts a layer into the store. */
  layer(files: Files): Promise<DiffId>;
  /** A committed snapshot of a layer, as a differ makes it. */
  commitLayer(name: string, parent: string, files: Files): Promise<DiffId>;
  /** A committed snapshot of a directory, as the walking differ makes it. */
  commitPlain(name: string, parent: string, fill: (directory: string) => void): Promise<void>;
  /** Performs mounts while `use` runs, or until its promise settles. */
  mounted<T>(mounts: readonly SnapshotMount[], use: (directory: string) => T): T;
}

/** Whatever happens, nothing stays mounted below the scratch directory. */
export async function withBench(use: (bench: Bench) => Promise<void>, options: SnapshotterOptions = {}): Promise<void> {
  await withTemporaryDirectory(async (scratch) => {
    const root = join(scratch, "store");
    const events: SnapshotterEvent[] = [];
    const open = async (given: SnapshotterOptions) => {
      const store = Store.open(root, { create: true });
      try {
        return {
          store,
          snapshotter: await openSnapshotter(store, { onEvent: (event) => events.push(event), ...given }),
        };
      } catch (error) {
        await store.close();
        throw error;
      }
    };
    let layers = 0;
    const bench: Bench = {
      ...{ root, scratch, events },
      ...(await open(options)),
      async restart(changed = options) {
        await bench.snapshotter.close();
        await bench.store.close();
        Object.assign(bench, await open(changed));
      },
      async layer(files) {
        using operation = bench.store.begin("test");
        return await putLayer(operation, join(scratch, `layer-${layers++}.tar`), files);
      },
      async commitLayer(name, parent, files) {
        const key = `extract-${name}`;
        await bench.snapshotter.prepare(key, parent, {});
        using operation = bench.store.begin("test");
        const diffId = await putLayer(operation, join(scratch, `layer-${layers++}.tar`), files);
        bench.snapshotter.attachLayer(key, operation, diffId);
        await bench.snapshotter.commit(name, key, {});
        return diffId;
      },
      async commitPlain(name, parent, fill) {
        const key = `extract-${name}`;
        const mounts = await bench.snapshotter.prepare(key, parent, {});
        bench.mounted(mounts, fill);
        await bench.snapshotter.commit(name, key, {});
      },
      mounted: (mounts, act) => performed(mounts, scratch, act),
    };
    try {
      await use(bench);
      await bench.snapshotter.settled();
    } finally {
      try {
        await bench.snapshotter.close();
        await bench.store.close();
      } finally {
        unmountBelow(scratch);
      }
    }
  });
}

async function putLayer(operation: StoreOperation, path: string, files: Files): Promise<DiffId> {
  const ingested = await ingest(operation, path, tar(files));
  operation.commitLayers([ingested]);
  return ingested.diffId as DiffId;
}

/** As containerd does: with the mount program's own reading of the options, so that what we write is what others understand. */
export function performed<T>(mounts: readonly SnapshotMount[], scratch: string, use: (directory: string) => T): T {
  const target = mkdtempSync(join(scratch, "mnt-"));
  let count = 0;
  const undo = () => {
    for (; count > 0; count--) unmount(target);
    rmdirSync(target);
  };
  let result: T;
  try {
    for (const { type, source, options } of mounts) {
      if (type === "bind") {
        execFileSync("mount", ["--bind", source, target]);
        count++;
        if (options.includes("ro")) execFileSync("mount", ["-o", "remount,bind,ro", target]);
      } else {
        execFileSync("mount", ["-t", type, source, target, "-o", options.join(",")]);
        count++;
      }
    }
    result = use(target);
  } catch (error) {
    undo();
    throw error;
  }
  if (result instanceof Promise) return result.finally(undo) as T;
  undo();
  return result;
}

export function unmountBelow(directory: string): void {
  for (const { mountPoint } of mountInfo().reverse()) {
    if (mountPoint.startsWith(`${directory}/`)) unmount(mountPoint, { lazy: true });
  }
}

export function mountsBelow(directory: string): string[] {
  return mountInfo()
    .map((entry) => entry.mountPoint)
    .filter((path) => path.startsWith(`${directory}/`));
}

export function makeDirectories(directory: string, ...paths: readonly string[]): void {
  for (const path of paths) mkdirSync(join(directory, path), { recursive: true });
}
