/** xxHash, 32 bits: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md. EROFS filters xattr names by it. */
const PRIME1 = 0x9e3779b1;
const PRIME2 = 0x85ebca77;
const PRIME3 = 0xc2b2ae3d;
const PRIME4 = 0x27d4eb2f;
const PRIME5 = 0x165667b1;

/** `text`: one byte a character. */
export function xxh32(text: string, seed: number): number {
  const word = (at: number) =>
    text.charCodeAt(at) |
    (text.charCodeAt(at + 1) << 8) |
    (text.charCodeAt(at + 2) << 16) |
    (text.charCodeAt(at + 3) << 24);
  let at = 0;
  let hash: number;
  if (text.length >= 16) {
    const lanes = [seed + PRIME1 + PRIME2, seed + PRIME2, seed, seed - PRIME1].map((lane) => lane | 0);
    for (; at + 16 <= text.length; at += 16) {
      for (let lane = 0; lane < 4; lane++) {
        lanes[lane] = Math.imul(rotate((lanes[lane]! + Math.imul(word(at + 4 * lane), PRIME2)) | 0, 13), PRIME1);
      }
    }
    hash = rotate(lanes[0]!, 1) + rotate(lanes[1]!, 7) + rotate(lanes[2]!, 12) + rotate(lanes[3]!, 18);
  } else hash = seed + PRIME5;
  hash = (hash + text.length) | 0;
  for (; at + 4 <= text.length; at += 4) hash = Math.imul(rotate((hash + Math.imul(word(at), PRIME3)) | 0, 17), PRIME4);
  for (; at < text.length; at++) {
    hash = Math.imul(rotate((hash + Math.imul(text.charCodeAt(at), PRIME5)) | 0, 11), PRIME1);
  }
  hash = Math.imul(hash ^ (hash >>> 15), PRIME2);
  hash = Math.imul(hash ^ (hash >>> 13), PRIME3);
  return (hash ^ (hash >>> 16)) >>> 0;
}

function rotate(value: number, bits: number): number {
  return (value << bits) | (value >>> (32 - bits));
}
