/**
 * Authorization for one host and repository: the Docker registry token flow
 * (github.com/distribution/distribution docs/content/spec/auth: token.md, oauth.md, scope.md) and basic authentication.
 */
import { cancelled } from "../async/index.ts";
import { ShaleError } from "../errors/index.ts";
import { type Challenge, parseChallenges } from "./challenge.ts";
import { type Credentials, type CredentialSource, fingerprint } from "./credentials.ts";
import { Failure, printable } from "./failure.ts";
import { type HttpRequest, type HttpResponse, strangerTls, type TlsSettings } from "./http.ts";

/** What a request needs. Registries give tokens for it: docs/content/spec/auth/scope.md, "Resource Actions". */
export interface Access {
  readonly actions: "pull" | "pull,push";
  /** Another repository that is read too: blobs are mounted from it. */
  readonly alsoPull?: string;
}

/** What a request is about, for its authorization. */
export interface Target {
  /** Scheme, host and port that was really asked. */
  readonly origin: URL;
  readonly repository: string;
  readonly access: Access;
  readonly tls: TlsSettings;
}

export interface AuthorizerOptions {
  /** One exchange, redirects followed (without credentials elsewhere). */
  readonly send: (request: HttpRequest) => Promise<HttpResponse>;
  readonly credentials: CredentialSource;
  /** A token was fetched; the host of the token server, and its life. */
  readonly onToken: (realm: string, repository: string, expiresInMs: number) => void;
}

/** token.md: without `expires_in` a token lives 60 seconds. */
const DEFAULT_LIFE_SECONDS = 60;
/** A token is not used in its last seconds: the request has to arrive. */
const MARGIN_MS = 5_000;
const MAX_TOKEN_RESPONSE = 1 << 20;
/** A token that is refused after this may have been withdrawn for its age; before, it is its owner who has no access. */
const YOUNG_MS = 30_000;
const CLIENT_ID = "shale";

interface Grant {
  /** The value of the Authorization header. */
  readonly header: string;
  /** performance.now() after which it is not used, Infinity for basic authentication. */
  readonly expiresAt: number;
  /** The credentials that it was made of, and performance.now() then, where there are others to try. */
  readonly from?: { readonly fingerprint: string; readonly at: number };
}

/** Caches by (host, repository, access). */
export class Authorizer {
  readonly #options: AuthorizerOptions;
  readonly #grants = new Map<string, Grant>();
  readonly #pending = new Map<string, Promise<Grant>>();
  /** What each host asked for last, and for which repository, so that the next token needs no refused request. */
  readonly #challenges = new Map<string, { readonly repository: string; readonly list: readonly Challenge[] }>();

  /** Credentials that were refused, by key, while there are others to try. */
  readonly #refused = new Map<string, Set<string>>();

  constructor(options: AuthorizerOptions) {
    this.#options = options;
  }

  /** How many credentials were refused so far: each allows one more try of the others. */
  refusals(target: Target): number {
    return this.#refused.get(keyOf(target))?.size ?? 0;
  }

  /** The header to send, renewed when it is about to expire; undefined while the host has not asked for any. */
  async find(target: Target, signal: AbortSignal | undefined): Promise<string | undefined> {
    const key = keyOf(target);
    const grant = this.#grants.get(key);
    if (grant !== undefined && grant.expiresAt > performance.now()) return grant.header;
    const known = this.#challenges.get(target.origin.origin);
    if (known === undefined) return undefined;
    const challenges = known.repository === target.repository ? known.list : known.list.map(withoutScope);
    return await this.#obtain(key, target, challenges, signal);
  }

  /**
   * A header in answer to a 401. `refused` is what the request carried. Failure UNAUTHENTICATED when there is nothing
   * (new) to offer.
   */
  async answer(
    target: Target,
    headerLines: readonly string[],
    refused: string | undefined,
    signal: AbortSignal | undefined,
  ): Promise<string> {
    const key = keyOf(target);
    const current = this.#grants.get(key);
    // another request may have renewed it meanwhile
    if (current !== undefined && current.header !== refused && current.expiresAt > performance.now()) {
      return current.header;
    }
    if (current?.header === refused && current?.from !== undefined) {
      const { at, fingerprint: whose } = current.from;
      if (current.expiresAt === Number.POSITIVE_INFINITY || performance.now() - at < YOUNG_MS) this.#refuse(key, whose);
    }
    this.#grants.delete(key);
    const challenges = parseChallenges(headerLines);
    if (challenges.some((one) => one.scheme === "bearer" || one.scheme === "basic")) {
      this.#challenges.set(target.origin.origin, { repository: target.repository, list: challenges });
    }
    const header = await this.#obtain(key, target, challenges, signal);
    // a token may be refused for its age, but the same password is refused for good
    if (header === refused && this.refusals(target) === 0)
      throw unauthenticated(target, "it does not accept the credentials");
    return header;
  }

  /** One fetch at a time for a key; a caller whose own signal is not aborted survives the abort of the one who fetches. */
  async #obtain(
    key: string,
    target: Target,
    challenges: readonly Challenge[],
    signal: AbortSignal | undefined,
  ): Promise<string> {
    for (;;) {
      if (signal?.aborted) throw cancelled(signal);
      const running = this.#pending.get(key);
      if (running === undefined) {
        const mine = this.#fetch(key, target, challenges, signal).finally(() => this.#pending.delete(key));
        this.#pending.set(key, mine);
        const grant = await mine;
        this.#grants.set(key, grant);
        return grant.header;
      }
      try {
        return (await running).header;
      } catch (error) {
        if (!ShaleError.is(error, "CANCELLED")) throw error;
      }
    }
  }

  /** With the first credentials that give a grant and were not refused. */
  async #fetch(
    key: string,
    target: Target,
    challenges: readonly Challenge[],
    signal: AbortSignal | undefined,
  ): Promise<Grant> {
    const all = await this.#options.credentials.find(target.origin.host, target.repository, signal);
    if (all.length < 2) return await this.#grant(target, challenges, all[0], signal);
    for (const credentials of all) {
      if (this.#refused.get(key)?.has(fingerprint(credentials)) === true) continue;
      try {
        const grant = await this.#grant(target, challenges, credentials, signal);
        return { ...grant, from: { fingerprint: fingerprint(credentials), at: performance.now() } };
      } catch (error) {
        if (!(error instanceof Failure) || error.code !== "UNAUTHENTICATED") throw error;
        this.#refuse(key, fingerprint(credentials));
      }
    }
    // All were refused. They may be renewed: the next call begins with the first again.
    this.#refused.delete(key);
    throw unauthenticated(target, "it does not accept the credentials");
  }

  #refuse(key: string, whose: string): void {
    const refused = this.#refused.get(key);
    if (refused === undefined) this.#refused.set(key, new Set([whose]));
    else refused.add(whose);
  }

  async #grant(
    target: Target,
    challenges: readonly Challenge[],
    credentials: Credentials | undefined,
    signal: AbortSignal | undefined,
  ): Promise<Grant> {
    const bearer = challenges.find((one) => one.scheme === "bearer");
    const basic = challenges.find((one) => one.scheme === "basic");
    if (challenges.length === 0) throw unauthenticated(target, "access is refused (HTTP 401)");
    if (bearer === undefined && basic === undefined) {
      const offered = challenges.map((one) => printable(one.scheme, 32)).join(", ");
      throw new Failure(
        "UNIMPLEMENTED",
        target.origin.host,
        `it asks for an authentication other than token and basic: ${offered}`,
      );
    }
    if (credentials?.kind === "registry-token") {
      return { header: `Bearer ${credentials.token}`, expiresAt: Number.POSITIVE_INFINITY };
    }
    if (bearer !== undefined) return await this.#token(target, bearer, credentials, signal);
    if (credentials?.kind !== "password") throw unauthenticated(target, "it asks for a login");
    return { header: basicHeader(credentials), expiresAt: Number.POSITIVE_INFINITY };
  }

  async #token(
    target: Target,
    challenge: Challenge,
    credentials: Exclude<Credentials, { kind: "registry-token" }> | undefined,
    signal: AbortSignal | undefined,
  ): Promise<Grant> {
    const host = target.origin.host;
    const realm = checkRealm(challenge.parameters.get("realm"), target);
    const service = challenge.parameters.get("service");
    // a registry behind a path or a proxy knows its own name of the repository best
    const asked = challenge.parameters.get("scope");
    const scopes = scopesFor(target.access, (asked || `repository:${target.repository}:pull`).split(" "));

    const query = new URLSearchParams();
    if (service !== undefined) query.set("service", service);
    const tls = realm.hostname === target.origin.hostname ? target.tls : strangerTls(target.tls);
    const common = { tls, ...(signal === undefined ? {} : { signal }) };
    let request: HttpRequest;
    if (credentials?.kind === "identity-token") {
      query.set("grant_type", "refresh_token");
      query.set("client_id", CLIENT_ID);
      query.set("refresh_token", credentials.token);
      query.set("scope", scopes.join(" "));
      request = {
        ...common,
        method: "POST",
        url: realm,
        headers: { "content-type": "application/x-www-form-urlencoded", accept: "application/json" },
        body: query.toString(),
      };
    } else {
      const url = new URL(realm);
      for (const [name, value] of query) url.searchParams.set(name, value);
      for (const scope of scopes) url.searchParams.append("scope", scope);
      if (credentials !== undefined) url.searchParams.set("account", credentials.username);
      request = {
        ...common,
        method: "GET",
        url,
        headers: {
          accept: "application/json",
          ...(credentials === undefined ? {} : { authorization: basicHeader(credentials) }),
        },
      };
    }
    const response = await this.#options.send(request);
    if (response.status !== 200) {
      await response.discard();
      throw refusal(response, realm, host, credentials !== undefined);
    }
    const grant = parseToken(await response.readAll(MAX_TOKEN_RESPONSE, "token"), realm.host);
    this.#options.onToken(realm.host, target.repository, grant.expiresAt - performance.now());
    return grant;
  }
}

function keyOf(target: Target): string {
  const { actions, alsoPull = "" } = target.access;
  return [target.origin.origin, target.repository, actions, alsoPull].join(" ");
}

/**
 * The scopes that a server asked for, with what the requests to come need: a HEAD is refused for want of "pull", and the
 * token for that would be refused again by the upload behind it.
 */
function scopesFor({ actions, alsoPull }: Access, asked: readonly string[]): readonly string[] {
  if (actions === "pull") return asked;
  const wanted = actions.split(",");
  const scopes = asked.map((scope) => {
    const at = scope.lastIndexOf(":");
    if (!scope.startsWith("repository:") || at <= "repository".length) return scope;
    return `${scope.slice(0, at)}:${[...new Set([...scope.slice(at + 1).split(","), ...wanted])].join(",")}`;
  });
  return alsoPull === undefined ? scopes : [...scopes, `repository:${alsoPull}:pull`];
}

/** A challenge for another repository: realm and service hold, its scope does not. */
function withoutScope(challenge: Challenge): Challenge {
  const parameters = new Map(challenge.parameters);
  parameters.delete("scope");
  return { scheme: challenge.scheme, parameters };
}

function basicHeader(credentials: Extract<Credentials, { kind: "password" }>): string {
  return `Basic ${Buffer.from(`${credentials.username}:${credentials.password}`, "utf8").toString("base64")}`;
}

/** The token server's URL. A registry reached by https may not send the user's password over http. */
function checkRealm(realm: string | undefined, target: Target): URL {
  const host = target.origin.host;
  const url = realm === undefined ? null : URL.parse(realm);
  if (url === null || (url.protocol !== "https:" && url.protocol !== "http:") || url.username || url.password) {
    throw new Failure("INVALID_ARGUMENT", host, "it names a token server that is not a plain http or https URL");
  }
  if (url.protocol === "http:" && target.origin.protocol === "https:") {
    throw new Failure("INVALID_ARGUMENT", host, `it names a token server without TLS (${printable(url.host)})`);
  }
  url.hash = "";
  return url;
}

function refusal(response: HttpResponse, realm: URL, host: string, hadCredentials: boolean): Failure {
  const { status } = response;
  if (status === 401 || status === 403 || (status === 400 && hadCredentials)) {
    const reason = hadCredentials
      ? `the token server ${realm.host} does not accept the credentials (HTTP ${status})`
      : `the token server ${realm.host} gives no anonymous access (HTTP ${status})`;
    return new Failure("UNAUTHENTICATED", host, reason, { hint: loginHint(host) });
  }
  return new Failure("UNAVAILABLE", host, `the token server ${realm.host} answered HTTP ${status}`, {
    again: status === 429 || status >= 500,
  });
}

function parseToken(body: Uint8Array, host: string): Grant {
  const fail = () => new Failure("INVALID_ARGUMENT", host, "the token server's answer has no usable token");
  let value: unknown;
  try {
    value = JSON.parse(Buffer.from(body).toString("utf8"));
  } catch (error) {
    if (error instanceof SyntaxError) throw fail(); // its text would quote the token
    throw error;
  }
  if (typeof value !== "object" || value === null) throw fail();
  const fields = value as Readonly<Record<string, unknown>>;
  const token = fields.token || fields.access_token; // both names are in token.md
  // RFC 6750 section 2.1, b64token; also keeps header injection out
  if (typeof token !== "string" || !/^[A-Za-z0-9\-._~+/]+=*$/.test(token)) throw fail();
  const life =
    typeof fields.expires_in === "number" && fields.expires_in > 0 ? fields.expires_in : DEFAULT_LIFE_SECONDS;
  const lifeMs = Math.max(life * 1000 - MARGIN_MS, life * 500);
  return { header: `Bearer ${token}`, expiresAt: performance.now() + lifeMs };
}

function unauthenticated(target: Target, reason: string): Failure {
  return new Failure("UNAUTHENTICATED", target.origin.host, reason, { hint: loginHint(target.origin.host) });
}

/** What to type; docker calls its own registry by no name. */
export function loginHint(host: string): string {
  const server = host === "registry-1.docker.io" ? "" : ` ${host}`;
  return `Run "docker login${server}" or "podman login${server || " docker.io"}", or check the name: registries hide what you may not see`;
}
