/**
 * Media types of the OCI image specification 1.1 (media-types.md) and of Docker's image manifest version 2, schema 2.
 */

export const MediaType = {
  OCI_INDEX: "application/vnd.oci.image.index.v1+json",
  OCI_MANIFEST: "application/vnd.oci.image.manifest.v1+json",
  OCI_CONFIG: "application/vnd.oci.image.config.v1+json",
  OCI_EMPTY: "application/vnd.oci.empty.v1+json",
  OCI_LAYER: "application/vnd.oci.image.layer.v1.tar",
  OCI_LAYER_GZIP: "application/vnd.oci.image.layer.v1.tar+gzip",
  OCI_LAYER_ZSTD: "application/vnd.oci.image.layer.v1.tar+zstd",
  DOCKER_LIST: "application/vnd.docker.distribution.manifest.list.v2+json",
  DOCKER_MANIFEST: "application/vnd.docker.distribution.manifest.v2+json",
  DOCKER_CONFIG: "application/vnd.docker.container.image.v1+json",
  DOCKER_LAYER: "application/vnd.docker.image.rootfs.diff.tar",
  DOCKER_LAYER_GZIP: "application/vnd.docker.image.rootfs.diff.tar.gzip",
  DOCKER_SCHEMA1: "application/vnd.docker.distribution.manifest.v1+json",
  DOCKER_SCHEMA1_SIGNED: "application/vnd.docker.distribution.manifest.v1+prettyjws",
} as const;

/** What a client that reads images accepts for a manifest, best first. Schema 1 is left out: nobody converts it for us. */
export const MANIFEST_MEDIA_TYPES: readonly string[] = [
  MediaType.OCI_INDEX,
  MediaType.DOCKER_LIST,
  MediaType.OCI_MANIFEST,
  MediaType.DOCKER_MANIFEST,
];

export function isIndexMediaType(mediaType: string): boolean {
  return mediaType === MediaType.OCI_INDEX || mediaType === MediaType.DOCKER_LIST;
}

export function isManifestMediaType(mediaType: string): boolean {
  return mediaType === MediaType.OCI_MANIFEST || mediaType === MediaType.DOCKER_MANIFEST;
}

export function isConfigMediaType(mediaType: string): boolean {
  return mediaType === MediaType.OCI_CONFIG || mediaType === MediaType.DOCKER_CONFIG;
}

export function isSchema1MediaType(mediaType: string): boolean {
  return mediaType === MediaType.DOCKER_SCHEMA1 || mediaType === MediaType.DOCKER_SCHEMA1_SIGNED;
}

export type LayerCompression = "none" | "gzip" | "zstd";

/** What a layer's media type declares. The bytes decide in the end: builders mislabel, and readers look at the magic. */
export interface LayerType {
  readonly compression: LayerCompression;
  /** Foreign or non-distributable: the registry may not have it. */
  readonly foreign: boolean;
}

/** containerd and containers/image also write the docker ".zstd" form. */
const LAYER_TYPES = new Map<string, LayerType>();
for (const [base, separator, foreign] of [
  ["application/vnd.oci.image.layer.v1.tar", "+", false],
  ["application/vnd.oci.image.layer.nondistributable.v1.tar", "+", true],
  ["application/vnd.docker.image.rootfs.diff.tar", ".", false],
  ["application/vnd.docker.image.rootfs.foreign.diff.tar", ".", true],
] as const) {
  LAYER_TYPES.set(base, { compression: "none", foreign });
  LAYER_TYPES.set(`${base}${separator}gzip`, { compression: "gzip", foreign });
  LAYER_TYPES.set(`${base}${separator}zstd`, { compression: "zstd", foreign });
}

/** Undefined for anything that is not a tar layer (an artifact's file, an encrypted layer). */
export function findLayerType(mediaType: string): LayerType | undefined {
  return LAYER_TYPES.get(mediaType);
}

/** "Type/SUB; charset=utf-8" -> "type/sub". */
export function essenceOf(contentType: string): string {
  return contentType.split(";", 1)[0]!.trim().toLowerCase();
}
