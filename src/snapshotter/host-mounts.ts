/**
 * The mounts below ROOT/mounts that snapshots stand on. Each is made once per host and shared by all snapshots that need the
 * same, so they share its page cache; recorded before it is made, made again when it is gone, ended when nothing needs it.
 * Whoever uses one keeps it: running containers are not disturbed when its mount point goes.
 */
import { dirname, join } from "node:path";
import { ShaleError } from "../errors/index.ts";
import type { DiffId } from "../oci/index.ts";
import type { HostMountRegister, Store, StoreOperation } from "../store/index.ts";
import {
  bindMount,
  createUserNamespace,
  ensureDirectory,
  findFile,
  type IdRange,
  list,
  mountErofs,
  removeDirectory,
  unmount,
} from "../sys/index.ts";
import { type Base, type BaseDescription, describeBase } from "./bases.ts";
import type { IdMapping } from "./labels.ts";
import { UPPER } from "./mount-lists.ts";
import type { SnapshotterEvent } from "./types.ts";

/** What the record of a mount says. */
interface Description extends BaseDescription {
  readonly uids?: readonly IdRange[];
  readonly gids?: readonly IdRange[];
}

/** Longer than looking up what is there takes. */
const NOTABLE_MS = 2;

export class HostMounts {
  readonly #store: Store;
  readonly #register: HostMountRegister;
  readonly #directoryOf: (snapshot: number) => string;
  readonly #report: (event: SnapshotterEvent) => void;
  /** Being made; a second caller waits for the first. */
  readonly #making = new Map<number, Promise<void>>();
  /** Used by calls under way, which have not recorded that yet. */
  readonly #pinned = new Map<number, number>();
  /** Made, or found, by this process: a second time is worth a word. */
  readonly #known = new Set<number>();

  constructor(
    store: Store,
    register: HostMountRegister,
    directoryOf: (snapshot: number) => string,
    report: (event: SnapshotterEvent) => void,
  ) {
    this.#store = store;
    this.#register = register;
    this.#directoryOf = directoryOf;
    this.#report = report;
  }

  /**
   * Mounts what `bases` need, and answers how a snapshot records them. They stay until the result is disposed of, and from then
   * on as long as a snapshot has them on record.
   */
  async use(
    bases: readonly Base[],
    mapping: IdMapping | undefined,
  ): Promise<{ readonly recorded: readonly string[] } & Disposable> {
    const pinned: number[] = [];
    const release = () => {
      for (const id of pinned.splice(0)) this.#unpin(id);
    };
    try {
      const recorded = bases.map((base) => {
        if (base.kind === "directory" && mapping === undefined) return `s${base.id}`;
        const { description, diffIds } = describeBase(base, (ids) => this.#register.layerIds(ids));
        const id = this.#register.ensure(JSON.stringify({ ...description, ...mapping }), diffIds, description.chain);
        this.#pinned.set(id, (this.#pinned.get(id) ?? 0) + 1);
        pinned.push(id);
        return `m${id}`;
      });
      for (const one of recorded) await this.ensure(one);
      return { recorded, [Symbol.dispose]: release };
    } catch (error) {
      release();
      throw error;
    }
  }

  #unpin(id: number): void {
    const count = this.#pinned.get(id)! - 1;
    if (count === 0) this.#pinned.delete(id);
    else this.#pinned.set(id, count);
  }

  pathOf(recorded: string): string {
    const id = Number(recorded.slice(1));
    return recorded.startsWith("s") ? join(this.#directoryOf(id), UPPER) : this.#register.pathOf(id);
  }

  /** Makes a recorded mount again if it is not there. DATA_LOSS when what it shows is gone. */
  async ensure(recorded: string): Promise<void> {
    const path = this.pathOf(recorded);
    if (recorded.startsWith("s")) {
      if (findFile(path) !== undefined) return;
      throw new ShaleError("DATA_LOSS", `Cannot mount ${path}: the directory of the snapshot is gone`);
    }
    const id = Number(recorded.slice(1));
    if (this.#isMounted(id, path)) return;
    let making = this.#making.get(id);
    if (making === undefined) {
      making = this.#make(id, path).finally(() => this.#making.delete(id));
      this.#making.set(id, making);
    }
    await making;
  }

  /** One lstat, not the list of mounts, which may have thousands. A number is never used twice, so what is mounted there is right. */
  #isMounted(id: number, path: string): boolean {
    const there = findFile(path);
    if (there === undefined) return false;
    const above = findFile(join(path, ".."))!;
    if (there.dev !== above.dev) return true;
    // A bind of a directory of the same file system: known by the directory itself.
    const { directory } = this.#describe(id).description;
    return directory !== undefined && findFile(join(this.#directoryOf(directory), UPPER))?.ino === there.ino;
  }

  #describe(id: number) {
    const found = this.#register.find(id);
    if (found === undefined) throw new ShaleError("DATA_LOSS", `Cannot mount ${id}: there is no record of it`);
    return { ...found, description: JSON.parse(found.what) as Description };
  }

  async #make(id: number, path: string): Promise<void> {
    const began = performance.now();
    const { description, diffIds } = this.#describe(id);
    const { directory, layer, uids, gids } = description;
    ensureDirectory(path);
    if (uids !== undefined && gids !== undefined) {
      const source = directory === undefined ? undefined : join(this.#directoryOf(directory), UPPER);
      await this.#makeMapped(path, source, { uids, gids }, description, diffIds);
    } else {
      using operation = this.#store.begin(`mount ${path}`);
      mountErofs({ ...(await this.#files(operation, layer !== undefined, diffIds)), target: path });
    }
    this.#report({ kind: "mounted", path, again: this.#known.has(id), durationMs: performance.now() - began });
    this.#known.add(id);
  }

  /** An idmapped copy of the plain mount, or of the directory. */
  async #makeMapped(
    path: string,
    directory: string | undefined,
    mapping: IdMapping,
    { uids: _uids, gids: _gids, ...plain }: Description,
    diffIds: readonly DiffId[],
  ): Promise<void> {
    using user = await createUserNamespace(mapping.uids, mapping.gids);
    const map = (source: string) => {
      try {
        bindMount(source, path, { mapping: user });
      } catch (error) {
        throw new ShaleError("FAILED_PRECONDITION", `Cannot map the ids of ${source}: its file system can't`, {
          cause: error,
          hint: 'Take "remap-ids" out of the capabilities in containerd\'s config: containerd then copies the files and changes their owners',
        });
      }
    };
    if (directory !== undefined) return map(directory);
    const id = this.#register.ensure(JSON.stringify(plain), diffIds, plain.chain);
    await this.ensure(`m${id}`);
    map(this.#register.pathOf(id));
  }

  async #files(operation: StoreOperation, single: boolean, diffIds: readonly DiffId[]) {
    if (single) {
      const { image, devices } = operation.layerFiles(operation.getLayer(diffIds[0]!));
      return { source: image, devices };
    }
    const began = performance.now();
    await operation.ensureMerged(diffIds);
    const durationMs = performance.now() - began;
    if (durationMs > NOTABLE_MS) this.#report({ kind: "merged", layers: diffIds.length, durationMs });
    const { image, devices } = operation.mergedFiles(diffIds);
    return { source: image, devices };
  }

  /** Ends the mounts that no snapshot has on record, and removes mount points that a power cut has brought back. */
  releaseIdle(): void {
    for (const id of this.#register.idle()) {
      if (this.#pinned.has(id) || this.#making.has(id) || !this.#end(id)) continue;
      this.#register.forget(id);
      this.#known.delete(id);
      this.#report({ kind: "unmounted", path: this.#register.pathOf(id) });
    }
    const recorded = new Set(this.#register.list().map(String));
    for (const { name } of list(dirname(this.#register.pathOf(1)))) {
      if (/^[1-9][0-9]*$/.test(name) && !recorded.has(name)) this.#end(Number(name));
    }
  }

  /** False, and reported, when it failed. */
  #end(id: number): boolean {
    const path = this.#register.pathOf(id);
    try {
      // Lazily: an idmapped copy, or a mount that is ended only just now, may still stand on it.
      if (findFile(path) !== undefined) while (unmount(path, { lazy: true }));
      removeDirectory(path);
      return true;
    } catch (error) {
      this.#report({ kind: "trouble", what: `Cannot unmount ${path}`, error });
      return false;
    }
  }
}
