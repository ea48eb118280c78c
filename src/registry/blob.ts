/** Reading a blob across broken connections and hosts: RFC 9110 section 14 (ranges), distribution spec, "Pulling blobs". */
import { delay } from "../async/index.ts";
import type { Descriptor } from "../oci/index.ts";
import type { RegistryEvent } from "./events.ts";
import { explain, Failure, printable } from "./failure.ts";
import type { Endpoint } from "./hosts.ts";
import type { HttpResponse } from "./http.ts";
import type { Requests } from "./requests.ts";
import { Retries, type RetryPolicy } from "./retry.ts";

export interface BlobRead {
  readonly repository: string;
  readonly descriptor: Descriptor;
  /** Hosts to ask, in order. */
  readonly endpoints: readonly Endpoint[];
  /** Half-open range of bytes, within the descriptor's size. */
  readonly offset: number;
  readonly end: number;
  /** "fetch sha256:... of docker.io/library/alpine", for messages. */
  readonly act: string;
  readonly signal?: AbortSignal;
}

/** A request that brings less counts as one that failed: a server must not keep us busy with crumbs. */
const MIN_PROGRESS = 1 << 16;

/**
 * The bytes of a blob from `offset` to `end`, exactly these, each once, in order. After a break it goes on where it
 * stopped: with the same host while that may help, then with the next. Throws a ShaleError when no host is left.
 *
 * No If-Range is sent: what a blob holds is fixed by its digest, which the reader checks over all bytes, and caches
 * behind one address often disagree about the ETag, so that each break would begin the download anew.
 */
export async function* readBlob(
  read: BlobRead,
  requests: Requests,
  policy: RetryPolicy,
  log: (event: RegistryEvent) => void,
): AsyncGenerator<Uint8Array, void, void> {
  const failures: Failure[] = [];
  const retries = new Retries(policy);
  const { endpoints, end, signal } = read;
  let position = read.offset;
  let current = 0;
  while (position < end) {
    const endpoint = endpoints[current];
    if (endpoint === undefined) throw explain(read.act, failures);
    const from = position;
    let failure: Failure | undefined;
    if (!retries.begin()) {
      failure = new Failure("UNAVAILABLE", endpoint.host, `it broke off ${policy.maxRequests} times`);
    } else {
      try {
        for await (const chunk of readOnce(read, requests, endpoint, position)) {
          position += chunk.length;
          yield chunk;
        }
      } catch (error) {
        if (!(error instanceof Failure)) throw error;
        failure = error;
      }
    }
    if (position >= end) {
      // too many bytes is a lie; a connection that broke after the last byte is of no matter
      if (failure?.code === "DATA_LOSS") throw explain(read.act, [...failures, failure]);
      return;
    }
    if (position - from >= MIN_PROGRESS) {
      retries.reset();
      if (failure === undefined) continue; // a server may answer with less than was asked for
    }
    failure ??= new Failure("UNAVAILABLE", endpoint.host, "it sends hardly anything", { again: true });
    const hasFallback = current + 1 < endpoints.length;
    const waitMs = retries.waitAfter(failure, hasFallback);
    if (waitMs === undefined) {
      failures.push(failure);
      if (hasFallback) {
        log({ kind: "fallback", host: endpoint.host, to: endpoints[current + 1]!.host, reason: failure.reason });
      }
      current++;
      retries.reset();
      continue;
    }
    log({ kind: "retry", host: endpoint.host, reason: failure.reason, attempt: retries.inRow, waitMs });
    await delay(waitMs, signal === undefined ? {} : { signal });
    if (position > 0) log({ kind: "resume", host: endpoint.host, digest: read.descriptor.digest, offset: position });
  }
}

/** One request from `position`. Ends when the answer ends, which may be before `end` of the read; never yields more. */
async function* readOnce(
  read: BlobRead,
  requests: Requests,
  endpoint: Endpoint,
  position: number,
): AsyncGenerator<Uint8Array, void, void> {
  const { descriptor, repository, end, signal } = read;
  const partial = position > 0 || end < descriptor.size;
  const response = await requests.get(endpoint, `/${repository}/blobs/${descriptor.digest}`, {
    repository,
    headers: { accept: "*/*", ...(partial ? { range: `bytes=${position}-${end - 1}` } : {}) },
    ...(signal === undefined ? {} : { signal }),
  });
  const { skip, length } = await planBody(response, descriptor.size, position, end);
  const wanted = Math.min(skip + length, skip + end - position);
  let seen = 0;
  for await (const chunk of response) {
    const start = Math.max(0, skip - seen);
    const stop = Math.min(chunk.length, wanted - seen);
    seen += chunk.length;
    if (start < stop) yield start === 0 && stop === chunk.length ? chunk : chunk.subarray(start, stop);
    if (seen > skip + length) {
      throw new Failure("DATA_LOSS", response.url.host, `more than ${skip + length} bytes arrived`);
    }
    if (seen >= wanted && wanted < skip + length) return; // the rest was not asked for
  }
  if (seen < skip + length) {
    throw new Failure("UNAVAILABLE", response.url.host, `the body ended after ${seen} of ${skip + length} bytes`, {
      again: true,
    });
  }
}

/**
 * How a response's body relates to what was asked: bytes to skip first (a server that knows no ranges begins at 0), and
 * bytes that then belong to us. Failure where head and descriptor contradict.
 */
async function planBody(
  response: HttpResponse,
  size: number,
  position: number,
  end: number,
): Promise<{ readonly skip: number; readonly length: number }> {
  const announced = response.header("content-length");
  const length = announced === undefined ? undefined : Number(announced);
  const problem = response.status === 206 ? undefined : lengthProblem(length, size);
  if (response.status !== 206) {
    if (problem === undefined) return { skip: position, length: size - position };
    return await refuse(response, problem);
  }
  const text = response.header("content-range");
  const match = /^bytes (\d{1,16})-(\d{1,16})\/(\d{1,16}|\*)$/.exec(text ?? "");
  if (match === null) {
    return await refuse(
      response,
      `it sends a part without saying which (${printable(text ?? "no Content-Range", 80)})`,
    );
  }
  const [first, last] = [Number(match[1]), Number(match[2])];
  if (first !== position || last < first || last >= end || (match[3] !== "*" && Number(match[3]) !== size)) {
    return await refuse(
      response,
      `it sends bytes ${first}-${last} of ${match[3]} where ${position}-${end - 1} of ${size} were asked for`,
    );
  }
  const partProblem = lengthProblem(length, last - first + 1);
  return partProblem === undefined ? { skip: 0, length: last - first + 1 } : await refuse(response, partProblem);
}

function lengthProblem(announced: number | undefined, expected: number): string | undefined {
  if (announced === undefined || announced === expected) return undefined;
  return `it announces ${announced} bytes, there should be ${expected}`;
}

async function refuse(response: HttpResponse, problem: string): Promise<never> {
  await response.discard();
  throw new Failure("DATA_LOSS", response.url.host, problem);
}
