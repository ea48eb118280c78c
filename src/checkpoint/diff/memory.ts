/** The memory of two processes, page by page in the order of addresses; one piece of each is held. */
import { FormatError } from "../../errors/index.ts";
import { PAGE_SIZE, type Pagemap } from "../../formats/criu/index.ts";
import type { CheckpointArchive, Content } from "../archive/index.ts";

export interface MemoryRange {
  readonly address: number;
  readonly pages: number;
  readonly change: "changed" | "added" | "removed";
}

export interface MemoryDifference {
  /** Pages. */
  readonly same: number;
  readonly changed: number;
  readonly added: number;
  readonly removed: number;
  /** Pages whose content is in an earlier checkpoint of one of the two. */
  readonly inParent: number;
  /** The first ones, ascending; neighbours of one kind are one. */
  readonly ranges: readonly MemoryRange[];
}

/** Ranges that are kept; the counts are of all. */
const MAX_RANGES = 1000;
const PIECE = 1024 * 1024;

/** An archive and one of its processes, which may have no memory in it. */
export interface MemorySide {
  readonly archive: CheckpointArchive;
  readonly pagemap: Pagemap | undefined;
}

/** A process's pages on one side are found in one pass over that archive. */
export async function compareMemory(before: MemorySide, after: MemorySide): Promise<MemoryDifference> {
  await using a = new PageStream(before);
  await using b = new PageStream(after);
  const found = new Found();
  for (;;) {
    const [left, right] = [await a.peek(), await b.peek()];
    if (left === undefined && right === undefined) break;
    if (right === undefined || (left !== undefined && left.address < right.address)) {
      const run = left!; // one of the two is there
      const pages = Math.min(run.pages, right === undefined ? run.pages : (right.address - run.address) / PAGE_SIZE);
      found.add(run.address, pages, "removed");
      a.take(pages);
    } else if (left === undefined || right.address < left.address) {
      const pages = Math.min(
        right.pages,
        left === undefined ? right.pages : (left.address - right.address) / PAGE_SIZE,
      );
      found.add(right.address, pages, "added");
      b.take(pages);
    } else {
      const pages = Math.min(left.pages, right.pages);
      comparePages(left.address, left.bytes, right.bytes, pages, found);
      a.take(pages);
      b.take(pages);
    }
  }
  const inParent = (before.pagemap?.parentPages ?? 0) + (after.pagemap?.parentPages ?? 0);
  return { ...found.counts, inParent, ranges: found.ranges };
}

function comparePages(address: number, left: Buffer, right: Buffer, pages: number, found: Found): void {
  const size = pages * PAGE_SIZE;
  if (left.compare(right, 0, size, 0, size) === 0) {
    found.counts.same += pages;
    return;
  }
  for (let at = 0; at < size; at += PAGE_SIZE) {
    if (left.compare(right, at, at + PAGE_SIZE, at, at + PAGE_SIZE) === 0) found.counts.same++;
    else found.add(address + at, 1, "changed");
  }
}

class Found {
  readonly counts = { same: 0, changed: 0, added: 0, removed: 0 };
  readonly ranges: { address: number; pages: number; readonly change: MemoryRange["change"] }[] = [];

  add(address: number, pages: number, change: MemoryRange["change"]): void {
    this.counts[change] += pages;
    const last = this.ranges.at(-1);
    if (last?.change === change && last.address + last.pages * PAGE_SIZE === address) last.pages += pages;
    else if (this.ranges.length < MAX_RANGES) this.ranges.push({ address, pages, change });
  }
}

interface Pages {
  readonly address: number;
  readonly pages: number;
  readonly bytes: Buffer;
}

/** The pages of one process that are in its archive, ascending. */
class PageStream implements AsyncDisposable {
  readonly #side: MemorySide;
  #members: ReturnType<CheckpointArchive["members"]> | undefined;
  #content: Content | undefined;
  #run = 0;
  /** Pages of the current run that were taken. */
  #taken = 0;
  /** A part of `#buffer`, which is read into again when all of it was taken. */
  #held: { address: number; bytes: Buffer } | undefined;
  readonly #buffer = Buffer.allocUnsafeSlow(PIECE);

  constructor(side: MemorySide) {
    this.#side = side;
  }

  async peek(): Promise<Pages | undefined> {
    const { pagemap } = this.#side;
    if (pagemap === undefined) return undefined;
    if (this.#held === undefined) {
      while (pagemap.runs[this.#run] !== undefined && pagemap.runs[this.#run]!.offset === undefined) this.#run++;
      const run = pagemap.runs[this.#run];
      if (run === undefined) return undefined;
      const bytes = await this.#read(Math.min(PIECE, (run.pages - this.#taken) * PAGE_SIZE), pagemap.pagesId);
      this.#held = { address: run.address + this.#taken * PAGE_SIZE, bytes };
    }
    const { address, bytes } = this.#held;
    return { address, bytes, pages: bytes.length / PAGE_SIZE };
  }

  take(pages: number): void {
    const held = this.#held!; // it was peeked at
    const rest = held.bytes.subarray(pages * PAGE_SIZE);
    this.#held = rest.length === 0 ? undefined : { address: held.address + pages * PAGE_SIZE, bytes: rest };
    this.#taken += pages;
    if (this.#taken < this.#side.pagemap!.runs[this.#run]!.pages) return;
    this.#run++;
    this.#taken = 0;
  }

  async #read(length: number, pagesId: number): Promise<Buffer> {
    const name = `checkpoint/pages-${pagesId}.img`;
    this.#content ??= await this.#find(name);
    const bytes = this.#buffer.subarray(0, length);
    for (let at = 0; at < length; ) {
      const piece = await this.#content.read(length - at);
      if (piece === undefined) throw new FormatError("checkpoint archive", name, "has less than its pagemap says");
      bytes.set(piece, at);
      at += piece.length;
    }
    return bytes;
  }

  async #find(name: string): Promise<Content> {
    this.#members = this.#side.archive.members();
    for (let next = await this.#members.next(); next.done !== true; next = await this.#members.next()) {
      if (next.value.path === name && next.value.entry.type === "file") return next.value.content;
    }
    throw new FormatError("checkpoint archive", name, "is missing, a pagemap names it");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#members?.return(undefined);
  }
}
