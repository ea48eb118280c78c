import type { BlockHasher } from "./block-hasher.ts";
import { DIGEST_SIZE, type TreeShape } from "./shape.ts";

export interface UpperLevels {
  readonly rootHash: Uint8Array;
  /** All levels above the leaves as they are on disk, the top first: the bytes of the tree before `levels[0].offset`. */
  readonly bytes: Buffer;
}

/**
 * Builds what is above the leaves from the digests of the leaf level's hash blocks (for a single data block: from the digest
 * of that block).
 */
export function buildUpperLevels(shape: TreeShape, hasher: BlockHasher, digests: Uint8Array): UpperLevels {
  const bytes = Buffer.alloc(shape.levels[0]?.offset ?? 0);
  let below: Uint8Array = digests;
  for (const { offset, blocks } of shape.levels.slice(1)) {
    const level = bytes.subarray(offset, offset + blocks * shape.hashBlockSize);
    level.set(below); // the rest of the last block stays zero
    below = digestsOf(hasher, level, blocks);
  }
  return { rootHash: Uint8Array.from(below.subarray(0, DIGEST_SIZE)), bytes };
}

/** A hash block that is not what the block above it says; level 0 has the digests of data. */
export interface TreeDamage {
  readonly level: number;
  readonly block: number;
}

/**
 * Checks the levels above the leaves as they are on disk, as the kernel does: each block against its slot in the level above.
 * `digests` are those of the leaf level's hash blocks as they are on disk. What is in unused slots does not matter beyond
 * being hashed, since nydus fills them with other bytes than veritysetup.
 * Gives the root hash that the tree has, and the first block that contradicts it.
 */
export function checkUpperLevels(
  shape: TreeShape,
  hasher: BlockHasher,
  digests: Uint8Array,
  upper: Uint8Array,
): { readonly rootHash: Uint8Array; readonly damage: TreeDamage | undefined } {
  let below: Uint8Array = digests;
  let damage: TreeDamage | undefined;
  shape.levels.forEach(({ offset, blocks }, number) => {
    if (number === 0) return;
    const level = upper.subarray(offset, offset + blocks * shape.hashBlockSize);
    const belowBlocks = shape.levels[number - 1]!.blocks;
    for (let block = 0; block < belowBlocks && damage === undefined; block++) {
      const at = block * DIGEST_SIZE;
      const end = at + DIGEST_SIZE;
      if (Buffer.compare(below.subarray(at, end), level.subarray(at, end)) !== 0) damage = { level: number - 1, block };
    }
    below = digestsOf(hasher, level, blocks);
  });
  return { rootHash: Uint8Array.from(below.subarray(0, DIGEST_SIZE)), damage };
}

function digestsOf(hasher: BlockHasher, level: Uint8Array, blocks: number): Buffer {
  const digests = Buffer.alloc(blocks * DIGEST_SIZE);
  hasher.hashBlocks(level, digests, 0);
  return digests;
}
