/**
 * Fetches the missing parts of one blob into its download: a few requests side by side, the front of what is missing first,
 * each request made by what is known of the connection at that moment. Every part is marked as soon as it is whole.
 */
import { AsyncGroup } from "../../async/index.ts";
import { type ByteRange, RangeSet } from "../../bytes/index.ts";
import type { RangeAbility, RangePiece } from "../../registry/index.ts";
import type { Arrivals, Download } from "../../store/index.ts";
import { CONNECTIONS, type LinkMeter, nextRequest } from "./requests.ts";

/** A blob that can be asked for parts. */
export interface PartsSource {
  /** Of the layer's descriptor: they may say where its TOC is. */
  readonly annotations: Readonly<Record<string, string>>;
  /** As `RegistryClient.openRanges`. */
  open(ranges: readonly ByteRange[], options: PartsOptions): AsyncIterable<RangePiece>;
  ability(): RangeAbility;
  /** Shared by the blobs of one registry. */
  readonly meter: LinkMeter;
}

export interface PartsOptions {
  readonly signal: AbortSignal;
  readonly onWhole?: () => void;
}

/** The parts of a plan: half-open ranges that rise by their offset; several may be the same. */
export interface Parts {
  readonly offsets: Float64Array;
  readonly ends: Float64Array;
}

/** Ranges of `parts` that `download` does not have. */
export function missingOf(parts: Parts, download: Download): RangeSet {
  const missing = new RangeSet();
  for (let at = 0; at < parts.offsets.length; at++) {
    for (const gap of download.gaps(parts.offsets[at]!, parts.ends[at]!)) missing.add(gap.offset, gap.end);
  }
  return missing;
}

/** Resolves when every part is there and marked. As `RegistryClient.openRanges` fails; what came stays in the download. */
export async function fetchParts(
  source: PartsSource,
  parts: Parts,
  download: Download,
  arrivals: Arrivals,
  signal: AbortSignal,
): Promise<void> {
  const marks = new PartMarks(parts, download, arrivals);
  marks.markAll();
  const unasked = missingOf(parts, download);
  const lane = async (stop: AbortSignal): Promise<void> => {
    while (!unasked.isEmpty) {
      const ability = source.ability();
      const ranges = nextRequest(unasked, unasked.size, source.meter.estimate, ability);
      for (const { offset, end } of ranges) unasked.remove(offset, end);
      await fetchRanges(source, ranges, download, marks, stop);
    }
  };
  // One request finds out how the registry answers several ranges; the others are made by what it told.
  if (source.ability() === "unknown" && unasked.count > 1) {
    const ranges = nextRequest(unasked, unasked.size, source.meter.estimate, "unknown");
    for (const { offset, end } of ranges) unasked.remove(offset, end);
    await fetchRanges(source, ranges, download, marks, signal);
  }
  await using group = new AsyncGroup(signal);
  const lanes = source.ability() === "none" ? 1 : CONNECTIONS;
  await group.all(Array.from({ length: lanes }, () => group.run(lane)));
  source.meter.pause();
}

/** One call of the client: all of the ranges, and what else comes with them. */
export async function fetchRanges(
  source: PartsSource,
  ranges: readonly ByteRange[],
  download: Download,
  marks: { onWritten(offset: number, end: number): void } | undefined,
  signal: AbortSignal,
  onWhole?: () => void,
): Promise<void> {
  const began = performance.now();
  let first = true;
  for await (const { offset, bytes } of source.open(ranges, onWhole === undefined ? { signal } : { signal, onWhole })) {
    const now = performance.now();
    if (first) source.meter.firstByte(now - began);
    first = false;
    source.meter.received(bytes.length, now);
    download.write(bytes, offset);
    marks?.onWritten(offset, offset + bytes.length);
  }
}

/** Which parts are whole. */
class PartMarks {
  readonly #parts: Parts;
  readonly #download: Download;
  readonly #arrivals: Arrivals;
  /** The longest part: how far before a byte a part that has it may begin. */
  readonly #reach: number;

  constructor(parts: Parts, download: Download, arrivals: Arrivals) {
    this.#parts = parts;
    this.#download = download;
    this.#arrivals = arrivals;
    this.#reach = parts.offsets.reduce((most, offset, at) => Math.max(most, parts.ends[at]! - offset), 0);
  }

  markAll(): void {
    this.onWritten(0, Number.POSITIVE_INFINITY);
  }

  onWritten(offset: number, end: number): void {
    const { offsets, ends } = this.#parts;
    for (let at = this.#firstFrom(offset - this.#reach); at < offsets.length && offsets[at]! < end; at++) {
      if (ends[at]! <= offset || this.#arrivals.isMarked(at)) continue;
      if (this.#download.has(offsets[at]!, ends[at]!)) this.#arrivals.mark(at);
    }
  }

  #firstFrom(offset: number): number {
    const { offsets } = this.#parts;
    let low = 0;
    let high = offsets.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (offsets[middle]! < offset) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
