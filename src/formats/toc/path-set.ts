import type { ByteString } from "../../bytes/index.ts";

/**
 * Tells whether a path of a tar came before, whichever way it was written (`./a/`, `a`): Go's filepath.Clean. Keeps a number
 * of 53 bits for each path and not the path: two paths may be taken for one, about once in 10^4 layers of a million files.
 */
export class PathSet {
  readonly #seen = new Set<number>();

  /** False when the path was there already. */
  add(path: ByteString): boolean {
    const key = hashOf(cleaned(path));
    if (this.#seen.has(key)) return false;
    this.#seen.add(key);
    return true;
  }
}

function cleaned(path: ByteString): ByteString {
  if (/^[^./][^/]*(?:\/[^./][^/]*)*$/.test(path)) return path; // the usual one
  const parts: string[] = [];
  for (const part of path.split("/")) {
    if (part === "" || part === ".") continue;
    if (part === ".." && parts.length > 0 && parts.at(-1) !== "..") parts.pop();
    else if (part !== ".." || !path.startsWith("/")) parts.push(part);
  }
  return `${path.startsWith("/") ? "/" : ""}${parts.join("/")}`;
}

/** Two sums of 32 bits, FNV-like with different primes; the upper one gives 21 bits. */
function hashOf(text: ByteString): number {
  let a = 0x811c9dc5;
  let b = 0x9747b28c;
  for (let i = 0; i < text.length; i++) {
    const byte = text.charCodeAt(i);
    a = Math.imul(a ^ byte, 0x01000193);
    b = Math.imul(b ^ byte, 0x85ebca6b);
    b = (b << 13) | (b >>> 19);
  }
  a ^= a >>> 15;
  b ^= b >>> 16;
  return (b & 0x1fffff) * 2 ** 32 + (a >>> 0);
}
