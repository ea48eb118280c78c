import type { ByteRange } from "../bytes/index.ts";
import { ShaleError } from "../errors/index.ts";
import {
  type Descriptor,
  decodeManifest,
  digestAlgorithm,
  digestOf,
  formatReference,
  isDigest,
  MANIFEST_MEDIA_TYPES,
  MAX_CONFIG_SIZE,
  MAX_MANIFEST_SIZE,
  type Reference,
} from "../oci/index.ts";
import { readBlob } from "./blob.ts";
import type { CredentialSource } from "./credentials.ts";
import type { RegistryEvent } from "./events.ts";
import { explain, Failure } from "./failure.ts";
import { type Endpoint, loadEndpoints } from "./hosts.ts";
import { type HttpResponse, Transport } from "./http.ts";
import { type PushBlobOptions, type PushedBlob, pushBlob, pushManifest } from "./push.ts";
import { type RangeAbilities, type RangeAbility, type RangePiece, readRanges } from "./ranges.ts";
import { Requests } from "./requests.ts";
import { DEFAULT_RETRY, type RetryPolicy, withRetries } from "./retry.ts";

export interface RegistryOptions {
  /**
   * Registries (as in a reference: "host[:port]") for which the user said --tls-verify=false: https unverified, else http.
   * "all" for a client that asks none but those that the user meant.
   */
  readonly insecure?: readonly string[] | "all";
  /** Credentials from this file only. */
  readonly authFile?: string;
  /** In place of $DOCKER_CONFIG and ~/.docker. */
  readonly dockerConfigDir?: string;
  /** Asked for credentials before the files are. */
  readonly credentials?: readonly CredentialSource[];
  /** Directories with a directory per registry (hosts.toml, certificates). */
  readonly hostsDirs?: readonly string[];
  readonly userAgent?: string;
  /** Connections to one host; 8 unless given. */
  readonly maxConnections?: number;
  /** Longest wait for a connection; 10 s unless given. */
  readonly connectTimeoutMs?: number;
  /** Longest wait for an answer, and between two pieces of a body; 30 s unless given. */
  readonly stallTimeoutMs?: number;
  readonly retry?: Partial<RetryPolicy>;
  /** In place of process.env: HOME, DOCKER_CONFIG, REGISTRY_AUTH_FILE, XDG_*, HTTPS_PROXY, HTTP_PROXY, NO_PROXY, PATH. */
  readonly env?: NodeJS.ProcessEnv;
  readonly log?: (event: RegistryEvent) => void;
}

export interface Resolved {
  /** Digest and size are those of `bytes`. */
  readonly descriptor: Descriptor;
  readonly bytes: Uint8Array;
}

/** containerd 2 looks into both. */
export const DEFAULT_HOSTS_DIRS: readonly string[] = ["/etc/containerd/certs.d", "/etc/docker/certs.d"];
const DEFAULT_CONNECTIONS = 8;
const DEFAULT_CONNECT_TIMEOUT_MS = 10_000;
const DEFAULT_STALL_TIMEOUT_MS = 30_000;

interface CallOptions {
  readonly signal?: AbortSignal;
}

/**
 * A client for any number of registries; tokens and connections are shared by its calls, which may run at the same time.
 * Every call retries, falls back from mirrors to the registry, and ends with a ShaleError: NOT_FOUND, UNAUTHENTICATED
 * (with what to do), PERMISSION_DENIED, UNAVAILABLE (network, 5xx), RESOURCE_EXHAUSTED (rate limit, size limit),
 * DATA_LOSS (not the bytes that the digest names), CANCELLED. An aborted call settles after its requests have ended.
 */
export class RegistryClient implements AsyncDisposable {
  readonly #transport: Transport;
  readonly #requests: Requests;
  readonly #policy: RetryPolicy;
  readonly #log: (event: RegistryEvent) => void;
  readonly #hostsDirs: readonly string[];
  readonly #insecure: ReadonlySet<string> | "all";
  readonly #endpoints = new Map<string, readonly Endpoint[]>();
  readonly #abilities: RangeAbilities = new Map();

  constructor(options: RegistryOptions = {}) {
    const env = options.env ?? process.env;
    this.#log = options.log ?? (() => {});
    this.#policy = { ...DEFAULT_RETRY, ...options.retry };
    this.#hostsDirs = options.hostsDirs ?? DEFAULT_HOSTS_DIRS;
    this.#insecure = options.insecure === "all" ? "all" : new Set(options.insecure);
    this.#transport = new Transport({
      maxConnections: options.maxConnections ?? DEFAULT_CONNECTIONS,
      connectTimeoutMs: options.connectTimeoutMs ?? DEFAULT_CONNECT_TIMEOUT_MS,
      stallTimeoutMs: options.stallTimeoutMs ?? DEFAULT_STALL_TIMEOUT_MS,
      env,
    });
    this.#requests = new Requests({
      transport: this.#transport,
      userAgent: options.userAgent ?? "shale",
      env,
      credentials: options.credentials ?? [],
      ...(options.authFile === undefined ? {} : { authFile: options.authFile }),
      ...(options.dockerConfigDir === undefined ? {} : { dockerConfigDir: options.dockerConfigDir }),
      log: this.#log,
    });
  }

  /**
   * The manifest or index that a reference names, by digest where it has one, else by tag. The bytes are verified
   * against the reference's digest, or against what the registry says their digest is, and decode as a manifest.
   */
  async resolve(reference: Reference, options: CallOptions = {}): Promise<Resolved> {
    const name = formatReference(reference);
    const wanted = reference.digest;
    const endpoints = this.#endpointsOf(reference).filter((one) =>
      wanted === undefined ? one.canResolve : one.canPull,
    );
    return await this.#fromFirst(`resolve ${name}`, endpoints, options, async (endpoint) => {
      const response = await this.#getManifest(endpoint, reference, wanted ?? reference.tag ?? "latest", options);
      const bytes = await response.readAll(MAX_MANIFEST_SIZE, "manifest");
      const claimed = response.header("docker-content-digest");
      const digest = wanted ?? (claimed !== undefined && isDigest(claimed) ? claimed : digestOf(bytes));
      verify(bytes, digest, endpoint.host);
      const { mediaType } = decodeManifest(bytes, response.header("content-type"));
      const own = wanted ?? digestOf(bytes);
      return { bytes, descriptor: { mediaType, digest: own, size: bytes.length, annotations: {}, urls: [] } };
    });
  }

  /** A manifest or index by its descriptor, verified. */
  async fetchManifest(reference: Reference, descriptor: Descriptor, options: CallOptions = {}): Promise<Uint8Array> {
    const act = `fetch manifest ${descriptor.digest} of ${repositoryName(reference)}`;
    checkLimit(act, descriptor, MAX_MANIFEST_SIZE);
    return await this.#fetchSmall(act, reference, descriptor, options, (endpoint) =>
      this.#getManifest(endpoint, reference, descriptor.digest, options),
    );
  }

  /** An image config by its descriptor, verified; at most MAX_CONFIG_SIZE bytes. */
  async fetchConfig(reference: Reference, descriptor: Descriptor, options: CallOptions = {}): Promise<Uint8Array> {
    return await this.fetchSmallBlob(reference, descriptor, { ...options, limit: MAX_CONFIG_SIZE });
  }

  /** A blob of at most `limit` bytes as one piece, verified. */
  async fetchSmallBlob(
    reference: Reference,
    descriptor: Descriptor,
    options: CallOptions & { readonly limit: number },
  ): Promise<Uint8Array> {
    const act = `fetch ${descriptor.digest} of ${repositoryName(reference)}`;
    checkLimit(act, descriptor, options.limit);
    return await this.#fetchSmall(act, reference, descriptor, options, (endpoint) =>
      this.#requests.get(endpoint, `/${reference.repository}/blobs/${descriptor.digest}`, {
        repository: reference.repository,
        headers: { accept: "*/*" },
        ...signalOf(options),
      }),
    );
  }

  /**
   * The bytes of a blob from `offset` (0) to `end` (its size), exactly these. They are NOT verified: the reader hashes
   * the whole blob. Nothing is requested before the first `next()`; leaving the iteration ends the transfer. Chunks are
   * the reader's to keep, or to give back with `releaseChunk`.
   */
  openBlob(
    reference: Reference,
    descriptor: Descriptor,
    options: CallOptions & { readonly offset?: number; readonly end?: number } = {},
  ): AsyncGenerator<Uint8Array, void, void> {
    const { offset = 0, end = descriptor.size } = options;
    if (!(offset >= 0 && offset <= end && end <= descriptor.size)) {
      throw new RangeError(`bytes ${offset}..${end} of a blob of ${descriptor.size}`);
    }
    const endpoints = this.#endpointsOf(reference).filter((one) => one.canPull);
    const act = `fetch ${descriptor.digest} of ${repositoryName(reference)}`;
    if (endpoints.length === 0) throw noEndpoint(act);
    return readBlob(
      { repository: reference.repository, descriptor, endpoints, offset, end, act, ...signalOf(options) },
      this.#requests,
      this.#policy,
      this.#log,
    );
  }

  /**
   * Parts of a blob: every byte of `ranges` (rising, apart, not empty) at least once, in pieces that say where they belong,
   * and bytes between them where the registry sends those too. NOT verified: the reader hashes what it uses. In as few
   * requests as the registry allows; `onWhole` is told when it knows no ranges and sends the blob from its start.
   */
  openRanges(
    reference: Reference,
    descriptor: Descriptor,
    ranges: readonly ByteRange[],
    options: CallOptions & { readonly onWhole?: () => void } = {},
  ): AsyncGenerator<RangePiece, void, void> {
    let free = 0;
    for (const { offset, end } of ranges) {
      if (!(offset >= free && offset < end && end <= descriptor.size)) {
        throw new RangeError(`bytes ${offset}..${end} behind ${free} of a blob of ${descriptor.size}`);
      }
      free = end;
    }
    const endpoints = this.#endpointsOf(reference).filter((one) => one.canPull);
    const act = `fetch parts of ${descriptor.digest} of ${repositoryName(reference)}`;
    if (endpoints.length === 0) throw noEndpoint(act);
    const { repository } = reference;
    return readRanges(
      { repository, descriptor, endpoints, ranges, act, abilities: this.#abilities, ...options },
      this.#requests,
      this.#policy,
      this.#log,
    );
  }

  /** What is known by now of how the host that is asked first serves ranges. */
  rangeAbility(reference: Reference): RangeAbility {
    const host = this.#endpointsOf(reference).find((one) => one.canPull)?.host;
    return (host === undefined ? undefined : this.#abilities.get(host)) ?? "unknown";
  }

  /**
   * Puts the bytes of `source` into the reference's repository as a blob, unless it is there; resolves when the registry
   * has confirmed it under the digest that was computed here. The size need not be known beforehand. What is held in
   * memory is two pieces of `chunkSize`. See PushBlobOptions for what makes it skip, mount, resume and start anew.
   * INVALID_ARGUMENT when the bytes are not those of `options.expected`: then nothing was put there.
   */
  async pushBlob(
    reference: Reference,
    source: Parameters<typeof pushBlob>[1],
    options: PushBlobOptions = {},
  ): Promise<PushedBlob> {
    const act = `push ${options.expected?.digest ?? "a blob"} to ${repositoryName(reference)}`;
    return await pushBlob(this.#pushTarget(act, reference), source, options);
  }

  /**
   * Puts a manifest or index under the reference's digest where it has one, else under its tag. All that it names has to
   * be in the repository before: registries refuse it otherwise. Returns its descriptor.
   */
  async pushManifest(
    reference: Reference,
    manifest: { readonly bytes: Uint8Array; readonly mediaType: string },
    options: CallOptions = {},
  ): Promise<Descriptor> {
    return await pushManifest(this.#pushTarget(`push ${formatReference(reference)}`, reference), reference, manifest, {
      ...signalOf(options),
    });
  }

  /** Waits for requests under way, then closes the connections. */
  async close(): Promise<void> {
    await this.#transport.close();
  }

  /** Breaks requests under way. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#transport.destroy();
  }

  #endpointsOf(reference: Reference): readonly Endpoint[] {
    let endpoints = this.#endpoints.get(reference.host);
    if (endpoints === undefined) {
      const insecure = this.#insecure === "all" || this.#insecure.has(reference.host);
      endpoints = loadEndpoints(reference.host, this.#hostsDirs, insecure);
      this.#endpoints.set(reference.host, endpoints);
    }
    return endpoints;
  }

  /** As containerd: the first host that takes pushes, and no other after it, which would end up with half of an image. */
  #pushTarget(act: string, reference: Reference): Parameters<typeof pushBlob>[0] {
    const endpoint = this.#endpointsOf(reference).find((one) => one.canPush);
    if (endpoint === undefined) throw noEndpoint(act);
    const { repository } = reference;
    return { act, endpoint, repository, requests: this.#requests, policy: this.#policy, log: this.#log };
  }

  async #getManifest(
    endpoint: Endpoint,
    reference: Reference,
    name: string,
    options: CallOptions,
  ): Promise<HttpResponse> {
    return await this.#requests.get(endpoint, `/${reference.repository}/manifests/${name}`, {
      repository: reference.repository,
      headers: { accept: MANIFEST_MEDIA_TYPES.join(", ") },
      ...signalOf(options),
    });
  }

  async #fetchSmall(
    act: string,
    reference: Reference,
    descriptor: Descriptor,
    options: CallOptions,
    get: (endpoint: Endpoint) => Promise<HttpResponse>,
  ): Promise<Uint8Array> {
    const endpoints = this.#endpointsOf(reference).filter((one) => one.canPull);
    return await this.#fromFirst(act, endpoints, options, async (endpoint) => {
      const response = await get(endpoint);
      const bytes = await response.readAll(descriptor.size, "content", "DATA_LOSS");
      if (bytes.length !== descriptor.size) {
        throw new Failure(
          "DATA_LOSS",
          endpoint.host,
          `${bytes.length} bytes arrived, there should be ${descriptor.size}`,
        );
      }
      verify(bytes, descriptor.digest, endpoint.host);
      return bytes;
    });
  }

  /** `task` with each endpoint in turn until one succeeds; each is asked again while that may help. */
  async #fromFirst<T>(
    act: string,
    endpoints: readonly Endpoint[],
    options: CallOptions,
    task: (endpoint: Endpoint) => Promise<T>,
  ): Promise<T> {
    if (endpoints.length === 0) throw noEndpoint(act);
    const failures: (Failure | ShaleError)[] = [];
    for (const [i, endpoint] of endpoints.entries()) {
      const next = endpoints[i + 1];
      try {
        return await withRetries(
          this.#policy,
          {
            hasFallback: next !== undefined,
            onRetry: ({ host, reason }, attempt, waitMs) => this.#log({ kind: "retry", host, reason, attempt, waitMs }),
            ...signalOf(options),
          },
          () => task(endpoint),
        );
      } catch (error) {
        const expected = error instanceof Failure || (ShaleError.is(error) && error.code !== "CANCELLED");
        if (!expected) throw error;
        failures.push(error);
        if (next !== undefined) {
          const reason = error instanceof Failure ? error.reason : error.message;
          this.#log({ kind: "fallback", host: endpoint.host, to: next.host, reason });
        }
      }
    }
    throw explain(act, failures);
  }
}

function signalOf(options: CallOptions): CallOptions {
  return options.signal === undefined ? {} : { signal: options.signal };
}

function repositoryName(reference: Reference): string {
  return `${reference.host}/${reference.repository}`;
}

function verify(bytes: Uint8Array, digest: Descriptor["digest"], host: string): void {
  const actual = digestOf(bytes, digestAlgorithm(digest));
  if (actual !== digest) {
    throw new Failure("DATA_LOSS", host, `the content is not what its digest says: expected ${digest}, got ${actual}`);
  }
}

function checkLimit(act: string, descriptor: Descriptor, limit: number): void {
  if (descriptor.size > limit) {
    throw new ShaleError(
      "RESOURCE_EXHAUSTED",
      `Cannot ${act}: ${descriptor.size} bytes are over the limit of ${limit}`,
    );
  }
}

function noEndpoint(act: string): ShaleError {
  return new ShaleError("FAILED_PRECONDITION", `Cannot ${act}: hosts.toml names no host for that`);
}
