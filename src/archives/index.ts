/**
 * Images in files: OCI layout directories and docker archives, read and written; OCI archives (tars of a layout), read.
 *
 * Guarantees
 * - Reading trusts nothing: documents are limited before they take memory and verified where a digest names them; names in
 *   an archive are compared, never used as paths; nothing is extracted, a layer is a range of a file. Layers are not
 *   hashed here: their reader does that anyway.
 * - Writing a layout: a blob has its name only when it is complete and has this digest; index.json is replaced atomically,
 *   last, and after everything that it refers to is durable. A crash leaves the layout as it was before.
 * - Writing an archive: one pass, deterministic, verified against the diffIDs.
 *
 * Specifications: OCI image specification v1.1 image-layout.md; Docker image specification v1.2 (docker save).
 *
 * Limits: documents as in oci/limits.ts; of an archive 65,536 members, 1,024 images, 4,096 names an image, 16 links in a
 * row, 64 GiB decompressed unless the caller says otherwise; of a layout 4 levels and 256 indexes in one search.
 */
export {
  type DockerArchive,
  type DockerArchiveImage,
  openDockerArchive,
  readDockerArchive,
} from "./docker-archive.ts";
export {
  type ByteSink,
  type DockerArchiveContent,
  type DockerArchiveLayer,
  writeDockerArchive,
} from "./docker-archive-writer.ts";
export { type FileRange, readFileRange } from "./file-range.ts";
export { type ImageNames, OciLayoutWriter } from "./layout-writer.ts";
export {
  type BlobName,
  CONTAINERD_NAME,
  type OciLayout,
  openOciLayout,
  REF_NAME,
  readOciArchive,
} from "./oci-layout.ts";
export { type OpenTarOptions, TarFile } from "./tar-file.ts";
