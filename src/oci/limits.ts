/** Limits on documents from a peer; each is in docs/limits.md. */

/** Bytes of a manifest or index: what registries accept and containers/image reads. */
export const MAX_MANIFEST_SIZE = 4 << 20;
/** Bytes of an image config: 1,000 layers with long build histories stay below. */
export const MAX_CONFIG_SIZE = 8 << 20;
/** Layers of one image. overlayfs stops at 500, a merged EROFS image does not. */
export const MAX_LAYERS = 1024;
/** Descriptors of one index. */
export const MAX_INDEX_ENTRIES = 4096;
/** History entries of a config: layers and steps that left no layer. */
export const MAX_HISTORY = 16384;
/** Alternative addresses of one descriptor. */
export const MAX_URLS = 64;
/** Environment variables, arguments, volumes, ports of a config, each. */
export const MAX_CONFIG_LIST = 65536;
/** Characters of a reference as typed. */
export const MAX_REFERENCE_LENGTH = 1024;
