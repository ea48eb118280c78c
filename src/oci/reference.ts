/**
 * Image references: the grammar of github.com/distribution/reference with its Docker Hub short names, and the transports
 * of containers/image that name images outside a registry.
 */
import { FormatError } from "../errors/index.ts";
import { type Digest, parseDigest } from "./digest.ts";
import { MAX_REFERENCE_LENGTH } from "./limits.ts";

/** An image in a registry. `tag` is "latest" when neither a tag nor a digest was given; with a digest, the digest rules. */
export interface Reference {
  /** Lower case, with its port when one was given; "docker.io" for Docker Hub. */
  readonly host: string;
  readonly repository: string;
  readonly tag?: string;
  readonly digest?: Digest;
}

/** Where an image comes from. */
export type ImageSource =
  | { readonly kind: "registry"; readonly reference: Reference }
  /** `oci:DIR[:NAME]`; NAME is the annotation org.opencontainers.image.ref.name. */
  | { readonly kind: "oci-layout"; readonly directory: string; readonly name?: string }
  /** `docker-archive:FILE[:REF]`. */
  | { readonly kind: "docker-archive"; readonly file: string; readonly reference?: Reference };

const DEFAULT_HOST = "docker.io";
/** Docker Hub's old name; both mean the same registry. */
const LEGACY_HOST = "index.docker.io";
/** The host that serves docker.io. */
const DEFAULT_ENDPOINT = "registry-1.docker.io";
const OFFICIAL_PREFIX = "library/";
const DEFAULT_TAG = "latest";

/** distribution/reference: RepositoryNameTotalLengthMax. */
const MAX_REPOSITORY_LENGTH = 255;
/** RFC 1035 section 2.3.4, in presentation form. */
const MAX_HOST_LENGTH = 253;

const HOST_COMPONENT = "[a-z0-9](?:[a-z0-9-]*[a-z0-9])?";
const HOST = new RegExp(`^(?:(${HOST_COMPONENT}(?:\\.${HOST_COMPONENT})*)|\\[([a-f0-9:]+)\\])(?::([0-9]{1,5}))?$`);
const PATH_COMPONENT = /^[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*$/;
const TAG = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$/;
const BARE_IDENTIFIER = /^[a-f0-9]{64}$/;

/** FormatError INVALID_ARGUMENT, saying what is wrong with which part. */
export function parseReference(text: string): Reference {
  if (text.length > MAX_REFERENCE_LENGTH) throw fail(text, "length", `is over ${MAX_REFERENCE_LENGTH} characters`);
  if (text === "") throw fail(text, "name", "is empty");
  if (BARE_IDENTIFIER.test(text)) {
    throw fail(text, "name", 'is a bare digest; write "repository@sha256:..." to name an image by digest');
  }
  const at = text.indexOf("@");
  const digest = at < 0 ? undefined : parseDigest(text.slice(at + 1), formatName(text), "digest");
  const beforeDigest = at < 0 ? text : text.slice(0, at);

  const slash = beforeDigest.indexOf("/");
  const first = slash < 0 ? "" : beforeDigest.slice(0, slash);
  // A first component is a host when it looks like one. Docker also takes an upper-case letter for a sign of a host
  // ("Bitnami/nginx"); hosts are lower-cased here, so that would be the only name that does not parse back.
  const hasHost = slash >= 0 && (first === "localhost" || /[.:]/.test(first));
  const host = hasHost ? canonicalHost(text, first) : DEFAULT_HOST;

  const rest = hasHost ? beforeDigest.slice(slash + 1) : beforeDigest;
  const colon = rest.indexOf(":");
  const path = colon < 0 ? rest : rest.slice(0, colon);
  const tag = colon < 0 ? undefined : rest.slice(colon + 1);
  const repository = host === DEFAULT_HOST && !path.includes("/") ? OFFICIAL_PREFIX + path : path;
  checkRepository(text, path, repository);
  if (tag !== undefined && !TAG.test(tag)) {
    throw fail(text, "tag", "must be 1 to 128 letters, digits, '_', '.' or '-', and not begin with '.' or '-'");
  }
  if (digest !== undefined) return { host, repository, ...(tag === undefined ? {} : { tag }), digest };
  return { host, repository, tag: tag ?? DEFAULT_TAG };
}

/** The full form: "docker.io/library/alpine:latest". */
export function formatReference(reference: Reference): string {
  const tag = reference.tag === undefined ? "" : `:${reference.tag}`;
  const digest = reference.digest === undefined ? "" : `@${reference.digest}`;
  return `${reference.host}/${reference.repository}${tag}${digest}`;
}

/** As users type it: "alpine:latest" for docker.io/library/alpine:latest. Parsing the result gives the same reference. */
export function formatFamiliar(reference: Reference): string {
  const full = formatReference(reference);
  if (reference.host !== DEFAULT_HOST) return full;
  const short = full.slice(DEFAULT_HOST.length + 1);
  if (reference.repository.startsWith(OFFICIAL_PREFIX)) {
    return reference.repository.indexOf("/", OFFICIAL_PREFIX.length) < 0 ? short.slice(OFFICIAL_PREFIX.length) : short;
  }
  // a first component that looks like a host can only be written in full
  const first = reference.repository.slice(0, reference.repository.indexOf("/"));
  return first === "localhost" || first.includes(".") ? full : short;
}

/** The host to connect to: registry-1.docker.io for docker.io, else the reference's own. */
export function endpointHost(host: string): string {
  return host === DEFAULT_HOST ? DEFAULT_ENDPOINT : host;
}

/** "host" and "port" of a reference's host; IPv6 without brackets. */
export function splitHost(host: string): { readonly hostname: string; readonly port?: number } {
  const match = HOST.exec(host.toLowerCase());
  if (!match) throw fail(host, "host", "is not a host name with an optional port");
  const hostname = match[1] ?? match[2]!;
  return match[3] === undefined ? { hostname } : { hostname, port: Number(match[3]) };
}

/** Transports of containers/image that we don't read; naming them beats "invalid tag". */
const FOREIGN_TRANSPORTS = ["oci-archive", "containers-storage", "docker-daemon", "dir", "ostree", "sif", "tarball"];

/** Parses what the user names: a registry reference (optionally "docker://..."), `oci:DIR[:NAME]`, `docker-archive:FILE[:REF]`. */
export function parseImageSource(text: string): ImageSource {
  const colon = text.indexOf(":");
  const transport = colon < 0 ? "" : text.slice(0, colon);
  const rest = text.slice(colon + 1);
  switch (transport) {
    case "docker":
      if (rest.startsWith("//")) return { kind: "registry", reference: parseReference(rest.slice(2)) };
      break;
    case "oci": {
      const [directory, name] = splitPath(text, rest);
      return { kind: "oci-layout", directory, ...(name === undefined ? {} : { name }) };
    }
    case "docker-archive": {
      const [file, reference] = splitPath(text, rest);
      return {
        kind: "docker-archive",
        file,
        ...(reference === undefined ? {} : { reference: parseReference(reference) }),
      };
    }
    default:
      if (FOREIGN_TRANSPORTS.includes(transport)) {
        throw fail(text, "transport", `${transport}: is not supported; oci:DIR and docker-archive:FILE are`);
      }
  }
  return { kind: "registry", reference: parseReference(text) };
}

export function formatImageSource(source: ImageSource): string {
  switch (source.kind) {
    case "registry":
      return formatReference(source.reference);
    case "oci-layout":
      return `oci:${source.directory}${source.name === undefined ? "" : `:${source.name}`}`;
    case "docker-archive":
      return `docker-archive:${source.file}${source.reference ? `:${formatReference(source.reference)}` : ""}`;
  }
}

/** PATH[:NAME], cut at the first colon as containers/image does: a path with a colon can't be named. */
function splitPath(text: string, rest: string): readonly [string, string | undefined] {
  const colon = rest.indexOf(":");
  const path = colon < 0 ? rest : rest.slice(0, colon);
  const name = colon < 0 ? undefined : rest.slice(colon + 1);
  if (path === "" || path.includes("\0")) throw fail(text, "path", path === "" ? "is empty" : "has a NUL byte");
  if (name === "") throw fail(text, "name", "is empty after the colon");
  return [path, name];
}

function canonicalHost(text: string, typed: string): string {
  const host = typed.toLowerCase(); // DNS names have no case; equal references must be equal text
  const match = HOST.exec(host);
  if (!match || host.length > MAX_HOST_LENGTH) {
    throw fail(text, "host", 'must be a host name, an IPv4 address or "[IPv6 address]", with an optional ":port"');
  }
  const [, , ipv6, port] = match;
  if (ipv6 !== undefined && !isIpv6(ipv6)) throw fail(text, "host", `${ipv6} is not an IPv6 address`);
  if (port !== undefined && (Number(port) < 1 || Number(port) > 65535)) {
    throw fail(text, "host", `the port must be 1..65535: current value is ${port}`);
  }
  return host === LEGACY_HOST ? DEFAULT_HOST : host;
}

/** RFC 4291 section 2.2 forms 1 and 2: eight groups, or fewer with one "::". */
function isIpv6(text: string): boolean {
  const halves = text.split("::");
  if (halves.length > 2) return false;
  const groups = halves.flatMap((half) => (half === "" ? [] : half.split(":")));
  if (!groups.every((group) => /^[a-f0-9]{1,4}$/.test(group))) return false;
  return halves.length === 2 ? groups.length <= 7 : groups.length === 8;
}

function checkRepository(text: string, typed: string, repository: string): void {
  if (typed === "") throw fail(text, "name", "is empty");
  if (typed !== typed.toLowerCase()) throw fail(text, "name", "must be lower case");
  if (repository.length > MAX_REPOSITORY_LENGTH) {
    throw fail(text, "name", `is over ${MAX_REPOSITORY_LENGTH} characters`);
  }
  if (!typed.split("/").every((component) => PATH_COMPONENT.test(component))) {
    throw fail(text, "name", "must be lower-case letters and digits, joined by '/', '.', '_', '__' or '-'");
  }
}

function formatName(text: string): string {
  return `image reference ${JSON.stringify(text.length > 120 ? `${text.slice(0, 120)}...` : text)}`;
}

function fail(text: string, field: string, problem: string): FormatError {
  return new FormatError(formatName(text), field, problem);
}
