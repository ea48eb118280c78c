/**
 * The pull secrets of a cluster (type kubernetes.io/dockerconfigjson), kept up to date by list and watch, as credentials.
 *
 *   list, page by page ──► watch ──(its time is over)──► watch from where it ended
 *        ▲                   │ anything else
 *        └── wait, twice as long each time, a minute at most
 *
 * What was known stays while the API server is away. One secret that can't be read is reported and passed over.
 */
import { delay } from "../async/index.ts";
import { ShaleError } from "../errors/index.ts";
import { type AuthFile, type Credentials, type CredentialSource, findAuth, parseAuthFile } from "../registry/index.ts";
import { ClusterApi } from "./api.ts";

export interface PullSecretsOptions {
  readonly kubeconfig: string;
  /** What went wrong, without secrets; told once until it changes. */
  readonly onProblem: (problem: unknown) => void;
  /** First wait after a failure; a second unless given. */
  readonly retryMs?: number;
  /** How long the first pull after a start waits for the first list; 5 s unless given. */
  readonly firstListMs?: number;
}

const TYPE = "kubernetes.io/dockerconfigjson";
const KEY = ".dockerconfigjson";
const PATH = "/api/v1/secrets";
const SELECTOR = { fieldSelector: `type=${TYPE}` };
/** Secrets of one page: each may have 1 MiB. */
const PAGE = 50;
const MAX_PAGE_BYTES = 128 << 20;
/** One event: a secret in base64, twice over with its last-applied annotation. */
const MAX_EVENT_BYTES = 8 << 20;
/** Secrets kept; a cluster with more has an owner who can name a file instead. */
const MAX_SECRETS = 20_000;
const WATCH_SECONDS = 300;
const SHORT_WATCH_MS = 1_000;
/** Of the first wait after a failure: 10 s. */
const POLL_WAITS = 10;
const MAX_RETRY_MS = 60_000;
const FIRST_LIST_MS = 5_000;

interface Secret {
  readonly name: string;
  readonly auths: AuthFile["auths"] | undefined;
}

export class PullSecrets implements CredentialSource, AsyncDisposable {
  readonly #options: PullSecretsOptions;
  readonly #api: ClusterApi;
  readonly #stopping = new AbortController();
  readonly #running: Promise<void>;
  readonly #firstOutcome = Promise.withResolvers<void>();
  /** By "namespace/name". */
  #secrets = new Map<string, AuthFile["auths"]>();
  #lastProblem = "";

  /** Begins to watch at once, in the background. */
  constructor(options: PullSecretsOptions) {
    this.#options = options;
    this.#api = new ClusterApi(options.kubeconfig);
    this.#running = this.#run();
  }

  /** How many secrets are known. */
  get size(): number {
    return this.#secrets.size;
  }

  async find(host: string, repository: string): Promise<readonly Credentials[]> {
    await Promise.race([this.#firstOutcome.promise, timeout(this.#options.firstListMs ?? FIRST_LIST_MS)]);
    const found: Credentials[] = [];
    for (const auths of this.#secrets.values()) {
      const one = findAuth(auths, host, repository);
      if (one !== undefined) found.push(one);
    }
    return found;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort(new ShaleError("CANCELLED", "Stopped watching pull secrets"));
    await this.#running;
  }

  async #run(): Promise<void> {
    const { signal } = this.#stopping;
    const { retryMs = 1_000, onProblem } = this.#options;
    for (let waitMs = retryMs; !signal.aborted; waitMs = Math.min(2 * waitMs, MAX_RETRY_MS)) {
      try {
        let version = await this.#list(signal);
        this.#firstOutcome.resolve();
        this.#lastProblem = "";
        waitMs = retryMs;
        for (;;) {
          const began = performance.now();
          version = await this.#watch(version, signal);
          // A server that ends each watch at once (a proxy without streams) is polled.
          if (performance.now() - began < SHORT_WATCH_MS) await delay(POLL_WAITS * retryMs, { signal });
        }
      } catch (error) {
        this.#firstOutcome.resolve();
        if (signal.aborted) return;
        const text = error instanceof Error ? error.message : String(error);
        if (text !== this.#lastProblem) onProblem(error);
        this.#lastProblem = text;
        await delay(waitMs, { signal }).catch(() => undefined); // aborted: the loop's condition sees it
      }
    }
  }

  /** Replaces all that is known; answers the version that the list stands for. */
  async #list(signal: AbortSignal): Promise<string> {
    const secrets = new Map<string, AuthFile["auths"]>();
    for (let next = ""; ; ) {
      const query = { ...SELECTOR, limit: String(PAGE), ...(next === "" ? {} : { continue: next }) };
      const pieces: Buffer[] = [];
      let size = 0;
      for await (const piece of this.#api.get(PATH, query, signal)) {
        size += piece.length;
        if (size > MAX_PAGE_BYTES) throw tooLarge("a page of secrets", MAX_PAGE_BYTES);
        pieces.push(piece);
      }
      const page = objectOf(parse(Buffer.concat(pieces)));
      for (const item of Array.isArray(page.items) ? page.items : []) this.#put(secrets, this.#read(item));
      const metadata = objectOf(page.metadata);
      next = textOf(metadata.continue);
      if (next !== "") continue;
      this.#secrets = secrets;
      return textOf(metadata.resourceVersion);
    }
  }

  /** Resolves with the last version seen when the server ends the watch in time. */
  async #watch(version: string, signal: AbortSignal): Promise<string> {
    let last = version;
    const query = {
      ...SELECTOR,
      watch: "1",
      allowWatchBookmarks: "true",
      resourceVersion: version,
      timeoutSeconds: String(WATCH_SECONDS),
    };
    for await (const line of linesOf(this.#api.get(PATH, query, signal))) {
      const { type, object } = objectOf(parse(line));
      if (type === "ERROR") {
        const { code } = objectOf(object);
        throw new ShaleError(
          code === 410 ? "ABORTED" : "UNAVAILABLE",
          `Cannot watch pull secrets: status ${Number(code)}`,
        );
      }
      const secret = this.#read(object);
      if (type === "ADDED" || type === "MODIFIED") this.#put(this.#secrets, secret);
      else if (type === "DELETED") this.#secrets.delete(secret.name);
      last = textOf(objectOf(objectOf(object).metadata).resourceVersion) || last;
    }
    return last;
  }

  #put(secrets: Map<string, AuthFile["auths"]>, { name, auths }: Secret): void {
    if (auths === undefined) secrets.delete(name);
    else if (secrets.has(name) || secrets.size < MAX_SECRETS) secrets.set(name, auths);
  }

  #read(value: unknown): Secret {
    const { metadata, type, data } = objectOf(value);
    const { namespace, name } = objectOf(metadata);
    const full = `${textOf(namespace)}/${textOf(name)}`;
    const encoded = textOf(objectOf(data)[KEY]);
    if (type !== TYPE || encoded === "") return { name: full, auths: undefined };
    try {
      // Helpers that a secret names are not run: they would be programs of the node, chosen by whoever may write a secret.
      return {
        name: full,
        auths: parseAuthFile(Buffer.from(encoded, "base64").toString("utf8"), `secret ${full}`).auths,
      };
    } catch (error) {
      if (!ShaleError.is(error)) throw error;
      this.#options.onProblem(error);
      return { name: full, auths: undefined };
    }
  }
}

async function* linesOf(source: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  let pieces: Buffer[] = [];
  let size = 0;
  for await (let piece of source) {
    for (let end = piece.indexOf(0x0a); end >= 0; end = piece.indexOf(0x0a)) {
      yield Buffer.concat([...pieces, piece.subarray(0, end)]);
      piece = piece.subarray(end + 1);
      pieces = [];
      size = 0;
    }
    size += piece.length;
    if (size > MAX_EVENT_BYTES) throw tooLarge("an event about a secret", MAX_EVENT_BYTES);
    if (piece.length > 0) pieces.push(piece);
  }
}

/** JSON, or an error that quotes nothing of it. */
function parse(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString("utf8"));
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    throw new ShaleError("UNAVAILABLE", "Cannot read pull secrets: the API server's answer is not JSON");
  }
}

function objectOf(value: unknown): Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null ? (value as Readonly<Record<string, unknown>>) : {};
}

function textOf(value: unknown): string {
  return typeof value === "string" ? value : "";
}

function tooLarge(what: string, limit: number): ShaleError {
  return new ShaleError("RESOURCE_EXHAUSTED", `Cannot read pull secrets: ${what} has more than ${limit} bytes`);
}

function timeout(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms).unref());
}
