/** An archive on its way into a registry; see index.ts. */
import { createHash } from "node:crypto";
import { ShaleError } from "../../errors/index.ts";
import { decompress } from "../../formats/compression/index.ts";
import { type DiffId, type Digest, formatDigest, MediaType, type Reference } from "../../oci/index.ts";
import type { RegistryClient } from "../../registry/index.ts";
import { closeFile, openFile, readAt, statFile } from "../../sys/index.ts";
import { type CheckpointArchive, openArchive } from "../archive/index.ts";
import { compressPieces, type OutputCompression } from "../layout/compress.ts";
import { surveyArchive } from "../show/index.ts";
import { checkpointAnnotations, describeImage } from "./annotations.ts";

export interface PushOptions {
  /** Of a plain archive on its way; "zstd" unless given. A compressed one goes as it is. */
  readonly compression?: OutputCompression;
  /** Added to the annotations that the archive gives. */
  readonly annotations?: Readonly<Record<string, string>>;
  /** Of the same registry: the archive's layer is taken from there if it has it. */
  readonly mountFrom?: string;
  /** Told of bytes of the archive's file as they are read. */
  readonly onBytes?: (count: number) => void;
  readonly signal?: AbortSignal;
}

export interface PushedCheckpoint {
  /** Of the manifest. */
  readonly digest: Digest;
  readonly diffId: DiffId;
  readonly layer: { readonly digest: Digest; readonly size: number; readonly mediaType: string };
  readonly how: "present" | "mounted" | "uploaded";
  readonly annotations: Readonly<Record<string, string>>;
}

const MEDIA_TYPES = {
  none: MediaType.OCI_LAYER,
  gzip: MediaType.OCI_LAYER_GZIP,
  zstd: MediaType.OCI_LAYER_ZSTD,
} as const;
const PIECE = 1024 * 1024;

/** See index.ts. */
export async function pushCheckpoint(
  client: RegistryClient,
  path: string,
  reference: Reference,
  options: PushOptions = {},
): Promise<PushedCheckpoint> {
  const { signal } = options;
  const survey = await (async () => {
    await using archive = await openArchive(path, signal ? { signal } : {});
    return await surveyArchive(requireFile(archive), { full: true });
  })();
  const layer = await pushLayer(client, path, reference, survey.compression, options);
  const annotations = checkpointAnnotations(survey, options.annotations);
  const { config, manifest } = describeImage(layer, annotations, survey);
  const stop = signal ? { signal } : {};
  await client.pushBlob(reference, [config.bytes], {
    ...stop,
    expected: { digest: config.digest, size: config.bytes.length },
  });
  const pushed = await client.pushManifest(
    reference,
    { bytes: manifest.bytes, mediaType: MediaType.OCI_MANIFEST },
    stop,
  );
  const { diffId, digest, size, mediaType, how } = layer;
  return { digest: pushed.digest, diffId, layer: { digest, size, mediaType }, how, annotations };
}

interface PushedLayer {
  readonly diffId: DiffId;
  readonly digest: Digest;
  readonly size: number;
  readonly mediaType: string;
  readonly how: PushedCheckpoint["how"];
}

async function pushLayer(
  client: RegistryClient,
  path: string,
  reference: Reference,
  compression: CheckpointArchive["compression"],
  { compression: wanted = "zstd", mountFrom, onBytes, signal }: PushOptions,
): Promise<PushedLayer> {
  if (compression === "bzip2" || compression === "xz") {
    throw new ShaleError("UNIMPLEMENTED", `Cannot push ${path}: no media type for layers is ${compression}`, {
      hint: `Decompress it first (${compression} -d): it is compressed with zstd on the way`,
    });
  }
  const stop = signal ? { signal } : {};
  if (compression !== "none") {
    // What engines compressed stays as it is, and is known before it is sent: a registry that has it gets nothing.
    const { diffId, ...expected } = await digestsOf(path, compression, signal);
    const { how } = await client.pushBlob(reference, () => readPieces(path, onBytes, signal), {
      ...stop,
      expected,
      ...(mountFrom === undefined ? {} : { mountFrom }),
    });
    return { diffId, ...expected, mediaType: MEDIA_TYPES[compression], how };
  }
  // One pass: digested as it is read, compressed, and sent. An upload that begins anew reads again.
  let diffId: DiffId | undefined;
  const source = () => {
    const tar = createHash("sha256");
    async function* digested(): AsyncGenerator<Uint8Array, void, undefined> {
      for await (const piece of readPieces(path, onBytes, signal)) {
        tar.update(piece);
        yield piece;
      }
      diffId = formatDigest("sha256", tar.digest()) as string as DiffId; // sha256, as a diffId is
    }
    return wanted === "none" ? digested() : compressPieces(digested(), wanted);
  };
  const { digest, size, how } = await client.pushBlob(reference, source, stop);
  if (diffId === undefined) throw new RangeError("the archive was pushed without having been read");
  return { diffId, digest, size, mediaType: MEDIA_TYPES[wanted], how };
}

function requireFile(archive: CheckpointArchive): CheckpointArchive {
  if (archive.repeatable) return archive;
  throw new ShaleError("FAILED_PRECONDITION", `Cannot push ${archive.name}: it is a stream`, {
    hint: "Save it to a file first: its metadata is needed before its memory",
  });
}

async function digestsOf(
  path: string,
  compression: "gzip" | "zstd",
  signal: AbortSignal | undefined,
): Promise<{ readonly diffId: DiffId; readonly digest: Digest; readonly size: number }> {
  const file = createHash("sha256");
  const tar = createHash("sha256");
  let size = 0;
  async function* counted(): AsyncGenerator<Uint8Array, void, undefined> {
    for await (const piece of readPieces(path, undefined, signal)) {
      file.update(piece);
      size += piece.length;
      yield piece;
    }
  }
  for await (const piece of decompress(counted(), compression, signal ? { signal } : {})) tar.update(piece);
  const diffId = formatDigest("sha256", tar.digest()) as string as DiffId;
  return { diffId, digest: formatDigest("sha256", file.digest()), size };
}

/** The bytes of a file; each piece stays as it is. FAILED_PRECONDITION when it changes its size meanwhile. */
async function* readPieces(
  path: string,
  onBytes: ((count: number) => void) | undefined,
  signal: AbortSignal | undefined,
): AsyncGenerator<Uint8Array, void, undefined> {
  const fd = openFile(path, "read", { followSymlink: true });
  try {
    const { size } = statFile(fd);
    for (let at = 0; at < size; ) {
      signal?.throwIfAborted();
      const piece = Buffer.allocUnsafeSlow(Math.min(PIECE, size - at));
      if (readAt(fd, piece, at) !== piece.length) {
        throw new ShaleError("FAILED_PRECONDITION", `Cannot read ${path}: it became shorter while it was read`);
      }
      at += piece.length;
      onBytes?.(piece.length);
      yield piece;
    }
  } finally {
    closeFile(fd);
  }
}
