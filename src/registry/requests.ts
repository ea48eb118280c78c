/**
 * Requests to an endpoint of a registry: scheme, redirects, authorization, and what a status means. One request, no
 * repetition but for authorization; repetition is the caller's.
 */
import { type Access, Authorizer, loginHint, type Target } from "./auth.ts";
import { type CredentialSource, CredentialStore, credentialsOf } from "./credentials.ts";
import type { RegistryEvent } from "./events.ts";
import { Failure, printable } from "./failure.ts";
import type { Endpoint } from "./hosts.ts";
import { type HttpRequest, type HttpResponse, strangerTls, type Transport } from "./http.ts";

export interface RequestsOptions {
  readonly transport: Transport;
  readonly userAgent: string;
  readonly env: NodeJS.ProcessEnv;
  readonly authFile?: string;
  readonly dockerConfigDir?: string;
  /** Asked before the files. */
  readonly credentials: readonly CredentialSource[];
  readonly log: (event: RegistryEvent) => void;
}

export interface GetOptions {
  readonly repository: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly signal?: AbortSignal;
}

export interface SendOptions extends GetOptions {
  readonly method: HttpRequest["method"];
  /** What the request needs; "pull" unless given. */
  readonly access?: Access;
  readonly body?: HttpRequest["body"];
  readonly answerTimeoutMs?: number;
  /** Statuses with which it resolves. */
  readonly accepts: readonly number[];
}

const PULL: Access = { actions: "pull" };
/** As many as Go's net/http follows. */
const MAX_REDIRECTS = 10;
/** A renewed token, and once more for one that another request renewed meanwhile. */
const MAX_CHALLENGES = 2;
const MAX_ERROR_BODY = 1 << 14;

export class Requests {
  readonly #options: RequestsOptions;
  readonly #authorizer: Authorizer;
  /** Scheme by host, where it was not given and is found out by now. */
  readonly #schemes = new Map<string, "https" | "http">();
  #helperProblem: string | undefined;

  constructor(options: RequestsOptions) {
    this.#options = options;
    this.#authorizer = new Authorizer({
      send: (request) => this.#follow(request, undefined),
      credentials: credentialsOf(
        options.credentials,
        new CredentialStore({
          env: options.env,
          ...(options.authFile === undefined ? {} : { authFile: options.authFile }),
          ...(options.dockerConfigDir === undefined ? {} : { dockerConfigDir: options.dockerConfigDir }),
          onProblem: (problem) => {
            this.#helperProblem = problem;
            options.log({ kind: "credentials", problem });
          },
        }),
      ),
      onToken: (realm, repository, expiresInMs) => options.log({ kind: "token", host: realm, repository, expiresInMs }),
    });
  }

  /**
   * GET `path` (below the endpoint's API root). Resolves with a response of status 200 or 206, whose body the caller
   * reads or discards. Any other answer is a Failure with its `status`.
   */
  async get(endpoint: Endpoint, path: string, options: GetOptions): Promise<HttpResponse> {
    return await this.send(endpoint, path, { ...options, method: "GET", accepts: [200, 206] });
  }

  /**
   * As `get`, with any method and the statuses it may end with. `place` is a path below the endpoint's API root, or the
   * full address that the endpoint has given out for an upload. An address on another origin gets neither credentials
   * nor configured headers, and a 401 there is final: a registry must not make us log in at a host of its choice.
   */
  async send(endpoint: Endpoint, place: string | URL, options: SendOptions): Promise<HttpResponse> {
    if (typeof place !== "string") return await this.#authorized(endpoint, place, options);
    const path = place;
    const known = this.#schemes.get(endpoint.host);
    if (endpoint.scheme !== "https-or-http" || known !== undefined) {
      const scheme = known ?? (endpoint.scheme as "https" | "http");
      return await this.#authorized(endpoint, urlOf(endpoint, scheme, path), options);
    }
    try {
      const response = await this.#authorized(endpoint, urlOf(endpoint, "https", path), options);
      this.#schemes.set(endpoint.host, "https");
      return response;
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      if (!error.connecting) {
        this.#schemes.set(endpoint.host, "https");
        throw error;
      }
    }
    const response = await this.#authorized(endpoint, urlOf(endpoint, "http", path), options);
    // a TLS server answers plain HTTP with 400, which is a Failure: only what it served tells
    this.#schemes.set(endpoint.host, "http");
    return response;
  }

  async #authorized(endpoint: Endpoint, url: URL, options: SendOptions): Promise<HttpResponse> {
    const scheme = endpoint.scheme === "https-or-http" ? this.#schemes.get(endpoint.host) : endpoint.scheme;
    const sameHost = url.host === new URL(`${url.protocol}//${endpoint.host}`).host;
    const own = sameHost && (url.protocol === "https:" || scheme !== "https");
    const target: Target = {
      origin: url,
      repository: options.repository,
      access: options.access ?? PULL,
      tls: endpoint.tls,
    };
    const { signal, body, answerTimeoutMs } = options;
    let authorization = own ? await this.#authorizer.find(target, signal) : undefined;
    for (let challenges = 0; ; challenges++) {
      const response = await this.#follow(
        {
          method: options.method,
          url,
          headers: {
            ...(own ? endpoint.headers : {}),
            ...options.headers,
            ...(authorization === undefined ? {} : { authorization }),
          },
          tls: own ? endpoint.tls : strangerTls(endpoint.tls),
          ...(endpoint.connectTimeoutMs === undefined ? {} : { connectTimeoutMs: endpoint.connectTimeoutMs }),
          ...(body === undefined ? {} : { body }),
          ...(answerTimeoutMs === undefined ? {} : { answerTimeoutMs }),
          ...(signal === undefined ? {} : { signal }),
        },
        endpoint,
      );
      if (options.accepts.includes(response.status)) return await checkEncoding(response);
      const redirected = !own || response.url.origin !== url.origin;
      if (response.status !== 401 || redirected || challenges - this.#authorizer.refusals(target) >= MAX_CHALLENGES) {
        throw await this.#failureOf(response, url, authorization, redirected);
      }
      const lines = response.headerLines("www-authenticate");
      await response.discard();
      try {
        authorization = await this.#authorizer.answer(target, lines, authorization, signal);
      } catch (error) {
        throw error instanceof Failure && error.code === "UNAUTHENTICATED" ? this.#withHelperProblem(error) : error;
      }
    }
  }

  /**
   * Follows redirects. What belongs to one host stays with it: Authorization and configured headers go to the same
   * origin only (never from https to http), certificates of ours and a lack of verification to the same host name.
   */
  async #follow(request: HttpRequest, endpoint: Endpoint | undefined): Promise<HttpResponse> {
    let { url, tls, headers } = request;
    for (let redirects = 0; ; redirects++) {
      const started = performance.now();
      const response = await this.#options.transport.send({
        ...request,
        url,
        tls,
        headers: { ...headers, "user-agent": this.#options.userAgent, "accept-encoding": "identity" },
      });
      this.#options.log({
        kind: "request",
        method: request.method,
        url: withoutQuery(url),
        status: response.status,
        durationMs: performance.now() - started,
      });
      if (!isRedirect(request.method, response.status) || (request.method === "POST" && endpoint === undefined)) {
        return response; // a token server's answer to a password is not followed
      }
      const next = URL.parse(response.header("location") ?? "", url);
      await response.discard();
      if (next === null || !/^https?:$/.test(next.protocol) || next.username !== "" || next.password !== "") {
        throw new Failure(
          "INVALID_ARGUMENT",
          url.host,
          `its redirect (HTTP ${response.status}) leads to no http or https URL`,
        );
      }
      if (redirects >= MAX_REDIRECTS) {
        throw new Failure("UNAVAILABLE", request.url.host, `it redirects more than ${MAX_REDIRECTS} times`);
      }
      if (next.origin !== url.origin) headers = portable(headers, endpoint);
      if (next.hostname !== url.hostname) tls = strangerTls(tls);
      url = next;
    }
  }

  async #failureOf(
    response: HttpResponse,
    url: URL,
    authorization: string | undefined,
    redirected: boolean,
  ): Promise<Failure> {
    const { status } = response;
    const host = response.url.host;
    const waitMs = retryAfterMs(response.header("retry-after"));
    const said = await serverMessage(response, authorization);
    const suffix = `(HTTP ${status}${said === "" ? "" : `: ${said}`})`;
    const more = { status, ...(waitMs === undefined ? {} : { waitMs }) };
    // an address that a registry gave out lives for minutes; asking the registry again gets a new one
    if (redirected && (status === 401 || status === 403)) {
      return new Failure("PERMISSION_DENIED", host, `it refuses an address given out by ${url.host} ${suffix}`, {
        ...more,
        again: true,
      });
    }
    switch (status) {
      case 401:
        return this.#withHelperProblem(
          new Failure("UNAUTHENTICATED", host, `access is refused ${suffix}`, { ...more, hint: loginHint(host) }),
        );
      case 403:
        return new Failure("PERMISSION_DENIED", host, `access is denied ${suffix}`, { ...more, hint: loginHint(host) });
      case 404:
        return new Failure("NOT_FOUND", host, `it is not there ${suffix}`, more);
      case 408:
        return new Failure("UNAVAILABLE", host, `it gave up waiting ${suffix}`, { ...more, again: true });
      case 429:
        return new Failure("RESOURCE_EXHAUSTED", host, `it asks for fewer requests ${suffix}`, {
          ...more,
          again: true,
          hint: "Wait, or log in: registries allow more to users they know",
        });
      default:
        return new Failure(
          status >= 500 ? "UNAVAILABLE" : "INVALID_ARGUMENT",
          host,
          `it does not answer as it should ${suffix}`,
          {
            ...more,
            again: status >= 500 && status !== 501 && status !== 505,
          },
        );
    }
  }

  #withHelperProblem(failure: Failure): Failure {
    if (this.#helperProblem === undefined) return failure;
    return new Failure(failure.code, failure.host, failure.reason, {
      cause: failure,
      hint: `${failure.hint ?? ""} (${this.#helperProblem})`.trim(),
      ...(failure.status === undefined ? {} : { status: failure.status }),
    });
  }
}

/** Bytes are hashed as they come; an encoding that nobody asked for would change them. */
async function checkEncoding(response: HttpResponse): Promise<HttpResponse> {
  const encoding = response.header("content-encoding")?.trim().toLowerCase();
  if (encoding === undefined || encoding === "" || encoding === "identity") return response;
  await response.discard();
  throw new Failure(
    "INVALID_ARGUMENT",
    response.url.host,
    `it sends Content-Encoding ${printable(encoding, 40)} where none was asked for`,
  );
}

/** RFC 9110 section 15.4: 307 and 308 ask for the same method and body again, the others for a GET. */
function isRedirect(method: HttpRequest["method"], status: number): boolean {
  if (status === 307 || status === 308) return method !== "DELETE";
  return (method === "GET" || method === "HEAD") && [301, 302, 303].includes(status);
}

function urlOf(endpoint: Endpoint, scheme: "https" | "http", path: string): URL {
  const url = new URL(`${scheme}://${endpoint.host}${endpoint.path}${path}`);
  if (endpoint.namespace !== undefined) url.searchParams.set("ns", endpoint.namespace);
  return url;
}

/** What may go to any host. */
function portable(
  headers: HttpRequest["headers"],
  endpoint: Endpoint | undefined,
): Readonly<Record<string, string | readonly string[]>> {
  const own = new Set(["authorization", ...Object.keys(endpoint?.headers ?? {})]);
  return Object.fromEntries(Object.entries(headers).filter(([name]) => !own.has(name)));
}

/** Signed URLs carry their secret in the query. */
export function withoutQuery(url: URL): string {
  return url.origin + url.pathname;
}

/** RFC 9110 section 10.2.3: seconds, or a date. */
export function retryAfterMs(value: string | undefined): number | undefined {
  if (value === undefined) return undefined;
  if (/^\d{1,9}$/.test(value.trim())) return Number(value) * 1000;
  const date = Date.parse(value);
  return Number.isNaN(date) ? undefined : Math.max(0, date - Date.now());
}

/** "CODE message" of the first error in the body (distribution spec, Error Codes), or "". Ends the exchange. */
async function serverMessage(response: HttpResponse, authorization: string | undefined): Promise<string> {
  let body: Uint8Array;
  try {
    body = await response.readAll(MAX_ERROR_BODY, "error message");
  } catch (error) {
    if (error instanceof Failure) return ""; // the status is known, which matters more
    throw error;
  }
  let value: unknown;
  try {
    value = JSON.parse(Buffer.from(body).toString("utf8"));
  } catch (error) {
    if (error instanceof SyntaxError) return "";
    throw error;
  }
  if (typeof value !== "object" || value === null || !("errors" in value) || !Array.isArray(value.errors)) return "";
  const first: unknown = value.errors[0];
  if (typeof first !== "object" || first === null) return "";
  const { code, message } = first as { readonly code?: unknown; readonly message?: unknown };
  const text = [code, message].filter((one) => typeof one === "string").join(" ");
  return printable(redact(text, authorization));
}

/** A server may repeat what it was sent. */
function redact(text: string, authorization: string | undefined): string {
  if (authorization === undefined) return text;
  const secret = authorization.slice(authorization.indexOf(" ") + 1);
  const password = Buffer.from(secret, "base64").toString("utf8").split(":").slice(1).join(":");
  let result = text;
  for (const one of [authorization, secret, password]) if (one !== "") result = result.replaceAll(one, "***");
  return result;
}
