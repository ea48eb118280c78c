/**
 * CRC-64 as Go's hash/crc64 with its ISO table computes it: polynomial x^64 + x^4 + x^3 + x + 1, reflected, register
 * all ones at the start and inverted at the end. ISO 3309.
 *
 * The polynomial has all its terms below x^5, so 32 bits are taken in by shifts, without a table: in reflected form a word
 * that leaves the register comes back as itself and itself shifted by 1, 3 and 4.
 */
export class Crc64 {
  #low = -1;
  #high = -1;

  update(bytes: Uint8Array): this {
    let low = this.#low;
    let high = this.#high;
    let at = 0;
    const words = bytes.length - (bytes.length % 4);
    for (; at < words; at += 4) {
      const word = low ^ (bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24));
      low = high ^ (word << 31) ^ (word << 29) ^ (word << 28);
      high = word ^ (word >>> 1) ^ (word >>> 3) ^ (word >>> 4);
    }
    for (; at < bytes.length; at++) {
      // the same for 8 bits, which stand at the top of the register
      const top = ((low ^ bytes[at]!) & 0xff) << 24;
      low = (low >>> 8) | (high << 24);
      high = (high >>> 8) ^ top ^ (top >>> 1) ^ (top >>> 3) ^ (top >>> 4);
    }
    this.#low = low;
    this.#high = high;
    return this;
  }

  /** 8 bytes, big-endian, as tar-split has them. */
  digest(): Uint8Array {
    const bytes = Buffer.alloc(8);
    bytes.writeInt32BE(~this.#high, 0);
    bytes.writeInt32BE(~this.#low, 4);
    return bytes;
  }
}
