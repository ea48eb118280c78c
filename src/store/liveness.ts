/**
 * Which payload ranges are alive: computed from the metadata images of the layers, never counted up and down. What a layer
 * refers to is what its own EROFS image says, so no second list can disagree with it.
 */
import { ErofsReader, readDeviceTags } from "../formats/erofs/index.ts";
import { RecipeReader } from "../formats/tar-recipe/index.ts";
import { fileSource } from "../sys/index.ts";
import type { StoreContext } from "./context.ts";
import { unlessDamaged } from "./damage.ts";

/** Blob ids that a layer's image names, its own among them. */
export function blobsOfLayer({ layout }: StoreContext, id: string): string[] {
  using source = fileSource(layout.layerImage(id));
  return readDeviceTags(source);
}

export interface BlobUsers {
  /** Layers (ids) by the blob that they refer to, of all layers that the database has, also those out of sight. */
  readonly layers: ReadonlyMap<string, readonly string[]>;
  /** DiffIds of layers in sight whose image can't be read: no blob is surely unused while there is one. */
  readonly unreadable: readonly string[];
}

/** Without the layers `except` (ids). A layer that `check` took out of sight and that can't be read needs nothing any more. */
export function findBlobUsers(context: StoreContext, except: ReadonlySet<string> = new Set()): BlobUsers {
  const layers = new Map<string, string[]>();
  const unreadable: string[] = [];
  for (const row of context.database.all(
    "SELECT id, diff_id, damage FROM layers WHERE condemned IS NULL OR condemned > 0",
  )) {
    const id = String(row.id);
    if (except.has(id)) continue;
    const blobs = unlessDamaged(() => blobsOfLayer(context, id));
    if (blobs === undefined && row.damage === null) unreadable.push(String(row.diff_id));
    for (const blob of blobs ?? []) {
      const list = layers.get(blob);
      if (list === undefined) layers.set(blob, [id]);
      else list.push(id);
    }
  }
  return { layers, unreadable };
}

/** Every extent of a layer: one call per regular file with content outside the metadata image, shadowed files included. */
export function forEachExtent(
  { layout }: StoreContext,
  id: string,
  visit: (blob: string, offset: number, length: number) => void,
): void {
  using image = fileSource(layout.layerImage(id));
  using recipe = fileSource(layout.layerRecipe(id));
  const reader = new ErofsReader(image);
  // The recipe names every payload of the tar, also those of shadowed files, which no directory leads to.
  for (const { nid } of new RecipeReader(recipe).payloads()) {
    for (const { device, offset, length } of reader.extents(reader.inode(nid))) {
      if (device >= 0) visit(reader.devices[device]!.tag, offset, length);
    }
  }
}

/** Ranges of a blob's payload area that are not covered by `live` ranges (unordered, may overlap), by rising offset. */
export function deadRanges(
  live: readonly { readonly offset: number; readonly length: number }[],
  size: number,
  alignment: number,
): { readonly offset: number; readonly length: number }[] {
  const dead: { offset: number; length: number }[] = [];
  let free = 0;
  for (const { offset, length } of [...live].sort((a, b) => a.offset - b.offset)) {
    if (offset > free) dead.push({ offset: free, length: offset - free });
    free = Math.max(free, Math.ceil((offset + length) / alignment) * alignment);
  }
  if (free < size) dead.push({ offset: free, length: size - free });
  return dead;
}
