/**
 * Manifests for layers that leave the store in another form than they came in.
 *
 * The config's bytes stay, and with them the image id and the diffIDs, except where a layer's tar changed (eStargz): then the
 * new diffIDs take the place of the old ones, and nothing else of the config changes. Annotations of manifest and index stay. Those of
 * layers go: they describe the blob that is replaced (the TOC of an eStargz or zstd:chunked layer, say). A manifest or
 * index whose every reference stays valid is kept byte for byte, with its digest and signatures.
 * Deterministic: the same image in the same encoding gives the same bytes.
 */
import {
  type Descriptor,
  type DiffId,
  decodeImageConfig,
  decodeManifest,
  digestOf,
  encodePlatform,
  MediaType,
  type Platform,
} from "../oci/index.ts";
import type { Document, ImageRecord, ManifestRecord, Store } from "../store/index.ts";
import type { EncodedLayer } from "./layer-encoder.ts";

/** One platform of an image in the form in which it leaves. */
export interface ExportedManifest {
  readonly record: ManifestRecord;
  readonly manifest: Document;
  readonly config: Document;
  readonly platform: Platform;
  /** Lowest first. */
  readonly layers: readonly EncodedLayer[];
}

type Annotations = Readonly<Record<string, string>>;

/** An OCI image manifest. */
export function encodeManifest(
  config: Document,
  layers: readonly Omit<EncodedLayer, "diffId">[],
  annotations: Annotations = {},
): Document {
  const manifest = {
    schemaVersion: 2,
    mediaType: MediaType.OCI_MANIFEST,
    // Docker's config is the same JSON; in an OCI manifest its OCI name is what readers take for an image.
    config: { mediaType: MediaType.OCI_CONFIG, digest: config.digest, size: config.bytes.length },
    layers: layers.map(({ digest, size, mediaType, annotations: own = {} }) => {
      return { mediaType, digest, size, ...optional(own) };
    }),
    ...optional(annotations),
  };
  return documentOf(MediaType.OCI_MANIFEST, manifest);
}

/** The manifest of `record` over `layers`, which are its layers in another form. */
export function exportManifest(
  store: Store,
  record: ManifestRecord,
  layers: readonly EncodedLayer[],
): ExportedManifest {
  const original = store.getDocument(record.digest);
  const config = withDiffIds(
    store.getDocument(record.config),
    layers.map(({ diffId }) => diffId),
  );
  const { platform } = store.getConfig(record);
  const unchanged = layers.every((layer, position) => layer.digest === record.layers[position]!.digest);
  if (unchanged) return { record, manifest: original, config, platform, layers };
  const { annotations } = decodeManifest(original.bytes, original.mediaType);
  return { record, manifest: encodeManifest(config, layers, annotations), config, platform, layers };
}

/** The config with these diffIDs: the same document when they are its own. */
function withDiffIds(config: Document, diffIds: readonly DiffId[]): Document {
  const { diffIds: own } = decodeImageConfig(config.bytes);
  if (own.length === diffIds.length && own.every((diffId, position) => diffId === diffIds[position])) return config;
  const value: { rootfs: { diff_ids: readonly DiffId[] } } = JSON.parse(Buffer.from(config.bytes).toString("utf8"));
  value.rootfs.diff_ids = diffIds;
  return documentOf(config.mediaType, value);
}

/** The index that leads to `manifests`: some or all of those of `image`, whose target is an index. */
export function exportIndex(store: Store, image: ImageRecord, manifests: readonly ExportedManifest[]): Document {
  const original = store.getDocument(image.digest);
  const decoded = decodeManifest(original.bytes, original.mediaType);
  const entries: readonly Descriptor[] = decoded.kind === "index" ? decoded.manifests : [];
  const position = (one: ExportedManifest) => entries.findIndex((entry) => entry.digest === one.record.digest);
  const unchanged = (entry: Descriptor) => manifests.some((one) => one.manifest.digest === entry.digest);
  if (entries.length > 0 && entries.every(unchanged)) return original;
  const sorted = manifests
    .map((one) => ({ one, at: position(one) }))
    // those of nested indexes come last, in the order of the store
    .sort((a, b) => (a.at < 0 ? entries.length : a.at) - (b.at < 0 ? entries.length : b.at));
  const index = {
    schemaVersion: 2,
    mediaType: MediaType.OCI_INDEX,
    manifests: sorted.map(({ one, at }) => ({
      mediaType: one.manifest.mediaType,
      digest: one.manifest.digest,
      size: one.manifest.bytes.length,
      platform: encodePlatform(entries[at]?.platform ?? one.platform),
      ...optional(entries[at]?.annotations ?? {}),
    })),
    ...optional(decoded.annotations),
  };
  return documentOf(MediaType.OCI_INDEX, index);
}

function documentOf(mediaType: string, value: unknown): Document {
  const bytes = Buffer.from(JSON.stringify(value));
  return { digest: digestOf(bytes), mediaType, bytes };
}

function optional(annotations: Annotations): { readonly annotations?: Annotations } {
  return Object.keys(annotations).length === 0 ? {} : { annotations };
}
