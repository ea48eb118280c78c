import type { ByteString } from "../../bytes/index.ts";
import { NAME_MAX } from "../layer-index/index.ts";
import { DIRENT, fail, readWide } from "./format.ts";

export interface ErofsEntry {
  readonly name: ByteString;
  readonly nid: number;
  /** d_type as stored; the inode's mode is the truth. */
  readonly type: number;
}

/** One block of dirents and names. */
export class DirectoryBlock {
  readonly count: number;
  readonly #bytes: Buffer;
  readonly #view: DataView;
  readonly #nid: number;

  constructor(bytes: Uint8Array, nid: number) {
    this.#bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#nid = nid;
    const first = bytes.length < DIRENT.size ? 0 : this.#nameOffset(0);
    if (first < DIRENT.size || first % DIRENT.size !== 0 || first >= bytes.length) {
      throw fail("directory", `inode ${nid}: names begin at ${first}`);
    }
    this.count = first / DIRENT.size;
  }

  entry(i: number): ErofsEntry {
    const { nid, type } = DIRENT.fields;
    const at = i * DIRENT.size;
    const start = this.#nameOffset(i);
    const isLast = i + 1 === this.count;
    let end = isLast ? this.#bytes.length : this.#nameOffset(i + 1);
    if (isLast) {
      const nul = this.#bytes.indexOf(0, start);
      if (nul >= 0) end = nul;
    }
    const name = end > this.#bytes.length ? "" : this.#bytes.toString("latin1", start, Math.max(start, end));
    if (!isEntryName(name)) throw fail("directory", `inode ${this.#nid}: entry ${i} has no sound name`);
    return {
      name,
      nid: readWide(this.#view, at + nid.offset, "nid"),
      type: this.#view.getUint8(at + type.offset),
    };
  }

  #nameOffset(i: number): number {
    return this.#view.getUint16(i * DIRENT.size + DIRENT.fields.nameOffset.offset, true);
  }
}

/** True for a name that an EROFS directory may have and a path component may be. */
function isEntryName(name: ByteString): boolean {
  return name.length > 0 && name.length <= NAME_MAX && !name.includes("/") && !name.includes("\0");
}
