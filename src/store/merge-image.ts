/** Writing a merged image: from the metadata images of layers alone, so that a thread can do it that has nothing else of the store. */
import { createHash } from "node:crypto";
import { ErofsReader, erofsTree, writeErofs } from "../formats/erofs/index.ts";
import { type LayerTree, MergeBuilder } from "../formats/layer-index/merge.ts";
import type { ChainId } from "../oci/index.ts";
import { closeFile, createFile, datasync, type FileSource, writeAt } from "../sys/index.ts";
import { openStored } from "./stored-file.ts";

export interface MergedImage {
  readonly size: number;
  /** Hexadecimal. */
  readonly sha256: string;
}

export interface MergeSource {
  /** The layer's. */
  readonly id: string;
  /** Path of its metadata image. */
  readonly image: string;
}

/**
 * Writes and syncs the merged image of `layers` (lowest first). Deterministic for the same layers. `atHand` may know the
 * tree of one, which is not read then.
 */
export function writeMerged(
  chainId: ChainId,
  layers: readonly MergeSource[],
  target: string,
  atHand: (id: string) => LayerTree | undefined = () => undefined,
): MergedImage {
  const merge = new MergeBuilder();
  const sources: FileSource[] = [];
  const file = createFile(target);
  try {
    for (const { id, image } of layers) {
      const source = openStored(image); // whatever is at hand: a layer that is gone must not be merged
      sources.push(source);
      merge.addLayer(atHand(id) ?? erofsTree(new ErofsReader(source)));
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
