/** Writing a merged image: from the metadata images of layers alone, so that a thread can do it that has nothing else of the store. */
import { createHash } from "node:crypto";
import { ErofsReader, erofsTree, writeErofs } from "../formats/erofs/index.ts";
import { MergeBuilder } from "../formats/layer-index/merge.ts";
import type { ChainId } from "../oci/index.ts";
import { closeFile, createFile, datasync, type FileSource, writeAt } from "../sys/index.ts";
import { openStored } from "./stored-file.ts";

export interface MergedImage {
  readonly size: number;
  /** Hexadecimal. */
  readonly sha256: string;
}

/** Writes and syncs the merged image of `images` (lowest first). Deterministic for the same layers. */
export function writeMerged(chainId: ChainId, images: readonly string[], target: string): MergedImage {
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
