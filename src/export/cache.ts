/**
 * Exports that are kept: made when an image is pulled or when they are first asked for, and given out as hard links or reflinks, never
 * as second copies of what the cache has.
 *
 * Everything is below `exports/` in the store's directory, one directory for each request. It is derived: deleting it loses time only.
 * `entries.ts` lists what is there, and removes what nothing needs. Whoever got a file before keeps it, since it is a name of its own.
 */
import { hash } from "node:crypto";
import { join } from "node:path";
import { errnoOf } from "../errors/index.ts";
import type { ManifestRecord, Store, StoreOperation } from "../store/index.ts";
import { closeFile, copyRange, ensureDirectory, findFile, openFile, statFile, truncate } from "../sys/index.ts";
import { type DiskOptions, type ExportedDisk, exportDisk } from "./disk.ts";
import { cacheDirectory, DISK } from "./entries.ts";
import { publishLink, publishWithSidecar } from "./publish.ts";
import { findExported } from "./sidecar.ts";
import type { ExportSource } from "./source.ts";

/** What is made of an image without being asked; the counterpart of nydus-snapshotter's `export_mode`. */
export interface ExportPolicy {
  readonly mode: "off" | "layer" | "image";
  readonly verity: "superblock" | "bare" | undefined;
  readonly blockSize?: 512 | 4096 | undefined;
  /** At pull time, or when a mount first needs it. */
  readonly when: "pull" | "demand";
}

export type PlaceMethod = "hard link" | "reflink" | "copy";

export class ExportCache {
  readonly directory: string;

  constructor(store: Store) {
    this.directory = cacheDirectory(store);
  }

  /** The disk of a source from the cache, made if it is not there; concurrent calls make it once. */
  async ensureDisk(operation: StoreOperation, source: ExportSource, options: DiskOptions = {}): Promise<ExportedDisk> {
    const place = join(this.directory, entryName(source, options));
    const path = join(place, DISK);
    for (;;) {
      const sidecar = findExported(path);
      if (sidecar !== undefined) return { path, sidecar, shared: true };
      ensureDirectory(place);
      try {
        // Another process may have ended since we looked: who holds the lock looks again.
        return await exportDisk(operation, source, path, { ...options, reuse: true });
      } catch (error) {
        // Garbage collection may take an entry that is not there yet, until its lock is.
        if (errnoOf(error) !== "ENOENT" || findFile(place) !== undefined) throw error;
      }
    }
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
    try {
      await publishLink(disk, target);
      return "hard link";
    } catch (error) {
      if (!["EXDEV", "EPERM", "EMLINK"].includes(errnoOf(error) ?? "")) throw error;
    }
    let method: PlaceMethod = "copy";
    await publishWithSidecar(target, { request: disk.sidecar.request }, async (file) => {
      method = copyFile(disk.path, file);
      return disk.sidecar;
    });
    return method;
  }
}

/** A name that says what it is to people, and is the same for the same request. */
function entryName({ manifest, layer }: ExportSource, options: DiskOptions): string {
  const { blockSize = 4096, verity = "plain", salt, uuid } = options;
  const hex = (bytes: Uint8Array | undefined) => (bytes === undefined ? "" : Buffer.from(bytes).toString("hex"));
  // A salt may be longer than a name.
  const given = salt === undefined && uuid === undefined ? "" : `.${hash("sha256", `${hex(salt)}-${hex(uuid)}`)}`;
  const part = layer === undefined ? "image" : `layer${layer}`;
  return `${manifest.digest.replace(":", "-")}.${part}.${blockSize}.${verity}${given}`;
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
