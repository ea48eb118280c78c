import { ShaleError, shownValue } from "../errors/index.ts";
import { type Descriptor, readDescriptor, readMediaType } from "./descriptor.ts";
import { decodeJson, type JsonNode } from "./json.ts";
import { MAX_INDEX_ENTRIES, MAX_LAYERS, MAX_MANIFEST_SIZE } from "./limits.ts";
import {
  essenceOf,
  findLayerType,
  isConfigMediaType,
  isIndexMediaType,
  isManifestMediaType,
  isSchema1MediaType,
  type LayerType,
  MediaType,
} from "./media-types.ts";
import { findPlatformRank, formatPlatform, type Platform } from "./platform.ts";

/** A layer's descriptor with what its media type declares. */
export type LayerDescriptor = Descriptor & { readonly layer: LayerType };

/** One image: OCI manifest.md, or Docker image manifest version 2 schema 2. */
export interface Manifest {
  readonly kind: "manifest";
  readonly mediaType: string;
  readonly config: Descriptor;
  /** Lowest first. */
  readonly layers: readonly LayerDescriptor[];
  readonly annotations: Readonly<Record<string, string>>;
}

/** Several images: OCI image-index.md, or Docker manifest list. */
export interface Index {
  readonly kind: "index";
  readonly mediaType: string;
  readonly manifests: readonly Descriptor[];
  readonly annotations: Readonly<Record<string, string>>;
}

const SCHEMA1_HINT = "Push the image again with a current docker, podman or skopeo";

/**
 * Decodes a manifest or index. `mediaType` is what the descriptor or the Content-Type said; without it, or when it is
 * a general one (application/json), the document's own `mediaType` or its members decide.
 *
 * FormatError with the JSON path as field for: a document that is both (members of the other kind, or a mediaType that
 * contradicts: CVE-2021-41190), Docker schema 1 and artifacts (UNIMPLEMENTED), anything over a limit
 * (RESOURCE_EXHAUSTED), anything malformed. The caller has verified the bytes' digest before.
 */
export function decodeManifest(bytes: Uint8Array, mediaType?: string): Manifest | Index {
  const root = decodeJson(bytes, "manifest", MAX_MANIFEST_SIZE);
  const type = typeOf(root, mediaType);
  const annotations = () => root.get("annotations").stringMap();
  if (isIndexMediaType(type)) {
    for (const key of ["config", "layers"]) {
      if (!root.get(key).isAbsent) throw root.get(key).fail("does not belong in an index");
    }
    const manifests = root.get("manifests");
    if (manifests.isAbsent) throw manifests.fail("is missing");
    return {
      kind: "index",
      mediaType: type,
      manifests: manifests.list(MAX_INDEX_ENTRIES).map(readDescriptor),
      annotations: annotations(),
    };
  }
  if (!root.get("manifests").isAbsent) throw root.get("manifests").fail("does not belong in an image manifest");
  const config = readConfigDescriptor(root);
  return {
    kind: "manifest",
    mediaType: type,
    config,
    layers: root.get("layers").list(MAX_LAYERS).map(readLayer),
    annotations: annotations(),
  };
}

/** The media type of a document, checked against what was promised. */
function typeOf(root: JsonNode, promised: string | undefined): string {
  const versionNode = root.get("schemaVersion");
  const ownNode = root.get("mediaType");
  const own = ownNode.isAbsent ? undefined : readMediaType(ownNode);
  const given = promised === undefined ? undefined : essenceOf(promised);
  if (versionNode.value === 1 || [own, given].some((type) => type !== undefined && isSchema1MediaType(type))) {
    throw versionNode.fail("is Docker schema 1, which was retired in 2017 and is not supported", {
      code: "UNIMPLEMENTED",
      hint: SCHEMA1_HINT,
    });
  }
  if (versionNode.value !== 2) {
    throw versionNode.fail(
      versionNode.isAbsent ? "is missing" : `must be 2: current value is ${shownValue(versionNode.value)}`,
    );
  }
  if (own !== undefined && !isKnown(own)) {
    throw ownNode.fail(`${own} is neither an image manifest nor an index`, { code: "UNIMPLEMENTED" });
  }
  if (own !== undefined && given !== undefined && isKnown(given) && own !== given) {
    throw ownNode.fail(`${own} contradicts ${given}, by which the document was found`);
  }
  if (own !== undefined) return own;
  if (given !== undefined && isKnown(given)) return given;
  if (!root.get("manifests").isAbsent) return MediaType.OCI_INDEX;
  if (!root.get("config").isAbsent) return MediaType.OCI_MANIFEST;
  throw ownNode.fail("is missing, and the document looks like neither a manifest nor an index");
}

function isKnown(mediaType: string): boolean {
  return isManifestMediaType(mediaType) || isIndexMediaType(mediaType);
}

function readConfigDescriptor(root: JsonNode): Descriptor {
  const node = root.get("config");
  const config = readDescriptor(node);
  if (!isConfigMediaType(config.mediaType)) {
    const artifact = root.get("artifactType").optionalString() ?? config.mediaType;
    throw node.get("mediaType").fail(`this is an artifact (${printable(artifact)}), not a container image`, {
      code: "UNIMPLEMENTED",
      hint: "shale keeps container images; fetch artifacts with oras or skopeo",
    });
  }
  return config;
}

function readLayer(node: JsonNode): LayerDescriptor {
  const descriptor = readDescriptor(node);
  const layer = findLayerType(descriptor.mediaType);
  if (layer === undefined) {
    const encrypted = descriptor.mediaType.endsWith("+encrypted");
    throw node
      .get("mediaType")
      .fail(
        `${descriptor.mediaType} is ${encrypted ? "an encrypted layer" : "not a tar layer"}, which is not supported`,
        {
          code: "UNIMPLEMENTED",
        },
      );
  }
  return { ...descriptor, layer };
}

/**
 * Entries of an index that are (or may hold) images: attestations (platform unknown/unknown, as BuildKit writes them)
 * and artifacts are left out. An entry without a platform stays: its config tells.
 */
export function listImages(index: Index): Descriptor[] {
  return index.manifests.filter((one) => {
    if (!isKnown(one.mediaType)) return false;
    if (one.annotations["vnd.docker.reference.type"] === "attestation-manifest") return false;
    return one.platform?.os !== "unknown" && one.platform?.architecture !== "unknown";
  });
}

/**
 * The entry of `index` that suits `platform` best; the first of equals, as containerd. An entry without a platform is
 * taken only when no other suits (the caller then compares the config's platform). The result may be an index again:
 * the caller decodes it and chooses once more. NOT_FOUND, listing what is there, when nothing suits.
 */
export function choosePlatform(index: Index, platform: Platform): Descriptor {
  const images = listImages(index);
  let best: { readonly rank: number; readonly descriptor: Descriptor } | undefined;
  for (const descriptor of images) {
    const rank = rankOf(descriptor, platform);
    if (rank !== undefined && (best === undefined || rank < best.rank)) best = { rank, descriptor };
  }
  if (best !== undefined) return best.descriptor;
  const there = [...new Set(images.map((one) => (one.platform ? printable(formatPlatform(one.platform)) : "unknown")))];
  const list = there.slice(0, 40).join(", ") + (there.length > 40 ? `, ${there.length - 40} more` : "");
  throw new ShaleError(
    "NOT_FOUND",
    `Cannot choose an image for ${formatPlatform(platform)}: the index has ${list === "" ? "no images" : list}`,
    list === "" ? {} : { hint: "Name one of these with --platform" },
  );
}

function rankOf(descriptor: Descriptor, platform: Platform): number | undefined {
  // no platform, or one left empty, says nothing
  if (!descriptor.platform?.os || !descriptor.platform.architecture) return Number.MAX_SAFE_INTEGER;
  return findPlatformRank(platform, descriptor.platform);
}

/** A peer's text for a message: short, and nothing that a terminal would act on. */
function printable(text: string): string {
  return text.slice(0, 100).replace(/[^\x20-\x7e]/g, "?");
}
