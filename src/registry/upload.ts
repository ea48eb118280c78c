/** One upload of a blob: in pieces that are held until they are confirmed, or in one request. */
import { createHash } from "node:crypto";
import { delay } from "../async/index.ts";
import { ShaleError } from "../errors/index.ts";
import { type Digest, digestAlgorithm, formatDigest } from "../oci/index.ts";
import { Failure } from "./failure.ts";
import { type Bytes, HeldPieces, type Piece } from "./held-pieces.ts";
import type { HttpResponse } from "./http.ts";
import { checkDigest, isPresent, locationOf, type PushTarget, send, sendOnce, type Sent } from "./push-requests.ts";
import { Retries } from "./retry.ts";

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

const DEFAULT_CHUNK = 16 << 20;
/** Two pieces are held at a time. */
const MAX_CHUNK = 256 << 20;
/** To tell a registry that an upload is given up; it finds out by itself, later. */
const CANCEL_TIMEOUT_MS = 2_000;

/** The registry does not know the upload (any more), has other bytes of it than were sent, or takes no pieces. */
export class UploadLost extends Failure {
  /** It answered a piece in a way that says that it takes none. */
  get refused(): boolean {
    return this.status !== undefined && NO_PIECES.has(this.status);
  }
}

/** As registries that take a blob in one request only answer a PATCH with a Content-Range. */
const NO_PIECES = new Set([400, 405, 411, 413, 415, 501]);

/** One upload session: POST, PATCH for each piece, PUT. */
export class Upload {
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
      this.#confirm(-size); // of an answer that asked for all of it again
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

  #send(place: string | URL, options: Sent): Promise<HttpResponse> {
    return sendOnce(this.#target, place, this.#options.signal, options);
  }
}

/** By hand: URLSearchParams would write the rest of the query in its own way, and some registries sign it. */
function withDigest(location: URL, digest: Digest): URL {
  const url = new URL(location);
  url.search = `${url.search === "" ? "?" : `${url.search}&`}digest=${encodeURIComponent(digest)}`;
  return url;
}
