/**
 * Pushing blobs and manifests: OCI distribution specification 1.1, "Push". A blob's bytes come once, in order, from an
 * iterable whose length nobody knows; they travel in pieces that are held until the registry has confirmed them, so that
 * a broken connection costs a piece and not the blob. What fits into one piece is one PUT.
 */
import { createHash } from "node:crypto";
import { delay } from "../async/index.ts";
import { ShaleError } from "../errors/index.ts";
import {
  type Descriptor,
  type Digest,
  digestAlgorithm,
  digestOf,
  formatDigest,
  isDigest,
  type Reference,
} from "../oci/index.ts";
import type { Access } from "./auth.ts";
import type { RegistryEvent } from "./events.ts";
import { explain, Failure } from "./failure.ts";
import type { Endpoint } from "./hosts.ts";
import type { HttpResponse } from "./http.ts";
import type { Requests, SendOptions } from "./requests.ts";
import { Retries, type RetryPolicy, withRetries } from "./retry.ts";
import { HeldPieces, type Piece } from "./held-pieces.ts";

export interface PushTarget {
  readonly endpoint: Endpoint;
  readonly repository: string;
  readonly requests: Requests;
  readonly policy: RetryPolicy;
  readonly log: (event: RegistryEvent) => void;
  /** "push sha256:... to host/repository", for messages. */
  readonly act: string;
}

export interface PushBlobOptions {
  /** What the bytes will be. Then a blob that is there is not sent, and one that is not what was said is refused. */
  readonly expected?: { readonly digest: Digest; readonly size: number };
  /** Another repository of the same registry that may have the blob; needs `expected`. */
  readonly mountFrom?: string;
  /** Bytes in one request; 16 MiB unless given. A registry may ask for more (OCI-Chunk-Min-Length). */
  readonly chunkSize?: number;
  /** Told of bytes that the registry has confirmed; negative when an upload starts anew. */
  readonly onBytes?: (count: number) => void;
  readonly signal?: AbortSignal;
}

export interface PushedBlob {
  readonly digest: Digest;
  readonly size: number;
  readonly how: "present" | "mounted" | "uploaded";
}

type Bytes = Iterable<Uint8Array> | AsyncIterable<Uint8Array>;

const DEFAULT_CHUNK = 16 << 20;
/** Two pieces are held at a time. */
const MAX_CHUNK = 256 << 20;
/** A piece on a slow line, and a registry that hashes or copies all of a large blob before it answers. */
const ANSWER_TIMEOUT_MS = 300_000;
/** To tell a registry that an upload is given up; it finds out by itself, later. */
const CANCEL_TIMEOUT_MS = 2_000;
/** How often an upload begins anew when the registry has forgotten it. */
const MAX_RESTARTS = 4;

/**
 * See RegistryClient.pushBlob. `source` is a function where the bytes can be had again: then an upload that the registry
 * has lost (its restart; registries that don't keep part of a piece) begins anew. Otherwise it fails with UNAVAILABLE.
 */
export async function pushBlob(
  target: PushTarget,
  source: Bytes | (() => Bytes),
  options: PushBlobOptions,
): Promise<PushedBlob> {
  const { expected, mountFrom } = options;
  try {
    let opened: URL | undefined;
    if (expected !== undefined) {
      if (await isPresent(target, expected, options)) return { ...expected, how: "present" };
      if (mountFrom !== undefined && mountFrom !== target.repository) {
        const mount = await tryMount(target, expected.digest, mountFrom, options);
        if (mount === "mounted") return { ...expected, how: "mounted" };
        opened = mount;
      }
    }
    let inPieces = true;
    for (let restarts = 0; ; restarts++) {
      const again = typeof source === "function" && restarts < MAX_RESTARTS;
      const upload = new Upload(target, options, opened);
      opened = undefined;
      try {
        if (typeof source !== "function") return { ...(await upload.run(source)), how: "uploaded" };
        return { ...(await (inPieces ? upload.run(source()) : upload.runWhole(source))), how: "uploaded" };
      } catch (error) {
        if (!(error instanceof Failure)) await upload.cancel();
        if (!(error instanceof UploadLost) || !again) throw error;
        // twice may be a restart of the registry; more, and it does not know how to go on
        if (error.refused || restarts > 0) inPieces = false;
        options.onBytes?.(-upload.confirmed);
        target.log({ kind: "retry", host: error.host, reason: error.reason, attempt: restarts + 1, waitMs: 0 });
      }
    }
  } catch (error) {
    throw error instanceof Failure ? explain(target.act, [error]) : error;
  }
}

/** See RegistryClient.pushManifest. */
export async function pushManifest(
  target: PushTarget,
  reference: Reference,
  { bytes, mediaType }: { readonly bytes: Uint8Array; readonly mediaType: string },
  { signal }: { readonly signal?: AbortSignal },
): Promise<Descriptor> {
  const digest = digestOf(bytes, reference.digest === undefined ? "sha256" : digestAlgorithm(reference.digest));
  if (reference.digest !== undefined && reference.digest !== digest) {
    throw new ShaleError("INVALID_ARGUMENT", `Cannot ${target.act}: the manifest's digest is ${digest}`);
  }
  try {
    const name = reference.digest ?? reference.tag ?? "latest";
    const response = await send(target, `/${target.repository}/manifests/${name}`, signal, {
      method: "PUT",
      body: bytes,
      headers: { "content-type": mediaType },
      accepts: [200, 201, 202],
    });
    await response.discard();
    checkDigest(response, digest);
  } catch (error) {
    throw error instanceof Failure ? explain(target.act, [error]) : error;
  }
  return { mediaType, digest, size: bytes.length, annotations: {}, urls: [] };
}

async function isPresent(
  target: PushTarget,
  { digest, size }: { readonly digest: Digest; readonly size: number },
  { signal }: PushBlobOptions,
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

/** "mounted", or the upload that the registry opened in its place; undefined where it would not hear of it. */
async function tryMount(
  target: PushTarget,
  digest: Digest,
  from: string,
  { signal }: PushBlobOptions,
): Promise<"mounted" | URL | undefined> {
  const query = new URLSearchParams({ mount: digest, from });
  try {
    const response = await send(target, `/${target.repository}/blobs/uploads/?${query}`, signal, {
      method: "POST",
      access: { actions: "pull,push", alsoPull: from },
      accepts: [201, 202],
    });
    await response.discard();
    return response.status === 201 ? "mounted" : locationOf(response);
  } catch (error) {
    // who may not read there gets a refusal from some registries and token servers; the bytes are at hand
    if (error instanceof Failure && (error.code === "UNAUTHENTICATED" || (error.status ?? 500) < 500)) return undefined;
    throw error;
  }
}

/** The registry does not know the upload (any more), has other bytes of it than were sent, or takes no pieces. */
class UploadLost extends Failure {
  /** It answered a piece in a way that says that it takes none. */
  get refused(): boolean {
    return this.status !== undefined && NO_PIECES.has(this.status);
  }
}

/** As registries that take a blob in one request only answer a PATCH with a Content-Range. */
const NO_PIECES = new Set([400, 405, 411, 413, 415, 501]);

/** One upload session: POST, PATCH for each piece, PUT. */
class Upload {
  readonly #target: PushTarget;
  readonly #options: PushBlobOptions;
  readonly #retries: Retries;
  #location: URL | undefined;
  #chunkSize: number;
  #confirmed = 0;

  constructor(target: PushTarget, options: PushBlobOptions, opened: URL | undefined) {
    const { chunkSize = DEFAULT_CHUNK } = options;
    if (!(chunkSize >= 1 && chunkSize <= MAX_CHUNK)) throw new RangeError(`chunkSize must be 1..${MAX_CHUNK}`);
    this.#target = target;
    this.#options = options;
    this.#retries = new Retries(target.policy);
    this.#location = opened;
    this.#chunkSize = chunkSize;
  }

  /** Bytes that the registry has. */
  get confirmed(): number {
    return this.#confirmed;
  }

  async run(bytes: Bytes): Promise<{ readonly digest: Digest; readonly size: number }> {
    const { expected } = this.#options;
    // before the first piece is cut: a registry may want larger ones
    if (this.#location === undefined) await this.#retried(() => this.#open());
    const algorithm = expected === undefined ? "sha256" : digestAlgorithm(expected.digest);
    const hash = createHash(algorithm);
    await using pieces = new HeldPieces(bytes, this.#chunkSize, (chunk) => hash.update(chunk));
    let size = 0;
    for (;;) {
      const piece = await pieces.next();
      size += piece.size;
      if (!piece.isLast) {
        await this.#append(piece, size - piece.size);
        continue;
      }
      const digest = formatDigest(algorithm, hash.digest());
      this.#checkExpected(digest, size);
      await this.#finish(piece, size - piece.size, digest);
      return { digest, size };
    }
  }

  /** All bytes in one request, for registries that take no pieces. Nothing is held: a break means to begin anew. */
  async runWhole(source: () => Bytes): Promise<{ readonly digest: Digest; readonly size: number }> {
    const { expected } = this.#options;
    const algorithm = expected === undefined ? "sha256" : digestAlgorithm(expected.digest);
    await this.#retried(() => this.#open());
    let digest: Digest | undefined;
    let size = 0;
    const hashed = async function* (this: Upload): AsyncGenerator<Uint8Array, void, undefined> {
      const hash = createHash(algorithm);
      size = 0;
      for await (const chunk of source()) {
        hash.update(chunk);
        size += chunk.length;
        yield chunk;
        this.#confirm(chunk.length);
      }
      digest = formatDigest(algorithm, hash.digest());
    }.bind(this);
    try {
      const response = await this.#send(this.#opened(), {
        method: "PATCH",
        body: hashed,
        headers: { "content-type": "application/octet-stream" },
        accepts: [200, 202, 204],
      });
      await response.discard();
      this.#location = locationOf(response, this.#location);
    } catch (error) {
      if (!(error instanceof Failure) || !(error.again || error.status === 404 || error.status === 416)) throw error;
      throw new UploadLost("UNAVAILABLE", error.host, error.reason, { cause: error, hint: "Push again" });
    }
    if (digest === undefined) {
      throw new UploadLost("UNAVAILABLE", this.#target.endpoint.host, "it answered before it had all bytes");
    }
    this.#checkExpected(digest, size);
    await this.#finish({ size: 0, isLast: true, bytes: () => new Uint8Array(0) }, size, digest);
    return { digest, size };
  }

  /** Tells the registry that nothing more will come. Never fails: it forgets abandoned uploads by itself. */
  async cancel(): Promise<void> {
    const location = this.#location;
    if (location === undefined) return;
    this.#location = undefined;
    try {
      const response = await send(this.#target, location, AbortSignal.timeout(CANCEL_TIMEOUT_MS), {
        method: "DELETE",
        accepts: [200, 202, 204],
      });
      await response.discard();
    } catch (error) {
      if (!(error instanceof Failure) && !ShaleError.is(error)) throw error;
    }
  }

  #checkExpected(digest: Digest, size: number): void {
    const { expected } = this.#options;
    if (expected === undefined || (digest === expected.digest && size === expected.size)) return;
    throw new ShaleError(
      "INVALID_ARGUMENT",
      `Cannot ${this.#target.act}: the bytes are ${digest} of ${size} bytes instead of ${expected.digest} of ${expected.size}`,
    );
  }

  async #open(): Promise<void> {
    const { repository } = this.#target;
    const response = await this.#send(`/${repository}/blobs/uploads/`, { method: "POST", accepts: [202] });
    await response.discard();
    this.#location = locationOf(response);
    const minimum = Number(response.header("oci-chunk-min-length") ?? 0);
    if (minimum > MAX_CHUNK) {
      throw new Failure(
        "RESOURCE_EXHAUSTED",
        response.url.host,
        `it takes no piece below ${minimum} bytes; the limit is ${MAX_CHUNK}`,
      );
    }
    if (minimum > this.#chunkSize) this.#chunkSize = minimum;
  }

  /** A piece that is not the last one. After a break the registry says how much of it has arrived. */
  async #append(piece: Piece, start: number): Promise<void> {
    let at = start;
    const end = start + piece.size;
    await this.#retried(async (attempt) => {
      if (attempt > 0) {
        const arrived = await this.#arrived(start, end);
        this.#target.log({
          kind: "resume",
          host: this.#target.endpoint.host,
          digest: this.#options.expected?.digest ?? "an upload",
          offset: arrived,
        });
        at = arrived;
        if (at === end) return;
      }
      const response = await this.#send(this.#opened(), {
        method: "PATCH",
        body: piece.bytes(at - start),
        headers: { "content-type": "application/octet-stream", "content-range": `${at}-${end - 1}` },
        accepts: [200, 202, 204],
      });
      await response.discard();
      this.#location = locationOf(response, this.#location);
    }, true);
    this.#confirm(piece.size);
  }

  /** The rest, empty or not, and the digest that makes a blob of all of it. */
  async #finish(piece: Piece, start: number, digest: Digest): Promise<void> {
    // with more than one piece before it, the last one goes as the others do: registries differ in a PUT with a body then
    if (start > 0 && piece.size > 0) await this.#append(piece, start);
    const body = start > 0 ? new Uint8Array(0) : piece.bytes(0);
    await this.#retried(async (attempt) => {
      if (attempt > 0) {
        // the answer may have been lost, not the request
        if (await isPresent(this.#target, { digest, size: start + piece.size }, this.#options, sendOnce)) return;
        if (start === 0) await this.#open(); // all of it is held: no matter what became of the first try
      }
      const response = await this.#send(withDigest(this.#opened(), digest), {
        method: "PUT",
        body,
        headers: { "content-type": "application/octet-stream" },
        accepts: [200, 201, 202, 204],
      });
      await response.discard();
      checkDigest(response, digest);
    });
    this.#location = undefined;
    if (start === 0) this.#confirm(piece.size);
  }

  #confirm(count: number): void {
    this.#confirmed += count;
    this.#options.onBytes?.(count);
  }

  /** How far the registry has got, which must be within the piece that is held. */
  async #arrived(start: number, end: number): Promise<number> {
    const response = await this.#send(this.#opened(), { method: "GET", accepts: [204, 200, 202] });
    await response.discard();
    this.#location = locationOf(response, this.#location);
    const match = /^(?:bytes=)?0-(\d{1,15})$/.exec(response.header("range") ?? "");
    // "0-0" is one byte by the letter, and none at all to docker-registry
    const arrived = match === null || match[1] === "0" ? 0 : Number(match[1]) + 1;
    if (arrived >= start && arrived <= end) return arrived;
    throw new UploadLost("UNAVAILABLE", response.url.host, `it has ${arrived} bytes of the upload, not ${start}`);
  }

  #opened(): URL {
    if (this.#location === undefined) throw new RangeError("the upload is not open");
    return this.#location;
  }

  /** `task` until it succeeds; a session that the registry does not know is lost, whatever it calls that. */
  async #retried(task: (attempt: number) => Promise<void>, piece = false): Promise<void> {
    const { signal } = this.#options;
    for (let attempt = 0; ; attempt++) {
      this.#retries.begin();
      try {
        await task(attempt);
        this.#retries.reset();
        return;
      } catch (error) {
        if (!(error instanceof Failure) || error instanceof UploadLost) throw error;
        const { status } = error;
        const lost = status === 404 || status === 416 || (piece && status !== undefined && NO_PIECES.has(status));
        if (this.#location !== undefined && (lost || (status === 400 && attempt > 0))) {
          throw new UploadLost("UNAVAILABLE", error.host, `it has lost the upload: ${error.reason}`, {
            cause: error,
            hint: "Push again",
            status,
          });
        }
        const waitMs = this.#retries.waitAfter(error, false);
        if (waitMs === undefined) throw error;
        const { host, reason } = error;
        this.#target.log({ kind: "retry", host, reason, attempt: this.#retries.inRow, waitMs });
        await delay(waitMs, signal === undefined ? {} : { signal });
      }
    }
  }

  #send(place: string | URL, options: Pick<SendOptions, "method" | "accepts" | "body"> & Partial<SendOptions>) {
    return sendOnce(this.#target, place, this.#options.signal, options);
  }
}

type Sent = Pick<SendOptions, "method" | "accepts"> & Partial<Pick<SendOptions, "body" | "headers" | "access">>;

const PUSH: Access = { actions: "pull,push" };

async function sendOnce(
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
async function send(
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
function locationOf(response: HttpResponse, previous?: URL): URL {
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

/** By hand: URLSearchParams would write the rest of the query in its own way, and some registries sign it. */
function withDigest(location: URL, digest: Digest): URL {
  const url = new URL(location);
  url.search = `${url.search === "" ? "?" : `${url.search}&`}digest=${encodeURIComponent(digest)}`;
  return url;
}

function checkDigest(response: HttpResponse, digest: Digest): void {
  const claimed = response.header("docker-content-digest");
  if (claimed === undefined || claimed === digest) return;
  // a registry may name it by another algorithm
  if (isDigest(claimed) && digestAlgorithm(claimed) !== digestAlgorithm(digest)) return;
  throw new Failure("DATA_LOSS", response.url.host, `it has stored other bytes than were sent: not ${digest}`);
}
