/**
 * Credentials as docker and podman keep them: ~/.docker/config.json and containers/auth.json, with `auths`,
 * `credHelpers` and `credsStore` (containers-auth.json(5), docker login).
 */
import { hash } from "node:crypto";
import { join } from "node:path";
import { FormatError, ShaleError } from "../errors/index.ts";
import { endpointHost } from "../oci/index.ts";
import { findFile, readFile } from "../sys/index.ts";
import { findHelperCredentials } from "./credential-helper.ts";

export type Credentials =
  | { readonly kind: "password"; readonly username: string; readonly password: string }
  /** To be exchanged for access tokens (OAuth2 refresh token). */
  | { readonly kind: "identity-token"; readonly token: string }
  /** An access token as it is. */
  | { readonly kind: "registry-token"; readonly token: string };

/**
 * Whoever else knows credentials: a cluster's pull secrets, the node's kubelet. Asked anew for each login and each token, so
 * that what has been renewed is used.
 */
export interface CredentialSource {
  /** All that may open `repository` on `host`, the likeliest first. `host` is the one that is asked: for docker.io registry-1.docker.io. */
  find(host: string, repository: string, signal?: AbortSignal): Promise<readonly Credentials[]>;
}

export interface CredentialOptions {
  /** Use this file only. */
  readonly authFile?: string;
  /** In place of $DOCKER_CONFIG and ~/.docker. */
  readonly dockerConfigDir?: string;
  readonly env: NodeJS.ProcessEnv;
  /** A helper that fails must not keep a public image from being pulled; it is reported here, and to who gets no access. */
  readonly onProblem: (problem: string) => void;
}

export interface AuthFile {
  readonly auths: ReadonlyMap<string, Credentials>;
  readonly credHelpers: ReadonlyMap<string, string>;
  readonly credsStore: string | undefined;
}

const MAX_AUTH_FILE = 4 << 20;
/** Credentials tried for one repository, of all sources together. */
const MAX_CANDIDATES = 16;
/** Names under which Docker Hub's credentials are kept; the first is docker's. */
const HUB_SERVERS = ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io"];

/** What `sources` have, then what is in the files; each set of credentials once. */
export function credentialsOf(sources: readonly CredentialSource[], files: CredentialStore): CredentialSource {
  return {
    async find(host, repository, signal) {
      const found = new Map<string, Credentials>();
      for (const source of sources) {
        for (const one of await source.find(host, repository, signal)) found.set(fingerprint(one), one);
      }
      const own = await files.find(host, repository, signal);
      if (own !== undefined) found.set(fingerprint(own), own);
      return [...found.values()].slice(0, MAX_CANDIDATES);
    },
  };
}

/** Tells credentials apart without keeping them. */
export function fingerprint(credentials: Credentials): string {
  return hash("sha256", JSON.stringify(credentials));
}

/** Reads the files anew for each question: `docker login` may have come in between. */
export class CredentialStore {
  readonly #options: CredentialOptions;

  constructor(options: CredentialOptions) {
    this.#options = options;
  }

  /**
   * What is kept for `host`, most specific first ("host/org/repo", "host/org", "host"). Files are asked in order; in a
   * file a credential helper comes before `credsStore`, and that before `auths`, as docker does. FormatError for a
   * broken file.
   */
  async find(host: string, repository: string, signal?: AbortSignal): Promise<Credentials | undefined> {
    for (const path of this.#paths()) {
      if (findFile(path) === undefined) {
        if (path !== this.#options.authFile) continue;
        throw new ShaleError("NOT_FOUND", `Cannot read credentials: ${path} does not exist`);
      }
      const found = await this.#findIn(readAuthFile(path), host, repository, signal);
      if (found !== undefined) return found;
    }
    return undefined;
  }

  #paths(): string[] {
    const { env, authFile, dockerConfigDir } = this.#options;
    if (authFile !== undefined) return [authFile];
    if (env.REGISTRY_AUTH_FILE) return [env.REGISTRY_AUTH_FILE];
    const home = env.HOME ?? "/root";
    const runtime = env.XDG_RUNTIME_DIR ? env.XDG_RUNTIME_DIR : `/run/containers/${process.getuid?.() ?? 0}`;
    return [
      // podman: $XDG_RUNTIME_DIR/containers/auth.json, else /run/containers/UID/auth.json
      env.XDG_RUNTIME_DIR ? join(runtime, "containers/auth.json") : join(runtime, "auth.json"),
      join(env.XDG_CONFIG_HOME || join(home, ".config"), "containers/auth.json"),
      join(dockerConfigDir ?? (env.DOCKER_CONFIG || join(home, ".docker")), "config.json"),
    ];
  }

  async #findIn(
    file: AuthFile,
    host: string,
    repository: string,
    signal: AbortSignal | undefined,
  ): Promise<Credentials | undefined> {
    const servers = serversOf(host);
    const helper = servers.map((server) => file.credHelpers.get(server)).find((one) => one !== undefined);
    for (const name of new Set([helper, file.credsStore])) {
      if (name === undefined || name === "") continue;
      const found = await this.#ask(name, servers[0]!, signal);
      if (found !== undefined) return found;
    }
    return findAuth(file.auths, host, repository);
  }

  async #ask(name: string, server: string, signal: AbortSignal | undefined): Promise<Credentials | undefined> {
    try {
      const found = await findHelperCredentials(name, server, {
        env: this.#options.env,
        ...(signal === undefined ? {} : { signal }),
      });
      if (found === undefined) return undefined;
      if (found.username === "<token>") return { kind: "identity-token", token: found.secret };
      return { kind: "password", username: found.username, password: found.secret };
    } catch (error) {
      if (!ShaleError.is(error) || error.code === "CANCELLED") throw error;
      this.#options.onProblem(error.message);
      return undefined;
    }
  }
}

function serversOf(host: string): readonly string[] {
  return HUB_SERVERS.includes(host) ? HUB_SERVERS : [host];
}

/** Keys are hosts or paths, with or without a scheme; docker wrote "https://host/v1/". The most specific path wins. */
export function findAuth(
  auths: ReadonlyMap<string, Credentials>,
  host: string,
  repository: string,
): Credentials | undefined {
  const servers = serversOf(host);
  for (const server of servers) {
    for (let path = `${server}/${repository}`; ; path = path.slice(0, path.lastIndexOf("/"))) {
      const found = auths.get(path);
      if (found !== undefined) return found;
      if (path.length <= server.length) break;
    }
  }
  for (const [key, credentials] of auths) {
    if (/^https?:\/\//.test(key) && servers.includes(hostOfKey(key))) return credentials;
  }
  return undefined;
}

/** The host that is asked, for a server as docker and Kubernetes name it: "https://index.docker.io/v1/" -> "registry-1.docker.io". */
export function serverHost(server: string): string {
  const host = hostOfKey(server);
  return HUB_SERVERS.includes(host) ? endpointHost("docker.io") : host;
}

/** "https://quay.io/v1/" -> "quay.io". */
function hostOfKey(key: string): string {
  const bare = key.replace(/^https?:\/\//, "");
  const slash = bare.indexOf("/");
  return slash < 0 ? bare : bare.slice(0, slash);
}

function readAuthFile(path: string): AuthFile {
  return parseAuthFile(readFile(path, MAX_AUTH_FILE).toString("utf8"), path);
}

/**
 * The text of a docker config; `name` is for messages. Errors name the file and the place, never a value: JSON.parse's own
 * message quotes the text around its mistake.
 */
export function parseAuthFile(content: string, name: string): AuthFile {
  const fail = (field: string, problem: string) =>
    new FormatError(name, field, problem, { code: "FAILED_PRECONDITION" });
  let root: unknown;
  try {
    root = JSON.parse(content || "{}");
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    throw fail("document", "is not JSON");
  }
  const object = (value: unknown, field: string): Readonly<Record<string, unknown>> => {
    if (value === undefined || value === null) return {};
    if (typeof value !== "object" || Array.isArray(value)) throw fail(field, "must be an object");
    return value as Readonly<Record<string, unknown>>;
  };
  const text = (value: unknown, field: string): string => {
    if (value === undefined || value === null) return "";
    if (typeof value !== "string") throw fail(field, "must be a string");
    return value;
  };

  const document = object(root, "document");
  const auths = new Map<string, Credentials>();
  for (const [server, value] of Object.entries(object(document.auths, "auths"))) {
    const field = `auths[${JSON.stringify(server)}]`;
    const entry = object(value, field);
    const identity = text(entry.identitytoken, `${field}.identitytoken`);
    const registry = text(entry.registrytoken, `${field}.registrytoken`);
    const encoded = text(entry.auth, `${field}.auth`);
    const decoded = Buffer.from(encoded, "base64").toString("utf8");
    const colon = decoded.indexOf(":");
    if (identity !== "") auths.set(server, { kind: "identity-token", token: identity });
    else if (registry !== "") auths.set(server, { kind: "registry-token", token: registry });
    else if (encoded !== "") {
      if (colon < 1) throw fail(`${field}.auth`, 'is not "user:password" in base64');
      const password = decoded.slice(colon + 1).replace(/\0+$/, ""); // old docker padded
      auths.set(server, { kind: "password", username: decoded.slice(0, colon), password });
    } else if (text(entry.username, `${field}.username`) !== "") {
      const password = text(entry.password, `${field}.password`);
      auths.set(server, { kind: "password", username: text(entry.username, `${field}.username`), password });
    }
    // an empty entry is docker's note that the store has it
  }
  const credHelpers = new Map<string, string>();
  for (const [server, name] of Object.entries(object(document.credHelpers, "credHelpers"))) {
    credHelpers.set(server, text(name, `credHelpers[${JSON.stringify(server)}]`));
  }
  return { auths, credHelpers, credsStore: text(document.credsStore, "credsStore") || undefined };
}
