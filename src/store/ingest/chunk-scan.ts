/**
 * Finds what of a stored layer can be a source for pulls of parts, beside the payloads that the dedupe index has: its small
 * files, which are hashed here, and the chunks of its larger ones where the layer came with a TOC. What the TOC says is not
 * checked: a row is a hint, and bytes are hashed when they are used.
 */
import { hash } from "node:crypto";
import { ErofsReader, PRIMARY } from "../../formats/erofs/index.ts";
import { RecipeReader } from "../../formats/tar-recipe/index.ts";
import type { TocEntry, TocLocation } from "../../formats/toc/index.ts";
import { fileSource } from "../../sys/index.ts";
import { Layout } from "../layout.ts";
import type { ChunkRows, ChunkScanJob } from "./protocol.ts";
import { readKeptToc } from "./toc-file.ts";

/** Rows of one layer; more files than this have no rows. */
const ROWS_MAX = 4_000_000;
/** Chunks of a TOC that are held at a time, 300 bytes each; files behind them give none. */
const CHUNKS_MAX = 300_000;
/** Files between two looks at whether to stop. */
const STEP = 4096;

export async function scanChunks(job: ChunkScanJob, check: () => void, signal: AbortSignal): Promise<ChunkRows> {
  const layout = new Layout(job.root);
  using image = fileSource(layout.layerImage(job.id));
  using recipe = fileSource(layout.layerRecipe(job.id));
  const toc = job.toc === undefined ? undefined : await readChunks(layout.layerToc(job.id), job.toc, signal);
  const reader = new ErofsReader(image);
  const rows = new RowColumns();
  let useToc = toc !== undefined;
  let count = 0;
  for (const { nid, size, segments } of new RecipeReader(recipe).payloads()) {
    const at = count++;
    if (at % STEP === 0) check();
    if (rows.count >= ROWS_MAX) break;
    // Both are in the order of the tar. A TOC that tells of other files is of no use.
    useToc &&= toc!.sizes[at] === size && segments === undefined;
    const inode = reader.inode(nid);
    const [extent, more] = reader.extents(inode);
    if (extent === undefined || more !== undefined || extent.device < PRIMARY || extent.length !== inode.size) continue;
    if (extent.device === PRIMARY) {
      const digest = hash("sha256", image.read(extent.offset, extent.length), "buffer");
      rows.add(digest, job.id, true, extent.offset, extent.length);
      continue;
    }
    const blob = reader.devices[extent.device]!.tag;
    for (const chunk of (useToc && toc!.chunks.get(at)) || []) {
      if (!chunk.zeros) rows.add(chunk.digest, blob, false, extent.offset + chunk.fileOffset, chunk.size);
    }
  }
  return rows.finish();
}

interface TocChunks {
  /** By file with content. */
  readonly sizes: readonly number[];
  /** Of files with several; one chunk is the whole file, which the dedupe index has. */
  readonly chunks: ReadonlyMap<number, TocEntry["chunks"]>;
}

async function readChunks(path: string, location: TocLocation, signal: AbortSignal): Promise<TocChunks> {
  let count = 0;
  const sizes: number[] = [];
  const chunks = new Map<number, TocEntry["chunks"]>();
  await readKeptToc(path, location, signal, (entry) => {
    if (entry.chunks.length > 1) {
      count += entry.chunks.length;
      if (count <= CHUNKS_MAX) chunks.set(sizes.length, entry.chunks);
    }
    if (entry.chunks.length > 0) sizes.push(entry.header.size);
  });
  return { sizes, chunks };
}

class RowColumns {
  #digests = Buffer.alloc(1024 * 32);
  readonly #owners: string[] = [];
  readonly #numbers = new Map<string, number>();
  readonly #ownerNumbers: number[] = [];
  readonly #inline: boolean[] = [];
  readonly #offsets: number[] = [];
  readonly #lengths: number[] = [];

  get count(): number {
    return this.#lengths.length;
  }

  add(digest: Uint8Array, owner: string, inline: boolean, offset: number, length: number): void {
    let number = this.#numbers.get(owner);
    if (number === undefined) {
      number = this.#owners.push(owner) - 1;
      this.#numbers.set(owner, number);
    }
    const at = this.count * 32;
    if (at === this.#digests.length) this.#digests = Buffer.concat([this.#digests], at * 2);
    this.#digests.set(digest, at);
    this.#ownerNumbers.push(number);
    this.#inline.push(inline);
    this.#offsets.push(offset);
    this.#lengths.push(length);
  }

  finish(): ChunkRows {
    return {
      digests: this.#digests.subarray(0, this.count * 32),
      owners: this.#owners,
      ownerNumbers: this.#ownerNumbers,
      inline: this.#inline,
      offsets: this.#offsets,
      lengths: this.#lengths,
    };
  }
}
