/** A snapshotter without a disk, for tests of the wire: the rules of the contract, and calls that a test can hold. */
import { cancelled } from "../../async/index.ts";
import { ShaleError } from "../../errors/index.ts";
import type { Labels, SnapshotInfo, SnapshotKind, SnapshotMount, Snapshotter } from "../../snapshotter/index.ts";
import { wallClockNs } from "../../sys/index.ts";

export interface MemorySnapshotter extends Snapshotter {
  /** While set, prepare waits for it, or for its signal. */
  hold: Promise<void> | undefined;
  /** Resolves when the first call waits for `hold`. */
  readonly held: Promise<void>;
  /** What the next call throws. */
  failure: unknown;
  readonly closed: boolean;
}

export function memorySnapshotter(): MemorySnapshotter {
  const infos = new Map<string, SnapshotInfo>();
  const held = Promise.withResolvers<void>();
  const get = (key: string) => {
    const info = infos.get(key);
    if (info === undefined) throw new ShaleError("NOT_FOUND", `snapshot ${key}: not found`);
    return info;
  };
  const mountsOf = (key: string): SnapshotMount[] => [
    { type: "bind", source: `/mem/${key}`, options: ["rbind", "rw"] },
  ];
  const make = async (
    kind: SnapshotKind,
    [key, parent, labels]: readonly [string, string, Labels],
    signal?: AbortSignal,
  ): Promise<readonly SnapshotMount[]> => {
    if (memory.hold !== undefined) {
      const aborted = new Promise<never>((_, reject) => {
        signal?.addEventListener("abort", () => reject(cancelled(signal)), { once: true });
      });
      held.resolve();
      await Promise.race([memory.hold, aborted]);
    }
    fail();
    if (infos.has(key)) throw new ShaleError("ALREADY_EXISTS", `snapshot ${key}: already exists`);
    if (parent !== "" && get(parent).kind !== "committed") {
      throw new ShaleError("INVALID_ARGUMENT", `snapshot ${parent} is not committed: invalid argument`);
    }
    const now = wallClockNs();
    infos.set(key, { name: key, parent, kind, labels, createdAt: now, updatedAt: now });
    return mountsOf(key);
  };
  const fail = () => {
    const { failure } = memory;
    memory.failure = undefined;
    if (failure !== undefined) throw failure;
  };
  const state = { closed: false };
  const memory: MemorySnapshotter = {
    hold: undefined,
    held: held.promise,
    failure: undefined,
    get closed() {
      return state.closed;
    },
    prepare: (key, parent, labels, options) => make("active", [key, parent, labels], options?.signal),
    view: (key, parent, labels, options) => make("view", [key, parent, labels], options?.signal),
    async mounts(key) {
      fail();
      if (get(key).kind === "committed") throw new ShaleError("FAILED_PRECONDITION", `snapshot ${key} is committed`);
      return mountsOf(key);
    },
    async commit(name, key, labels, { parent } = {}) {
      fail();
      const active = get(key);
      if (active.kind !== "active") throw new ShaleError("FAILED_PRECONDITION", `snapshot ${key} is not active`);
      if (infos.has(name)) throw new ShaleError("ALREADY_EXISTS", `snapshot ${name}: already exists`);
      infos.delete(key);
      const now = wallClockNs();
      infos.set(name, {
        ...{ name, parent: parent ?? active.parent, kind: "committed", labels },
        ...{ createdAt: now, updatedAt: now },
      });
    },
    async remove(key) {
      fail();
      get(key);
      if ([...infos.values()].some(({ parent }) => parent === key)) {
        throw new ShaleError("FAILED_PRECONDITION", `snapshot ${key} has children`);
      }
      infos.delete(key);
    },
    stat(key) {
      fail();
      return get(key);
    },
    update({ name, labels }, paths) {
      if (paths.some((path) => !path.startsWith("labels"))) {
        throw new ShaleError("INVALID_ARGUMENT", `no such field: ${paths.join()}`);
      }
      const info = { ...get(name), labels, updatedAt: wallClockNs() };
      infos.set(name, info);
      return info;
    },
    list(filters) {
      fail();
      if (filters.includes("broken")) throw new ShaleError("INVALID_ARGUMENT", "filter broken can't be parsed");
      return infos.values();
    },
    async usage(key) {
      fail();
      get(key);
      return { size: 2 ** 40 + 1, inodes: 3 };
    },
    async cleanup() {
      fail();
    },
    counts() {
      const of = (kind: SnapshotKind) => [...infos.values()].filter((info) => info.kind === kind).length;
      return { active: of("active"), view: of("view"), committed: of("committed") };
    },
    layersOf: () => undefined,
    findActive: () => undefined,
    attachLayer: () => undefined,
    settled: async () => undefined,
    async close() {
      state.closed = true;
    },
    async [Symbol.asyncDispose]() {
      await memory.close();
    },
  };
  return memory;
}
