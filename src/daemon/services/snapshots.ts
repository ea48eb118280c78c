/**
 * containerd's snapshots service: the wire on one side, a `Snapshotter` on the other. Nothing is decided here.
 */
import { setImmediate } from "node:timers/promises";
import { throwIfAborted } from "../../async/index.ts";
import { ShaleError } from "../../errors/index.ts";
import type { Call, Handlers } from "../../rpc/index.ts";
import type { Labels, SnapshotInfo, SnapshotMount, Snapshotter } from "../../snapshotter/index.ts";
import { KIND, type SnapshotsMethods, type Timestamp, type WireInfo, type WireMount } from "./messages.ts";

/** Snapshots per message of List, as Go's own server sends them. */
const LIST_CHUNK = 100;

/** Who wants to know of snapshots that were made; nothing waits for it, and it does not throw. */
export interface SnapshotWatcher {
  onCommit(name: string, labels: Labels): void;
  /** Something that is no unpacking stands on `parent`. */
  onUse(parent: string): void;
}

const REF = "containerd.io/snapshot.ref";

export function snapshotsService(snapshotter: Snapshotter, watcher: SnapshotWatcher): Handlers<SnapshotsMethods> {
  /** A layer that shale has fetched itself: containerd files it under this label. */
  const noteRemote = (ref: string, labels: Labels) => {
    for (const { name } of snapshotter.list([`labels."${REF}"==${ref},kind==committed`])) {
      watcher.onCommit(name, labels);
      return;
    }
  };
  return {
    async Prepare({ key, parent, labels }, call) {
      noteSnapshot(call, { key, parent }, labels);
      try {
        const mounts = toWire(await snapshotter.prepare(key, parent, labels, call));
        if (labels[REF] === undefined && !key.includes("extract-")) watcher.onUse(parent);
        return { mounts };
      } catch (error) {
        if (ShaleError.is(error, "ALREADY_EXISTS") && labels[REF] !== undefined) noteRemote(labels[REF], labels);
        throw error;
      }
    },
    async View({ key, parent, labels }, call) {
      noteSnapshot(call, { key, parent }, labels);
      const mounts = toWire(await snapshotter.view(key, parent, labels, call));
      watcher.onUse(parent);
      return { mounts };
    },
    async Mounts({ key }, call) {
      call.note({ key });
      return { mounts: toWire(await snapshotter.mounts(key, call)) };
    },
    async Commit({ name, key, labels, parent }, call) {
      noteSnapshot(call, { key, name, parent }, labels);
      // Not given up half-way: containerd has a transaction open around it, and it is quick.
      throwIfAborted(call.signal);
      await snapshotter.commit(name, key, labels, parent === "" ? {} : { parent });
      watcher.onCommit(name, labels);
      return {};
    },
    async Remove({ key }, call) {
      call.note({ key });
      throwIfAborted(call.signal);
      await snapshotter.remove(key);
      return {};
    },
    Stat({ key }, call) {
      call.note({ key });
      return { info: infoToWire(snapshotter.stat(key)) };
    },
    Update({ info, updateMask }, call) {
      if (info === null) throw new ShaleError("INVALID_ARGUMENT", "Cannot update a snapshot: the request names none");
      call.note({ key: info.name });
      return { info: infoToWire(snapshotter.update(info, updateMask?.paths ?? [])) };
    },
    async *List({ filters }) {
      let chunk: WireInfo[] = [];
      for (const info of snapshotter.list(filters)) {
        chunk.push(infoToWire(info));
        if (chunk.length < LIST_CHUNK) continue;
        yield { info: chunk };
        chunk = [];
        await setImmediate(); // other calls wait for no more than one chunk
      }
      if (chunk.length > 0) yield { info: chunk };
    },
    async Usage({ key }, call) {
      call.note({ key });
      return await snapshotter.usage(key, call);
    },
    async Cleanup(_, call) {
      await snapshotter.cleanup(call);
      return {};
    },
  };
}

/** What an operator searches a log for. */
function noteSnapshot(
  call: Call,
  { key, name, parent }: { readonly key: string; readonly name?: string; readonly parent: string },
  labels: Labels,
): void {
  call.note({
    key,
    name,
    parent: parent === "" ? undefined : parent,
    image: labels["containerd.io/snapshot/cri.image-ref"],
    layer: labels["containerd.io/snapshot/cri.layer-digest"],
    ref: labels["containerd.io/snapshot.ref"],
  });
}

function toWire(mounts: readonly SnapshotMount[]): Partial<WireMount>[] {
  return mounts.map(({ type, source, target = "", options }) => ({ type, source, target, options }));
}

function infoToWire({ name, parent, kind, labels, createdAt, updatedAt }: SnapshotInfo): WireInfo {
  return {
    name,
    parent,
    kind: KIND[kind],
    labels,
    createdAt: timestamp(createdAt),
    updatedAt: timestamp(updatedAt),
  };
}

const NANOS = 1_000_000_000n;

function timestamp(nanoseconds: bigint): Timestamp {
  return { seconds: Number(nanoseconds / NANOS), nanos: Number(nanoseconds % NANOS) };
}
