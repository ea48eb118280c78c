/**
 * Exact accounting of the disk: what images would take unpacked, what they take here, and what each would give back.
 * Computed from the metadata images of all layers, payload by payload; nothing is estimated.
 */

import { join } from "node:path";
import { alignUp } from "../bytes/index.ts";
import { decodePayloadFooter, PAYLOAD_ALIGNMENT } from "../formats/payload-table/index.ts";
import type { DiffId } from "../oci/index.ts";
import {
  closeFile,
  dataBytes,
  type FileSystemStatus,
  fileSource,
  fileSystemStatus,
  findFile,
  list,
  openFile,
} from "../sys/index.ts";
import { measureClones } from "./clones.ts";
import type { StoreContext } from "./context.ts";
import { listImages, manifestsOf } from "./images.ts";
import { type LayerRecord, layerFromRow } from "./layers.ts";
import { type LinkUsage, measureLinks } from "./links.ts";
import { forEachExtent } from "./liveness.ts";
import { measureSnapshots, type SnapshotsUsage, snapshotRoots } from "./snapshots.ts";

/** Bytes of one image or layer, in blocks on disk but for `apparent`. `stored` = `unique` + `shared`. */
export interface UsageNumbers {
  /** Sum of the file sizes of its layers: what it would take unpacked on its own, without block rounding. */
  readonly apparent: number;
  /** Payloads that it refers to, each once, without their holes; the tables of their blobs; its metadata and merged images. */
  readonly stored: number;
  /** What nothing else refers to: removing it (of an image: with `gc`) gives exactly this back. */
  readonly unique: number;
  readonly shared: number;
}

export interface ImageUsage extends UsageNumbers {
  readonly name: string;
  readonly layers: readonly DiffId[];
}

export interface LayerUsage extends UsageNumbers {
  readonly diffId: DiffId;
  readonly images: readonly string[];
}

export interface Usage {
  readonly images: readonly ImageUsage[];
  readonly layers: readonly LayerUsage[];
  /** Sum of the apparent bytes of all images: what keeping each unpacked on its own would take. */
  readonly apparent: number;
  /** Sum of the apparent bytes of all layers, each once: what a store that shares layers only would take. */
  readonly layersApparent: number;
  /** On disk, measured in blocks. */
  readonly blobs: number;
  readonly metadata: number;
  readonly merged: number;
  readonly database: number;
  readonly downloads: number;
  /** Shared with checkouts by hard link. */
  readonly links: LinkUsage;
  readonly snapshots: SnapshotsUsage;
  /** Shared with checkouts, and mostly with blobs, by reflink: blocks that are shared count here too, and are not in `stored`. */
  readonly clones: { readonly count: number; readonly bytes: number };
  readonly stored: number;
  /** `layersApparent` minus payload bytes kept: what finding equal files and holes saves. */
  readonly savedByDeduplication: number;
  readonly fileSystem: FileSystemStatus;
}

/** Who refers to a payload: one image (its number), several, or none. */
const MANY = -2;
const NOBODY = -1;

/** Something on disk, with the sole image and the sole layer that need it, or MANY. */
interface Piece {
  readonly size: number;
  image: number;
  layer: number;
}

interface Blob {
  /** By offset. */
  readonly payloads: Map<number, Piece>;
  /** What stands behind the payloads; needed as long as one of them is. */
  readonly table: Piece;
  /** Bytes on disk of a payload: fewer than its length where it has holes. */
  sizeOf(offset: number, length: number): number;
}

export function measureUsage(context: StoreContext): Usage {
  const { layout, database } = context;
  const layers = database.all("SELECT * FROM layers WHERE condemned IS NULL AND damage IS NULL").map(layerFromRow);
  const numberOf = new Map(layers.map((layer, number) => [layer.diffId, number]));
  const images = listImages(context).map((image) => {
    const diffIds = new Set(
      manifestsOf(context, image.name).flatMap((manifest) => manifest.layers.map((l) => l.diffId)),
    );
    return { name: image.name, layers: [...diffIds].filter((diffId) => numberOf.has(diffId)) };
  });
  const imagesOfLayer = layers.map((): number[] => []);
  for (const [number, image] of images.entries()) {
    for (const diffId of image.layers) imagesOfLayer[numberOf.get(diffId)!]!.push(number);
  }

  const blobs = new Map<string, Blob>();
  const stored = { image: images.map(() => 0), layer: layers.map(() => 0) };
  const unique = { image: images.map(() => 0), layer: layers.map(() => 0) };
  const roots = snapshotRoots(context);
  const held = new Set(roots.diffIds);
  for (const [number, layer] of layers.entries()) {
    const owners = imagesOfLayer[number]!;
    claim(context, blobs, layer, number, ownerOf(owners, held.has(layer.diffId)));
  }
  settle(context, blobs, layers, images, numberOf, stored, unique);

  for (const [number, layer] of layers.entries()) {
    const size = allocated(layout.layerImage(layer.id)) + allocated(layout.layerRecipe(layer.id));
    stored.layer[number]! += size;
    unique.layer[number]! += size;
    credit(imagesOfLayer[number]!, held.has(layer.diffId), size, stored.image, unique.image);
  }
  const mounted = new Set(roots.chainIds);
  for (const [chain, owners, size] of mergedImages(context, images)) {
    credit(owners, mounted.has(chain), size, stored.image, unique.image);
  }

  const numbers = (apparent: number, total: number, own: number): UsageNumbers => ({
    apparent,
    stored: total,
    unique: own,
    shared: total - own,
  });
  const imageUsage = images.map((image, number) => ({
    name: image.name,
    layers: image.layers,
    ...numbers(
      image.layers.reduce((sum, diffId) => sum + layers[numberOf.get(diffId)!]!.contentBytes, 0),
      stored.image[number]!,
      unique.image[number]!,
    ),
  }));
  const layerUsage = layers.map((layer, number) => ({
    diffId: layer.diffId,
    images: imagesOfLayer[number]!.map((image) => images[image]!.name),
    ...numbers(layer.contentBytes, stored.layer[number]!, unique.layer[number]!),
  }));
  const layersApparent = layers.reduce((sum, layer) => sum + layer.contentBytes, 0);
  const blobBytes = allocatedIn(layout.blobs);
  const metadata = list(layout.layers).reduce((sum, { name }) => sum + allocatedIn(layout.layer(name)), 0);
  const merged = allocatedIn(layout.merged);
  const downloads = allocatedIn(layout.downloads);
  const databaseBytes = ["", "-wal", "-shm"].reduce(
    (sum, end) => sum + (findFile(layout.database + end)?.allocated ?? 0),
    0,
  );
  const links = measureLinks(context);
  const snapshots = measureSnapshots(context);
  const kept = layers.reduce((sum, layer) => sum + layer.inlineBytes, 0) + blobBytes;
  return {
    images: imageUsage,
    layers: layerUsage,
    apparent: imageUsage.reduce((sum, image) => sum + image.apparent, 0),
    layersApparent,
    blobs: blobBytes,
    metadata,
    merged,
    database: databaseBytes,
    downloads,
    links,
    clones: measureClones(context),
    snapshots,
    stored: blobBytes + metadata + merged + databaseBytes + downloads + links.bytes + snapshots.bytes,
    savedByDeduplication: Math.max(0, layersApparent - kept),
    fileSystem: fileSystemStatus(layout.root),
  };
}

/** Adds what `owners` (images) share to each of them, and to the unique bytes of a sole one unless a snapshot holds it too. */
function credit(owners: readonly number[], held: boolean, size: number, stored: number[], unique: number[]): void {
  for (const image of owners) stored[image]! += size;
  if (owners.length === 1 && !held) unique[owners[0]!]! += size;
}

/** The sole image that needs a layer, or MANY also where a snapshot does, or NOBODY. */
function ownerOf(images: readonly number[], held: boolean): number {
  if (held) return MANY;
  return images.length === 0 ? NOBODY : images.length === 1 ? images[0]! : MANY;
}

/** Each merged image with the numbers of the images that have its chain. */
function mergedImages(
  { layout, database }: StoreContext,
  images: readonly { readonly name: string }[],
): (readonly [chain: string, owners: number[], size: number])[] {
  const numbers = new Map(images.map(({ name }, number) => [name, number]));
  const owners = new Map<string, number[]>();
  for (const row of database.all(
    `SELECT DISTINCT manifests.chain_id AS chain, image_manifests.image AS image
       FROM manifests JOIN image_manifests ON image_manifests.manifest = manifests.digest`,
  )) {
    const list = owners.get(String(row.chain)) ?? [];
    owners.set(String(row.chain), [...list, numbers.get(String(row.image))!]);
  }
  return database
    .all("SELECT id, chain_id FROM merged WHERE condemned IS NULL")
    .map((row) => [
      String(row.chain_id),
      owners.get(String(row.chain_id)) ?? [],
      allocated(layout.mergedImage(String(row.id))),
    ]);
}

function claim(
  context: StoreContext,
  blobs: Map<string, Blob>,
  layer: LayerRecord,
  number: number,
  image: number,
): void {
  const share = (piece: Piece) => {
    if (piece.image === NOBODY) piece.image = image;
    else if (image !== NOBODY && piece.image !== image) piece.image = MANY;
    if (piece.layer !== number) piece.layer = MANY;
  };
  forEachExtent(context, layer.id, (id, offset, length) => {
    let blob = blobs.get(id);
    if (blob === undefined) {
      blob = { ...measureBlob(context.layout.blob(id), image, number), payloads: new Map() };
      blobs.set(id, blob);
    }
    share(blob.table);
    const known = blob.payloads.get(offset);
    if (known === undefined) blob.payloads.set(offset, { size: blob.sizeOf(offset, length), image, layer: number });
    else share(known);
  });
}

function measureBlob(path: string, image: number, layer: number): Pick<Blob, "table" | "sizeOf"> {
  using source = fileSource(path);
  const { tableOffset } = decodePayloadFooter(source);
  const table = { size: alignUp(source.size - tableOffset, PAYLOAD_ALIGNMENT), image, layer };
  const dense = allocated(path) >= tableOffset + table.size;
  const blocks = (length: number) => alignUp(length, PAYLOAD_ALIGNMENT);
  // Asking the file system costs two calls a payload, so only for blobs that have holes.
  const sizeOf = (offset: number, length: number) => {
    if (dense) return blocks(length);
    const file = openFile(path);
    try {
      return dataBytes(file, offset, offset + blocks(length));
    } finally {
      closeFile(file);
    }
  };
  return { table, sizeOf };
}

/** Adds up, for each image and layer, its distinct pieces and those that are its alone. */
function settle(
  context: StoreContext,
  blobs: ReadonlyMap<string, Blob>,
  layers: readonly LayerRecord[],
  images: readonly { readonly layers: readonly DiffId[] }[],
  numberOf: ReadonlyMap<DiffId, number>,
  stored: { image: number[]; layer: number[] },
  unique: { image: number[]; layer: number[] },
): void {
  for (const { payloads, table } of blobs.values()) {
    for (const { size, image, layer } of [...payloads.values(), table]) {
      if (image >= 0) unique.image[image]! += size;
      if (layer >= 0) unique.layer[layer]! += size;
    }
  }
  const distinct = (diffIds: Iterable<DiffId>): number => {
    const seen = new Set<Piece>();
    for (const diffId of diffIds) {
      forEachExtent(context, layers[numberOf.get(diffId)!]!.id, (id, offset) => {
        const blob = blobs.get(id)!;
        seen.add(blob.payloads.get(offset)!).add(blob.table);
      });
    }
    return [...seen].reduce((sum, piece) => sum + piece.size, 0);
  };
  for (const [number, layer] of layers.entries()) stored.layer[number] = distinct([layer.diffId]);
  for (const [number, image] of images.entries()) stored.image[number] = distinct(image.layers);
}

function allocated(path: string): number {
  return findFile(path)?.allocated ?? 0;
}

function allocatedIn(directory: string): number {
  return list(directory).reduce((sum, { name }) => sum + allocated(join(directory, name)), 0);
}
