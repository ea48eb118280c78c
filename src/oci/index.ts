/**
 * OCI image model: digests, references, descriptors, manifests, indexes, image configs, platforms.
 *
 * Specifications: OCI image specification 1.1 (descriptor.md, manifest.md, image-index.md, config.md), Docker image
 * manifest version 2 schema 2, the reference grammar of github.com/distribution/reference, platform rules of
 * github.com/containerd/platforms.
 *
 * Guarantees: decoders return typed, checked values or throw FormatError whose `field` is the JSON path; nothing of a
 * peer's document is trusted beyond its limit (limits.ts). Unknown members are ignored.
 * Never verifies a digest on its own: callers hash the bytes they received, keep these bytes, and decode them after.
 * Pure: no files, network, clock or randomness.
 */
export * from "./config.ts";
export type { Descriptor } from "./descriptor.ts";
export * from "./digest.ts";
export { decodeJson, decodeJsonValue, type JsonNode } from "./json.ts";
export * from "./limits.ts";
export * from "./manifest.ts";
export * from "./media-types.ts";
export * from "./platform.ts";
export * from "./reference.ts";
