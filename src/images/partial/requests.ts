/**
 * How missing parts of a blob become requests: a cost model of the connection. Pure.
 *
 * A request costs a round trip, shared by the connections that run side by side; a byte costs what the line takes for it.
 * So two parts are asked for as one when the bytes between them are cheaper than asking twice. What asking twice costs
 * depends on the registry: some 200 bytes of heads where one answer may have many parts, else a round trip.
 */
import type { ByteRange } from "../../bytes/index.ts";
import type { RangeAbility } from "../../registry/index.ts";
import type { PlanSummary } from "../../store/index.ts";

/** What was measured on the connection so far. */
export interface LinkEstimate {
  /** From a request to the first byte of its answer. */
  readonly latencyMs: number;
  /** Of all connections together. */
  readonly bytesPerMs: number;
}

/** Before anything was measured: a registry on the same continent, over a line of 100 Mbit/s. */
export const UNKNOWN_LINK: LinkEstimate = { latencyMs: 30, bytesPerMs: 12_500 };

/** Single-range requests under way at a time. */
export const CONNECTIONS = 4;
/** Ranges of one request: what registry/ranges.ts asks for at a time. */
const RANGES_PER_REQUEST = 200;
/** Head of a part in an answer with many: boundary, type, range. */
const PART_HEAD = 200;
/** Where an answer may have many parts, a fast line is no reason to fetch much more than is missing: bytes are billed. */
const GAP_MAX = 4096;
/** Heads of a request and its answer. */
const REQUEST_HEAD = 1200;
/** A request asks for at least this much where that much is missing, and for no more than the other. */
const BATCH_MIN = 1 << 20;
const BATCH_MAX = 16 << 20;

/** Bytes between two parts that are not worth a request of their own. */
export function mergeableGap(link: LinkEstimate, ability: RangeAbility): number {
  const roundTrip = (link.latencyMs * link.bytesPerMs + REQUEST_HEAD) / CONNECTIONS;
  if (ability === "one") return roundTrip;
  if (ability === "none") return Number.POSITIVE_INFINITY;
  return Math.min(PART_HEAD + roundTrip / RANGES_PER_REQUEST, GAP_MAX);
}

/** Joins ranges (rising) with gaps of at most `gap` bytes. */
export function* mergeRanges(ranges: Iterable<ByteRange>, gap: number): Generator<ByteRange, void, undefined> {
  let held: { offset: number; end: number } | undefined;
  for (const { offset, end } of ranges) {
    if (held !== undefined && offset - held.end <= gap) held.end = Math.max(held.end, end);
    else {
      if (held !== undefined) yield held;
      held = { offset, end };
    }
  }
  if (held !== undefined) yield held;
}

/**
 * The ranges of the next request: from the front of what is missing, so that whoever consumes them in order waits least.
 * `missing` rises and is not empty; `total` are its bytes. The last range may be cut, so that connections share long ones.
 */
export function nextRequest(
  missing: Iterable<ByteRange>,
  total: number,
  link: LinkEstimate,
  ability: RangeAbility,
): ByteRange[] {
  if (ability === "none") return [...missing];
  // Enough that the line is busy while the next request is on its way, and little enough that all connections get some.
  const wanted = Math.max(4 * link.latencyMs * link.bytesPerMs, total / (2 * CONNECTIONS));
  const size = Math.min(BATCH_MAX, Math.max(BATCH_MIN, wanted));
  const count = ability === "one" ? 1 : RANGES_PER_REQUEST;
  const batch: ByteRange[] = [];
  let left = size;
  for (const { offset, end } of mergeRanges(missing, mergeableGap(link, ability))) {
    const stop = end - offset > left + BATCH_MIN / 2 ? offset + Math.ceil(left) : end;
    batch.push({ offset, end: stop });
    left -= stop - offset;
    if (left <= 0 || batch.length === count) break;
  }
  return batch;
}

/** Requests and bytes for all that is missing, and about how long they take. */
export interface FetchEstimate {
  readonly requests: number;
  readonly bytes: number;
  readonly timeMs: number;
}

export function estimateFetch(missing: Iterable<ByteRange>, link: LinkEstimate, ability: RangeAbility): FetchEstimate {
  let ranges = 0;
  let bytes = 0;
  for (const { offset, end } of mergeRanges(missing, mergeableGap(link, ability))) {
    ranges++;
    bytes += end - offset;
  }
  const perRequest = ability === "one" ? 1 : RANGES_PER_REQUEST;
  const requests = Math.max(
    Math.ceil(ranges / perRequest),
    ability === "none" ? Math.min(1, ranges) : Math.ceil(bytes / BATCH_MAX),
  );
  const timeMs =
    bytes / link.bytesPerMs + (requests * link.latencyMs) / CONNECTIONS + (requests > 0 ? link.latencyMs : 0);
  return { requests, bytes, timeMs };
}

/** A pull in parts has to save this share of the bytes that are still missing: below, the whole blob is simpler. */
const MINIMUM_SAVING = 0.05;
/** From this share on the bytes count more than the time. */
const LARGE_SAVING = 0.5;
/** A pull in parts may take this much longer. */
const TOLERANCE = 1.05;
/** Bytes of content in a millisecond, and milliseconds a file, in one worker thread; measured with python-rebuilt. */
const WHOLE_RATE = 350_000;
const REFERRED_RATE = 1_000_000;
const BUILT_RATE = 250_000;
const FILE_MS = 0.02;

/** What a worker has to do for a layer in parts. */
export type Work = Pick<PlanSummary, "files" | "contentBytes" | "referredBytes" | "copiedBytes" | "missingBytes">;

/** Whether parts are cheaper than what is missing of the whole blob; each is worked on while it is fetched. */
export function isWorthwhile(parts: FetchEstimate, whole: FetchEstimate, work: Work): boolean {
  if (parts.bytes > whole.bytes * (1 - MINIMUM_SAVING)) return false;
  if (parts.bytes <= whole.bytes * (1 - LARGE_SAVING)) return true;
  const built = (work.copiedBytes + work.missingBytes) / BUILT_RATE;
  const partsMs = Math.max(parts.timeMs, work.files * FILE_MS + work.referredBytes / REFERRED_RATE + built);
  return partsMs <= TOLERANCE * Math.max(whole.timeMs, work.contentBytes / WHOLE_RATE);
}

/** Measures while answers come. Newer values count more; what is too short to tell is left out. */
export class LinkMeter {
  #latencyMs: number | undefined;
  #bytesPerMs: number | undefined;
  #bytes = 0;
  #sinceMs: number | undefined;

  get estimate(): LinkEstimate {
    return {
      latencyMs: this.#latencyMs ?? UNKNOWN_LINK.latencyMs,
      bytesPerMs: this.#bytesPerMs ?? UNKNOWN_LINK.bytesPerMs,
    };
  }

  firstByte(afterMs: number): void {
    // The least is nearest to the line: everything else is the server's load or ours.
    this.#latencyMs = Math.min(this.#latencyMs ?? Number.POSITIVE_INFINITY, afterMs);
  }

  /** Bytes that came at `nowMs`, on any connection. */
  received(bytes: number, nowMs: number): void {
    if (this.#sinceMs === undefined) {
      this.#sinceMs = nowMs; // what came before the clock ran took an unknown time
      return;
    }
    this.#bytes += bytes;
    const elapsed = nowMs - this.#sinceMs;
    if (elapsed < WINDOW_MS || this.#bytes < WINDOW_BYTES) return;
    const rate = this.#bytes / elapsed;
    this.#bytesPerMs = this.#bytesPerMs === undefined ? rate : (this.#bytesPerMs + rate) / 2;
    this.#bytes = 0;
    this.#sinceMs = nowMs;
  }

  /** Nothing is under way: the time until the next byte says nothing. */
  pause(): void {
    this.#sinceMs = undefined;
    this.#bytes = 0;
  }
}

const WINDOW_MS = 5;
const WINDOW_BYTES = 128 * 1024;
