import { hash } from "node:crypto";
import { bytes, struct, u8, u64le } from "../../bytes/index.ts";

export interface FsVerityOptions {
  /** "sha256" unless given. */
  readonly algorithm?: "sha256" | "sha512";
  /** A power of two from 1024; 4096 unless given. */
  readonly blockSize?: number;
  /** At most 32 bytes. */
  readonly salt?: Uint8Array;
}

/** struct fsverity_descriptor: 256 bytes. linux/fsverity.h. */
const DESCRIPTOR = struct("fs-verity descriptor", 256, {
  version: u8(0),
  algorithm: u8(1),
  blockBits: u8(2),
  saltSize: u8(3),
  dataSize: u64le(8),
  rootHash: bytes(16, 64),
  salt: bytes(80, 32),
});
const ALGORITHMS = {
  sha256: { number: 1, digestSize: 32, hashBlockSize: 64 },
  sha512: { number: 2, digestSize: 64, hashBlockSize: 128 },
} as const;

/**
 * The fs-verity digest of content that comes in pieces: what `fsverity digest` prints and FS_IOC_MEASURE_VERITY answers. Holds
 * one block and 32 bytes for each block before; the result does not depend on how the content is cut.
 */
export class FsVerityHasher {
  readonly #name: "sha256" | "sha512";
  readonly #blockSize: number;
  readonly #salt: Uint8Array;
  /** The salt, zero-padded to the hash function's own block, before each block of data. */
  readonly #prefix: Uint8Array;
  /** `#prefix`, then the block that is being filled. */
  readonly #block: Uint8Array;
  #filled = 0;
  #size = 0;
  #leaves: Buffer;
  #leafBytes = 0;

  constructor(options: FsVerityOptions = {}) {
    const { algorithm = "sha256", blockSize = 4096, salt = new Uint8Array(0) } = options;
    if (blockSize < 1024 || !Number.isInteger(Math.log2(blockSize)))
      throw new RangeError(`a block size of ${blockSize}`);
    if (salt.length > 32) throw new RangeError(`a salt of ${salt.length} bytes`);
    const { hashBlockSize, digestSize } = ALGORITHMS[algorithm];
    this.#name = algorithm;
    this.#blockSize = blockSize;
    this.#salt = salt;
    this.#prefix = new Uint8Array(salt.length === 0 ? 0 : hashBlockSize);
    this.#prefix.set(salt);
    this.#block = new Uint8Array(this.#prefix.length + blockSize);
    this.#block.set(this.#prefix);
    this.#leaves = Buffer.alloc(16 * digestSize);
  }

  update(data: Uint8Array): void {
    this.#size += data.length;
    let at = 0;
    while (at < data.length) {
      const whole = data.length - at >= this.#blockSize && this.#filled === 0 && this.#prefix.length === 0;
      if (whole) {
        this.#addLeaf(data.subarray(at, at + this.#blockSize));
        at += this.#blockSize;
        continue;
      }
      const count = Math.min(this.#blockSize - this.#filled, data.length - at);
      this.#block.set(data.subarray(at, at + count), this.#prefix.length + this.#filled);
      this.#filled += count;
      at += count;
      if (this.#filled === this.#blockSize) this.#flush();
    }
  }

  /** The digest; the hasher is used up. */
  digest(): Buffer {
    if (this.#filled > 0) {
      this.#block.fill(0, this.#prefix.length + this.#filled);
      this.#flush();
    }
    const { number, digestSize } = ALGORITHMS[this.#name];
    const descriptor = new Uint8Array(DESCRIPTOR.size);
    DESCRIPTOR.write(descriptor, 0, {
      version: 1,
      algorithm: number,
      blockBits: Math.log2(this.#blockSize),
      saltSize: this.#salt.length,
      dataSize: BigInt(this.#size),
      rootHash: this.#size === 0 ? new Uint8Array(digestSize) : this.#root(digestSize),
      salt: this.#salt,
    });
    return hash(this.#name, descriptor, "buffer");
  }

  /** Digests packed into blocks, those hashed, until one is left. */
  #root(digestSize: number): Uint8Array {
    let level = this.#leaves.subarray(0, this.#leafBytes);
    while (level.length > digestSize) {
      const blocks = Math.ceil(level.length / this.#blockSize);
      const next = Buffer.alloc(blocks * digestSize);
      for (let block = 0; block < blocks; block++) {
        this.#block.fill(0, this.#prefix.length);
        this.#block.set(level.subarray(block * this.#blockSize, (block + 1) * this.#blockSize), this.#prefix.length);
        next.set(hash(this.#name, this.#block, "buffer"), block * digestSize);
      }
      level = next;
    }
    return level;
  }

  #flush(): void {
    this.#addLeaf(this.#block);
    this.#filled = 0;
  }

  #addLeaf(block: Uint8Array): void {
    const { digestSize } = ALGORITHMS[this.#name];
    if (this.#leafBytes === this.#leaves.length) {
      const grown = Buffer.alloc(this.#leaves.length * 2);
      grown.set(this.#leaves);
      this.#leaves = grown;
    }
    this.#leaves.write(hash(this.#name, block, "latin1"), this.#leafBytes, digestSize, "latin1");
    this.#leafBytes += digestSize;
  }
}

/** The fs-verity digest of content that is in memory. */
export function fsVerityDigest(data: Uint8Array, options: FsVerityOptions = {}): Buffer {
  const hasher = new FsVerityHasher(options);
  hasher.update(data);
  return hasher.digest();
}
