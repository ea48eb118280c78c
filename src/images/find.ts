/** From what a user types to an image in the store and the manifest of one platform. */
import { resolve } from "node:path";
import { ShaleError } from "../errors/index.ts";
import {
  findPlatformRank,
  formatFamiliar,
  formatImageSource,
  formatPlatform,
  formatReference,
  parseImageSource,
  parsePlatform,
  parseReference,
  platformOfNode,
} from "../oci/index.ts";
import type { ImageRecord, ManifestRecord, Store } from "../store/index.ts";

/** Shorter beginnings of digests are not taken: they would be guesses. */
const MIN_DIGEST_DIGITS = 7;
const DIGEST_PREFIX = /^(?:(sha256|sha512):)?([0-9a-f]+)$/;

export interface FoundImage {
  readonly image: ImageRecord;
  readonly manifest: ManifestRecord;
}

/**
 * The image that `text` means: its full name, a short name as docker reads it, or (the beginning of, 7 digits or more) the
 * digest of its target, manifest or config. NOT_FOUND with what comes close; FAILED_PRECONDITION when a digest fits several.
 */
export function getImage(store: Store, text: string): ImageRecord {
  const exact = store.findImage(text) ?? store.findImage(normalizeName(text));
  if (exact !== undefined) return exact;
  const digest = DIGEST_PREFIX.exec(text);
  if (digest !== null && digest[2]!.length >= MIN_DIGEST_DIGITS) {
    const found = store.findImagesByDigest(`${digest[1] ?? "sha256"}:${digest[2]}`);
    if (found.length === 1) return found[0]!;
    if (found.length > 1) {
      throw new ShaleError("FAILED_PRECONDITION", `Cannot choose an image: ${text} fits ${found.length}`, {
        hint: `Name one of ${found.map((image) => displayName(image.name)).join(", ")}`,
      });
    }
  }
  const near = store
    .listImages()
    .filter((image) => image.name.includes(text.replace(/:.*$/, "")))
    .map((image) => displayName(image.name));
  throw new ShaleError("NOT_FOUND", `Cannot find image ${text}: the store has none of this name`, {
    hint:
      near.length > 0
        ? `It has ${near.slice(0, 5).join(", ")}`
        : `Run shale pull ${text} first, or shale images to see what is there`,
  });
}

/** The manifest for a platform, this machine's unless given; the only one whatever its platform. */
export function getManifest(store: Store, image: ImageRecord, platform?: string): ManifestRecord {
  const manifests = store.manifestsOf(image.name);
  const host = platformOfNode(process.arch);
  if (manifests.length === 1 && platform === undefined) return manifests[0]!;
  const wanted = platform === undefined ? host : parsePlatform(platform, host);
  let best: { readonly rank: number; readonly manifest: ManifestRecord } | undefined;
  for (const manifest of manifests) {
    const rank = findPlatformRank(wanted, parsePlatform(manifest.platform, host));
    if (rank !== undefined && (best === undefined || rank < best.rank)) best = { rank, manifest };
  }
  if (best !== undefined) return best.manifest;
  throw new ShaleError(
    "NOT_FOUND",
    `Cannot choose ${formatPlatform(wanted)} of ${displayName(image.name)}: the store has ${manifests.map((m) => m.platform).join(", ") || "no platform of it"}`,
    { hint: `Run shale pull --platform ${formatPlatform(wanted)} ${displayName(image.name)}` },
  );
}

export function findImage(store: Store, text: string, platform?: string): FoundImage {
  const image = getImage(store, text);
  return { image, manifest: getManifest(store, image, platform) };
}

/** Names as the store keeps them. What is no reference stays as it is, and is then not found. */
export function normalizeName(text: string): string {
  try {
    const source = parseImageSource(text);
    if (source.kind === "registry") return formatReference(source.reference);
    return formatImageSource(
      source.kind === "oci-layout" ? { ...source, directory: resolve(source.directory) } : source,
    );
  } catch (error) {
    if (ShaleError.is(error, "INVALID_ARGUMENT")) return text;
    throw error;
  }
}

/** As people write it: without "docker.io/library/". */
export function displayName(name: string): string {
  try {
    return formatFamiliar(parseReference(name));
  } catch (error) {
    if (ShaleError.is(error, "INVALID_ARGUMENT")) return name;
    throw error;
  }
}
