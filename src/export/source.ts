/** What is exported: the merged tree of an image, or one of its layers as it is. */
import { ShaleError } from "../errors/index.ts";
import { ErofsReader } from "../formats/erofs/index.ts";
import type { ImageFiles, ManifestRecord, StoreOperation } from "../store/index.ts";
import { type FileSource, fileSource } from "../sys/index.ts";

export interface ExportSource {
  readonly manifest: ManifestRecord;
  /** 0-based from the lowest; all layers merged when undefined. A layer keeps its whiteouts, for an overlay of layers. */
  readonly layer: number | undefined;
}

/** Metadata of a source, open for reading; its payloads are in the files of `files.devices`. */
export interface OpenSource extends Disposable {
  readonly files: ImageFiles;
  readonly reader: ErofsReader;
  readonly devices: readonly FileSource[];
}

/** FAILED_PRECONDITION for an image without layers, INVALID_ARGUMENT for a layer that it does not have. */
export function checkSource({ manifest, layer }: ExportSource): void {
  const { layers, digest } = manifest;
  if (layers.length === 0) throw new ShaleError("FAILED_PRECONDITION", `Cannot export ${digest}: it has no layers`);
  if (layer !== undefined && !(layer >= 0 && layer < layers.length)) {
    throw new ShaleError("INVALID_ARGUMENT", `Cannot export layer ${layer} of ${digest}: it has ${layers.length}`, {
      hint:
        layers.length === 1 ? "Its only layer is 0" : `Layers are counted from 0, the lowest, to ${layers.length - 1}`,
    });
  }
}

/** What identifiers are derived from: digests that say what is in the export, and nothing of this store. */
export function digestOf({ manifest, layer }: ExportSource): string {
  return layer === undefined ? manifest.digest : manifest.layers[layer]!.diffId;
}

export function openSource(operation: StoreOperation, { manifest, layer }: ExportSource): OpenSource {
  const files =
    layer === undefined
      ? operation.mergedFiles(manifest.layers.map(({ diffId }) => diffId))
      : operation.layerFiles(operation.getLayer(manifest.layers[layer]!.diffId));
  using open = new DisposableStack();
  const reader = new ErofsReader(open.use(fileSource(files.image)));
  const devices = files.devices.map((path) => open.use(fileSource(path)));
  const owned = open.move();
  return { files, reader, devices, [Symbol.dispose]: () => owned.dispose() };
}
