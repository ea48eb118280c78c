/**
 * Downloads: layer blobs on their way in, on disk so that a killed pull resumes (G13), each with a lock so that any number
 * of processes fetch a blob once. The bytes are not trusted until an ingest has hashed all of them; a file left by a power
 * cut may be wrong, which its digest shows.
 */

import { join } from "node:path";
import type { Digest } from "../oci/index.ts";
import {
  acquireLock,
  closeFile,
  createFile,
  findFile,
  type Lock,
  list,
  openFile,
  truncate,
  tryLock,
  unlink,
  writeAt,
} from "../sys/index.ts";
import type { StoreContext } from "./context.ts";
import { FeedProgress } from "./ingest/feed.ts";
import type { FeedSource } from "./ingest/protocol.ts";

/** Partial downloads that nobody has continued for so long are garbage. */
export const STALE_DOWNLOAD_MS = 24 * 60 * 60 * 1000;

export class Download implements Disposable {
  readonly path: string;
  readonly size: number;
  readonly #lock: Lock;
  readonly #file: number;
  #progress = new FeedProgress();
  #received: number;
  #closed = false;

  private constructor(path: string, size: number, lock: Lock, file: number, received: number) {
    this.path = path;
    this.size = size;
    this.#lock = lock;
    this.#file = file;
    this.#received = received;
    this.#progress.advance(received);
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
      const file = there === undefined ? createFile(path) : openFile(path, "read-write");
      let received = there?.size ?? 0;
      if (received > size) {
        truncate(file, 0);
        received = 0;
      }
      return new Download(path, size, lock, file, received);
    } catch (error) {
      lock.release({ unlink: true });
      throw error;
    }
  }

  /** Bytes that are there: where to continue. */
  get received(): number {
    return this.#received;
  }

  write(bytes: Uint8Array): void {
    writeAt(this.#file, bytes, this.#received);
    this.#received += bytes.length;
    this.#progress.advance(this.#received);
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
    this.#received = 0;
    this.#progress = new FeedProgress();
  }

  /** The layer is committed (or can't be): the bytes are not needed any more. */
  remove(): void {
    unlink(this.path);
  }

  [Symbol.dispose](): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#progress.fail();
    closeFile(this.#file);
    this.#lock.release({ unlink: true });
  }
}

export interface StaleDownload {
  readonly path: string;
  readonly size: number;
}

/** Partial downloads that nobody holds and nobody continued for a day. With `remove`, they are removed. */
export function staleDownloads({ layout }: StoreContext, now: number, remove: boolean): StaleDownload[] {
  const stale: StaleDownload[] = [];
  const names = new Set(list(layout.downloads).map(({ name }) => name.replace(/\.lock$/, "")));
  for (const name of names) {
    const path = join(layout.downloads, name);
    const lock = tryLock(`${path}.lock`, { command: "gc" });
    if (lock === undefined) continue;
    try {
      const status = findFile(path);
      if (status === undefined || now - Number(status.mtimeNs / 1_000_000n) < STALE_DOWNLOAD_MS) continue;
      stale.push({ path, size: status.allocated });
      if (remove) unlink(path);
    } finally {
      lock.release({ unlink: true });
    }
  }
  return stale;
}
