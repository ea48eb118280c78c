/**
 * Finds what of a stored layer can be a source for pulls of parts, beside the payloads that the dedupe index has: its small
 * files, which are hashed here, and the chunks of its larger ones where the layer came with a TOC. What the TOC says is not
 * checked: a row is a hint, and bytes are hashed when they are used.
 */
import { hash } from "node:crypto";
import { ErofsReader, PRIMARY } from "../../formats/erofs/index.ts";
import { RecipeReader } from "../../formats/tar-recipe/index.ts";
import type { TocEntry } from "../../formats/toc/index.ts";
import { fileSource } from "../../sys/index.ts";
import { Layout } from "../layout.ts";
import type { ChunkRows, ChunkScanJob } from "./protocol.ts";
import { openKeptToc } from "./toc-file.ts";

/** Rows of one layer; more files than this have no rows. */
const ROWS_MAX = 4_000_000;
/** Files between two looks at whether to stop. */
const STEP = 4096;

export async function scanChunks(job: ChunkScanJob, check: () => void, signal: AbortSignal): Promise<ChunkRows> {
  const layout = new Layout(job.root);
  using image = fileSource(layout.layerImage(job.id));
  using recipe = fileSource(layout.layerRecipe(job.id));
  using kept = job.toc === undefined ? undefined : await openKeptToc(layout.layerToc(job.id), job.toc, signal);
  const reader = new ErofsReader(image);
  const rows = new RowColumns();
  const files = kept === undefined ? undefined : withContent(kept.toc.entries({ signal }));
  let useToc = files !== undefined;
  let count = 0;
  for (const { nid, size, segments } of new RecipeReader(recipe).payloads()) {
    if (count++ % STEP === 0) check();
    if (rows.count >= ROWS_MAX) break;
    const inode = reader.inode(nid);
    const [extent, more] = reader.extents(inode);
    let entry: TocEntry | undefined;
    if (useToc) {
      // Both are in the order of the tar. A TOC that tells of other files is of no use.
      const next = await files!.next();
      entry = next.done === true || next.value.header.size !== size || segments !== undefined ? undefined : next.value;
      useToc = entry !== undefined;
    }
    if (extent === undefined || more !== undefined || extent.device < PRIMARY || extent.length !== inode.size) continue;
    if (extent.device === PRIMARY) {
      rows.add(
        hash("sha256", image.read(extent.offset, extent.length), "buffer"),
        job.id,
        true,
        extent.offset,
        extent.length,
      );
      continue;
    }
    // one chunk is the whole file, which the dedupe index has
    if (entry === undefined || entry.chunks.length < 2) continue;
    const blob = reader.devices[extent.device]!.tag;
    for (const chunk of entry.chunks) {
      if (!chunk.zeros) rows.add(chunk.digest, blob, false, extent.offset + chunk.fileOffset, chunk.size);
    }
  }
  await files?.return();
  return rows.finish();
}

async function* withContent(entries: AsyncIterable<TocEntry>): AsyncGenerator<TocEntry, void, undefined> {
  for await (const entry of entries) if (entry.chunks.length > 0) yield entry;
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
