/**
 * Exports that are kept: made when an image is pulled or when they are first asked for, and given out as hard links or reflinks, never
 * as second copies of what the cache has.
 *
 * Everything is below `exports/` in the store's directory, one directory for each request. It is derived: deleting it loses time only.
 * An entry belongs to its image's manifest; `collect` removes those whose manifest no image has any more. Whoever got a file before
 * keeps it, since it is a name of its own.
 */
import { join } from "node:path";
import type { ManifestRecord, Store, StoreOperation } from "../store/index.ts";
import {
  closeFile,
  copyRange,
  ensureDirectory,
  findFile,
  linkIfAbsent,
  list,
  openFile,
  removeTree,
  statFile,
  syncDirectory,
  truncate,
  unlink,
} from "../sys/index.ts";
import { errnoOf } from "../errors/index.ts";
import { type DiffId, parseDiffId } from "../oci/index.ts";
import { isOfChain } from "./chain.ts";
import { type DiskOptions, type ExportedDisk, exportDisk } from "./disk.ts";
import { publishFile } from "./publish.ts";
import { readSidecar, writeSidecar } from "./sidecar.ts";
import type { ExportSource } from "./source.ts";

/** What is made of an image without being asked; the counterpart of nydus-snapshotter's `export_mode`. */
export interface ExportPolicy {
  readonly mode: "off" | "layer" | "image";
  readonly verity: "superblock" | "bare" | undefined;
  readonly blockSize?: 512 | 4096 | undefined;
  /** At pull time, or when a mount first needs it. */
  readonly when: "pull" | "demand";
}

export interface CachedExport {
  /** Names the entry; equal for equal requests. */
  readonly id: string;
  readonly manifest: string;
  readonly layer: number | undefined;
  /** Layers, of an entry that belongs to no image but to a chain. */
  readonly chain: readonly DiffId[] | undefined;
  readonly path: string;
  /** Bytes on disk. Blocks shared with the store count. */
  readonly allocated: number;
}

export type PlaceMethod = "hard link" | "reflink" | "copy";

const DISK = "disk";

export class ExportCache {
  readonly directory: string;
  readonly #store: Store;

  constructor(store: Store) {
    this.#store = store;
    this.directory = join(store.root, "exports");
  }

  /** The disk of a source from the cache, made if it is not there; concurrent calls make it once. */
  async ensureDisk(operation: StoreOperation, source: ExportSource, options: DiskOptions = {}): Promise<ExportedDisk> {
    const place = join(this.directory, entryName(source, options));
    const path = join(place, DISK);
    const sidecar = findFile(path) === undefined ? undefined : readSidecar(path);
    if (sidecar !== undefined) return { path, sidecar, shared: true };
    ensureDirectory(place);
    return exportDisk(operation, source, path, options);
  }

  /** What a policy wants of an image, made one after another. */
  async apply(
    operation: StoreOperation,
    manifest: ManifestRecord,
    policy: ExportPolicy,
    options: Pick<DiskOptions, "jobs" | "signal" | "progress"> = {},
  ): Promise<ExportedDisk[]> {
    if (policy.mode === "off") return [];
    const layers = policy.mode === "layer" ? manifest.layers.map((_, layer) => layer) : [undefined];
    const disks: ExportedDisk[] = [];
    for (const layer of layers) {
      const { verity, blockSize } = policy;
      disks.push(await this.ensureDisk(operation, { manifest, layer }, { ...options, verity, blockSize }));
    }
    return disks;
  }

  /**
   * Gives a cached disk another name: a hard link on the same file system, for a reader that does not write; otherwise a reflink, or
   * a copy where the file system has none.
   */
  async place(disk: ExportedDisk, target: string): Promise<PlaceMethod> {
    unlink(target);
    let method: PlaceMethod = "hard link";
    try {
      linkIfAbsent(disk.path, target);
    } catch (error) {
      if (!["EXDEV", "EPERM", "EMLINK"].includes(errnoOf(error) ?? "")) throw error;
      method = await publishFile(target, (file) => copyFile(disk.path, file));
    }
    writeSidecar(target, disk.sidecar);
    return method;
  }

  /** Complete entries. */
  list(): CachedExport[] {
    if (findFile(this.directory) === undefined) return [];
    return list(this.directory).flatMap(({ name, kind }) => {
      const path = join(this.directory, name, DISK);
      const sidecar = kind === "directory" && findFile(path) !== undefined ? readSidecar(path) : undefined;
      if (sidecar === undefined) return [];
      const { allocated } = statFile(path);
      const { image, layer } = sidecar;
      const chain = isOfChain(image) ? image.layers.map(({ diffId }) => parseDiffId(diffId)) : undefined;
      return [{ id: name, manifest: image.manifest, layer, chain, path, allocated }];
    });
  }

  /** Removes entries whose manifest no image has (of a chain: when one of its layers is gone), and what killed exports left. Answers what went, or would go. */
  collect(options: { readonly dryRun?: boolean } = {}): CachedExport[] {
    const images = this.#store.listImages();
    const live = new Set(
      images.flatMap(({ name }) => this.#store.manifestsOf(name).map(({ digest }) => String(digest))),
    );
    const isLive = ({ manifest, chain }: CachedExport) =>
      live.has(manifest) || chain?.every((diffId) => this.#store.findLayer(diffId) !== undefined) === true;
    const dead = this.list().filter((entry) => !isLive(entry));
    if (options.dryRun === true || dead.length === 0) return dead;
    for (const { id } of dead) removeTree(join(this.directory, id));
    syncDirectory(this.directory);
    return dead;
  }
}

/** A name that says what it is to people, and is the same for the same request. */
function entryName({ manifest, layer }: ExportSource, options: DiskOptions): string {
  const { blockSize = 4096, verity = "plain", salt, uuid } = options;
  const given = [salt, uuid].map((bytes) => (bytes === undefined ? "" : Buffer.from(bytes).toString("hex"))).join("-");
  const part = layer === undefined ? "image" : `layer${layer}`;
  return `${manifest.digest.replace(":", "-")}.${part}.${blockSize}.${verity}${given === "-" ? "" : `.${given}`}`;
}

function copyFile(from: string, target: number): PlaceMethod {
  const source = openFile(from);
  try {
    const { size } = statFile(source);
    const method = copyRange(source, 0, target, 0, size);
    truncate(target, size);
    return method === "reflink" ? "reflink" : "copy";
  } finally {
    closeFile(source);
  }
}
