/**
 * One HTTP/1.1 exchange over undici: pooled connections, a body with backpressure, time limits between bytes. Knows
 * nothing of registries, redirects or credentials.
 *
 * undici is loaded with the first request, since most commands never use the network; and of it the one class that is used,
 * which takes 30 ms instead of 80: its index also loads fetch, WebSockets, caches and mocks. It has no `exports`, so that its files
 * are as public as its name.
 */
import type { SecureContext } from "node:tls";
import type { Dispatcher } from "undici";
import { cancelled } from "../async/index.ts";
import { Failure } from "./failure.ts";
import { findProxy, ProxyError, tunnelConnector } from "./proxy.ts";

/** How to trust a host and to be trusted by it. Equal settings share connections. */
export interface TlsSettings {
  readonly verify: boolean;
  /** PEM certificates trusted besides those of the system. */
  readonly ca: readonly string[];
  readonly client: readonly { readonly cert: string; readonly key: string }[];
}

export const DEFAULT_TLS: TlsSettings = { verify: true, ca: [], client: [] };

/** Settings for another host that this one sends us to: its authorities may vouch for it, the rest was said of one host. */
export function strangerTls(tls: TlsSettings): TlsSettings {
  return { verify: true, ca: tls.ca, client: [] };
}

export interface HttpRequest {
  readonly method: "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE";
  readonly url: URL;
  readonly headers: Readonly<Record<string, string | readonly string[]>>;
  /**
   * Bytes are sent with their length; a function's go in chunks, as many as there are. May be sent again after a redirect or a
   * challenge, so bytes are not changed meanwhile, and a function is called again. Its own errors reject the exchange.
   */
  readonly body?: string | Uint8Array | (() => AsyncIterable<Uint8Array>);
  readonly tls: TlsSettings;
  readonly connectTimeoutMs?: number;
  /** Longest wait for the response's head where sending the body, or what the server does with it, takes its time. */
  readonly answerTimeoutMs?: number;
  readonly signal?: AbortSignal;
}

export interface TransportOptions {
  /** Connections to one host. */
  readonly maxConnections: number;
  readonly connectTimeoutMs: number;
  /** Longest wait for the response's head, and between two pieces of its body. */
  readonly stallTimeoutMs: number;
  /** For HTTPS_PROXY, HTTP_PROXY, NO_PROXY. */
  readonly env: NodeJS.ProcessEnv;
}

/** Bytes taken from the socket ahead of the reader, and where reading goes on. A few of the kernel's reads of 64 KiB. */
const HIGH_WATER = 1 << 20;
const LOW_WATER = 1 << 18;
/** A body that nobody wants is read up to this, to keep the connection. */
const DRAIN_LIMIT = 1 << 16;

export class Transport {
  readonly #options: TransportOptions;
  readonly #dispatchers = new Map<string, Promise<Dispatcher>>();
  #closed: Promise<void> | undefined;
  #destroyed: Promise<void> | undefined;

  constructor(options: TransportOptions) {
    this.#options = options;
  }

  /** Resolves with the head of the response, whatever its status. Rejects with a Failure, or CANCELLED on `signal`. */
  async send(request: HttpRequest): Promise<HttpResponse> {
    if (request.signal?.aborted) throw cancelled(request.signal);
    if (this.#closed) throw new RangeError("the transport is closed");
    const dispatcher = await this.#dispatcher(request);
    const response = new HttpResponse(request);
    const { url } = request;
    dispatcher.dispatch(
      {
        origin: url.origin,
        path: url.pathname + url.search,
        method: request.method,
        headers: request.headers as Record<string, string | string[]>,
        // undici takes async iterables, its types don't say so
        body: (typeof request.body === "function"
          ? response.watch(request.body())
          : (request.body ?? null)) as Uint8Array | null,
        headersTimeout: request.answerTimeoutMs ?? this.#options.stallTimeoutMs,
        bodyTimeout: this.#options.stallTimeoutMs,
      },
      response.handler,
    );
    await response.head;
    return response;
  }

  /** Waits for exchanges under way, then closes the connections. */
  close(): Promise<void> {
    this.#closed ??= this.#each((one) => one.close());
    return this.#closed;
  }

  /** Breaks exchanges under way. */
  destroy(): Promise<void> {
    this.#closed ??= Promise.resolve();
    this.#destroyed ??= this.#each((one) => one.destroy());
    return this.#destroyed;
  }

  async #each(end: (dispatcher: Dispatcher) => Promise<void>): Promise<void> {
    await Promise.all([...this.#dispatchers.values()].map(async (one) => await end(await one)));
  }

  #dispatcher(request: HttpRequest): Promise<Dispatcher> {
    const timeoutMs = request.connectTimeoutMs ?? this.#options.connectTimeoutMs;
    const proxy = findProxy(request.url, this.#options.env);
    const tls = request.url.protocol === "https:" ? request.tls : undefined;
    const key = JSON.stringify([proxy?.href, timeoutMs, tls]);
    let dispatcher = this.#dispatchers.get(key);
    if (dispatcher === undefined) {
      dispatcher = this.#connect(proxy, timeoutMs, tls);
      this.#dispatchers.set(key, dispatcher);
    }
    return dispatcher;
  }

  async #connect(proxy: URL | undefined, timeoutMs: number, settings: TlsSettings | undefined): Promise<Dispatcher> {
    const { default: Agent } = await import("undici/lib/dispatcher/agent.js");
    const tls =
      settings === undefined
        ? {}
        : { secureContext: await secureContext(settings), rejectUnauthorized: settings.verify };
    return new Agent({
      connections: this.#options.maxConnections,
      pipelining: 1,
      connect: proxy === undefined ? { ...tls, timeout: timeoutMs } : tunnelConnector(proxy, { tls, timeoutMs }),
    });
  }
}

/**
 * The head, and the body as one async iteration. Whoever gets a response either iterates it (leaving early ends the
 * exchange) or calls `discard`.
 */
export class HttpResponse implements AsyncIterable<Uint8Array> {
  readonly url: URL;
  readonly head: Promise<void>;
  readonly handler: Dispatcher.DispatchHandler;
  status = 0;
  #headers: Readonly<Record<string, string | string[] | undefined>> = {};
  readonly #queue: Uint8Array[] = [];
  #queued = 0;
  #paused = false;
  #done = false;
  #failure: unknown;
  #wake: (() => void) | undefined;
  #stop: ((reason: Error) => void) | undefined;

  constructor(request: HttpRequest) {
    this.url = request.url;
    const { promise: head, resolve, reject } = Promise.withResolvers<void>();
    this.head = head;
    const host = request.url.host;
    const { signal } = request;
    let controller: Dispatcher.DispatchController | undefined;
    let started = false;

    const finish = (failure?: unknown) => {
      signal?.removeEventListener("abort", onAbort);
      this.#done = true;
      this.#failure = failure;
      if (failure !== undefined) reject(failure);
      this.#awake();
    };
    // An exchange that has no connection yet can't be stopped; it is given up here and aborted when it starts.
    this.#stop = (reason) => (controller === undefined ? finish(reason) : controller.abort(reason));
    const onAbort = () => {
      this.#queue.length = 0;
      this.#stop?.(cancelled(signal!));
    };
    signal?.addEventListener("abort", onAbort, { once: true });

    this.handler = {
      onRequestStart: (one) => {
        if (this.#done) one.abort(new Error("given up"));
        controller = one;
      },
      onResponseStart: (_controller, status, headers) => {
        if (status < 200) return; // 1xx announces the real one
        started = true;
        this.status = status;
        this.#headers = headers;
        resolve();
      },
      onResponseData: (one, chunk) => {
        this.#queue.push(chunk);
        this.#queued += chunk.length;
        if (this.#queued >= HIGH_WATER && !this.#paused) {
          this.#paused = true;
          one.pause();
        }
        this.#awake();
      },
      onResponseEnd: () => finish(),
      onResponseError: (_controller, error) => {
        if (this.#done) return;
        const own = this.#sourceError;
        finish(signal?.aborted ? cancelled(signal) : own === undefined ? failureOf(error, host, started) : own.error);
      },
    };
    this.#resume = () => controller?.resume();
  }

  readonly #resume: () => void;
  #sourceError: { readonly error: unknown } | undefined;

  /** The bytes of a request's body; when getting them fails, that is why the exchange does. */
  async *watch(source: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array, void, undefined> {
    try {
      yield* source;
    } catch (error) {
      this.#sourceError = { error };
      throw error;
    }
  }

  /** Value of a header by its lower-case name; several are joined as RFC 9110 section 5.3 says. */
  header(name: string): string | undefined {
    const value = this.#headers[name];
    return Array.isArray(value) ? value.join(", ") : value;
  }

  /** A header's separate lines. */
  headerLines(name: string): readonly string[] {
    const value = this.#headers[name];
    return value === undefined ? [] : Array.isArray(value) ? value : [value];
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array, void, void> {
    try {
      for (;;) {
        for (let chunk = this.#queue.shift(); chunk !== undefined; chunk = this.#queue.shift()) {
          this.#queued -= chunk.length;
          if (this.#paused && this.#queued <= LOW_WATER) {
            this.#paused = false;
            this.#resume();
          }
          yield chunk;
        }
        if (this.#failure !== undefined) throw this.#failure;
        if (this.#done) return;
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
      }
    } finally {
      await this.#end();
    }
  }

  /** Ends the exchange; reads a short rest so that the connection can be used again. Never fails. */
  async discard(): Promise<void> {
    let size = 0;
    try {
      for await (const chunk of this) {
        size += chunk.length;
        if (size > DRAIN_LIMIT) break;
      }
    } catch (error) {
      // what is lost was not wanted; a mistake of ours still shows
      if (!(error instanceof Failure) && !(error instanceof Error && error.name === "ShaleError")) throw error;
    }
  }

  /** The whole body; a Failure over `limit` bytes, as soon as that is known. `code` says whose limit it is. */
  async readAll(
    limit: number,
    what: string,
    code: "RESOURCE_EXHAUSTED" | "DATA_LOSS" = "RESOURCE_EXHAUSTED",
  ): Promise<Uint8Array> {
    const tooLarge = () => new Failure(code, this.url.host, `the ${what} is over the limit of ${limit} bytes`);
    const announced = Number(this.header("content-length") ?? 0);
    if (announced > limit) {
      await this.#end();
      throw tooLarge();
    }
    const parts: Uint8Array[] = [];
    let size = 0;
    for await (const chunk of this) {
      size += chunk.length;
      if (size > limit) throw tooLarge();
      parts.push(chunk);
    }
    return Buffer.concat(parts);
  }

  /** Resolves when nothing of the exchange is left running. */
  async #end(): Promise<void> {
    this.#queue.length = 0;
    if (this.#done) return;
    this.#stop?.(new Error("not needed"));
    while (!this.#done) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  #awake(): void {
    const wake = this.#wake;
    this.#wake = undefined;
    wake?.();
  }
}

/**
 * Gives a chunk's memory back at once; its reader calls it when the bytes are hashed, written or copied, and does not
 * touch them again. Never needed, but worth it for every large blob: V8 sees 64 KiB buffers late, by collecting its
 * whole heap each 64 MiB, and malloc then hands out cold pages. Measured on a loopback pull: 0.5 s of CPU a GiB with it,
 * 1.15 s without.
 */
export function releaseChunk(chunk: Uint8Array): void {
  const { buffer } = chunk;
  // only where the chunk is all of its buffer: several chunks of a chunked body share one
  if (buffer instanceof ArrayBuffer && chunk.byteLength === buffer.byteLength && !buffer.detached) buffer.transfer(0);
}

/**
 * The default context trusts Node's own list; operators put their company's authority where OpenSSL and Go look, and
 * SSL_CERT_FILE says where that is. So: both.
 */
async function secureContext(settings: TlsSettings): Promise<SecureContext> {
  const tls = await import("node:tls");
  const trusted = settings.verify
    ? [...new Set([...tls.getCACertificates("default"), ...tls.getCACertificates("system"), ...settings.ca])]
    : [];
  return tls.createSecureContext({
    ca: trusted, // also none: left out, it would be Node's list, which takes 15 ms to read
    ...(settings.client.length === 0
      ? {}
      : { cert: settings.client.map((one) => one.cert), key: settings.client.map((one) => one.key) }),
  });
}

/** Codes of Node, OpenSSL (by Node) and undici -> what happened, for people. */
const REASONS: Readonly<Record<string, string>> = {
  ECONNREFUSED: "connection refused",
  ECONNRESET: "the connection was broken",
  EPIPE: "the connection was broken",
  UND_ERR_SOCKET: "the connection was broken",
  ENOTFOUND: "no such host",
  EAI_AGAIN: "the host name can't be resolved at the moment",
  EHOSTUNREACH: "no route to the host",
  ENETUNREACH: "the network is not reachable",
  ETIMEDOUT: "the connection timed out",
  UND_ERR_CONNECT_TIMEOUT: "the connection timed out",
  UND_ERR_HEADERS_TIMEOUT: "no answer in time",
  UND_ERR_BODY_TIMEOUT: "the transfer stalled",
  UND_ERR_HEADERS_OVERFLOW: "the response's head is too large",
  UND_ERR_RES_CONTENT_LENGTH_MISMATCH: "the body is not as long as announced",
};

/** Peers that speak something else than TLS: OpenSSL's reasons for that. */
const NOT_TLS =
  /^ERR_SSL_(WRONG_VERSION_NUMBER|PACKET_LENGTH_TOO_LONG|HTTP_REQUEST|UNEXPECTED_MESSAGE|UNSUPPORTED_PROTOCOL)$|^EPROTO$/;
/** Reasons why a certificate was not accepted; Node takes them from OpenSSL's X509_V_ERR list. */
const CERTIFICATE =
  /^(ERR_TLS_CERT_.*|CERT_.*|.*_CERT|.*_CERT_.*|.*_CERTIFICATE|.*_CRL|INVALID_CA|INVALID_PURPOSE|HOSTNAME_MISMATCH|SELF_SIGNED_.*|DEPTH_ZERO_.*)$/;

function failureOf(error: Error, host: string, started: boolean): Failure {
  const code = codeOf(error);
  const connecting = !started;
  if (error instanceof ProxyError) {
    return new Failure("UNAVAILABLE", host, error.message, { connecting, again: true, cause: error });
  }
  if (NOT_TLS.test(code)) {
    return new Failure("UNAVAILABLE", host, "the server does not speak TLS", {
      connecting,
      cause: error,
      hint: "If it serves plain HTTP on purpose, use --tls-verify=false",
    });
  }
  if (CERTIFICATE.test(code)) {
    return new Failure("FAILED_PRECONDITION", host, `its certificate is not trusted (${code})`, {
      connecting,
      cause: error,
      hint: `Put its authority into /etc/containerd/certs.d/${host}/ca.crt, or use --tls-verify=false`,
    });
  }
  const known = REASONS[code];
  if (known === undefined && !code.startsWith("HPE_") && !code.startsWith("ERR_SSL_") && code !== "EPROTO") {
    return new Failure("UNAVAILABLE", host, code === "" ? "the exchange failed" : `the exchange failed (${code})`, {
      connecting,
      again: true,
      cause: error,
    });
  }
  const reason = known ?? `the server does not speak HTTP as it should (${code})`;
  return new Failure("UNAVAILABLE", host, reason, { connecting, again: code !== "ENOTFOUND", cause: error });
}

/** undici and Node's happy eyeballs wrap: the innermost code tells most. */
function codeOf(error: unknown): string {
  if (error instanceof AggregateError && error.errors.length > 0) return codeOf(error.errors.at(-1));
  if (!(error instanceof Error)) return "";
  const inner = codeOf(error.cause);
  return inner !== "" ? inner : "code" in error && typeof error.code === "string" ? error.code : "";
}
