/**
 * Reading parts of a blob: several ranges in one request where the registry does that well, one range a request where it
 * does not, and from the start where it knows no ranges. RFC 9110 section 14; what registries really answer is in
 * docs/partial.md. What was learned about a host is remembered for as long as the client lives.
 */
import { delay } from "../async/index.ts";
import { type ByteRange, RangeSet } from "../bytes/index.ts";
import type { Descriptor } from "../oci/index.ts";
import type { RegistryEvent } from "./events.ts";
import { explain, Failure, printable } from "./failure.ts";
import type { Endpoint } from "./hosts.ts";
import { type HttpResponse, releaseChunk } from "./http.ts";
import { findBoundary, parseContentRange, readMultipart } from "./multipart.ts";
import type { Requests } from "./requests.ts";
import { Retries, type RetryPolicy } from "./retry.ts";

export interface RangePiece {
  /** Of `bytes` in the blob. */
  readonly offset: number;
  /** Good until the next piece is asked for. */
  readonly bytes: Uint8Array;
}

/** "many": several ranges in one request; "one"; "none": only the whole blob. */
export type RangeAbility = "unknown" | "many" | "one" | "none";

/** By host of an endpoint; a redirect target belongs to the endpoint that named it. */
export type RangeAbilities = Map<string, RangeAbility>;

export interface RangesRead {
  readonly repository: string;
  readonly descriptor: Descriptor;
  /** Hosts to ask, in order. */
  readonly endpoints: readonly Endpoint[];
  /** Rising, without overlap, not empty, within the descriptor's size. */
  readonly ranges: readonly ByteRange[];
  readonly act: string;
  readonly abilities: RangeAbilities;
  readonly signal?: AbortSignal;
  /** Told, before the first byte, when the answer is the whole blob. */
  readonly onWhole?: () => void;
}

/** A Range header of this length passes the usual limits of 8 KiB for all headers, also beside a long token. */
const RANGE_HEADER_LIMIT = 4096;
/** Servers limit the number too: Go's net/http does not, Apache's MaxRanges is 200. */
const RANGES_LIMIT = 200;
/** A request that brings less counts as one that failed, unless it brought all that was asked for. */
const MIN_PROGRESS = 1 << 14;
/** Answers that mean "not in this form": 400 (too many), 414 and 431 (header too long), 416 (zot), 501 (ghcr.io). */
const NOT_SO = new Set([400, 414, 416, 431, 501]);

/**
 * Every byte of the ranges at least once, in pieces that say where they belong; also bytes between the ranges where the
 * server sends them. NOT verified: the reader hashes. After a break, what is missing is asked for again, with the next
 * host when that does not help. Throws a ShaleError when no host is left.
 */
export async function* readRanges(
  read: RangesRead,
  requests: Requests,
  policy: RetryPolicy,
  log: (event: RegistryEvent) => void,
): AsyncGenerator<RangePiece, void, void> {
  const failures: Failure[] = [];
  const retries = new Retries(policy);
  const missing = new RangeSet(read.ranges);
  let current = 0;
  while (!missing.isEmpty) {
    const endpoint = read.endpoints[current];
    if (endpoint === undefined) throw explain(read.act, failures);
    const before = missing.size;
    const ability = read.abilities.get(endpoint.host) ?? "unknown";
    let failure: Failure | undefined;
    if (!retries.begin()) {
      failure = new Failure("UNAVAILABLE", endpoint.host, `it broke off ${policy.maxRequests} times`);
    } else {
      try {
        for await (const piece of readOnce(read, requests, endpoint, missing, ability)) {
          missing.remove(piece.offset, piece.offset + piece.bytes.length);
          yield piece;
        }
      } catch (error) {
        if (!(error instanceof Failure)) throw error;
        failure = error;
      }
    }
    if (missing.isEmpty) return;
    if (failure?.status !== undefined && NOT_SO.has(failure.status) && simplify(read.abilities, endpoint.host)) {
      continue; // no failure of the host: it is asked in a simpler form
    }
    if (before - missing.size >= MIN_PROGRESS || (failure === undefined && before > missing.size)) {
      retries.reset();
      if (failure === undefined) continue;
    }
    failure ??= new Failure("UNAVAILABLE", endpoint.host, "it sends nothing of what was asked for", { again: true });
    const hasFallback = current + 1 < read.endpoints.length;
    const waitMs = retries.waitAfter(failure, hasFallback);
    if (waitMs === undefined) {
      failures.push(failure);
      if (hasFallback) {
        log({ kind: "fallback", host: endpoint.host, to: read.endpoints[current + 1]!.host, reason: failure.reason });
      }
      current++;
      retries.reset();
      continue;
    }
    log({ kind: "retry", host: endpoint.host, reason: failure.reason, attempt: retries.inRow, waitMs });
    await delay(waitMs, read.signal === undefined ? {} : { signal: read.signal });
  }
}

/** One request for (the first of) what is missing. Ends when the answer does, or when nothing is missing any more. */
async function* readOnce(
  read: RangesRead,
  requests: Requests,
  endpoint: Endpoint,
  missing: RangeSet,
  ability: RangeAbility,
): AsyncGenerator<RangePiece, void, void> {
  const { descriptor, repository, abilities, signal } = read;
  const asked = ability === "none" ? [] : firstOf(missing, ability === "one" ? 1 : RANGES_LIMIT, RANGE_HEADER_LIMIT);
  const header = asked.map(({ offset, end }) => `${offset}-${end - 1}`).join(",");
  const response = await requests.get(endpoint, `/${repository}/blobs/${descriptor.digest}`, {
    repository,
    headers: { accept: "*/*", ...(header === "" ? {} : { range: `bytes=${header}` }) },
    ...(signal === undefined ? {} : { signal }),
  });
  if (response.status !== 206) {
    abilities.set(endpoint.host, "none");
    read.onWhole?.();
    yield* readWhole(response, descriptor.size, missing);
    return;
  }
  const boundary = findBoundary(response.header("content-type"));
  if (boundary !== undefined) {
    if (asked.length > 1) abilities.set(endpoint.host, "many");
    yield* readMultipart(response, boundary, descriptor.size, response.url.host);
    return;
  }
  const part = parseContentRange(response.header("content-range"), descriptor.size);
  if (part === undefined || !asked.some(({ offset, end }) => part.offset < end && part.end > offset)) {
    const text = printable(response.header("content-range") ?? "no Content-Range", 80);
    await response.discard();
    throw new Failure(
      "DATA_LOSS",
      response.url.host,
      `it sends a part that is none of those asked for (${text} where ${printable(header, 80)} of ${descriptor.size} were)`,
    );
  }
  // Several were asked for and the answer has no parts: joined into one, which is fine, or only the first of them.
  if (asked.length > 1 && part.end < asked.at(-1)!.end) abilities.set(endpoint.host, "one");
  yield* readPart(response, part);
}

async function* readPart(response: HttpResponse, part: ByteRange): AsyncGenerator<RangePiece, void, void> {
  let at = part.offset;
  for await (const chunk of response) {
    if (at + chunk.length > part.end) {
      throw new Failure("DATA_LOSS", response.url.host, `more than ${part.end - part.offset} bytes of a part arrived`);
    }
    const { length } = chunk;
    yield { offset: at, bytes: chunk };
    releaseChunk(chunk);
    at += length;
  }
  if (at < part.end) {
    throw new Failure(
      "UNAVAILABLE",
      response.url.host,
      `the body ended after ${at - part.offset} of ${part.end - part.offset} bytes`,
      { again: true },
    );
  }
}

async function* readWhole(
  response: HttpResponse,
  size: number,
  missing: RangeSet,
): AsyncGenerator<RangePiece, void, void> {
  const announced = response.header("content-length");
  if (announced !== undefined && Number(announced) !== size) {
    await response.discard();
    throw new Failure("DATA_LOSS", response.url.host, `it announces ${announced} bytes, there should be ${size}`);
  }
  let at = 0;
  for await (const chunk of response) {
    if (at + chunk.length > size) {
      throw new Failure("DATA_LOSS", response.url.host, `more than ${size} bytes arrived`);
    }
    const { length } = chunk;
    yield { offset: at, bytes: chunk };
    releaseChunk(chunk);
    at += length;
    if (missing.isEmpty) return;
  }
  if (at < size) {
    throw new Failure("UNAVAILABLE", response.url.host, `the body ended after ${at} of ${size} bytes`, { again: true });
  }
}

/** The next simpler form of asking. False when there is none. */
function simplify(abilities: RangeAbilities, host: string): boolean {
  const ability = abilities.get(host) ?? "unknown";
  if (ability === "none") return false;
  abilities.set(host, ability === "one" ? "none" : "one");
  return true;
}

/** Those at the front that fit a header of `length` bytes, at most `count`, at least one. */
function firstOf(missing: RangeSet, count: number, length: number): readonly ByteRange[] {
  const list: ByteRange[] = [];
  let used = "bytes=".length;
  for (const range of missing) {
    used += `${range.offset}-${range.end - 1},`.length;
    if (list.length === count || (list.length > 0 && used > length)) break;
    list.push(range);
  }
  return list;
}
