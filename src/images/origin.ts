/**
 * Where an image comes from. Three kinds (registry, OCI layout, docker archive), one interface: pull does not know which.
 */
import { resolve } from "node:path";
import { type DockerArchiveImage, type OciLayout, openDockerArchive, openOciLayout } from "../archives/index.ts";
import { ShaleError } from "../errors/index.ts";
import {
  checkLayerCount,
  type Descriptor,
  type DiffId,
  type Digest,
  decodeImageConfig,
  decodeManifest,
  formatReference,
  type ImageConfig,
  type ImageSource,
  MAX_CONFIG_SIZE,
  type Manifest,
  MediaType,
  parseReference,
  type Reference,
  verifyDigest,
} from "../oci/index.ts";
import type { RegistryClient } from "../registry/index.ts";
import type { Document, FeedSource } from "../store/index.ts";
import { LinkMeter } from "./partial/requests.ts";
import type { PartsSource } from "./partial/parts-fetcher.ts";
import { encodeManifest } from "./rewrite.ts";

/** One layer as the origin offers it. */
export interface OriginLayer {
  readonly diffId: DiffId;
  /** Of the bytes as they come; undefined where only the tar's own digest is known. */
  readonly digest: Digest | undefined;
  readonly mediaType: string;
  readonly size: number;
  /** Where the bytes lie, if they are on this machine. */
  readonly file?: FeedSource;
  /** Else: the bytes from `offset` to `end` (its size), over the network, unverified. */
  open?(offset: number, signal: AbortSignal, end?: number): AsyncIterable<Uint8Array>;
  /** For a layer of a registry: how to read parts of it. */
  readonly parts?: PartsSource;
  /** Gives the memory of one piece back at once, where waiting for the garbage collector would cost. */
  release?(bytes: Uint8Array): void;
}

/** One platform of an image; its documents are verified. */
export interface OriginManifest {
  /** Undefined where the origin has none (docker archive): it is made once the layers are known. */
  readonly manifest: Document | undefined;
  readonly config: Document;
  readonly image: ImageConfig;
  readonly layers: readonly OriginLayer[];
}

export interface Origin {
  /** Name that the image gets in the store, unless the user gives another. */
  readonly name: string;
  /** For `check --repair`: how to come back to its layers. */
  readonly location: string;
  /** What the name leads to; undefined for a docker archive. */
  resolve(signal: AbortSignal | undefined): Promise<Document | undefined>;
  /** A further manifest or index that an index names. */
  manifest(descriptor: Descriptor, signal: AbortSignal | undefined): Promise<Document>;
  /** Config and layers of a manifest (the document that `resolve` or `manifest` gave). */
  open(manifest: Document | undefined, signal: AbortSignal | undefined): Promise<OriginManifest>;
}

export interface OriginOptions {
  /** Made when first needed: it costs 140 ms to load. */
  readonly registry: () => Promise<RegistryClient>;
  /** Where a compressed docker archive may be decompressed to; removed by the caller. */
  readonly spoolDirectory?: string;
  readonly signal?: AbortSignal;
}

export async function openOrigin(source: ImageSource, options: OriginOptions): Promise<Origin> {
  switch (source.kind) {
    case "registry":
      return registryOrigin(source.reference, await options.registry());
    case "oci-layout": {
      const layout = openOciLayout(source.directory);
      const location = `oci:${layout.directory}`;
      const name = source.name === undefined ? location : `${location}:${source.name}`;
      return layoutOrigin(layout, location, name, () => layout.get(source.name));
    }
    case "docker-archive":
      return archiveOrigin(source.file, source.reference, options);
  }
}

/** Where a layer of a registry image comes back from. */
export function registryLocation(reference: Reference): string {
  return `docker://${reference.host}/${reference.repository}`;
}

function registryOrigin(reference: Reference, client: RegistryClient): Origin {
  const withSignal = (signal: AbortSignal | undefined) => (signal ? { signal } : {});
  const meter = new LinkMeter();
  return {
    name: formatReference(reference),
    location: registryLocation(reference),
    async resolve(signal) {
      const { descriptor, bytes } = await client.resolve(reference, withSignal(signal));
      return { digest: descriptor.digest, mediaType: descriptor.mediaType, bytes };
    },
    async manifest(descriptor, signal) {
      const bytes = await client.fetchManifest(reference, descriptor, withSignal(signal));
      return { digest: descriptor.digest, mediaType: descriptor.mediaType, bytes };
    },
    async open(document, signal) {
      const { releaseChunk } = await import("../registry/index.ts");
      const manifest = imageManifest(document!);
      const limit = MAX_CONFIG_SIZE;
      const bytes = await client.fetchSmallBlob(reference, manifest.config, { limit, ...withSignal(signal) });
      const image = decodeImageConfig(bytes);
      checkLayerCount(manifest, image);
      return {
        manifest: document,
        config: { digest: manifest.config.digest, mediaType: manifest.config.mediaType, bytes },
        image,
        layers: manifest.layers.map((layer, position) => ({
          diffId: image.diffIds[position]!,
          digest: layer.digest,
          mediaType: layer.mediaType,
          size: layer.size,
          open: (offset, signal, end = layer.size) => client.openBlob(reference, layer, { offset, end, signal }),
          release: releaseChunk,
          parts: registryParts(client, reference, layer, meter),
        })),
      };
    },
  };
}

/** A blob of a registry, to be read in parts; `meter` is shared by all blobs of that registry. */
export function registryParts(
  client: RegistryClient,
  reference: Reference,
  layer: Descriptor,
  meter: LinkMeter,
): PartsSource {
  return {
    annotations: layer.annotations,
    open: (ranges, options) => client.openRanges(reference, layer, ranges, options),
    ability: () => client.rangeAbility(reference),
    meter,
  };
}

/** One image of a layout or OCI archive that is open; `find` says which. */
export function layoutOrigin(layout: OciLayout, location: string, name: string, find: () => Descriptor): Origin {
  return {
    name,
    location,
    async resolve() {
      return readLayoutManifest(find());
    },
    async manifest(descriptor) {
      return readLayoutManifest(descriptor);
    },
    async open(document) {
      const manifest = imageManifest(document!);
      const bytes = layout.readBlob(manifest.config, MAX_CONFIG_SIZE);
      const image = decodeImageConfig(bytes);
      checkLayerCount(manifest, image);
      return {
        manifest: document,
        config: { digest: manifest.config.digest, mediaType: manifest.config.mediaType, bytes },
        image,
        layers: manifest.layers.map((layer, position) => ({
          diffId: image.diffIds[position]!,
          digest: layer.digest,
          mediaType: layer.mediaType,
          size: layer.size,
          file: layout.getBlob(layer),
        })),
      };
    },
  };

  function readLayoutManifest(descriptor: Descriptor): Document {
    const { bytes, manifest } = layout.readManifest(descriptor);
    return { digest: descriptor.digest, mediaType: manifest.mediaType, bytes };
  }
}

async function archiveOrigin(file: string, reference: Reference | undefined, options: OriginOptions): Promise<Origin> {
  const archive = await openDockerArchive(file, {
    ...(options.spoolDirectory === undefined ? {} : { spoolDirectory: options.spoolDirectory }),
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  });
  const wanted = reference === undefined ? undefined : formatReference(reference);
  const fitting = archive.images.filter(
    (image) => wanted === undefined || image.repoTags.some((tag) => normalizedTag(tag) === wanted),
  );
  const tags = archive.images.flatMap((image) => image.repoTags);
  if (fitting.length === 0) {
    throw new ShaleError("NOT_FOUND", `Cannot open ${file}: it has no image ${wanted ?? ""}`.trimEnd(), {
      hint: `It has: ${tags.join(", ") || "no names"}`,
    });
  }
  if (fitting.length > 1) {
    throw new ShaleError("FAILED_PRECONDITION", `Cannot open ${file}: it has ${fitting.length} images`, {
      hint: `Name one: docker-archive:${file}:REF with REF of ${tags.join(", ")}`,
    });
  }
  return dockerImageOrigin(file, fitting[0]!, wanted);
}

/** One image of a docker archive that is open, under `name` or its first tag or, without any, the digest of its config. */
export function dockerImageOrigin(file: string, image: DockerArchiveImage, name?: string): Origin {
  const config = decodeImageConfig(image.config);
  if (config.diffIds.length !== image.layers.length) {
    throw new ShaleError(
      "INVALID_ARGUMENT",
      `Cannot open ${file}: the config of ${image.configDigest} has ${config.diffIds.length} layers, the archive ${image.layers.length}`,
    );
  }
  const tag = image.repoTags[0];
  return {
    name: name ?? (tag === undefined ? image.configDigest : normalizedTag(tag)),
    location: `docker-archive:${resolve(file)}`,
    resolve: async () => undefined,
    manifest: () => Promise.reject(new RangeError("a docker archive has no index")),
    open: async () => ({
      manifest: undefined,
      config: { digest: image.configDigest, mediaType: MediaType.OCI_CONFIG, bytes: image.config },
      image: config,
      layers: image.layers.map((range, position) => ({
        diffId: config.diffIds[position]!,
        digest: undefined,
        mediaType: MediaType.OCI_LAYER,
        size: range.length,
        file: range,
      })),
    }),
  };
}

/** The manifest that a docker archive does not have: layers as plain tars, which is how the store gives them back. */
export function synthesizeManifest(
  config: Document,
  layers: readonly { readonly diffId: DiffId; readonly size: number }[],
): Document {
  const plain = layers.map(({ diffId, size }) => ({
    digest: diffId as string as Digest,
    size,
    mediaType: MediaType.OCI_LAYER,
  }));
  return encodeManifest(config, plain);
}

function imageManifest(document: Document): Manifest {
  verifyDigest(document.bytes, document.digest, "manifest");
  const decoded = decodeManifest(document.bytes, document.mediaType);
  if (decoded.kind !== "manifest") throw new RangeError(`${document.digest} is an index`);
  return decoded;
}

/** "name:tag" as written by docker, as the full reference; what is no reference stays as it is. */
export function normalizedTag(tag: string): string {
  try {
    return formatReference(parseReference(tag));
  } catch (error) {
    if (ShaleError.is(error, "INVALID_ARGUMENT")) return tag;
    throw error;
  }
}
