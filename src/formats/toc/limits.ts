/** What a table of contents may ask for before it is refused. Every length is checked before anything is allocated for it. */
export interface TocLimits {
  /** Bytes of the TOC, compressed and not. containers/storage stops at 150 MiB; here memory does not depend on it. */
  readonly tocSize: number;
  /** Bytes of the tar-split, compressed and not. */
  readonly tarSplitSize: number;
  /** Bytes of JSON of one entry of the TOC: its xattrs in base64 are the most of it. */
  readonly entrySize: number;
  /** Bytes of JSON of one item of the tar-split: three extended headers of 1 MiB in base64 fit. */
  readonly tarSplitItemSize: number;
  /** Chunks of one file, about 250 bytes of memory each; 12 GiB at the usual 49 KiB. */
  readonly chunksPerFile: number;
  /** Bytes of a path or link target (linux/limits.h PATH_MAX). */
  readonly pathLength: number;
}

export const DEFAULT_TOC_LIMITS: TocLimits = {
  tocSize: 1024 ** 3,
  tarSplitSize: 4 * 1024 ** 3,
  entrySize: 1024 ** 2,
  tarSplitItemSize: 8 * 1024 ** 2,
  chunksPerFile: 262_144,
  pathLength: 4096,
};
