/** What every request of a push has in common. */
import { type Digest, digestAlgorithm, isDigest } from "../oci/index.ts";
import type { Access } from "./auth.ts";
import type { RegistryEvent } from "./events.ts";
import { Failure } from "./failure.ts";
import type { Endpoint } from "./hosts.ts";
import type { HttpResponse } from "./http.ts";
import type { Requests, SendOptions } from "./requests.ts";
import { type RetryPolicy, withRetries } from "./retry.ts";

export interface PushTarget {
  readonly endpoint: Endpoint;
  readonly repository: string;
  readonly requests: Requests;
  readonly policy: RetryPolicy;
  readonly log: (event: RegistryEvent) => void;
  /** "push sha256:... to host/repository", for messages. */
  readonly act: string;
}

/** A piece on a slow line, and a registry that hashes or copies all of a large blob before it answers. */
const ANSWER_TIMEOUT_MS = 300_000;

export type Sent = Pick<SendOptions, "method" | "accepts"> & Partial<Pick<SendOptions, "body" | "headers" | "access">>;

const PUSH: Access = { actions: "pull,push" };

export async function sendOnce(
  target: PushTarget,
  place: string | URL,
  signal: AbortSignal | undefined,
  options: Sent,
): Promise<HttpResponse> {
  return await target.requests.send(target.endpoint, place, {
    access: PUSH,
    headers: {},
    repository: target.repository,
    answerTimeoutMs: ANSWER_TIMEOUT_MS,
    ...options,
    ...(signal === undefined ? {} : { signal }),
  });
}

/** One request that may be made again as it is. */
export async function send(
  target: PushTarget,
  place: string | URL,
  signal: AbortSignal | undefined,
  options: Sent,
): Promise<HttpResponse> {
  return await withRetries(
    target.policy,
    {
      hasFallback: false,
      onRetry: ({ host, reason }, attempt, waitMs) => target.log({ kind: "retry", host, reason, attempt, waitMs }),
      ...(signal === undefined ? {} : { signal }),
    },
    () => sendOnce(target, place, signal, options),
  );
}

/** Where the upload goes on. A registry behind a proxy that ends TLS believes itself to be at http. */
export function locationOf(response: HttpResponse, previous?: URL): URL {
  const text = response.header("location");
  if (text === undefined && previous !== undefined) return previous;
  const url = text === undefined ? null : URL.parse(text, response.url);
  if (url === null || !/^https?:$/.test(url.protocol) || url.username !== "" || url.password !== "") {
    throw new Failure("INVALID_ARGUMENT", response.url.host, "it opens an upload at no http or https URL");
  }
  if (url.protocol === "http:" && response.url.protocol === "https:" && url.hostname === response.url.hostname) {
    return new URL(url.pathname + url.search, response.url);
  }
  return url;
}

export function checkDigest(response: HttpResponse, digest: Digest): void {
  const claimed = response.header("docker-content-digest");
  if (claimed === undefined || claimed === digest) return;
  // a registry may name it by another algorithm
  if (isDigest(claimed) && digestAlgorithm(claimed) !== digestAlgorithm(digest)) return;
  throw new Failure("DATA_LOSS", response.url.host, `it has stored other bytes than were sent: not ${digest}`);
}

/** Whether the repository has this blob. */
export async function isPresent(
  target: PushTarget,
  { digest, size }: { readonly digest: Digest; readonly size: number },
  { signal }: { readonly signal?: AbortSignal },
  ask: typeof send = send,
): Promise<boolean> {
  try {
    const response = await ask(target, `/${target.repository}/blobs/${digest}`, signal, {
      method: "HEAD",
      accepts: [200],
    });
    await response.discard();
    // a registry that has something else under this digest is not to be relied on
    return Number(response.header("content-length") ?? size) === size;
  } catch (error) {
    if (error instanceof Failure && error.status === 404) return false;
    throw error;
  }
}
