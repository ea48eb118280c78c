/** An archive on its way into the store; see index.ts. */
import { resolve } from "node:path";
import { ShaleError } from "../../errors/index.ts";
import { normalizeName } from "../../images/find.ts";
import {
  decodeManifest,
  type DiffId,
  type Digest,
  digestHex,
  isDigest,
  MediaType,
  parseReference,
} from "../../oci/index.ts";
import { type LayerRecord, manifestRecord, type Store, type StoreOperation } from "../../store/index.ts";
import { openArchive } from "../archive/index.ts";
import { type CheckpointSurvey, surveyArchive } from "../show/index.ts";
import { checkpointAnnotations, describeImage } from "../transport/index.ts";

export interface ImportOptions {
  /** In the store; by default localhost/checkpoints/CONTAINER:DIGITS, the digits being those of the archive's digest. */
  readonly name?: string;
  /** Added to the annotations that the archive gives, as for a push. */
  readonly annotations?: Readonly<Record<string, string>>;
  /** Told of bytes of the archive's file as they are read. */
  readonly onBytes?: (count: number) => void;
  readonly signal?: AbortSignal;
}

export interface ImportedCheckpoint {
  readonly name: string;
  /** Of the image that stands for it. */
  readonly digest: Digest;
  /** Of the archive's tar: what an export gives back. */
  readonly diffId: DiffId;
  /** Of the tar. */
  readonly size: number;
  /** Bytes that it added to the store, metadata included; 0 when it was there. */
  readonly stored: number;
  /** Content that the store, or the archive in another place, had already. */
  readonly shared: number;
  readonly present: boolean;
  /** How the file was compressed: what comes back is the tar. */
  readonly compression: CheckpointSurvey["compression"];
}

/** See index.ts. */
export async function importCheckpoint(
  store: Store,
  path: string,
  options: ImportOptions = {},
): Promise<ImportedCheckpoint> {
  const { signal } = options;
  const stop = signal ? { signal } : {};
  const name = options.name === undefined ? undefined : checkName(options.name);
  const { survey, size } = await look(path, stop);
  using operation = store.begin(`import ${path}`);
  const { layer, present } = await ingest(operation, path, size, options);
  const { diffId } = layer;
  const digest = diffId as string as Digest; // a plain tar travels under its diffId
  const described = { diffId, digest, size: layer.tarSize, mediaType: MediaType.OCI_LAYER };
  const annotations = checkpointAnnotations(survey, options.annotations);
  const { config, manifest } = describeImage(described, annotations, survey);
  const finalName = name ?? defaultName(survey, diffId);
  const document = { ...manifest, mediaType: MediaType.OCI_MANIFEST };
  const decoded = decodeManifest(manifest.bytes, MediaType.OCI_MANIFEST);
  if (decoded.kind !== "manifest") throw new RangeError("a checkpoint image is no index");
  operation.commitImage({
    name: finalName,
    target: document,
    source: `checkpoint:${resolve(path)}`,
    manifests: [
      {
        manifest: document,
        config: { ...config, mediaType: MediaType.OCI_CONFIG },
        record: manifestRecord(manifest.digest, config.digest, `linux/${survey.tree.architecture ?? "amd64"}`, [
          described,
        ]),
      },
    ],
  });
  operation.indexLayers();
  return {
    name: finalName,
    digest: manifest.digest,
    diffId,
    size: layer.tarSize,
    stored: present ? 0 : layer.ownBytes + layer.metadataBytes,
    shared: layer.sharedBytes,
    present,
    compression: survey.compression,
  };
}

/** Before a byte is stored: that it is an archive, and what of. */
async function look(
  path: string,
  stop: { readonly signal?: AbortSignal },
): Promise<{ readonly survey: CheckpointSurvey; readonly size: number }> {
  await using archive = await openArchive(path, stop);
  if (archive.size === undefined) {
    throw new ShaleError("FAILED_PRECONDITION", `Cannot import ${path}: it is a stream`, {
      hint: "Save it to a file first",
    });
  }
  if (archive.compression === "bzip2" || archive.compression === "xz") {
    throw new ShaleError("UNIMPLEMENTED", `Cannot import ${path}: it is compressed with ${archive.compression}`, {
      hint: `Decompress it first: ${archive.compression} -dk ${path}`,
    });
  }
  const survey = await surveyArchive(archive);
  if (survey.dialect === "unknown" && survey.container.id === undefined && survey.tree.processes.length === 0) {
    throw new ShaleError("INVALID_ARGUMENT", `Cannot import ${path}: it is a tar, but of no checkpoint`, {
      hint: "A checkpoint has config.dump and checkpoint/",
    });
  }
  return { survey, size: archive.size };
}

async function ingest(
  operation: StoreOperation,
  path: string,
  size: number,
  { signal, onBytes }: ImportOptions,
): Promise<{ readonly layer: LayerRecord; readonly present: boolean }> {
  let told = 0;
  const result = await operation.ingest(
    { path, offset: 0, length: size },
    {},
    {
      form: "archive",
      ...(signal ? { signal } : {}),
      onConsumed(bytes) {
        onBytes?.(bytes - told);
        told = bytes;
      },
    },
  );
  const diffId = result.diffId as DiffId; // of the tar that was read: the worker computed it
  const before = operation.claimLayer(diffId, "archive");
  if (before !== undefined) return { layer: before, present: true };
  operation.commitLayers([result]);
  return { layer: operation.claimLayer(diffId, "archive") ?? operation.getLayer(diffId), present: false };
}

function checkName(name: string): string {
  if (isDigest(name)) {
    throw new ShaleError("INVALID_ARGUMENT", `Cannot name a checkpoint ${name}: that is a digest`);
  }
  parseReference(name); // says what is wrong with it
  return normalizeName(name);
}

/** Digits of a name's tag. */
const NAME_DIGITS = 12;

/** Equal archives get equal names, other checkpoints of the container others. */
function defaultName({ container }: CheckpointSurvey, diffId: DiffId): string {
  const plain = (container.name ?? container.id?.slice(0, NAME_DIGITS) ?? "")
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, "-")
    .replace(/^-+|-+$/g, "")
    .slice(0, 100);
  return normalizeName(
    `localhost/checkpoints/${plain === "" ? "unnamed" : plain}:${digestHex(diffId).slice(0, NAME_DIGITS)}`,
  );
}
