import type { ByteSource } from "../../bytes/index.ts";
import { fail } from "./format.ts";

const PAGE_SIZE = 128 * 1024;
const MAX_PAGES = 32;

/**
 * The image's metadata through a small cache (at most 4 MiB), so that reading an inode costs no system call. Inodes and
 * directories of a tree lie close together, so the oldest page is the one to drop.
 */
export class Metadata {
  readonly #image: ByteSource;
  readonly #pages = new Map<number, DataView>();
  #lastNumber = -1;
  #last: DataView = new DataView(new ArrayBuffer(0));
  /** Where the last `locate` found its bytes. */
  view: DataView = this.#last;

  constructor(image: ByteSource) {
    this.#image = image;
  }

  get size(): number {
    return this.#image.size;
  }

  /** Makes `length` bytes of the image at `offset` readable in `view` at the returned position. */
  locate(what: string, offset: number, length: number): number {
    this.check(what, offset, length);
    const page = Math.floor(offset / PAGE_SIZE);
    const at = offset - page * PAGE_SIZE;
    if (at + length > PAGE_SIZE) {
      this.view = viewOf(this.#image.read(offset, length));
      return 0;
    }
    this.view = this.#page(page);
    return at;
  }

  /** A view of bytes of the image; callers don't write to it. */
  bytes(what: string, offset: number, length: number): Uint8Array {
    const at = this.locate(what, offset, length);
    return new Uint8Array(this.view.buffer, this.view.byteOffset + at, length);
  }

  /** FormatError unless the image has these bytes. */
  check(what: string, offset: number, length: number): void {
    if (!(offset >= 0 && length >= 0 && offset + length <= this.#image.size)) {
      throw fail(what, `${length} bytes end after the image of ${this.#image.size}`, offset);
    }
  }

  #page(number: number): DataView {
    if (number === this.#lastNumber) return this.#last;
    let page = this.#pages.get(number);
    if (!page) {
      const offset = number * PAGE_SIZE;
      page = viewOf(this.#image.read(offset, Math.min(PAGE_SIZE, this.#image.size - offset)));
      if (this.#pages.size >= MAX_PAGES) this.#pages.delete(this.#pages.keys().next().value!);
      this.#pages.set(number, page);
    }
    this.#lastNumber = number;
    this.#last = page;
    return page;
  }
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
