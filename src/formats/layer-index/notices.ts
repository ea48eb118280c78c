import type { ByteString } from "../../bytes/index.ts";

export type NoticeKind =
  | "aufs-metadata" // .wh..wh.plnk and the like: bookkeeping of a file system that is gone
  | "whiteout-device" // a character device 0:0, which overlayfs would take for a whiteout
  | "overlay-xattr"
  | "unsupported-xattr"
  | "unsupported-record" // a PAX record about the file that a layer can't keep
  | "hardlink-attributes" // a hard link with other attributes than its file; the file's count
  | "more"; // the last one: how many were not kept

/** Something of a tar that is not in the layer, or not as the tar has it. Plain data, JSON-safe. */
export interface LayerNotice {
  readonly kind: NoticeKind;
  /** As in the tar. */
  readonly path: ByteString;
  /** Of the entry's first header block. */
  readonly offset: number;
  /** What happened and why, as part of a sentence. */
  readonly message: string;
}

/** Keeps the first `limit` notices and counts the rest. */
export class Notices {
  readonly #limit: number;
  readonly #list: LayerNotice[] = [];
  #omitted = 0;

  constructor(limit: number) {
    this.#limit = limit;
  }

  add(notice: LayerNotice): void {
    if (this.#list.length < this.#limit) this.#list.push(notice);
    else this.#omitted++;
  }

  finish(): readonly LayerNotice[] {
    if (this.#omitted === 0) return this.#list;
    const last = this.#list.at(-1);
    const message = `${this.#omitted} more notices were not kept`;
    return [...this.#list, { kind: "more", path: "", offset: last?.offset ?? 0, message }];
  }
}
