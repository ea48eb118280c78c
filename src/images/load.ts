/**
 * Load: images from an OCI layout (a directory, or a tar of one) or a docker archive into the store, verified as in a pull.
 *
 * An archive is read in place and scanned once, however many images it has; one that is compressed is decompressed into the
 * store's staging first, and the copy goes with the operation. An archive that is both forms (docker >= 25) is read as an
 * OCI layout, which has the manifests.
 *
 * Names: io.containerd.image.name or RepoTags; org.opencontainers.image.ref.name where it is more than a tag. Without any
 * of these an image of a directory is called oci:DIR[:TAG], one of an archive oci-archive:FILE:TAG or by its digest.
 */
import { resolve } from "node:path";
import {
  CONTAINERD_NAME,
  type OciLayout,
  openOciLayout,
  REF_NAME,
  readDockerArchive,
  readOciArchive,
  TarFile,
} from "../archives/index.ts";
import { ShaleError } from "../errors/index.ts";
import {
  choosePlatform,
  type Descriptor,
  type DiffId,
  type Digest,
  formatReference,
  type Index,
  listImages,
  MediaType,
  parseReference,
  platformOfNode,
} from "../oci/index.ts";
import type { Store, StoreOperation } from "../store/index.ts";
import { findFile, realPath } from "../sys/index.ts";
import { findReference } from "./names.ts";
import { dockerImageOrigin, layoutOrigin, normalizedTag, type Origin, type OriginLayer } from "./origin.ts";
import { type PullOptions, type PullResult, pullImage } from "./pull.ts";

export interface LoadOptions extends Omit<PullOptions, "name"> {
  /** Name for the image instead of its own. INVALID_ARGUMENT where there are several. */
  readonly name?: string;
  /** Told of each image when it is complete and durable; those before a failure stay. */
  readonly onImage?: (image: PullResult) => void | Promise<void>;
}

/**
 * Loads every image of `path`. NOT_FOUND when there is nothing, FormatError for what is malformed, DATA_LOSS for bytes that
 * are not what their digest says; else as `pullImage`.
 */
export async function loadImages(store: Store, path: string, options: LoadOptions = {}): Promise<PullResult[]> {
  const { name, onImage, ...pullOptions } = options;
  const renamed = name === undefined ? undefined : formatReference(parseReference(name));
  // Holds the decompressed copy, if one is made.
  using operation = store.begin(`load ${path}`);
  const origins = await openOrigins(path, operation, options);
  if (origins.length === 0) throw new ShaleError("NOT_FOUND", `Cannot load ${path}: it has no images`);
  if (renamed !== undefined && origins.length > 1) {
    throw new ShaleError("INVALID_ARGUMENT", `Cannot name ${origins.length} images ${renamed}`, {
      hint: `${path} has ${origins.map((origin) => origin.name).join(", ")}`,
    });
  }
  const loaded: PullResult[] = [];
  for (const origin of origins) {
    const named = renamed === undefined ? {} : { name: renamed };
    const image = await pullImage(store, origin, { ...pullOptions, ...named });
    loaded.push(image);
    await onImage?.(image);
  }
  return loaded;
}

/**
 * One layer of an archive, for repair; `digest` is that of its blob there. A compressed archive is decompressed into
 * `spoolDirectory`. NOT_FOUND when the archive has it no more.
 */
export async function getArchivedLayer(
  path: string,
  diffId: DiffId,
  digest: Digest,
  spoolDirectory: string,
  signal: AbortSignal,
): Promise<OriginLayer> {
  const tar = await TarFile.open(path, { spoolDirectory, signal });
  if (isLayout(tar)) {
    const file = readOciArchive(tar).findBlob(digest);
    if (file !== undefined) return { diffId, digest, mediaType: MediaType.OCI_LAYER, size: file.length, file };
  } else {
    for (const image of readDockerArchive(tar).images) {
      const { layers } = await dockerImageOrigin(path, image).open(undefined, signal);
      const layer = layers.find((one) => one.diffId === diffId);
      if (layer !== undefined) return layer;
    }
  }
  throw new ShaleError("NOT_FOUND", `Cannot fetch layer ${diffId}: ${path} has it no more`);
}

function isLayout(tar: TarFile): boolean {
  return tar.has("oci-layout") && tar.has("index.json");
}

/** One origin for each image of a directory or archive; all of them share what was opened. */
async function openOrigins(path: string, operation: StoreOperation, options: LoadOptions): Promise<Origin[]> {
  const found = realPath(path);
  if (found === undefined) throw new ShaleError("NOT_FOUND", `Cannot load ${path}: no such file or directory`);
  if (findFile(found)?.kind === "directory") {
    const layout = openOciLayout(path);
    const location = `oci:${layout.directory}`;
    const hasOne = imagesOf(layout).length === 1;
    return layoutOrigins(layout, location, options, ({ digest }) => (hasOne ? location : digest));
  }
  const file = resolve(path);
  const tar = await TarFile.open(file, {
    spoolDirectory: operation.temporaryDirectory(),
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  });
  if (isLayout(tar)) {
    return layoutOrigins(readOciArchive(tar), `oci-archive:${file}`, options, ({ digest }) => digest);
  }
  return readDockerArchive(tar).images.flatMap((image) => {
    const names = image.repoTags.map(normalizedTag);
    return names.length === 0
      ? [dockerImageOrigin(file, image)]
      : names.map((name) => dockerImageOrigin(file, image, name));
  });
}

/** One origin for each name; `nameless` names what has no tag either. */
function layoutOrigins(
  layout: OciLayout,
  location: string,
  options: LoadOptions,
  nameless: (entry: Descriptor) => string,
): Origin[] {
  const byName = new Map<string, Descriptor[]>();
  for (const entry of imagesOf(layout)) {
    const tag = entry.annotations[REF_NAME];
    const name = fullNameOf(entry) ?? (tag === undefined ? nameless(entry) : `${location}:${tag}`);
    const entries = byName.get(name);
    if (entries === undefined) byName.set(name, [entry]);
    else entries.push(entry);
  }
  return [...byName].map(([name, entries]) => layoutOrigin(layout, location, name, () => choose(entries, options)));
}

function imagesOf(layout: OciLayout): Descriptor[] {
  return listImages(indexOf(layout.entries));
}

/** Entries of one name are platforms of one image, as some tools write them instead of an index. */
function choose(entries: readonly Descriptor[], { platform = platformOfNode(process.arch) }: LoadOptions): Descriptor {
  return entries.length === 1 ? entries[0]! : choosePlatform(indexOf(entries), platform);
}

function indexOf(manifests: readonly Descriptor[]): Index {
  return { kind: "index", mediaType: MediaType.OCI_INDEX, manifests, annotations: {} };
}

/** The full name that an entry carries: containerd's, or a ref.name that is more than a tag (podman, skopeo). */
function fullNameOf({ annotations }: Descriptor): string | undefined {
  const refName = annotations[REF_NAME];
  const candidates = [annotations[CONTAINERD_NAME], /[:/@]/.test(refName ?? "") ? refName : undefined];
  for (const candidate of candidates) {
    const reference = candidate === undefined ? undefined : findReference(candidate);
    if (reference !== undefined) return formatReference(reference);
  }
  return undefined;
}
