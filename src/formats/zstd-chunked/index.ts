/**
 * Writing zstd:chunked layers: a tar as zstd frames, one for each chunk of each file, with a table of contents and a
 * tar-split behind. For reading see formats/toc.
 *
 * Guarantees
 * - An ordinary zstd decoder sees the tar, byte for byte: the diffId stays.
 * - Chunks are cut where containers/storage cuts them, entries are told as it tells them, and the tar-split has the bytes
 *   that it would have; so podman, skopeo and buildah take the blob for one of their own, and chunks of their layers and ours
 *   are found again in one another.
 * - A tar that they would refuse in this form is NotConvertibleError: sparse files, a name that is there twice or is not
 *   UTF-8, headers that Go's archive/tar reads in another way.
 * - Deterministic: the bytes depend on the tar and on the compressor's settings and library, not on pieces or threads.
 * - Bounded memory: a few MiB, the chunk list of the largest file, and 40 bytes for each entry's name.
 *
 * Specification: none but the code of containers/storage, pkg/chunked; facts are in the comments. Pure.
 */
export { type ChunkSink, RollingChunker } from "./chunker.ts";
export { ZstdChunkedWriter, type ZstdChunkedOptions } from "./writer.ts";
