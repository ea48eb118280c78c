/** What a tar may ask for before it is refused. Every length is checked before anything is allocated for it. */
export interface TarLimits {
  /** Bytes of one extended header (PAX x and g, GNU L and K). Go's archive/tar has the same limit. */
  readonly metaHeaderSize: number;
  /** Bytes of a path or link target (linux/limits.h PATH_MAX). */
  readonly pathLength: number;
  /** Bytes of an xattr name with its prefix (linux/limits.h XATTR_NAME_MAX). */
  readonly xattrNameLength: number;
  /** Bytes of one xattr value: 16 bits in EROFS, one byte less than Linux has. */
  readonly xattrValueLength: number;
  /** Pieces of data in one sparse file. */
  readonly sparseSegments: number;
  /** Bytes of one file with its holes. The default is what ext4 can hold: a longer file could be unpacked nowhere. */
  readonly fileSize: number;
}

export const DEFAULT_TAR_LIMITS: TarLimits = {
  metaHeaderSize: 1024 * 1024,
  pathLength: 4096,
  xattrNameLength: 255,
  xattrValueLength: 65535,
  sparseSegments: 262_144,
  fileSize: 16 * 1024 ** 4,
};
