/** Listed in docs/limits.md. */
export const LIMITS = {
  /** Bytes of an image that is read as a whole: a pagemap of 2 million runs has 40 MiB. */
  imageSize: 128 * 1024 ** 2,
  /** Entries of one image. */
  entries: 4_000_000,
} as const;
