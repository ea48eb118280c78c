/**
 * Reading an archive of `docker save`: a tar with manifest.json, image configs, and layers as tars inside. Also the form
 * that docker writes since version 25, which is an OCI layout at the same time, and archives of podman, skopeo and BuildKit.
 * Docker image specification v1.2, "Combined Image JSON + Filesystem Changeset Format".
 *
 * Nothing is extracted: the tar is read once, and each layer is then a range of the file. The archive is somebody else's:
 * documents meet a limit before they are read into memory; what is
 * missing, cut short or contradicts itself is a FormatError that names the member.
 */
import { FormatError, ShaleError } from "../errors/index.ts";
import { digestOf, type Digest, MAX_CONFIG_SIZE, MAX_LAYERS, MAX_MANIFEST_SIZE } from "../oci/index.ts";
import type { FileRange } from "./file-range.ts";
import { memberError, type OpenTarOptions, TarFile } from "./tar-file.ts";

/** Images in one archive. */
const MAX_IMAGES = 1024;
/** Names of one image. */
const MAX_TAGS = 4096;

export interface DockerArchiveImage {
  /** As written: "name:tag" each, mostly without a registry. May be empty. */
  readonly repoTags: readonly string[];
  /** Exactly the bytes of the image config; `configDigest` is computed from them: it is the image's id. */
  readonly config: Uint8Array;
  readonly configDigest: Digest;
  /**
   * The layers as they are in the archive, lowest first: mostly plain tars, from some tools compressed (their first bytes
   * tell). Nothing of them is verified: the reader has to compare with the config's diffIDs.
   */
  readonly layers: readonly FileRange[];
}

export interface DockerArchive {
  readonly images: readonly DockerArchiveImage[];
}

/**
 * Opens an archive. The file must stay as it is while the layers are read. NOT_FOUND when there is no file;
 * FAILED_PRECONDITION when it is compressed and no spool directory was given; FormatError for what is malformed.
 */
export async function openDockerArchive(path: string, options: OpenTarOptions = {}): Promise<DockerArchive> {
  return readDockerArchive(await TarFile.open(path, options));
}

/** The images of a tar that is open. */
export function readDockerArchive(tar: TarFile): DockerArchive {
  if (!tar.has("manifest.json")) {
    const hint = tar.has("oci-layout")
      ? "It is an OCI archive: shale load reads it"
      : "Is it an archive of docker save, podman save or skopeo?";
    throw new FormatError("docker archive", "manifest.json", "is missing", { hint });
  }
  const entries = parseManifest(tar.readDocument("manifest.json", MAX_MANIFEST_SIZE));
  return { images: entries.map((entry) => readImage(tar, entry)) };
}

/** One element of manifest.json. */
interface ManifestEntry {
  readonly config: string;
  readonly repoTags: readonly string[];
  readonly layers: readonly string[];
}

function readImage(tar: TarFile, entry: ManifestEntry): DockerArchiveImage {
  const config = tar.readDocument(entry.config, MAX_CONFIG_SIZE);
  const configDigest = digestOf(config);
  // Names chosen by docker, podman, skopeo and kaniko: HEX.json, blobs/sha256/HEX, sha256:HEX. Others choose others.
  const named = /(?:^|\/|sha256:)([0-9a-f]{64})(?:\.json)?$/.exec(entry.config)?.[1];
  if (named !== undefined && configDigest !== `sha256:${named}`) {
    throw new ShaleError("DATA_LOSS", `Cannot verify the image config ${entry.config}: its digest is ${configDigest}`);
  }
  const layers = entry.layers.map((name) => tar.locate(name));
  return { repoTags: entry.repoTags, config, configDigest, layers };
}

function parseManifest(bytes: Uint8Array): ManifestEntry[] {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    if (!(error instanceof SyntaxError) && !(error instanceof TypeError)) throw error;
    throw new FormatError("docker archive", "manifest.json", "is not JSON in UTF-8", { cause: error });
  }
  if (!Array.isArray(value)) throw memberError("manifest.json", "must be a list of images");
  if (value.length > MAX_IMAGES) {
    throw memberError("manifest.json", `has ${value.length} images, the limit is ${MAX_IMAGES}`, "RESOURCE_EXHAUSTED");
  }
  return value.map((entry: unknown, i) => {
    if (typeof entry !== "object" || entry === null) throw memberError(`manifest.json[${i}]`, "must be an object");
    const { Config: config, RepoTags: repoTags, Layers: layers } = entry as Record<string, unknown>;
    if (typeof config !== "string") throw memberError(`manifest.json[${i}].Config`, "must be a string");
    return {
      config,
      repoTags: stringList(repoTags, `manifest.json[${i}].RepoTags`, MAX_TAGS),
      layers: stringList(layers, `manifest.json[${i}].Layers`, MAX_LAYERS),
    };
  });
}

/** Go writes an empty list as null. */
function stringList(value: unknown, field: string, limit: number): string[] {
  if (value === undefined || value === null) return [];
  if (!Array.isArray(value)) throw memberError(field, "must be a list");
  if (value.length > limit) {
    throw memberError(field, `has ${value.length} elements, the limit is ${limit}`, "RESOURCE_EXHAUSTED");
  }
  return value.map((one: unknown, i) => {
    if (typeof one !== "string") throw memberError(`${field}[${i}]`, "must be a string");
    return one;
  });
}
