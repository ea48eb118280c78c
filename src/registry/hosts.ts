/**
 * Which hosts serve a registry: `hosts.toml` and certificate directories as containerd reads them
 * (github.com/containerd/containerd docs/hosts.md, core/remotes/docker/config), and the defaults without them.
 */
import { dirname, isAbsolute, join, posix } from "node:path";
import { parse as parseToml, TomlError } from "smol-toml";
import { FormatError, ShaleError } from "../errors/index.ts";
import { endpointHost, splitHost } from "../oci/index.ts";
import { findFile, list, readFile } from "../sys/index.ts";
import { DEFAULT_TLS, type TlsSettings } from "./http.ts";
import { isLoopback } from "./proxy.ts";

/** One host that serves (some of) a registry's content. */
export interface Endpoint {
  /** "https-or-http": https first, and http where that does not answer as TLS. */
  readonly scheme: "https" | "http" | "https-or-http";
  /** With its port when it is not the scheme's own. */
  readonly host: string;
  /** API root without a slash at the end, "/v2" as a rule. */
  readonly path: string;
  /** May turn a tag into a digest. */
  readonly canResolve: boolean;
  /** May serve content by digest. */
  readonly canPull: boolean;
  /** Takes what is pushed. */
  readonly canPush: boolean;
  /** The registry's name for `?ns=`, where the host is a mirror. */
  readonly namespace?: string;
  readonly tls: TlsSettings;
  readonly headers: Readonly<Record<string, readonly string[]>>;
  readonly connectTimeoutMs?: number;
}

/** A host table of hosts.toml, checked; files are not read yet. */
export interface HostEntry {
  /** Absent for the root table without `server`: the registry's own host. */
  readonly url?: { readonly scheme: "https" | "http"; readonly host: string; readonly path: string };
  readonly capabilities: readonly string[];
  readonly skipVerify?: boolean;
  readonly ca: readonly string[];
  /** Certificate file and key file; they may be one. */
  readonly client: readonly (readonly [string, string])[];
  readonly headers: Readonly<Record<string, readonly string[]>>;
  readonly dialTimeoutMs?: number;
}

const MAX_HOSTS_FILE = 1 << 20;
const MAX_CERTIFICATE_FILE = 4 << 20;
const CAPABILITIES = ["pull", "resolve", "push"] as const;

/**
 * Endpoints of the registry `host` (a reference's host), in the order in which to ask them; the registry itself last.
 * `directories` are searched one after the other, the first that knows the host counts. `insecure` is the user's
 * --tls-verify=false for this registry (not for its mirrors).
 */
export function loadEndpoints(host: string, directories: readonly string[], insecure: boolean): Endpoint[] {
  let entries: readonly HostEntry[] | undefined;
  for (const directory of directories) {
    const found = findHostDirectory(directory, host);
    if (found !== undefined) {
      entries = loadHostDirectory(found);
      break;
    }
  }
  return (entries ?? [DEFAULT_ENTRY]).map((entry) => endpointOf(entry, host, insecure));
}

const DEFAULT_ENTRY: HostEntry = { capabilities: CAPABILITIES, ca: [], client: [], headers: {} };

/** Names under which containerd looks for a host: "host_port_", "host:port", "_default". */
export function hostDirectoryNames(host: string): string[] {
  const colon = host.lastIndexOf(":");
  const names = [host, "_default"];
  // an IPv6 host without a port ends in "]"; its last colon is no port's
  if (colon > 0 && !host.endsWith("]")) names.unshift(`${host.slice(0, colon)}_${host.slice(colon + 1)}_`);
  return names;
}

function findHostDirectory(root: string, host: string): string | undefined {
  for (const name of hostDirectoryNames(host)) {
    const path = join(root, name);
    if (findFile(path) !== undefined) return path;
  }
  return undefined;
}

function loadHostDirectory(directory: string): HostEntry[] {
  const file = join(directory, "hosts.toml");
  if (findFile(file) !== undefined) {
    const text = readFile(file, MAX_HOSTS_FILE).toString("utf8");
    if (text !== "") return parseHostsFile(text, file);
  }
  return [loadCertificateFiles(directory)];
}

/** Docker's layout: *.crt are authorities; NAME.cert with NAME.key beside it is a client certificate. */
function loadCertificateFiles(directory: string): HostEntry {
  const names = list(directory)
    .filter((one) => one.kind !== "directory")
    .map((one) => one.name);
  const client = names
    .filter((name) => name.endsWith(".cert"))
    .map((name) => {
      const key = `${name.slice(0, -".cert".length)}.key`;
      return [join(directory, name), join(directory, names.includes(key) ? key : name)] as const;
    });
  const ca = names.filter((name) => name.endsWith(".crt")).map((name) => join(directory, name));
  return { ...DEFAULT_ENTRY, ca, client };
}

/**
 * Parses hosts.toml: `[host."URL"]` tables in the order of the file, then the root table (`server`). `file` is its path,
 * to which certificate paths are relative. FormatError where containerd would log and go on without the file: a mirror
 * that someone configured must not be left out in silence.
 */
export function parseHostsFile(text: string, file: string): HostEntry[] {
  let root: Readonly<Record<string, unknown>>;
  try {
    root = parseToml(text);
  } catch (error) {
    if (!(error instanceof TomlError)) throw error;
    // its message quotes the file, which may hold secrets in `header`
    throw new FormatError(file, `line ${error.line}`, "is not TOML");
  }
  const reader = new TableReader(file);
  const hosts = reader.table(root.host ?? {}, "host");
  const entries = Object.keys(hosts).map((url) =>
    reader.entry(url, reader.table(hosts[url], `host."${url}"`), `host."${url}".`),
  );
  const server = root.server === undefined ? "" : reader.text(root.server, "server");
  return [...entries, reader.entry(server, root, "")];
}

/** One hosts.toml; errors carry its path and the key, never a value. */
class TableReader {
  readonly #file: string;

  constructor(file: string) {
    this.#file = file;
  }

  entry(server: string, table: Readonly<Record<string, unknown>>, prefix: string): HostEntry {
    const overridePath = this.#boolean(table.override_path, `${prefix}override_path`) ?? false;
    const skipVerify = this.#boolean(table.skip_verify, `${prefix}skip_verify`);
    const dialTimeoutMs =
      table.dial_timeout === undefined ? undefined : this.#duration(table.dial_timeout, `${prefix}dial_timeout`);
    return {
      ...(server === ""
        ? {}
        : { url: this.#url(server, overridePath, prefix === "" ? "server" : prefix.slice(0, -1)) }),
      capabilities: this.#capabilities(table.capabilities, `${prefix}capabilities`),
      ...(skipVerify === undefined ? {} : { skipVerify }),
      ca: this.#textOrList(table.ca, `${prefix}ca`).map((path) => this.#absolute(path)),
      client: this.#client(table.client, `${prefix}client`),
      headers: Object.fromEntries(
        Object.entries(this.table(table.header ?? {}, `${prefix}header`)).map(([name, value]) => [
          name.toLowerCase(),
          this.#textOrList(value, `${prefix}header.${name}`),
        ]),
      ),
      ...(dialTimeoutMs === undefined ? {} : { dialTimeoutMs }),
    };
  }

  table(value: unknown, field: string): Readonly<Record<string, unknown>> {
    if (typeof value !== "object" || value === null || Array.isArray(value)) throw this.#fail(field, "must be a table");
    return value as Readonly<Record<string, unknown>>;
  }

  text(value: unknown, field: string): string {
    if (typeof value !== "string") throw this.#fail(field, "must be a string");
    return value;
  }

  #url(text: string, overridePath: boolean, field: string): NonNullable<HostEntry["url"]> {
    const full = text.startsWith("http") ? text : `https://${text}`;
    const url = URL.parse(full);
    if (url === null || (url.protocol !== "https:" && url.protocol !== "http:") || url.username !== "" || url.search) {
      throw this.#fail(field, "must be an http or https URL without user and query");
    }
    // a bare "https://host" has the path "/" in WHATWG URLs, and none in containerd's
    const path = url.pathname === "/" ? "" : posix.normalize(url.pathname).replace(/\/$/, "");
    return {
      scheme: url.protocol === "https:" ? "https" : "http",
      host: url.host,
      path: path.endsWith("/v2") || overridePath ? path : `${path}/v2`,
    };
  }

  #capabilities(value: unknown, field: string): readonly string[] {
    const given = value === undefined ? [] : this.#list(value, field).map((one) => one.toLowerCase());
    for (const one of given) {
      if (!(CAPABILITIES as readonly string[]).includes(one)) {
        throw this.#fail(field, `may have ${CAPABILITIES.join(", ")}: current value is ${JSON.stringify(one)}`);
      }
    }
    return given.length === 0 ? CAPABILITIES : given;
  }

  /** "file", ["file", ...] or [["certificate", "key"], ...]. */
  #client(value: unknown, field: string): (readonly [string, string])[] {
    if (value === undefined) return [];
    const items: readonly unknown[] = Array.isArray(value) ? value : [value];
    return items.map((item) => {
      if (!Array.isArray(item)) {
        const both = this.#absolute(this.text(item, field));
        return [both, both] as const;
      }
      const pair = this.#list(item, field);
      if (pair.length !== 2) throw this.#fail(field, "must have pairs of a certificate and a key");
      return [this.#absolute(pair[0]!), this.#absolute(pair[1]!)] as const;
    });
  }

  #textOrList(value: unknown, field: string): string[] {
    if (value === undefined) return [];
    return typeof value === "string" ? [value] : this.#list(value, field);
  }

  #list(value: unknown, field: string): string[] {
    if (!Array.isArray(value)) throw this.#fail(field, "must be a list of strings");
    return value.map((one) => this.text(one, field));
  }

  #boolean(value: unknown, field: string): boolean | undefined {
    if (value === undefined || typeof value === "boolean") return value;
    throw this.#fail(field, "must be true or false");
  }

  /** Go's time.ParseDuration, for positive values: "30s", "1m30s", "1.5h". Milliseconds. */
  #duration(value: unknown, field: string): number {
    const text = this.text(value, field);
    const units: Readonly<Record<string, number>> = { ns: 1e-6, us: 1e-3, µs: 1e-3, ms: 1, s: 1e3, m: 6e4, h: 36e5 };
    const parts = [...text.matchAll(/(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)/g)];
    const total = parts.reduce((sum, [, amount, unit]) => sum + Number(amount) * units[unit!]!, 0);
    if (parts.map(([part]) => part).join("") !== text || !(total > 0)) {
      throw this.#fail(field, 'must be a duration such as "30s" or "1m30s"');
    }
    return Math.max(1, Math.round(total));
  }

  #absolute(path: string): string {
    return isAbsolute(path) ? path : join(dirname(this.#file), path);
  }

  #fail(field: string, problem: string): FormatError {
    return new FormatError(this.#file, field, problem);
  }
}

function endpointOf(entry: HostEntry, registry: string, insecure: boolean): Endpoint {
  const own = endpointHost(registry);
  const host = entry.url?.host ?? own;
  // a URL drops the port of its scheme, a reference keeps what was typed
  const isMirror = host !== own && `${host}:${entry.url?.scheme === "http" ? 80 : 443}` !== own;
  const allowInsecure = insecure && !isMirror;
  const explicitTls = entry.skipVerify !== undefined || entry.ca.length > 0 || entry.client.length > 0;
  const { hostname, port } = splitHost(host);
  const loopback = entry.url === undefined && isLoopback(hostname) && port !== 80;

  let scheme: Endpoint["scheme"] = entry.url?.scheme ?? (isLoopback(hostname) && port === 80 ? "http" : "https");
  // containerd: an http host with TLS settings, and a loopback host on a port of its own, may be either
  if (scheme === "http" && explicitTls && port !== undefined && port !== 80) scheme = "https-or-http";
  if (loopback && port !== undefined && port !== 443) scheme = "https-or-http";
  if (allowInsecure && scheme === "https") scheme = "https-or-http";
  return {
    scheme,
    host,
    path: entry.url?.path ?? "/v2",
    canResolve: entry.capabilities.includes("resolve"),
    canPull: entry.capabilities.includes("pull"),
    canPush: entry.capabilities.includes("push"),
    ...(isMirror ? { namespace: registry } : {}),
    tls: explicitTls || loopback || allowInsecure ? tlsOf(entry, loopback || allowInsecure) : DEFAULT_TLS,
    headers: entry.headers,
    ...(entry.dialTimeoutMs === undefined ? {} : { connectTimeoutMs: entry.dialTimeoutMs }),
  };
}

function tlsOf(entry: HostEntry, trustAnyone: boolean): TlsSettings {
  return {
    verify: !trustAnyone && entry.skipVerify !== true,
    ca: entry.ca.map((path) => readPem(path)),
    client: entry.client.map(([cert, key]) => ({ cert: readPem(cert), key: readPem(key) })),
  };
}

function readPem(path: string): string {
  const text = readFile(path, MAX_CERTIFICATE_FILE).toString("latin1");
  if (!text.includes("-----BEGIN ")) {
    throw new ShaleError("FAILED_PRECONDITION", `Cannot use ${path}: it holds no PEM certificate or key`);
  }
  return text;
}
