/**
 * A read-only OCI registry: content of a provider over HTTP, for `shale serve`, the demo, and tests.
 * OCI distribution specification v1.1, categories "Pull" and "Content Discovery" (without referrers).
 *
 * Guarantees
 * - Answers HEAD and GET of `/v2/`, manifests, blobs, tags and `_catalog`, with ranges (also several), conditional
 *   requests and pagination; every other method gets 405, every error the JSON body of the specification.
 * - A provider is only asked for names, tags and digests that are valid by the grammar: no path of a client reaches it.
 * - Memory is bounded by connections, not by content: a slow reader slows its own answer down, nothing is buffered.
 * - An answer that can't be completed ends with a broken connection, never as a complete but wrong body.
 * - The text of a provider's error goes to `log`, not to the client.
 *
 * Never: TLS, authentication, writing. It is for loopback or a trusted network; anyone who reaches the port may read.
 *
 * Limits: request target 2,048 bytes, header section 16 KiB and 100 fields, headers within 10 s, no byte moved for 60 s,
 * 64 ranges a request, 1,000 names a page, 1,024 connections.
 */
export { layoutProvider } from "./layout-provider.ts";
export type { ContentProvider, ServedBlob, ServedManifest } from "./provider.ts";
export { type AccessRecord, type Registry, type RegistryOptions, startRegistry } from "./server.ts";
