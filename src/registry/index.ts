/**
 * Client of the OCI distribution specification 1.1 (pull and push), for registries, mirrors and caches as they are met.
 *
 * Guarantees: manifests, indexes, configs and small blobs are returned verified against their digest, and are never larger
 * than their limit while they are read. Blobs stream with exactly the bytes asked for, resumed after breaks, and are
 * verified by the reader. Credentials go to the host they belong to, and to nobody a server points at; no message and
 * no event holds a secret. Retries are bounded in number and in time.
 * Never writes a file; reads hosts.toml, certificates and credential files, all named in docs/registry.md.
 * Importing this costs nothing of the network stack: undici is loaded by the first request.
 */
export { DEFAULT_HOSTS_DIRS, RegistryClient, type RegistryOptions, type Resolved } from "./client.ts";
export {
  type AuthFile,
  type Credentials,
  type CredentialSource,
  findAuth,
  parseAuthFile,
  serverHost,
} from "./credentials.ts";
export type { RegistryEvent } from "./events.ts";
export { releaseChunk } from "./http.ts";
export type { PushBlobOptions, PushedBlob } from "./push.ts";
export type { RangeAbility, RangePiece } from "./ranges.ts";
export { DEFAULT_RETRY, type RetryPolicy } from "./retry.ts";
