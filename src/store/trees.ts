/**
 * Reading what is stored: one layer's tree, a whole chain's tree, a layer's tar. Callers hold a lease while they read.
 *
 * A chain is read through its merged image (merged.ts).
 */
import { ShaleError } from "../errors/index.ts";
import { type ErofsInode, ErofsReader } from "../formats/erofs/index.ts";
import { findPayload } from "../formats/payload-table/index.ts";
import { type RecipePayload, RecipeReader } from "../formats/tar-recipe/index.ts";
import type { DiffId } from "../oci/index.ts";
import type { FileSource } from "../sys/index.ts";
import type { StoreContext } from "./context.ts";
import { type LayerRecord, requireTree } from "./layers.ts";
import type { Lease } from "./leases.ts";
import { ensureMerged } from "./merged.ts";
import { openStored } from "./stored-file.ts";
import { isTocIdentity } from "./toc-identity.ts";

/** Files that the kernel (or our reader) needs for one EROFS image. */
export interface ImageFiles {
  readonly image: string;
  /** In the order of the image's device table. */
  readonly devices: readonly string[];
}

/** A tree that is open for reading; closes its files when disposed of. */
export interface OpenTree extends Disposable {
  readonly reader: ErofsReader;
  /** Where a regular file's bytes are, with the digest under which they were stored; "inline" in the metadata image. */
  payload(inode: ErofsInode): StoredPayload | "inline";
}

export interface StoredPayload {
  readonly blob: string;
  readonly offset: number;
  readonly length: number;
  /** SHA-256. */
  readonly digest: Uint8Array;
}

export function layerFiles({ layout }: StoreContext, layer: LayerRecord): ImageFiles {
  requireTree(layer);
  const image = layout.layerImage(layer.id);
  using source = openStored(image);
  const { devices } = new ErofsReader(source);
  return { image, devices: devices.map((device) => layout.blob(device.tag)) };
}

export function openLayer(context: StoreContext, layer: LayerRecord): OpenTree {
  requireTree(layer);
  return openImage(context, context.layout.layerImage(layer.id));
}

/** Opens a chain's merged tree, making the merged image if it is not there. */
export function openChain(context: StoreContext, lease: Lease, diffIds: readonly DiffId[]): OpenTree {
  return openImage(context, ensureMerged(context, lease, diffIds));
}

/** The files of a chain's merged image, made if it is not there. */
export function mergedFiles(context: StoreContext, lease: Lease, diffIds: readonly DiffId[]): ImageFiles {
  const image = ensureMerged(context, lease, diffIds);
  using tree = openImage(context, image);
  return { image, devices: tree.reader.devices.map((device) => context.layout.blob(device.tag)) };
}

function openImage({ layout }: StoreContext, path: string): OpenTree {
  const open: FileSource[] = [];
  const keep = (source: FileSource) => {
    open.push(source);
    return source;
  };
  const close = () => {
    for (const source of open.splice(0)) source[Symbol.dispose]();
  };
  try {
    const blobs = new Map<string, FileSource>();
    const openBlob = (tag: string) => {
      let blob = blobs.get(tag);
      if (blob === undefined) {
        blob = keep(openStored(layout.blob(tag)));
        blobs.set(tag, blob);
      }
      return blob;
    };
    const reader = new ErofsReader(keep(openStored(path)), openBlob);
    const payload = (inode: ErofsInode): StoredPayload | "inline" => {
      const extent = [...reader.extents(inode)].find(({ device }) => device >= 0);
      if (extent === undefined) return "inline";
      const blob = reader.devices[extent.device]!.tag;
      const stored = findPayload(openBlob(blob), extent.offset);
      if (stored === undefined || stored.length !== inode.size) {
        throw new ShaleError(
          "DATA_LOSS",
          `Cannot read inode ${inode.nid} of ${path}: blob ${blob} has no such payload at ${extent.offset}`,
          {
            hint: "Run shale check --repair",
          },
        );
      }
      return { blob, offset: stored.offset, length: stored.length, digest: stored.digest };
    };
    return { reader, payload, [Symbol.dispose]: close };
  } catch (error) {
    close();
    throw error;
  }
}

export interface LayerTar {
  readonly size: number;
  /** The tar from byte `from`, in pieces; bit for bit what the diffId is the digest of. Not verified here. */
  read(from?: number): Iterable<Uint8Array>;
  /** Where each file's content is in the tar, in its order; nids are those of the layer's own image (`openLayer`). */
  payloads(): Iterable<RecipePayload>;
}

/** A layer's tar, rebuilt while it is read. FAILED_PRECONDITION for one that is verified by its TOC: its headers never came. */
export function openTar(context: StoreContext, layer: LayerRecord): LayerTar & Disposable {
  const { layout } = context;
  if (isTocIdentity(layer.diffId)) {
    throw new ShaleError(
      "FAILED_PRECONDITION",
      `Cannot rebuild layer ${layer.diffId}: it was pulled in parts, and an eStargz table of contents has no tar headers`,
      { hint: "Run shale pull --whole for its image" },
    );
  }
  const tree = openImage(context, layout.layerImage(layer.id));
  let recipeFile: FileSource | undefined;
  const close = () => {
    recipeFile?.[Symbol.dispose]();
    tree[Symbol.dispose]();
  };
  try {
    recipeFile = openStored(layout.layerRecipe(layer.id));
    const recipe = new RecipeReader(recipeFile);
    return {
      size: recipe.tarSize,
      read: (from = 0) =>
        recipe.rebuild((nid, offset, length) => tree.reader.read(tree.reader.inode(nid), offset, length), { from }),
      payloads: () => recipe.payloads(),
      [Symbol.dispose]: close,
    };
  } catch (error) {
    close();
    throw error;
  }
}
