/** Limits of the store, all in bytes unless named; docs/limits.md lists them with the ones of the formats. */
export const LIMITS = {
  /**
   * Payloads up to this size live inside the metadata image. An inline payload is copied into each merged image that has
   * it and is not deduplicated, so above half a block a block of its own costs less. See docs/adr/0002.
   */
  inlineSize: 2048,
  /** Sum of the file sizes of one layer, holes included: a sparse map may claim much that the tar does not have. */
  layerContentSize: 2 ** 40,
  /** The uncompressed tar of one layer. */
  layerTarSize: 2 ** 40,
  /** Chunks of a layer that is pulled in parts; 16 bytes of memory each, and 120 for one that is fetched. */
  tocChunks: 1_000_000,
} as const;
