import type { ErofsEntry } from "./directory-block.ts";
import { fail } from "./format.ts";
import type { ErofsInode } from "./inode.ts";
import type { ErofsReader } from "./reader.ts";

/**
 * Opens directories for a walk, each once, and no more bytes of them than the image has: in a sound image no two share
 * bytes, in a damaged one a loop or a shared subtree would make a walk endless or exponential.
 */
export class DirectoryGuard {
  readonly #reader: ErofsReader;
  readonly #seen = new Set<number>();
  #bytesLeft: number;

  constructor(reader: ErofsReader) {
    this.#reader = reader;
    this.#bytesLeft = reader.superblock.blocks * reader.superblock.blockSize;
  }

  open(directory: ErofsInode): Generator<ErofsEntry> {
    this.#bytesLeft -= directory.size;
    if (this.#seen.has(directory.nid) || this.#bytesLeft < 0) {
      throw fail("directory", `inode ${directory.nid}: has more than one name`);
    }
    this.#seen.add(directory.nid);
    return this.#reader.directory(directory);
  }
}
