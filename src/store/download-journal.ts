/**
 * Which parts of a download are there, for one that did not come from start to end: records of 16 bytes (offset and end as
 * u64, little-endian) beside the file, each written after its bytes. A kill loses at most the last record. A power cut may
 * leave records whose bytes were lost; that shows when the bytes are hashed, as it does for every download.
 */
import { type ByteRange, RangeSet } from "../bytes/index.ts";
import { closeFile, createFile, findFile, openFile, readAt, truncate, unlink, writeAt } from "../sys/index.ts";

const RECORD_SIZE = 16;
/** Records that are read; a download that was cut more often begins anew. */
const RECORDS_MAX = 1 << 20;

export class DownloadJournal {
  readonly #path: string;
  readonly #size: number;
  #file: number | undefined;
  #records = 0;
  /** Record that ends at an offset: what comes right behind is added to it. */
  #byEnd = new Map<number, { readonly index: number; readonly offset: number }>();

  /** `size`: of the blob. */
  constructor(path: string, size: number) {
    this.#path = path;
    this.#size = size;
  }

  /** What is there; undefined when there is no journal, so that the length of the file says it. */
  read(): RangeSet | undefined {
    const status = findFile(this.#path);
    if (status === undefined) return undefined;
    const ranges = new RangeSet();
    const count = Math.floor(status.size / RECORD_SIZE);
    this.#file = openFile(this.#path, "read-write");
    if (count <= RECORDS_MAX) {
      const records = Buffer.alloc(count * RECORD_SIZE);
      readAt(this.#file, records, 0);
      for (let at = 0; at < records.length; at += RECORD_SIZE) {
        const [offset, end] = [Number(records.readBigUInt64LE(at)), Number(records.readBigUInt64LE(at + 8))];
        if (offset < end && end <= this.#size) ranges.add(offset, end);
      }
    }
    this.rewrite(ranges);
    return ranges;
  }

  get exists(): boolean {
    return this.#file !== undefined;
  }

  /** Makes it say exactly this. */
  rewrite(ranges: Iterable<ByteRange>): void {
    if (this.#file === undefined) this.#file = createFile(this.#path);
    else truncate(this.#file, 0);
    this.#records = 0;
    this.#byEnd = new Map();
    for (const { offset, end } of ranges) this.add(offset, end);
  }

  /** After the bytes were written. */
  add(offset: number, end: number): void {
    const before = this.#byEnd.get(offset);
    const record = before ?? { index: this.#records++, offset };
    this.#byEnd.delete(offset);
    this.#byEnd.set(end, record);
    const bytes = Buffer.alloc(RECORD_SIZE);
    bytes.writeBigUInt64LE(BigInt(record.offset), 0);
    bytes.writeBigUInt64LE(BigInt(end), 8);
    writeAt(this.#file!, bytes, record.index * RECORD_SIZE);
  }

  remove(): void {
    this.close();
    unlink(this.#path);
  }

  close(): void {
    if (this.#file === undefined) return;
    closeFile(this.#file);
    this.#file = undefined;
  }
}
