/**
 * Writing an archive that `docker load`, podman, skopeo and containerd read: manifest.json first, then configs (HEX.json)
 * and layers (HEX.tar, by diffID), each once. One pass, sizes known beforehand; the same images give the same bytes.
 */
import { createHash } from "node:crypto";
import { throwIfAborted } from "../async/index.ts";
import { ShaleError } from "../errors/index.ts";
import { encodeTarHeader, TAR_END, tarPadding } from "../formats/tar/index.ts";
import { type DiffId, digestHex, digestOf, formatDigest } from "../oci/index.ts";

export interface DockerArchiveLayer {
  /** Digest of the uncompressed tar. What `read` gives is verified against it. */
  readonly diffId: DiffId;
  /** Bytes of the uncompressed tar. */
  readonly size: number;
  /** The uncompressed tar; asked for once, even when several images have this layer. */
  read(options: { readonly signal?: AbortSignal }): Iterable<Uint8Array> | AsyncIterable<Uint8Array>;
}

export interface DockerArchiveContent {
  /** "name:tag" each; may be empty. */
  readonly repoTags: readonly string[];
  readonly config: Uint8Array;
  /** Lowest first, as in the config. */
  readonly layers: readonly DockerArchiveLayer[];
}

/**
 * Takes the archive's bytes in order; the next piece comes when it has settled. A piece is valid until then.
 */
export type ByteSink = (bytes: Uint8Array) => void | Promise<void>;

/**
 * Writes an archive of `images` and returns its size. DATA_LOSS when a layer is not what its diffID says: the caller
 * throws away what was written by then. A failing sink ends it with the sink's error.
 */
export async function writeDockerArchive(
  sink: ByteSink,
  images: readonly DockerArchiveContent[],
  options: { readonly signal?: AbortSignal } = {},
): Promise<number> {
  const { signal } = options;
  let written = 0;
  const write = async (bytes: Uint8Array): Promise<void> => {
    throwIfAborted(signal);
    if (bytes.byteLength === 0) return;
    await sink(bytes);
    written += bytes.byteLength;
  };
  const writeMember = async (name: string, bytes: Uint8Array): Promise<void> => {
    await write(header(name, bytes.byteLength));
    await write(bytes);
    await write(tarPadding(bytes.byteLength));
  };

  const manifest = images.map(({ repoTags, config, layers }) => ({
    Config: configName(config),
    RepoTags: repoTags,
    Layers: layers.map(layerName),
  }));
  await writeMember("manifest.json", Buffer.from(JSON.stringify(manifest)));
  const configs = new Map(images.map(({ config }) => [configName(config), config]));
  for (const [name, config] of configs) await writeMember(name, config);
  const layers = new Map(images.flatMap((image) => image.layers.map((layer) => [layerName(layer), layer] as const)));
  for (const [name, layer] of layers) {
    await write(header(name, layer.size));
    for await (const piece of verified(layer, options)) await write(piece);
    await write(tarPadding(layer.size));
  }
  await write(TAR_END);
  return written;
}

/** The layer's bytes. Throws before the first byte that would not fit, and at the end unless the digest is right. */
async function* verified(
  layer: DockerArchiveLayer,
  options: { readonly signal?: AbortSignal },
): AsyncGenerator<Uint8Array> {
  const hash = createHash("sha256");
  let size = 0;
  for await (const piece of layer.read(options)) {
    size += piece.byteLength;
    if (size > layer.size) throw different(layer, `more than ${layer.size} bytes came`);
    hash.update(piece);
    yield piece;
  }
  if (size !== layer.size) throw different(layer, `${size} bytes came instead of ${layer.size}`);
  const digest: string = formatDigest("sha256", hash.digest());
  if (digest !== layer.diffId) throw different(layer, `its digest is ${digest}`);
}

function different(layer: DockerArchiveLayer, state: string): ShaleError {
  return new ShaleError("DATA_LOSS", `Cannot write layer ${layer.diffId}: ${state}`);
}

function configName(config: Uint8Array): string {
  return `${digestHex(digestOf(config))}.json`;
}

function layerName(layer: DockerArchiveLayer): string {
  return `${digestHex(layer.diffId)}.tar`;
}

function header(path: string, size: number): Uint8Array {
  return encodeTarHeader({
    ...{ type: "file", path, linkTarget: "", mode: 0o444, uid: 0, gid: 0, size },
    ...{ mtimeSeconds: 0, mtimeNanoseconds: 0, rdevMajor: 0, rdevMinor: 0, xattrs: [] },
  });
}
