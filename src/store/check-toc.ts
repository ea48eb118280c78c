/** A layer that is verified by its TOC, compared with it: what rebuilding the tar is for the others. */
import { createHash } from "node:crypto";
import { toHex } from "../bytes/index.ts";
import { ErofsReader } from "../formats/erofs/index.ts";
import { RecipeReader } from "../formats/tar-recipe/index.ts";
import { LayerToc } from "../formats/toc/index.ts";
import { type FileSource, fileSource } from "../sys/index.ts";
import type { StoreContext } from "./context.ts";
import { readTocRegion } from "./ingest/toc-file.ts";
import { parseTocLocation } from "./ingest/toc-location.ts";
import type { LayerRecord } from "./layers.ts";
import { tocIdentity } from "./toc-identity.ts";

const PIECE = 1024 * 1024;

/**
 * What is wrong, if anything: the kept TOC must be the one that the layer is kept under, and each content have the digests
 * that it gives. Attributes are covered by the digest of the metadata image. Throws for damaged files as reading them does.
 */
export async function checkAgainstToc(
  { layout, database }: StoreContext,
  { id, diffId }: LayerRecord,
  onBytes: (count: number) => Promise<void>,
): Promise<string | undefined> {
  const text = database.get("SELECT toc FROM layers WHERE id = ?", id)?.toc;
  if (typeof text !== "string") return "its table of contents is not known";
  const location = parseTocLocation(text);
  if (location.digest === undefined || tocIdentity(location.digest) !== diffId) {
    return "its table of contents is another one";
  }
  using open = new DisposableStack();
  const kept = open.use(fileSource(layout.layerToc(id)));
  const toc = await LayerToc.open(location, readTocRegion(kept, location)); // DATA_LOSS for another digest
  const reader = new ErofsReader(open.use(fileSource(layout.layerImage(id))), (tag) => blobOf(tag));
  const blobs = new Map<string, FileSource>();
  const blobOf = (tag: string) => {
    const blob = blobs.get(tag) ?? open.use(fileSource(layout.blob(tag)));
    blobs.set(tag, blob);
    return blob;
  };
  const places = new RecipeReader(open.use(fileSource(layout.layerRecipe(id)))).payloads();
  for await (const { header, chunks } of toc.entries()) {
    if (chunks.length === 0) continue;
    const place = places.next();
    if (place.done === true || place.value.size !== header.size) return "it has other files than its table of contents";
    const inode = reader.inode(place.value.nid);
    for (const { fileOffset, size, digest } of chunks) {
      const hasher = createHash("sha256");
      for (let at = 0; at < size; at += PIECE) {
        const piece = reader.read(inode, fileOffset + at, Math.min(PIECE, size - at));
        hasher.update(piece);
        await onBytes(piece.length);
      }
      const found = hasher.digest();
      if (!found.equals(digest)) return `a content is ${toHex(found)}, its table of contents says ${toHex(digest)}`;
    }
  }
  return undefined;
}
