import { ShaleError } from "../../errors/index.ts";

/** SHA-256, the only algorithm we write; also the size of a slot, which is a digest rounded up to a power of two. */
export const DIGEST_SIZE = 32;
/** Of the superblock's field; the kernel takes as much. */
export const MAX_SALT_SIZE = 256;
/** What dm-verity takes, and Kata's and nydus's tools: DmVerityInfo of nydus-snapshotter has this range. */
const MIN_BLOCK_SIZE = 512;
const MAX_BLOCK_SIZE = 512 * 1024;
/**
 * 2^32 - 1: 2 TiB in blocks of 512 bytes, 16 TiB in blocks of 4096. The kernel would take more, but not EROFS without its
 * 48-bit feature, nor nydus and Kata, which count blocks in 32 bits.
 */
export const MAX_DATA_BLOCKS = 0xffff_ffff;

/** The sizes that a tree has its shape from. */
export interface VerityBlocks {
  readonly dataBlocks: number;
  readonly dataBlockSize: number;
  readonly hashBlockSize: number;
}

export interface TreeLevel {
  /** Bytes from the start of the tree. */
  readonly offset: number;
  /** In hash blocks. */
  readonly blocks: number;
}

export interface TreeShape extends VerityBlocks {
  readonly slotsPerBlock: number;
  /**
   * The leaves first: level 0 has the digests of data blocks, level n those of the blocks of level n - 1. Empty for a single
   * data block, whose digest is the root hash. On disk they are the other way round: the top comes first.
   */
  readonly levels: readonly TreeLevel[];
  /** Bytes of the tree, without a superblock. */
  readonly size: number;
}

/** INVALID_ARGUMENT for sizes that dm-verity does not have, RESOURCE_EXHAUSTED for more than {@link MAX_DATA_BLOCKS}. */
export function planTree({ dataBlocks, dataBlockSize, hashBlockSize }: VerityBlocks): TreeShape {
  checkBlockSize("data block size", dataBlockSize);
  checkBlockSize("hash block size", hashBlockSize);
  if (!Number.isSafeInteger(dataBlocks) || dataBlocks < 1) {
    throw new ShaleError("INVALID_ARGUMENT", `Cannot make a verity tree: there are ${dataBlocks} data blocks`);
  }
  if (dataBlocks > MAX_DATA_BLOCKS) {
    throw new ShaleError(
      "RESOURCE_EXHAUSTED",
      `Cannot make a verity tree: ${dataBlocks} data blocks of ${dataBlockSize} bytes, limit ${MAX_DATA_BLOCKS}`,
      dataBlockSize < 4096 ? { hint: "Larger blocks reach further: choose a block size of 4096" } : {},
    );
  }
  const slotsPerBlock = hashBlockSize / DIGEST_SIZE;
  const counts: number[] = [];
  for (let count = dataBlocks; count > 1; ) {
    count = Math.ceil(count / slotsPerBlock);
    counts.push(count);
  }
  let size = 0;
  const levels = counts
    .reverse()
    .map((blocks) => {
      const offset = size;
      size += blocks * hashBlockSize;
      return { offset, blocks };
    })
    .reverse();
  return { dataBlocks, dataBlockSize, hashBlockSize, slotsPerBlock, levels, size };
}

export function checkBlockSize(what: string, size: number): void {
  const isPowerOfTwo = Number.isInteger(size) && size > 0 && Number.isInteger(Math.log2(size));
  if (!isPowerOfTwo || size < MIN_BLOCK_SIZE || size > MAX_BLOCK_SIZE) {
    const range = `a power of two from ${MIN_BLOCK_SIZE} to ${MAX_BLOCK_SIZE}`;
    throw new ShaleError("INVALID_ARGUMENT", `Cannot make a verity tree: the ${what} is ${size}, not ${range}`);
  }
}
