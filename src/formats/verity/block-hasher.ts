import { hash } from "node:crypto";

const BLOCKS_A_WRITE = 128;

/**
 * Digests of blocks: SHA-256 of salt and block (hash format 1 puts the salt first).
 *
 * One-shot hashing whose result goes through a latin1 string: 1.2 times as fast as one Buffer per block, 1.6 times as
 * createHash(), measured with 4 KiB blocks on Node 26.
 */
export class BlockHasher {
  readonly blockSize: number;
  readonly #salt: Uint8Array;
  /** Salt, then room for a block; without a salt blocks are hashed where they are. */
  readonly #salted: Uint8Array | undefined;
  readonly #zeros: Buffer;
  readonly #zeroDigest: string;

  constructor(blockSize: number, salt: Uint8Array = new Uint8Array(0)) {
    this.blockSize = blockSize;
    this.#salt = salt;
    this.#zeros = Buffer.alloc(blockSize);
    if (salt.length > 0) {
      this.#salted = new Uint8Array(salt.length + blockSize);
      this.#salted.set(salt);
    }
    this.#zeroDigest = this.#digest(this.#zeros, 0, blockSize);
  }

  /**
   * Writes the digests of the blocks of `data`, one after another, to `target` from `at`. `data` is a multiple of the block
   * size. Blocks of zeros, as holes are read, cost next to nothing.
   */
  hashBlocks(data: Uint8Array, target: Buffer, at: number): void {
    const { blockSize } = this;
    if (data.length % blockSize !== 0) throw new RangeError(`${data.length} bytes in blocks of ${blockSize}`);
    const bytes = Buffer.from(data.buffer, data.byteOffset, data.length);
    // Digests are gathered first: one write for many of them, at 0.1 us less for each.
    for (let offset = 0; offset < bytes.length; ) {
      const stop = Math.min(bytes.length, offset + BLOCKS_A_WRITE * blockSize);
      let digests = "";
      for (; offset < stop; offset += blockSize) {
        const end = offset + blockSize;
        const mayBeZero = bytes[offset] === 0 && bytes[end - 1] === 0;
        const isZero = mayBeZero && this.#zeros.compare(bytes, offset, end) === 0;
        digests += isZero ? this.#zeroDigest : this.#digest(bytes, offset, end);
      }
      at += target.write(digests, at, digests.length, "latin1");
    }
  }

  #digest(bytes: Buffer, start: number, end: number): string {
    const salted = this.#salted;
    if (salted === undefined) return hash("sha256", bytes.subarray(start, end), "latin1");
    bytes.copy(salted, this.#salt.length, start, end);
    return hash("sha256", salted, "latin1");
  }
}
