/** A checkpoint image back into an archive; see index.ts. */
import { createHash } from "node:crypto";
import { ShaleError } from "../../errors/index.ts";
import { decompress, detectCompression } from "../../formats/compression/index.ts";
import { PartialFile } from "../../images/partial-file.ts";
import {
  checkLayerCount,
  choosePlatform,
  createDigestHash,
  decodeImageConfig,
  decodeManifest,
  type DiffId,
  type Digest,
  digestAlgorithm,
  formatDigest,
  formatReference,
  type LayerDescriptor,
  type Manifest,
  platformOfNode,
  type Reference,
} from "../../oci/index.ts";
import type { RegistryClient } from "../../registry/index.ts";
import { checkpointNameOf } from "./annotations.ts";

export interface PullOptions {
  readonly onBytes?: (count: number) => void;
  readonly signal?: AbortSignal;
}

export interface PulledCheckpoint {
  /** Of the manifest. */
  readonly digest: Digest;
  readonly diffId: DiffId;
  /** Of the container, as the image says. */
  readonly name: string;
  /** Of the archive. */
  readonly size: number;
  /** Bytes that came over the network. */
  readonly received: number;
}

/** The memory of a process is in it. */
const PERMISSIONS = 0o600;
/** As for opening an archive. */
const MAX_ARCHIVE = 16 * 1024 ** 4;
/** An index may name another one, as choosePlatform says. */
const MAX_DEPTH = 4;

/** See index.ts. */
export async function pullCheckpoint(
  client: RegistryClient,
  reference: Reference,
  output: string,
  options: PullOptions = {},
): Promise<PulledCheckpoint> {
  const { signal, onBytes } = options;
  const stop = signal ? { signal } : {};
  const act = `pull the checkpoint ${formatReference(reference)}`;
  const { manifest, digest } = await findManifest(client, reference, options);
  const name = checkpointNameOf(manifest.annotations);
  const [layer, ...others] = manifest.layers;
  if (name === undefined || layer === undefined || others.length > 0) {
    const state = name === undefined ? "it is an image of another kind" : `it has ${manifest.layers.length} layers`;
    throw new ShaleError("FAILED_PRECONDITION", `Cannot ${act}: ${state}`, {
      hint: "A checkpoint image has one layer, and annotations of podman, CRI-O or org.criu; shale pull takes images",
    });
  }
  const config = decodeImageConfig(await client.fetchConfig(reference, manifest.config, stop));
  checkLayerCount(manifest, config);
  const diffId = config.diffIds[0]!; // as many as layers: checked above

  using file = await PartialFile.open(output, { ...stop, permissions: PERMISSIONS });
  const tar = createHash("sha256");
  let received = 0;
  const blob = verified(
    client,
    reference,
    layer,
    act,
    (count) => {
      received += count;
      onBytes?.(count);
    },
    signal,
  );
  for await (const piece of await plain(blob, signal)) {
    tar.update(piece);
    file.write(piece);
  }
  const found = formatDigest("sha256", tar.digest());
  if (found !== (diffId as string)) {
    throw new ShaleError("DATA_LOSS", `Cannot ${act}: its tar is ${found}, its config says ${diffId}`, {
      hint: "The image is inconsistent: whoever made it has to push it again",
    });
  }
  file.publish();
  return { digest, diffId, name, size: file.size, received };
}

async function findManifest(
  client: RegistryClient,
  reference: Reference,
  { signal }: PullOptions,
): Promise<{ readonly manifest: Manifest; readonly digest: Digest }> {
  const stop = signal ? { signal } : {};
  let { descriptor, bytes } = await client.resolve(reference, stop);
  for (let depth = 0; depth < MAX_DEPTH; depth++) {
    const document = decodeManifest(bytes, descriptor.mediaType);
    if (document.kind === "manifest") return { manifest: document, digest: descriptor.digest };
    descriptor = choosePlatform(document, platformOfNode(process.arch));
    bytes = await client.fetchManifest(reference, descriptor, stop);
  }
  throw new ShaleError("FAILED_PRECONDITION", `Cannot resolve ${formatReference(reference)}: indexes name indexes`);
}

/** The bytes of a blob; the last one comes only when all of them have the blob's digest. */
async function* verified(
  client: RegistryClient,
  reference: Reference,
  layer: LayerDescriptor,
  act: string,
  onBytes: (count: number) => void,
  signal: AbortSignal | undefined,
): AsyncGenerator<Uint8Array, void, undefined> {
  const hash = createDigestHash(layer.digest);
  for await (const chunk of client.openBlob(reference, layer, signal ? { signal } : {})) {
    hash.update(chunk);
    onBytes(chunk.length);
    yield chunk;
  }
  const found = formatDigest(digestAlgorithm(layer.digest), hash.digest());
  if (found === layer.digest) return;
  throw new ShaleError("DATA_LOSS", `Cannot ${act}: the bytes that arrived are ${found} instead of ${layer.digest}`);
}

/** By the first bytes, not by the media type: builders mislabel. */
async function plain(
  source: AsyncGenerator<Uint8Array, void, undefined>,
  signal: AbortSignal | undefined,
): Promise<AsyncIterable<Uint8Array>> {
  const first = await source.next();
  const head = first.done === true ? new Uint8Array(0) : first.value;
  async function* all(): AsyncGenerator<Uint8Array, void, undefined> {
    try {
      if (head.length > 0) yield head;
      yield* source;
    } finally {
      await source.return();
    }
  }
  return decompress(all(), detectCompression(head), { maximumSize: MAX_ARCHIVE, ...(signal && { signal }) });
}
