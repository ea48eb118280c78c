/**
 * Hash trees that the kernel checks on every read: dm-verity for block devices, fs-verity for single files.
 *
 * dm-verity (Linux Documentation/admin-guide/device-mapper/verity.rst, hash format 1, SHA-256): the shape of a tree, its
 * superblock (cryptsetup lib/verity/verity.c), the digests of blocks, the levels above the leaves, and checking them.
 * fs-verity (Documentation/filesystems/fsverity.rst): the digest of a file's content.
 *
 * Guarantees: bytes are those of `veritysetup format` and `fsverity digest` for the same parameters. Which bytes a level
 * needs is given by the caller, so that files larger than memory are hashed by many threads. Pure.
 */
export { type BlockDigests, BlockHasher, type DigestBlocks } from "./block-hasher.ts";
export {
  DIGEST_SIZE,
  MAX_DATA_BLOCKS,
  MAX_SALT_SIZE,
  planTree,
  type TreeLevel,
  type TreeShape,
  type VerityBlocks,
} from "./shape.ts";
export { buildUpperLevels, checkUpperLevels, type TreeDamage, type UpperLevels } from "./levels.ts";
export {
  decodeVeritySuperblock,
  encodeVeritySuperblock,
  VERITY_SUPERBLOCK_SIZE,
  type VeritySuperblock,
} from "./superblock.ts";
export { FsVerityHasher, type FsVerityOptions, fsVerityDigest } from "./fs-verity.ts";
