/** Archives out of the store, and the list of them; see index.ts. */
import { ShaleError } from "../../errors/index.ts";
import { displayName, getImage } from "../../images/find.ts";
import { readLayerTar } from "../../images/layer-tar.ts";
import { PartialFile } from "../../images/partial-file.ts";
import { decodeManifest, type DiffId, type Digest } from "../../oci/index.ts";
import type { ImageRecord, Store } from "../../store/index.ts";
import { checkpointNameOf } from "../transport/index.ts";

export interface StoredCheckpoint {
  /** In the store. */
  readonly name: string;
  readonly digest: Digest;
  readonly diffId: DiffId;
  /** Name of the container. */
  readonly container: string;
  /** Of the container's image; undefined where it is not known. */
  readonly image: string | undefined;
  /** Of the archive. */
  readonly size: number;
  /** Bytes of the store that this checkpoint brought. */
  readonly stored: number;
  readonly createdAt: Date;
}

/** The checkpoints among the store's images, those that were pulled as images too, by name. */
export function listCheckpoints(store: Store): StoredCheckpoint[] {
  return store.listImages().flatMap((image) => findCheckpoint(store, image) ?? []);
}

function findCheckpoint(store: Store, image: ImageRecord): StoredCheckpoint | undefined {
  const [record, ...others] = store.manifestsOf(image.name);
  const [layer, ...more] = record?.layers ?? [];
  if (record === undefined || layer === undefined || others.length > 0 || more.length > 0) return undefined;
  const document = store.getDocument(record.digest);
  const { annotations } = decodeManifest(document.bytes, document.mediaType);
  const container = checkpointNameOf(annotations);
  const stored = store.findLayer(layer.diffId);
  if (container === undefined || stored === undefined) return undefined;
  return {
    name: image.name,
    digest: record.digest,
    diffId: layer.diffId,
    container,
    image:
      annotations["org.criu.checkpoint.rootfsImageName"] ??
      annotations["io.podman.annotations.checkpoint.rootfsImageName"],
    size: stored.tarSize,
    stored: stored.ownBytes + stored.metadataBytes,
    createdAt: image.createdAt,
  };
}

export interface ExportOptions {
  readonly onBytes?: (count: number) => void;
  readonly signal?: AbortSignal;
}

/** The memory of a process is in it. */
const PERMISSIONS = 0o600;

/** See index.ts. `output` is a path, or who takes the bytes in order. */
export async function exportCheckpoint(
  store: Store,
  name: string,
  output: string | ((bytes: Uint8Array) => Promise<void>),
  options: ExportOptions = {},
): Promise<StoredCheckpoint> {
  const image = getImage(store, name);
  const checkpoint = findCheckpoint(store, image);
  if (checkpoint === undefined) {
    throw new ShaleError("FAILED_PRECONDITION", `Cannot export ${displayName(image.name)}: it is no checkpoint`, {
      hint: "shale checkpoint list shows those that the store has; shale save writes images",
    });
  }
  const { signal } = options;
  using operation = store.begin(`export ${image.name}`);
  const tar = readLayerTar(operation, operation.getLayer(checkpoint.diffId), options);
  if (typeof output !== "string") {
    for await (const piece of tar) await output(piece);
    return checkpoint;
  }
  using file = await PartialFile.open(output, { permissions: PERMISSIONS, ...(signal && { signal }) });
  for await (const piece of tar) file.write(piece);
  file.publish();
  return checkpoint;
}
