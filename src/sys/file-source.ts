/**
 * A file as a ByteSource, with a small cache for readers of metadata, which ask for a few bytes at a time.
 */
import * as fs from "node:fs";
import type { ByteSource } from "../bytes/index.ts";
import { ShaleError } from "../errors/index.ts";
import { observed } from "./effects.ts";
import { closeFile, openFile, readAt } from "./files.ts";

export interface FileSource extends ByteSource, Disposable {
  /** Closes the file if this source opened it. A second call does nothing; a read afterwards is an error. */
  close(): void;
}

const PAGE = 65536;
const PAGES = 64;
/** How many pages that were read from once are remembered; few, so that scattered reads seldom load a page. */
const VISITED = 16;

/**
 * Opens `file` (a descriptor stays the caller's and is not closed). `size` is that of now: the file must be immutable.
 * A read inside one 64 KiB page that is read from a second time is a view of a cached page; pages are never overwritten, so
 * views stay good; at most 4 MiB are cached. Other reads go past the cache: loading a page for each of many scattered
 * reads would cost ten times as much as the reads.
 */
export function fileSource(file: string | number): FileSource {
  const fd = typeof file === "number" ? file : openFile(file);
  const size = observed("stat", fd, () => fs.fstatSync(fd)).size;
  const pages = new Map<number, Buffer>(); // in order of use, the oldest first
  const visited = new Set<number>(); // in order of the visit
  let last = -1;
  let lastPage: Buffer | undefined;
  let open = true;

  function findPage(index: number): Buffer | undefined {
    if (index === last) return lastPage;
    let page = pages.get(index);
    if (page !== undefined) pages.delete(index);
    else if (visited.delete(index)) {
      page = Buffer.allocUnsafeSlow(Math.min(PAGE, size - index * PAGE));
      readExactly(page, index * PAGE);
      if (pages.size >= PAGES) pages.delete(pages.keys().next().value!);
    } else {
      if (visited.size >= VISITED) visited.delete(visited.keys().next().value!);
      visited.add(index);
      return undefined;
    }
    pages.set(index, page);
    last = index;
    lastPage = page;
    return page;
  }

  function readExactly(target: Uint8Array, offset: number): void {
    const count = readAt(fd, target, offset);
    if (count === target.length) return;
    const name = typeof file === "string" ? file : `file descriptor ${file}`;
    throw new ShaleError(
      "DATA_LOSS",
      `Cannot read ${name}: ${target.length} bytes at ${offset} are wanted, ${count} are there`,
    );
  }

  return {
    size,
    read(offset, length) {
      if (!open) throw new RangeError("read of a closed file source");
      if (offset < 0 || length < 0) throw new RangeError(`read ${offset}+${length} of ${size}`);
      if (offset + length > size) {
        const name = typeof file === "string" ? file : `file descriptor ${file}`;
        throw new ShaleError(
          "DATA_LOSS",
          `Cannot read ${name}: ${length} bytes at ${offset} are wanted, it ends at ${size}`,
        );
      }
      const index = Math.floor(offset / PAGE);
      const start = offset - index * PAGE;
      if (length > 0 && start + length <= PAGE) {
        const page = findPage(index);
        if (page !== undefined) return page.subarray(start, start + length);
      }
      const bytes = Buffer.allocUnsafe(length);
      readExactly(bytes, offset);
      return bytes;
    },
    close() {
      if (open && typeof file === "string") closeFile(fd);
      open = false;
      pages.clear();
      last = -1;
      lastPage = undefined;
    },
    [Symbol.dispose]() {
      this.close();
    },
  };
}
