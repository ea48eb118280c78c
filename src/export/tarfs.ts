/**
 * nydus tarfs: the raw tar of each layer is the device that an EROFS image with blocks of 512 bytes points into, since that is
 * how a tar aligns its files. As of nydus-snapshotter: files are named by the layer's blob (the digest in the manifest, without
 * its algorithm); a `.layer.boot` for each layer, an `.image.boot` for all of them named by the top layer; disks have image and
 * tars in one file, then the verity tree in its bare form.
 */
import { createHash } from "node:crypto";
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { throwIfAborted } from "../async/index.ts";
import { ShaleError } from "../errors/index.ts";
import { type ErofsImage, erofsTree, writeErofs } from "../formats/erofs/index.ts";
import { Content, type LayerIndex } from "../formats/layer-index/index.ts";
import { indexFromTree, type LayerTree, MergeBuilder, type TreeDevice } from "../formats/layer-index/merge.ts";
import type { LayerTar, ManifestLayer, ManifestRecord, OpenTree, StoreOperation } from "../store/index.ts";
import { closeFile, ensureDirectory, openFile, statFile, truncate, writeAt } from "../sys/index.ts";
import { assemblyOf } from "./assembly.ts";
import { canReflink, copyRuns } from "./copy-runs.ts";
import { deriveUuid, formatUuid } from "./derive.ts";
import type { ExportProgress } from "./progress.ts";
import { checkSpace, publishFile, publishWithSidecar } from "./publish.ts";
import { imageOf, requestOf, type Sidecar } from "./sidecar.ts";
import { checkSource, digestOf, type ExportSource } from "./source.ts";
import { appendVerity, HASH_BLOCK_SIZE, type VerityInfo, type VerityParameters, veritySize } from "./verity-image.ts";

const BLOCK_SIZE = 512;
/** A file with holes is no run of its tar, so its content goes into the image. */
const MAX_SPARSE_SIZE = 16 * 1024 * 1024;
const TURN_SIZE = 32 * 1024 * 1024;
/** The form that nydus-snapshotter and Kata expect: no salt, no superblock. */
const VERITY: VerityParameters = {
  dataBlockSize: BLOCK_SIZE,
  hashBlockSize: HASH_BLOCK_SIZE,
  salt: new Uint8Array(0),
  superblockUuid: undefined,
};

/** As `export_mode` of nydus-snapshotter. */
export type TarfsDisks = "none" | "layer" | "image" | "both";

export interface TarfsOptions {
  /** Which disks are made beside tars and boots; "none" unless given. */
  readonly disks?: TarfsDisks;
  /** Disks get a verity tree. */
  readonly verity?: boolean;
  /** Threads that hash. */
  readonly jobs?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly progress?: ExportProgress | undefined;
}

export interface TarfsLayer {
  readonly diffId: string;
  /** Paths. */
  readonly tar: string;
  readonly boot: string;
  readonly disk: TarfsDisk | undefined;
}

export interface TarfsDisk {
  readonly path: string;
  readonly sidecar: Sidecar;
  /** Value of the label of nydus-snapshotter: "<data blocks>,<hash offset>,sha256:<root>", or "" without verity. */
  readonly label: string;
}

export interface TarfsExport {
  /** Lowest first, each once. */
  readonly layers: readonly TarfsLayer[];
  readonly boot: string;
  /** Tars in the order of the image's `device=` options. */
  readonly devices: readonly string[];
  readonly disk: TarfsDisk | undefined;
}

/** Labels of snapshots as nydus-snapshotter has them, pkg/label. */
export const TARFS_LABELS = {
  tarfs: "containerd.io/snapshot/nydus-tarfs",
  layerDisk: "containerd.io/snapshot/nydus-layer-block",
  imageDisk: "containerd.io/snapshot/nydus-image-block",
} as const;

/**
 * Writes tars, boots and disks of an image below `directory`, layer by layer; the first failure ends it, and every file is
 * absent or complete. DATA_LOSS when a rebuilt tar is not what its diffId says; UNIMPLEMENTED for sparse files over 16 MiB.
 */
export async function exportTarfs(
  operation: StoreOperation,
  manifest: ManifestRecord,
  directory: string,
  options: TarfsOptions = {},
): Promise<TarfsExport> {
  checkSource({ manifest, layer: undefined });
  ensureDirectory(directory, 0o755);
  const { disks = "none" } = options;
  const layers: TarfsLayer[] = [];
  using stack = new DisposableStack();
  const merge = new MergeBuilder();
  const done = new Map<string, () => LayerTree>();
  for (const [number, layer] of manifest.layers.entries()) {
    let treeOf = done.get(layer.diffId);
    if (treeOf === undefined) {
      const record = operation.getLayer(layer.diffId);
      const open = stack.use(operation.openLayer(record));
      const tar = stack.use(operation.openTar(record));
      treeOf = tarfsTree(open, tar, blobName(layer));
      done.set(layer.diffId, treeOf);
      const path = join(directory, blobName(layer));
      const boot = layerBoot(treeOf(), layer); // first: a tar that block numbers do not reach need not be written
      await writeTar(tar, layer, path, options);
      const bootPath = await writeBoot(boot, `${path}.layer.boot`, options);
      const disk =
        disks === "layer" || disks === "both"
          ? await writeDisk({ manifest, layer: number }, boot, [path], `${path}.layer.disk`, options)
          : undefined;
      layers.push({ diffId: layer.diffId, tar: path, boot: bootPath, disk });
    }
    merge.addLayer(treeOf());
  }
  const merged = merge.finish();
  const boot = bootOf(merged.index, merged.devices, merged.readInline, deriveUuid(manifest.digest, "file system"));
  const top = join(directory, blobName(manifest.layers.at(-1)!));
  const bootPath = await writeBoot(boot, `${top}.image.boot`, options);
  const devices = merged.devices.map(({ tag }) => join(directory, tag));
  const disk =
    disks === "image" || disks === "both"
      ? await writeDisk({ manifest, layer: undefined }, boot, devices, `${top}.image.disk`, options)
      : undefined;
  return { layers, boot: bootPath, devices, disk };
}

/** "<data blocks>,<hash offset>,sha256:<root>", which nydus-snapshotter reads with that very pattern. */
export function tarfsLabel(verity: VerityInfo | undefined): string {
  return verity === undefined ? "" : `${verity.dataBlocks},${verity.treeOffset},sha256:${verity.rootHash}`;
}

function blobName(layer: ManifestLayer): string {
  return layer.digest.slice(layer.digest.indexOf(":") + 1);
}

/** Gives the layer's tree with content where its tar has it, anew for each reader; `tag` is the only device. */
function tarfsTree(layer: OpenTree, tar: LayerTar, tag: string): () => LayerTree {
  const places = new Map<number, number>();
  const sparse = new Set<number>();
  for (const { nid, tarOffset, segments } of tar.payloads()) {
    if (segments !== undefined || places.has(nid)) sparse.add(nid);
    else places.set(nid, tarOffset);
  }
  return () => withPlaces(erofsTree(layer.reader), places, sparse, { tag, blocks: Math.ceil(tar.size / BLOCK_SIZE) });
}

function withPlaces(
  tree: LayerTree,
  places: ReadonlyMap<number, number>,
  sparse: ReadonlySet<number>,
  device: TreeDevice,
): LayerTree {
  return {
    ...tree,
    devices: [device],
    node(nid) {
      const node = tree.node(nid);
      if (node.contentKind === Content.EMPTY) return node;
      const place = places.get(nid);
      if (place !== undefined && !sparse.has(nid)) {
        return { ...node, contentKind: Content.EXTENT, contentDevice: 0, contentOffset: place };
      }
      if (node.size > MAX_SPARSE_SIZE) {
        throw new ShaleError(
          "UNIMPLEMENTED",
          `Cannot export as tarfs: a sparse file of ${node.size} bytes is no run of its tar, limit ${MAX_SPARSE_SIZE}`,
          { hint: "Export it with --format disk" },
        );
      }
      return { ...node, contentKind: Content.INLINE, contentDevice: 0, contentOffset: nid };
    },
  };
}

interface Boot {
  readonly image: ErofsImage;
  readonly bytes: readonly Uint8Array[];
}

/** In memory: it is about 130 bytes an entry. */
function bootOf(
  index: LayerIndex,
  devices: readonly TreeDevice[],
  readInline: (inode: number) => Uint8Array,
  uuid: Uint8Array,
): Boot {
  const bytes: Uint8Array[] = [];
  const image = writeErofs(index, {
    devices,
    uuid,
    blockSize: BLOCK_SIZE,
    readInline,
    write: (part) => bytes.push(part.slice()),
  });
  return { image, bytes };
}

function layerBoot(tree: LayerTree, layer: ManifestLayer): Boot {
  const index = indexFromTree(tree);
  // Of one layer's index, the content offset is the node that the tree reads by.
  const readInline = (inode: number) => tree.readInline(index.contentOffset(inode));
  return bootOf(index, tree.devices, readInline, deriveUuid(layer.diffId, "file system"));
}

async function writeTar(tar: LayerTar, layer: ManifestLayer, path: string, options: TarfsOptions): Promise<void> {
  const { signal, progress } = options;
  checkSpace(path, tar.size);
  progress?.step("rebuilding the tar", tar.size);
  await publishFile(
    path,
    async (file) => {
      const digest = createHash("sha256");
      let written = 0;
      for (const piece of tar.read()) {
        writeAt(file, piece, written);
        digest.update(piece);
        if (Math.floor(written / TURN_SIZE) !== Math.floor((written + piece.length) / TURN_SIZE)) {
          await setImmediate();
          throwIfAborted(signal);
        }
        written += piece.length;
        progress?.advance(piece.length);
      }
      await setImmediate(); // also when all layers are less than that, and none has a disk
      throwIfAborted(signal);
      if (`sha256:${digest.digest("hex")}` === layer.diffId) return;
      throw new ShaleError("DATA_LOSS", `Cannot export layer ${layer.diffId}: its rebuilt tar is not what was stored`, {
        hint: "Run shale check --repair",
      });
    },
    { signal },
  );
}

async function writeBoot(boot: Boot, path: string, { signal }: TarfsOptions): Promise<string> {
  checkSpace(path, boot.image.size);
  await publishFile(path, (file) => writeParts(boot.bytes, file), { signal });
  return path;
}

function writeParts(parts: readonly Uint8Array[], file: number): void {
  let at = 0;
  for (const part of parts) {
    writeAt(file, part, at);
    at += part.length;
  }
}

async function writeDisk(
  source: ExportSource,
  boot: Boot,
  tars: readonly string[],
  path: string,
  options: TarfsOptions,
): Promise<TarfsDisk> {
  const { signal, progress, jobs, verity = false } = options;
  const uuid = formatUuid(deriveUuid(digestOf(source), "file system"));
  const request = requestOf(source, { format: "tarfs", verity });
  const { sidecar } = await publishWithSidecar(path, { request, signal }, async (file) => {
    const { totalSize: total, deviceOffsets, size: imageSize } = boot.image;
    using closing = new DisposableStack();
    const files = tars.map((tar) => {
      const source = openFile(tar);
      closing.defer(() => closeFile(source));
      return source;
    });
    const runs = files.map((tar, device) => {
      return { device, from: 0, to: deviceOffsets[device]! - imageSize, length: statFile(tar).size };
    });
    const place = { file, offset: imageSize };
    const reflink = canReflink(runs, files, place);
    const tree = verity ? veritySize(total, VERITY) : 0;
    checkSpace(path, imageSize + tree + (reflink ? 0 : total - imageSize));
    writeParts(boot.bytes, file);
    const copies = !reflink && verity;
    if (!copies) {
      progress?.step(reflink ? "sharing tars" : "copying tars", total - imageSize);
      await copyRuns(runs, files, place, { reflink, signal, onCopied: (bytes) => progress?.advance(bytes) });
    }
    // Last: the end of a tar that is not whole blocks can only be shared at the end of a file.
    truncate(file, total);
    progress?.step(copies ? "copying and hashing" : "hashing", verity ? total : 0);
    const assembly = assemblyOf(runs, files, { offset: imageSize, write: copies });
    const info = verity
      ? await appendVerity({ file, size: total }, VERITY, { jobs, assembly, signal, onHashed: progress?.advance })
      : undefined;
    return {
      version: 1,
      format: "tarfs",
      image: imageOf(source),
      ...(source.layer === undefined ? {} : { layer: source.layer }),
      fileSystem: { type: "erofs", blockSize: BLOCK_SIZE, uuid, size: total },
      ...(info === undefined ? {} : { verity: info }),
      size: total + tree,
      request,
    };
  });
  return { path, sidecar, label: tarfsLabel(sidecar.verity) };
}
