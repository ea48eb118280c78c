/**
 * Downloads: layer blobs on their way in, on disk so that a killed pull resumes (G13), each with a lock so that any number
 * of processes fetch a blob once. The bytes are not trusted until an ingest has hashed all of them; a file left by a power
 * cut may be wrong, which its digest shows.
 *
 * Bytes come from start to end, and then the length of the file says what is there; or here and there, and then a journal
 * beside it does. Both kinds of pull continue what the other one left.
 */

import { join } from "node:path";
import { type ByteRange, RangeSet } from "../bytes/index.ts";
import type { Digest } from "../oci/index.ts";
import {
  acquireLock,
  closeFile,
  createFile,
  findFile,
  type Lock,
  list,
  openFile,
  readAt,
  truncate,
  tryLock,
  unlink,
  writeAt,
} from "../sys/index.ts";
import type { StoreContext } from "./context.ts";
import { DownloadJournal } from "./download-journal.ts";
import { diffIdsOfBlob } from "./images.ts";
import { FeedProgress } from "./ingest/feed.ts";
import type { FeedSource } from "./ingest/protocol.ts";

/** Partial downloads that nobody has continued for so long are garbage. */
export const STALE_DOWNLOAD_MS = 24 * 60 * 60 * 1000;

export class Download implements Disposable {
  readonly path: string;
  readonly size: number;
  readonly #lock: Lock;
  readonly #file: number;
  readonly #journal: DownloadJournal;
  readonly #ranges: RangeSet;
  #progress = new FeedProgress();
  #closed = false;

  private constructor(
    path: string,
    size: number,
    lock: Lock,
    file: number,
    journal: DownloadJournal,
    ranges: RangeSet,
  ) {
    this.path = path;
    this.size = size;
    this.#lock = lock;
    this.#file = file;
    this.#journal = journal;
    this.#ranges = ranges;
    this.#progress.advance(this.received);
  }

  /**
   * Takes the download of one blob, waiting while another task or process has it. `onWait` is told once if so. The caller
   * looks again afterwards whether the layer has come into the store meanwhile.
   */
  static async open(
    { layout }: StoreContext,
    digest: Digest,
    size: number,
    options: { readonly signal?: AbortSignal; readonly onWait?: () => void; readonly command?: string } = {},
  ): Promise<Download> {
    const path = layout.download(digest);
    const command = options.command === undefined ? {} : { command: options.command };
    let lock = tryLock(`${path}.lock`, command);
    if (lock === undefined) {
      options.onWait?.();
      lock = await acquireLock(`${path}.lock`, { ...command, ...(options.signal ? { signal: options.signal } : {}) });
    }
    try {
      const there = findFile(path);
      const journal = new DownloadJournal(journalOf(path), size);
      const file = there === undefined ? createFile(path) : openFile(path, "read-write");
      let ranges = journal.read();
      if (ranges === undefined) {
        const length = there?.size ?? 0;
        if (length > size) truncate(file, 0);
        ranges = new RangeSet([{ offset: 0, end: length > size ? 0 : length }]);
      }
      return new Download(path, size, lock, file, journal, ranges);
    } catch (error) {
      lock.release({ unlink: true });
      throw error;
    }
  }

  /** Bytes that are there from the start on. */
  get received(): number {
    return this.#ranges.endFrom(0);
  }

  /** Bytes that are there, wherever. */
  get bytes(): number {
    return this.#ranges.size;
  }

  /** What is missing of a range (of the whole blob), rising. */
  gaps(offset = 0, end = this.size): ByteRange[] {
    return this.#ranges.gaps(offset, end);
  }

  has(offset: number, end: number): boolean {
    return this.#ranges.has(offset, end);
  }

  /** Bytes that are there: RangeError for others. */
  read(offset: number, length: number): Uint8Array {
    if (!this.has(offset, offset + length)) throw new RangeError(`read of ${offset}+${length}, which has not come`);
    const bytes = Buffer.alloc(length);
    readAt(this.#file, bytes, offset);
    return bytes;
  }

  /** Bytes that belong at `offset`, which is where the missing ones begin unless given. */
  write(bytes: Uint8Array, offset = this.received): void {
    const end = offset + bytes.length;
    if (end > this.size) throw new RangeError(`write up to ${end} of a download of ${this.size}`);
    // As long as it grows at its end, the length of the file is its journal.
    if (!this.#journal.exists && offset !== this.received) this.#journal.rewrite(this.#ranges);
    writeAt(this.#file, bytes, offset);
    if (this.#journal.exists) this.#journal.add(offset, end);
    this.#ranges.add(offset, end);
    this.#progress.advance(this.received);
  }

  /** These bytes turned out to be wrong: they are missing again. */
  forget(offset: number, end: number): void {
    this.#ranges.remove(offset, end);
    this.#journal.rewrite(this.#ranges);
    this.#progress = new FeedProgress();
    this.#progress.advance(this.received);
  }

  /** For an ingest that follows the download. */
  feed(): FeedSource {
    return { path: this.path, offset: 0, length: this.size, growth: this.#progress.shared };
  }

  /** No more bytes will come; the ingest ends where the file does. */
  complete(): void {
    this.#progress.complete();
  }

  /** Stops the ingest that follows; what has been received stays for the next try. */
  fail(): void {
    this.#progress.fail();
  }

  /** Forgets what was received, for another try from the start: the bytes turned out to be wrong. */
  restart(): void {
    truncate(this.#file, 0);
    this.#journal.remove();
    this.#ranges.clear();
    this.#progress = new FeedProgress();
  }

  /** The layer is committed (or can't be): the bytes are not needed any more. */
  remove(): void {
    this.#journal.remove();
    unlink(this.path);
  }

  [Symbol.dispose](): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#progress.fail();
    this.#journal.close();
    closeFile(this.#file);
    this.#lock.release({ unlink: true });
  }
}

function journalOf(path: string): string {
  return `${path}.ranges`;
}

export interface StaleDownload {
  readonly path: string;
  readonly size: number;
  readonly why: string;
}

/**
 * Downloads that nobody holds and nobody will continue: their layer is in the store (who put it there was killed before he removed
 * them), or a day has passed. With `remove`, they are removed.
 */
export function staleDownloads(context: StoreContext, now: number, remove: boolean): StaleDownload[] {
  const { layout } = context;
  const stale: StaleDownload[] = [];
  const names = new Set(list(layout.downloads).map(({ name }) => name.replace(/\.(lock|ranges)$/, "")));
  for (const name of names) {
    const path = join(layout.downloads, name);
    const lock = tryLock(`${path}.lock`, { command: "gc" });
    if (lock === undefined) continue;
    try {
      const status = findFile(path);
      if (status === undefined) continue;
      const stored = diffIdsOfBlob(context, name.replace("-", ":") as Digest).length > 0;
      if (!stored && now - Number(status.mtimeNs / 1_000_000n) < STALE_DOWNLOAD_MS) continue;
      stale.push({
        path,
        size: status.allocated,
        why: stored ? "its layer is in the store" : "not continued for a day",
      });
      if (remove) {
        unlink(journalOf(path));
        unlink(path);
      }
    } finally {
      lock.release({ unlink: true });
    }
  }
  return stale;
}
