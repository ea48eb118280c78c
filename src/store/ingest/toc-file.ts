/**
 * `layers/<id>/toc`: the part of a layer's blob that has its TOC, as it came, and in the layer's row where it was in the
 * blob. Chunks are found by it later (chunk-scan.ts); nothing else depends on it.
 */
import { LayerToc, type ReadRegion, type TocEntry, type TocLocation } from "../../formats/toc/index.ts";
import { closeFile, copyRange, createFile, datasync, type FileSource, fileSource } from "../../sys/index.ts";
import { READ_PIECE } from "./local-content.ts";

/** Copies it out of a blob that is in `file`, at its place; synced. Returns its size. */
export function keepToc(path: string, file: number, { region }: TocLocation): number {
  const target = createFile(path);
  try {
    copyRange(file, region.offset, target, 0, region.length);
    datasync(target);
    return region.length;
  } finally {
    closeFile(target);
  }
}

/** Reads a kept TOC through once, verified. As `LayerToc.open` throws. */
export async function readKeptToc(
  path: string,
  location: TocLocation,
  signal: AbortSignal,
  onEntry: (entry: TocEntry) => void,
): Promise<void> {
  using source = fileSource(path);
  await LayerToc.open(location, readTocRegion(source, location), { signal, onEntry });
}

/** Reads a kept TOC by its place in the blob. */
export function readTocRegion(source: FileSource, { region }: TocLocation): ReadRegion {
  return (offset, length) => pieces(source, offset - region.offset, length);
}

async function* pieces(source: FileSource, offset: number, length: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < length; at += READ_PIECE) {
    yield source.read(offset + at, Math.min(READ_PIECE, length - at));
  }
}
