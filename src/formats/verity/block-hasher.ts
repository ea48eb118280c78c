import { hash } from "node:crypto";
import { DIGEST_SIZE } from "./shape.ts";

const BLOCKS_A_WRITE = 128;

/** A way to compute SHA-256 of many blocks: node:crypto here, or what the machine has. */
export interface BlockDigests {
  /** For blocks of one size that are hashed behind the same bytes. */
  open(blockSize: number, prefix: Uint8Array): DigestBlocks;
}

/** Writes the digests of the `count` blocks of `data` from `offset` on, one after another, to `target` from `at`. */
export type DigestBlocks = (data: Buffer, offset: number, count: number, target: Buffer, at: number) => void;

/**
 * Digests of blocks: SHA-256 of salt and block (hash format 1 puts the salt first). The bytes do not depend on `digests`, which only
 * says who computes them.
 */
export class BlockHasher {
  readonly blockSize: number;
  readonly #digestBlocks: DigestBlocks;
  readonly #zeros: Buffer;
  readonly #zeroDigest = Buffer.alloc(DIGEST_SIZE);

  constructor(blockSize: number, salt: Uint8Array = new Uint8Array(0), digests: BlockDigests = nodeDigests) {
    this.blockSize = blockSize;
    this.#digestBlocks = digests.open(blockSize, salt);
    this.#zeros = Buffer.alloc(blockSize);
    this.#digestBlocks(this.#zeros, 0, 1, this.#zeroDigest, 0);
  }

  /**
   * Writes the digests of the blocks of `data`, one after another, to `target` from `at`. `data` is a multiple of the block
   * size. Blocks of zeros, as holes are read, cost next to nothing.
   */
  hashBlocks(data: Uint8Array, target: Buffer, at: number): void {
    const { blockSize } = this;
    if (data.length % blockSize !== 0) throw new RangeError(`${data.length} bytes in blocks of ${blockSize}`);
    const bytes = Buffer.from(data.buffer, data.byteOffset, data.length);
    const blocks = data.length / blockSize;
    if (at + blocks * DIGEST_SIZE > target.length) throw new RangeError(`no room for ${blocks} digests at byte ${at}`);
    let first = 0; // of those that are not zeros and not hashed yet
    const hashUpTo = (block: number) => {
      if (block > first) this.#digestBlocks(bytes, first * blockSize, block - first, target, at + first * DIGEST_SIZE);
      first = block + 1;
    };
    for (let block = 0; block < blocks; block++) {
      const offset = block * blockSize;
      const end = offset + blockSize;
      if (bytes[offset] !== 0 || bytes[end - 1] !== 0 || this.#zeros.compare(bytes, offset, end) !== 0) continue;
      hashUpTo(block);
      target.set(this.#zeroDigest, at + block * DIGEST_SIZE);
    }
    hashUpTo(blocks);
  }
}

/**
 * One-shot hashing whose results go through latin1 strings, many of them in one write: 1.2 times as fast as one Buffer per block, 1.6
 * times as createHash(), measured with 4 KiB blocks on Node 26.
 */
const nodeDigests: BlockDigests = {
  open(blockSize, prefix) {
    // Prefix, then room for a block; without a prefix blocks are hashed where they are.
    const whole = new Uint8Array(prefix.length + blockSize);
    whole.set(prefix);
    const digest = (data: Buffer, start: number, end: number) => {
      if (prefix.length === 0) return hash("sha256", data.subarray(start, end), "latin1");
      data.copy(whole, prefix.length, start, end);
      return hash("sha256", whole, "latin1");
    };
    return (data, offset, count, target, at) => {
      const end = offset + count * blockSize;
      while (offset < end) {
        const stop = Math.min(end, offset + BLOCKS_A_WRITE * blockSize);
        let digests = "";
        for (; offset < stop; offset += blockSize) digests += digest(data, offset, offset + blockSize);
        at += target.write(digests, at, digests.length, "latin1");
      }
    };
  },
};
