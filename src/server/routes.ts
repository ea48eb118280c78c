/**
 * Paths of the OCI distribution specification v1.1, "Endpoints", as far as they only read. Pure.
 *
 * A path is matched as it was sent: nothing is decoded or normalised, except `%3A` for the colon of a digest, which
 * some clients encode. Names, tags and digests have to be of the grammar of the specification; none of them can hold
 * `..`, a slash at either end, or a byte that means something to a file system.
 */
import { FormatError } from "../errors/index.ts";
import { type Digest, isDigest, parseReference, type Reference } from "../oci/index.ts";
import { RegistryError } from "./errors.ts";

export type Route =
  | { readonly kind: "version" }
  | { readonly kind: "catalog"; readonly query: URLSearchParams }
  | { readonly kind: "tags"; readonly repository: string; readonly query: URLSearchParams }
  | { readonly kind: "manifest"; readonly repository: string; readonly reference: string }
  | { readonly kind: "blob"; readonly repository: string; readonly digest: Digest };

/** Longer request targets are refused with 414. A name of 255 and a digest of 135 characters fit several times. */
export const MAX_TARGET_LENGTH = 2048;

/** Throws RegistryError for a path that is not an endpoint of this server. */
export function parseRoute(target: string): Route {
  if (target.length > MAX_TARGET_LENGTH) {
    throw new RegistryError("UNSUPPORTED", `the path is longer than ${MAX_TARGET_LENGTH} bytes`, { status: 414 });
  }
  const question = target.indexOf("?");
  const path = question < 0 ? target : target.slice(0, question);
  const query = new URLSearchParams(question < 0 ? "" : target.slice(question + 1));
  if (path === "/v2/" || path === "/v2") return { kind: "version" };
  if (path === "/v2/_catalog") return { kind: "catalog", query };
  const match = /^\/v2\/(.+)\/(manifests|blobs|tags)\/([^/]+)$/.exec(path);
  if (match === null) throw new RegistryError("UNSUPPORTED", "no such endpoint", { status: 404 });
  const repository = match[1]!;
  const last = match[3]!.replace(/%3a/i, ":");
  switch (match[2]) {
    case "tags":
      checkName(repository, "");
      if (last !== "list") throw new RegistryError("UNSUPPORTED", "no such endpoint", { status: 404 });
      return { kind: "tags", repository, query };
    case "blobs":
      checkName(repository, "");
      if (!isDigest(last)) throw new RegistryError("DIGEST_INVALID", "not a digest of sha256 or sha512");
      return { kind: "blob", repository, digest: last };
    default:
      checkName(repository, isDigest(last) ? `@${last}` : `:${last}`);
      return { kind: "manifest", repository, reference: last };
  }
}

/** Checks a name, with ":tag" or "@digest", by the grammar of references, which knows no other parts after a host. */
function checkName(repository: string, suffix: string): void {
  let parsed: Reference;
  try {
    parsed = parseReference(`registry.invalid/${repository}${suffix}`);
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    // A tag that can't be is a manifest that is not there: clients probe with such names.
    if (error.field === "tag") throw new RegistryError("MANIFEST_UNKNOWN", "not a tag or digest");
    throw new RegistryError("NAME_INVALID", "not a repository name");
  }
  // ":" or "@" in the path would have moved the border between name, tag and digest.
  if (parsed.repository !== repository) throw new RegistryError("NAME_INVALID", "not a repository name");
}

/** At most this many names in one answer, also when the client asks for more or does not say. */
export const MAX_PAGE = 1000;

export interface Page {
  readonly names: readonly string[];
  /** Value of the Link header when there is more. */
  readonly link: string | undefined;
}

/** One page of `all` in byte order, after `last`, of `n` names ("Content Discovery" of the specification). */
export function paginate(all: Iterable<string>, query: URLSearchParams, path: string): Page {
  const given = query.get("n");
  if (given !== null && !/^[0-9]{1,9}$/.test(given)) {
    throw new RegistryError("PAGINATION_NUMBER_INVALID", "n must be a whole number of at most 9 digits");
  }
  const limit = given === null ? MAX_PAGE : Math.min(Number(given), MAX_PAGE);
  const last = query.get("last") ?? "";
  const after = [...all].filter((name) => name > last).sort();
  const names = after.slice(0, limit);
  if (limit === 0 || names.length === after.length) return { names, link: undefined };
  const next = new URLSearchParams({ n: String(limit), last: names.at(-1)! });
  return { names, link: `<${path}?${next}>; rel="next"` };
}
