/**
 * Which memory a process has in its pages file: pagemap.proto, criu/pagemap.c, criu/include/pagemap.h. A pagemap is a head
 * with the number of the pages file and runs of pages by address, ascending; runs whose content is in this dump follow each
 * other in the pages file, the others are in the parent dump, or are fetched later.
 */
import { FormatError } from "../../errors/index.ts";
import { imageEntries } from "./images.ts";
import { PAGEMAP, PAGEMAP_HEAD } from "./messages.ts";

export const PAGE_SIZE = 4096;
/** PE_PARENT, PE_PRESENT */
const IN_PARENT = 1;
const PRESENT = 4;
/** 2^52 pages are all of a 64-bit address space. */
const MAX_PAGES = 2 ** 52;

export interface MemoryRun {
  /** Of its first page, a multiple of PAGE_SIZE. */
  readonly address: number;
  readonly pages: number;
  /** Byte in the pages file; undefined when the content is not in this dump. */
  readonly offset: number | undefined;
}

export interface Pagemap {
  /** The memory is in pages-<pagesId>.img. */
  readonly pagesId: number;
  /** Ascending, without overlap. */
  readonly runs: readonly MemoryRun[];
  /** Bytes of the pages file that the runs account for. */
  readonly size: number;
  /** Pages whose content is in the dump before this one. */
  readonly parentPages: number;
}

/** `name` is the file's ("pagemap-1.img"), for messages. FormatError for runs that overlap or leave the address space. */
export function decodePagemap(bytes: Uint8Array, name: string): Pagemap {
  const fail = (problem: string) => new FormatError(`CRIU image ${name}`, "pagemap", problem);
  const runs: MemoryRun[] = [];
  let pagesId: number | undefined;
  let end = 0;
  let size = 0;
  let parentPages = 0;
  for (const entry of imageEntries(bytes, "pagemap", name)) {
    if (pagesId === undefined) {
      pagesId = PAGEMAP_HEAD.decode(entry).pagesId;
      if (pagesId === undefined) throw fail("its head names no pages file");
      continue;
    }
    const { address, compatPages, pages = compatPages, inParent, flags } = PAGEMAP.decode(entry);
    if (address === undefined || pages === undefined) throw fail("a run has no address or no length");
    if (address % PAGE_SIZE !== 0) throw fail(`a run begins at 0x${address.toString(16)}, within a page`);
    if (pages > MAX_PAGES || address + pages * PAGE_SIZE > 2 ** 64) throw fail(`a run has ${pages} pages`);
    if (address < end) throw fail(`runs overlap at 0x${address.toString(16)}`);
    end = address + pages * PAGE_SIZE;
    // before there were flags, what is not in the parent is here
    const present = flags === undefined ? inParent !== true : (flags & PRESENT) !== 0;
    runs.push({ address, pages, offset: present ? size : undefined });
    if (present) size += pages * PAGE_SIZE;
    else if (inParent === true || ((flags ?? 0) & IN_PARENT) !== 0) parentPages += pages;
    if (!Number.isSafeInteger(size)) throw fail("it has more memory than any file");
  }
  if (pagesId === undefined) throw fail("it has no head");
  return { pagesId, runs, size, parentPages };
}

/** Where `length` bytes of memory at `address` are in the pages file, in order; undefined unless all of them are there. */
export function locateMemory(
  { runs }: Pagemap,
  address: number,
  length: number,
): readonly { readonly offset: number; readonly length: number }[] | undefined {
  const places: { offset: number; length: number }[] = [];
  let at = address;
  const end = address + length;
  let low = 0;
  let high = runs.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    const run = runs[middle]!;
    if (run.address + run.pages * PAGE_SIZE <= address) low = middle + 1;
    else high = middle;
  }
  for (let i = low; at < end; i++) {
    const run = runs[i];
    if (run === undefined || run.offset === undefined || run.address > at) return undefined;
    const count = Math.min(end, run.address + run.pages * PAGE_SIZE) - at;
    places.push({ offset: run.offset + (at - run.address), length: count });
    at += count;
  }
  return places;
}
