/**
 * Tables of contents (TOC) of layers: zstd:chunked as containers/storage writes it, and eStargz. What a TOC says is one more
 * source of the layer index: `LayerToc.replay` feeds the sink that takes a tar from the tar decoder.
 *
 * How a layer is read in parts
 * 1. `findTocPointer(annotations, blobSize)`. zstd:chunked gives the location; eStargz needs the last ESTARGZ_FOOTER_SIZE
 *    bytes of the blob for `decodeEstargzFooter`. A zstd layer without annotations may have a footer
 *    (`findZstdChunkedFooter`); its TOC is then vouched for by nobody, and only the diffId of the rebuilt tar decides.
 * 2. Fetch `location.region`, one range, and keep it where it can be read again (`ReadRegion`).
 * 3. `LayerToc.open` verifies; `entries` tells the plan which contents and chunks there are; `replay` builds.
 * 4. A content is right when it has the digest that the TOC gives. The TOC's digest vouches for that, and the diffId for
 *    the tar that comes out (zstd:chunked alone: an eStargz TOC does not have the headers of its tar).
 *
 * Guarantees
 * - Nothing is parsed before its digest was right, where there is one. Hostile bytes are a FormatError, or DATA_LOSS for a
 *   wrong digest, and never more memory than `TocLimits` says: one entry with its chunks at a time, whatever the TOC's size.
 * - Chunks of a file are its content without gaps; files follow one another in the blob; all of them lie before the TOC.
 * - zstd:chunked: the tar-split has exactly the entries of the TOC, in the same order, and each header tells the same as its
 *   entry. A TOC in another order is refused (every writer streams), as is one with members whose names differ in case only,
 *   and content among the headers. Metadata then is what the tar's headers say, as in a whole pull.
 * - What does not depend on how the input was cut: everything.
 *
 * Refused with UNIMPLEMENTED, so that a caller pulls the layer whole: legacy stargz footers, an eStargz TOC outside of the
 * blob, zstd:chunked without a tar-split, sparse files.
 *
 * Specifications: containers/storage, pkg/chunked; stargz-snapshotter, docs/estargz.md; github.com/vbatts/tar-split. Pure.
 */
export type { TocChunk, TocEntry } from "./entry.ts";
export { LayerToc, type OpenTocOptions, type ReadRegion, type TocPayload, type TocSummary } from "./layer-toc.ts";
export { DEFAULT_TOC_LIMITS, type TocLimits } from "./limits.ts";
export {
  type BlobRange,
  decodeEstargzFooter,
  ESTARGZ_FOOTER_SIZE,
  type EstargzLocation,
  findTocPointer,
  findZstdChunkedFooter,
  TocAnnotation,
  type TocLocation,
  type TocPointer,
  ZSTD_FOOTER_SIZE,
  type ZstdChunkedLocation,
} from "./location.ts";
export { decodeTarSplit, type TarSplitItem } from "./tar-split.ts";
