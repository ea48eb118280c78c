import { bytesOf } from "../../bytes/index.ts";
import type { LayerIndex } from "../layer-index/index.ts";
import { DIRENT } from "./format.ts";

/**
 * Directory data: blocks of dirents followed by their names, filled greedily, sorted by byte over the whole directory
 * with "." and ".." in their places, because the kernel searches blocks and then entries by bisection.
 */

/** Marks for the two entries that an index doesn't have. */
const DOT = 0xffffffff;
const DOT_DOT = 0xfffffffe;
const SELF = bytesOf(".");
const PARENT = bytesOf("..");

/** The live dirents of all directories, sorted: `sorted` from `starts[inode]` to `starts[inode + 1]`. */
export interface SortedDirectories {
  readonly sorted: Uint32Array;
  readonly starts: Uint32Array;
}

export function sortDirectories(index: LayerIndex): SortedDirectories {
  const sorted = new Uint32Array(index.liveDirentCount);
  const starts = new Uint32Array(index.inodeCount + 1);
  let end = 0;
  for (let inode = 0; inode < index.inodeCount; inode++) {
    starts[inode] = end;
    if (!index.isDirectory(inode)) continue;
    end += index.sortDirents(inode, sorted, end);
  }
  starts[index.inodeCount] = end;
  return { sorted, starts };
}

/** Splits directories of one index into blocks, the same way for measuring and for writing. */
export class DirectoryBlocks {
  readonly #index: LayerIndex;
  readonly #directories: SortedDirectories;
  readonly #blockSize: number;
  readonly #entries: Uint32Array;

  constructor(index: LayerIndex, directories: SortedDirectories, blockSize: number) {
    this.#index = index;
    this.#directories = directories;
    this.#blockSize = blockSize;
    // An entry takes 12 bytes and a name of at least one.
    this.#entries = new Uint32Array(Math.ceil(blockSize / (DIRENT.size + 1)));
  }

  /** Bytes of a directory's data; all blocks but the last count in full. */
  size(directory: number): number {
    let size = 0;
    let last = 0;
    this.#split(directory, (_count, used) => {
      size += this.#blockSize;
      last = used;
    });
    return size - this.#blockSize + last;
  }

  /**
   * Writes the blocks of a directory in order. `room` gives the place for each: as many zero bytes at `at` as the block
   * uses, in `bytes` and its `view`. `parent` is the directory that ".." names.
   */
  forEach(
    directory: number,
    parent: number,
    nidOf: (inode: number) => number,
    typeOf: (inode: number) => number,
    room: (used: number) => { readonly bytes: Uint8Array; readonly view: DataView; readonly at: number },
  ): void {
    const { nid, nameOffset, type } = DIRENT.fields;
    const index = this.#index;
    this.#split(directory, (count, used) => {
      const { bytes, view, at } = room(used);
      let name = count * DIRENT.size;
      for (let i = 0; i < count; i++) {
        const dirent = this.#entries[i]!;
        const inode = dirent === DOT ? directory : dirent === DOT_DOT ? parent : index.direntInode(dirent);
        const entry = at + i * DIRENT.size;
        view.setUint32(entry + nid.offset, nidOf(inode), true); // the high half stays 0: no nid of ours has 33 bits
        view.setUint16(entry + nameOffset.offset, name, true);
        view.setUint8(entry + type.offset, typeOf(inode));
        if (dirent === DOT || dirent === DOT_DOT) {
          const text = dirent === DOT ? SELF : PARENT;
          bytes.set(text, at + name);
          name += text.length;
        } else {
          index.copyDirentName(dirent, bytes, at + name);
          name += index.direntNameLength(dirent);
        }
      }
    });
  }

  /** Fills `#entries` block by block. */
  #split(directory: number, block: (count: number, used: number) => void): void {
    const { sorted, starts } = this.#directories;
    const index = this.#index;
    const end = starts[directory + 1]!;
    let count = 0;
    let used = 0;
    const add = (dirent: number, nameLength: number) => {
      if (used + DIRENT.size + nameLength > this.#blockSize) {
        block(count, used);
        count = 0;
        used = 0;
      }
      this.#entries[count++] = dirent;
      used += DIRENT.size + nameLength;
    };
    let next = starts[directory]!;
    for (; next < end && compareToDots(index, sorted[next]!) < 0; next++) {
      add(sorted[next]!, index.direntNameLength(sorted[next]!));
    }
    add(DOT, 1);
    for (; next < end && compareToDots(index, sorted[next]!) === 0; next++) {
      add(sorted[next]!, index.direntNameLength(sorted[next]!));
    }
    add(DOT_DOT, 2);
    for (; next < end; next++) add(sorted[next]!, index.direntNameLength(sorted[next]!));
    block(count, used);
  }
}

/** Of a name: -1 before ".", 0 between "." and "..", 1 after "..". */
function compareToDots(index: LayerIndex, dirent: number): -1 | 0 | 1 {
  const dot = 0x2e;
  const first = index.direntNameByte(dirent, 0);
  if (first !== dot) return first < dot ? -1 : 1;
  const length = index.direntNameLength(dirent);
  const second = length === 1 ? 0 : index.direntNameByte(dirent, 1);
  if (length === 1 || (length === 2 && second === dot)) {
    throw new RangeError(`a directory entry called ${"..".slice(0, length)}`);
  }
  return second < dot ? 0 : 1;
}
