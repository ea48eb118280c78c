/** One tree as a thread reads it: metadata by the EROFS reader, content by descriptors of the blobs, opened when first needed. */
import { hash } from "node:crypto";
import { errnoOf, ShaleError } from "../errors/index.ts";
import { type ErofsExtent, type ErofsInode, ErofsReader } from "../formats/erofs/index.ts";
import { PayloadFinder } from "../formats/payload-table/index.ts";
import {
  closeFile,
  createFileAt,
  type FileSource,
  fileSource,
  openDirectory,
  openDirectoryBeneath,
  openFile,
  openFileBeneath,
  statFile,
} from "../sys/index.ts";
import { clonePath } from "../store/clones.ts";
import type { TreeFiles } from "./protocol.ts";

/** An open blob. */
export interface Blob {
  readonly path: string;
  readonly file: number;
  /** Has a hole somewhere. */
  readonly sparse: boolean;
  readonly payloads: PayloadFinder;
}

export class OpenTree implements Disposable {
  readonly reader: ErofsReader;
  readonly #image: FileSource;
  readonly #devices: readonly string[];
  readonly #blobs: (Blob | undefined)[] = [];
  /** Descriptor of the directory of clones. */
  readonly clones: number | undefined;

  constructor({ image, devices, clones }: TreeFiles) {
    this.#image = fileSource(image);
    this.#devices = devices;
    this.reader = new ErofsReader(this.#image);
    this.clones = clones === undefined ? undefined : openDirectory(clones);
  }

  /** `device` as extents count them. */
  blob(device: number): Blob {
    let blob = this.#blobs[device];
    if (blob === undefined) {
      const path = this.#devices[device]!;
      const file = openFile(path);
      const { allocated, size } = statFile(file);
      blob = { path, file, sparse: allocated < size, payloads: new PayloadFinder(fileSource(file)) };
      this.#blobs[device] = blob;
    }
    return blob;
  }

  /** The one extent of a file on a device; undefined when its bytes are in the image. */
  extent(inode: ErofsInode): ErofsExtent | undefined {
    const [first, ...more] = this.reader.extents(inode);
    if (first === undefined || first.device < 0) {
      if (more.every(({ device }) => device < 0)) return undefined;
    } else if (more.length === 0) return first;
    throw new ShaleError("UNIMPLEMENTED", `Cannot check out inode ${inode.nid}: it is scattered over several ranges`);
  }

  /** SHA-256 of a file's content. */
  digest(inode: ErofsInode): Uint8Array {
    const extent = this.extent(inode);
    if (extent === undefined) return hash("sha256", this.reader.read(inode, 0, inode.size), "buffer");
    const { payloads, path } = this.blob(extent.device);
    const payload = payloads.find(extent.offset);
    if (payload?.length === inode.size) return payload.digest;
    throw new ShaleError(
      "DATA_LOSS",
      `Cannot check out inode ${inode.nid}: ${path} has no such payload at ${extent.offset}`,
      { hint: "Run shale check --repair" },
    );
  }

  [Symbol.dispose](): void {
    for (const blob of this.#blobs) if (blob !== undefined) closeFile(blob.file);
    if (this.clones !== undefined) closeFile(this.clones);
    this.#image[Symbol.dispose]();
  }
}

/** The clone of an inode, for reading; ENOENT. `clones` is the directory. */
export function openClone(clones: number, nid: number): number {
  return openFileBeneath(clones, clonePath(nid));
}

/** A new clone, for writing; undefined when there is one. */
export function createClone(clones: number, nid: number): number | undefined {
  const [group, name] = clonePath(nid).split("/");
  const parent = openDirectoryBeneath(clones, group!);
  try {
    return createFileAt(parent, name!, 0o600);
  } catch (error) {
    if (errnoOf(error) === "EEXIST") return undefined;
    throw error;
  } finally {
    closeFile(parent);
  }
}
