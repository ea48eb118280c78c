/** Limits on what clients send; docs/limits.md lists them. containerd checks some before. */
export const SNAPSHOTTER_LIMITS = {
  /** Bytes of a key or name. */
  name: 4096,
  /** Bytes of one label, key and value together, as in containerd. */
  label: 4096,
  /** Bytes of all labels of a snapshot. */
  labels: 1024 * 1024,
  /** Ranges in an id mapping; the kernel's own limit is 340 (user_namespaces(7)). */
  idRanges: 340,
  /** Layers given to one overlay: the kernel takes 500. */
  bases: 400,
  /** Bytes of the lower directories in a mount's options: a page, less what containerd and the upper directory need. */
  lowerOption: 3000,
} as const;
