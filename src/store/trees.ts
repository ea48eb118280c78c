/**
 * Reading what is stored: one layer's tree, a whole chain's tree, a layer's tar. Callers hold a lease while they read.
 *
 * A chain is read through its merged image: one EROFS image over all blobs, derived from the layers and made at the first
 * need. A single layer that stands alone is its own merged image.
 */
import { createHash } from "node:crypto";
import { join } from "node:path";
import { errnoOf, ShaleError } from "../errors/index.ts";
import { type ErofsInode, ErofsReader, erofsTree, writeErofs } from "../formats/erofs/index.ts";
import { MergeBuilder } from "../formats/layer-index/merge.ts";
import { findPayload } from "../formats/payload-table/index.ts";
import { type RecipePayload, RecipeReader } from "../formats/tar-recipe/index.ts";
import { type ChainId, chainIdOf, type DiffId } from "../oci/index.ts";
import {
  closeFile,
  crashPoint,
  createFile,
  datasync,
  type FileSource,
  fileSource,
  findFile,
  rename,
  syncDirectory,
  unlink,
  writeAt,
} from "../sys/index.ts";
import type { StoreContext } from "./context.ts";
import { findLayer, type LayerRecord } from "./layers.ts";
import type { Lease } from "./leases.ts";

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

export function getLayer(context: StoreContext, diffId: DiffId): LayerRecord {
  const layer = findLayer(context, diffId);
  if (layer !== undefined) return layer;
  const damaged = context.database.get("SELECT damage FROM layers WHERE diff_id = ? AND damage IS NOT NULL", diffId);
  if (damaged !== undefined) {
    throw new ShaleError("DATA_LOSS", `Cannot read layer ${diffId}: ${damaged.damage}`, {
      hint: "Run shale check --repair, or pull the image again",
    });
  }
  throw new ShaleError("NOT_FOUND", `Cannot read layer ${diffId}: it is not in the store`);
}

/** FAILED_PRECONDITION for a checkpoint that is kept as an archive: its image has made-up names. */
function requireTree({ diffId, form }: LayerRecord): void {
  if (form === "tree") return;
  throw new ShaleError("FAILED_PRECONDITION", `Cannot open layer ${diffId}: it is the archive of a checkpoint`, {
    hint: "shale checkpoint export gives the archive back",
  });
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

/** A file that the database says is there: its absence is a loss, not a system error. */
function openStored(path: string): FileSource {
  try {
    return fileSource(path);
  } catch (error) {
    if (errnoOf(error) !== "ENOENT") throw error;
    throw new ShaleError("DATA_LOSS", `Cannot read ${path}: the file is gone`, {
      cause: error,
      hint: "Run shale check --repair",
    });
  }
}

function ensureMerged(context: StoreContext, lease: Lease, diffIds: readonly DiffId[]): string {
  const { layout, database } = context;
  const layers = diffIds.map((diffId) => getLayer(context, diffId));
  for (const layer of layers) requireTree(layer);
  if (layers.length === 1 && layers[0]!.standalone) return layout.layerImage(layers[0]!.id);
  const chainId = chainIdOf(diffIds);
  const row = database.get("SELECT id FROM merged WHERE chain_id = ? AND condemned IS NULL", chainId);
  if (row !== undefined) {
    const path = layout.mergedImage(String(row.id));
    if (findFile(path) !== undefined) return path;
    database.run("DELETE FROM merged WHERE id = ?", String(row.id)); // derived: made again
  }
  return makeMerged(context, lease, chainId, diffIds, layers);
}

function makeMerged(
  context: StoreContext,
  lease: Lease,
  chainId: ChainId,
  diffIds: readonly DiffId[],
  layers: readonly LayerRecord[],
): string {
  const { layout, database } = context;
  const { id, directory } = lease.stage();
  const staged = join(directory, "merged");
  const { size, sha256 } = writeMerged(
    chainId,
    layers.map((layer) => layout.layerImage(layer.id)),
    staged,
  );
  const path = layout.mergedImage(id);
  rename(staged, path);
  crashPoint("merged:renamed");
  syncDirectory(layout.merged);
  const winner = database.transaction(() => {
    const other = database.get("SELECT id FROM merged WHERE chain_id = ? AND condemned IS NULL", chainId);
    if (other !== undefined) return String(other.id);
    database.run(
      "INSERT INTO merged (id, chain_id, diff_ids, size, image_sha256, created_at) VALUES (?, ?, ?, ?, ?, ?)",
      id,
      chainId,
      JSON.stringify(diffIds),
      size,
      sha256,
      Date.now(),
    );
    return id;
  });
  crashPoint("merged:recorded");
  if (winner !== id) unlink(path); // after a crash before this, recovery finds it by the staging directory
  return layout.mergedImage(winner);
}

/** Writes and syncs the merged image of `images` (lowest first). Deterministic for the same layers. */
export function writeMerged(
  chainId: ChainId,
  images: readonly string[],
  target: string,
): { readonly size: number; readonly sha256: string } {
  const merge = new MergeBuilder();
  const sources: FileSource[] = [];
  const file = createFile(target);
  try {
    for (const image of images) {
      const source = openStored(image);
      sources.push(source);
      merge.addLayer(erofsTree(new ErofsReader(source)));
    }
    const { index, devices, readInline } = merge.finish();
    const hash = createHash("sha256");
    let size = 0;
    writeErofs(index, {
      devices,
      uuid: createHash("sha256").update(chainId).digest().subarray(0, 16),
      readInline,
      write(bytes) {
        writeAt(file, bytes, size);
        hash.update(bytes);
        size += bytes.length;
      },
    });
    datasync(file);
    return { size, sha256: hash.digest("hex") };
  } finally {
    closeFile(file);
    for (const source of sources) source[Symbol.dispose]();
  }
}

export interface LayerTar {
  readonly size: number;
  /** The tar from byte `from`, in pieces; bit for bit what the diffId is the digest of. Not verified here. */
  read(from?: number): Iterable<Uint8Array>;
  /** Where each file's content is in the tar, in its order; nids are those of the layer's own image (`openLayer`). */
  payloads(): Iterable<RecipePayload>;
}

/** A layer's tar, rebuilt while it is read. */
export function openTar(context: StoreContext, layer: LayerRecord): LayerTar & Disposable {
  const { layout } = context;
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
