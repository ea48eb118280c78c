/**
 * Writing eStargz layers: a tar as gzip members, one for each 4 MiB of each file, with a table of contents as its last
 * entry. For reading see formats/toc.
 *
 * Guarantees
 * - An ordinary gzip decoder sees a tar: the one that came in, header for header, with a landmark before it and the TOC
 *   behind. So the layer has a new diffId. What is not an entry (global headers, volume labels, zeros behind the end) and
 *   the landmarks and TOC of an earlier conversion are left out; a sparse file is written with its holes as zeros.
 * - The landmark is `.no.prefetch.landmark`, since nobody told which files are needed first: stargz-snapshotter then starts a
 *   container without reading ahead, and shows neither it nor the TOC in the tree. Others show both, as files of the root.
 * - Modification times are told to the nanosecond, which readers of whole seconds take for a time of RFC 3339 as well.
 * - Deterministic: the bytes depend on the tar and on the compressor's settings and library, not on pieces or threads.
 * - Bounded memory: a few members of 5 MiB, and the chunk list of the largest file.
 *
 * Specification: stargz-snapshotter, docs/estargz.md. Pure.
 */
export { type EstargzOptions, type EstargzResult, EstargzWriter } from "./writer.ts";
