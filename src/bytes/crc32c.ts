/** CRC-32C (Castagnoli), RFC 3720 appendix B.4: polynomial 0x1EDC6F41, reflected 0x82F63B78. */
const TABLE = new Uint32Array(256);
for (let n = 0; n < 256; n++) {
  let c = n;
  for (let bit = 0; bit < 8; bit++) c = c & 1 ? (c >>> 1) ^ 0x82f63b78 : c >>> 1;
  TABLE[n] = c >>> 0;
}

/**
 * The CRC register after `bytes`, from `register` (0xffffffff at the start). No final inversion: EROFS stores the
 * register itself; invert the result (`~crc >>> 0`) for the usual CRC-32C.
 */
export function crc32c(bytes: Uint8Array, register = 0xffffffff): number {
  let c = register;
  for (let i = 0; i < bytes.length; i++) c = TABLE[(c ^ bytes[i]!) & 0xff]! ^ (c >>> 8);
  return c >>> 0;
}
