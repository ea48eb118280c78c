/**
 * Reading checkpoint archives: podman's, CRI-O's, containerd's and shale's, aligned or not, plain or compressed with gzip,
 * bzip2, xz or zstd.
 *
 * Guarantees: members are read where they lie, forward, in bounded memory; nothing is extracted or buffered as a whole. In a
 * plain file, and in zstd with an index of frames, what is not read costs nothing. Names are clean relative paths; what is
 * absolute or has ".." is refused. Nested tars (rootfs-diff.tar, volumes, /dev/shm) are read in place, within the bounds of
 * their member. Any input gives entries or a FormatError. Never decides what an entry means for a container.
 *
 * ```ts
 * await using archive = await openArchive(path, { signal });
 * for await (const member of archive.members()) {
 *   if (member.section.kind === "config") config = await member.content.bytes(LIMIT);
 *   if (!isNested(member.section.kind)) continue;
 *   const nested = await member.open();
 *   for await (const { path, entry, content } of nested.entries()) ...
 * }
 * ```
 */
export {
  type ArchiveEntry,
  type ArchiveMember,
  type ArchiveObserver,
  type Content,
  type NestedTar,
  readTarFile,
} from "./archive.ts";
export type { ArchiveCompression } from "./compression.ts";
export { type Dialect, DialectDetector } from "./dialect.ts";
export { compareDigests, DATA_FROM, SectionDigester, type SectionDigests, type SectionVerdict } from "./digests.ts";
export { type ArchiveIndex, decodeIndex, encodeIndex, INDEX_SIZE_MAX } from "./index-member.ts";
export type { FilePlace } from "./input.ts";
export {
  type CheckpointArchive,
  type MembersOptions,
  type OpenOptions,
  openArchive,
  openArchiveStream,
} from "./open.ts";
export { cleanPath, isNested, MEMBER, memberPath, type Section, type SectionKind, sectionOf } from "./sections.ts";
