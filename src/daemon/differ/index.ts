/**
 * The diff service's Apply for snapshots of ours: the compressed blob that containerd has fetched becomes a layer by the same ingest as in
 * a pull, and the snapshot is made of it; nothing is written into its directory.
 *
 * UNIMPLEMENTED, so that containerd's next differ writes into the mounts, for: mounts that are not exactly those of a snapshot that is
 * being unpacked here, media types that are no tar layer (encrypted ones, artifacts), and snapshots that can't take a layer any more.
 * The bytes are verified against the descriptor's digest, whatever containerd has verified. Annotations of the descriptor come from
 * whoever built the image: none of them is believed.
 */
import { Slots } from "../../async/index.ts";
import { ShaleError } from "../../errors/index.ts";
import { containerdLocation } from "../../images/containerd-content.ts";
import { type Digest, essenceOf, findLayerType, MediaType, parseDigest } from "../../oci/index.ts";
import type { Call } from "../../rpc/index.ts";
import type { ActiveSnapshot, Snapshotter } from "../../snapshotter/index.ts";
import type { DiskBudget } from "../../snapshotter/remote/index.ts";
import type { Download, FeedSource, LayerRecord, Store, StoreOperation } from "../../store/index.ts";
import type { AppliedLayer } from "../metrics/index.ts";
import type { ApplyRequest, WireDescriptor } from "../services/messages.ts";
import { ContainerdContent } from "./content.ts";

export interface DifferOptions {
  readonly store: Store;
  readonly snapshotter: Snapshotter;
  readonly disk: DiskBudget;
  /** Layers taken in at a time; more wait. */
  readonly unpacks: number;
  readonly containerd: { readonly address: string; readonly root: string };
  readonly onApplied?: (layer: AppliedLayer & { readonly key: string; readonly digest: Digest }) => void;
  /** Of what no call waits for. */
  readonly onProblem?: (error: unknown) => void;
}

interface Blob {
  readonly digest: Digest;
  readonly mediaType: string;
  readonly size: number;
  /** Of containerd, that has it. */
  readonly namespace: string;
}

/** For the log: which image it is said to be of. */
const IMAGE_REF = "containerd.io/snapshot/cri.image-ref";
/** "<namespace>/<n>/<key>", as containerd's metadata layer writes keys. */
const NAMESPACED_KEY = /^([^/]+)\/\d+\//;
/** What containerd uses where nobody names one. */
const DEFAULT_NAMESPACE = "default";

export class Differ implements Disposable {
  readonly #options: DifferOptions;
  readonly #slots: Slots;
  readonly #content: ContainerdContent;
  /** Blobs that are being taken in: two images that share a layer are unpacked at the same time. */
  readonly #running = new Map<Digest, Promise<unknown>>();

  constructor(options: DifferOptions) {
    this.#options = options;
    this.#slots = new Slots(options.unpacks);
    this.#content = new ContainerdContent(options.containerd);
  }

  /** Answers the uncompressed layer's descriptor, once the snapshot is durably made of it. */
  async apply({ diff, mounts }: ApplyRequest, call: Call): Promise<Partial<WireDescriptor>> {
    const { snapshotter, store, onApplied } = this.#options;
    const started = performance.now();
    const active = snapshotter.findActive(mounts);
    call.note({ key: active?.key, layer: diff?.digest, image: diff?.annotations[IMAGE_REF] });
    const blob = checkDescriptor(diff, namespaceOf(call, active));
    if (active === undefined) throw notOurs(blob, "these are not mounts of a snapshot of shale");
    if (!active.unpack) throw notOurs(blob, `snapshot ${active.key} was not made to be unpacked into`);
    using operation = store.begin(`apply ${blob.digest}`);
    const { layer, state } = await this.#ensure(operation, blob, call.signal);
    try {
      snapshotter.attachLayer(active.key, operation, layer.diffId);
    } catch (error) {
      if (ShaleError.is(error, "FAILED_PRECONDITION")) throw notOurs(blob, error.message);
      throw error;
    }
    const durationMs = performance.now() - started;
    onApplied?.({ key: active.key, digest: blob.digest, state, bytes: state === "stored" ? blob.size : 0, durationMs });
    return { mediaType: MediaType.OCI_LAYER, digest: layer.diffId, size: layer.tarSize };
  }

  [Symbol.dispose](): void {
    this.#content[Symbol.dispose]();
  }

  /** The layer in sight, kept by `operation`. */
  async #ensure(
    operation: StoreOperation,
    blob: Blob,
    signal: AbortSignal,
  ): Promise<{ readonly layer: LayerRecord; readonly state: AppliedLayer["state"] }> {
    for (;;) {
      const present = this.#claim(operation, blob);
      if (present !== undefined) return { layer: present, state: "present" };
      const other = this.#running.get(blob.digest);
      if (other === undefined) break;
      await other.catch(() => undefined); // its caller is told; this one tries for itself
    }
    const running = this.#store(operation, blob, signal);
    this.#running.set(blob.digest, running);
    try {
      return { layer: await running, state: "stored" };
    } finally {
      this.#running.delete(blob.digest);
    }
  }

  #claim(operation: StoreOperation, { digest }: Blob): LayerRecord | undefined {
    // Digest and diffId were verified together when this was written down; containerd compares the diffId with the config's anyway.
    for (const diffId of this.#options.store.diffIdsOfBlob(digest)) {
      const layer = operation.claimLayer(diffId);
      if (layer !== undefined) return layer;
    }
    return undefined;
  }

  async #store(operation: StoreOperation, blob: Blob, signal: AbortSignal): Promise<LayerRecord> {
    const { disk, containerd } = this.#options;
    using _ = await this.#slots.take(1, signal);
    await disk.admit(`store layer ${blob.digest}`, signal);
    const file = this.#content.find(blob.digest, blob.size);
    const layer =
      file === undefined
        ? await this.#receive(operation, blob, signal)
        : await this.#ingest(operation, blob, file, signal);
    operation.recordSource(layer.diffId, { location: containerdLocation(containerd.root), ...sourceOf(blob) });
    operation.indexLayersLater((error) => this.#options.onProblem?.(error));
    return layer;
  }

  async #ingest(
    operation: StoreOperation,
    { digest }: Blob,
    feed: FeedSource,
    signal: AbortSignal,
  ): Promise<LayerRecord> {
    const result = await operation.ingest(feed, { digest }, { signal });
    operation.commitLayers([result]);
    const diffId = result.diffId as LayerRecord["diffId"];
    // Claimed, not just found: another process may have committed it first, and a collection condemned that one since.
    return operation.claimLayer(diffId) ?? operation.getLayer(diffId);
  }

  /** Through containerd's socket; what has come stays for the next try. */
  async #receive(operation: StoreOperation, blob: Blob, signal: AbortSignal): Promise<LayerRecord> {
    const { digest, size } = blob;
    using download = await operation.download(digest, size, { signal });
    try {
      if (download.received < size) await this.#fill(download, blob, signal);
      download.complete();
      const layer = await this.#ingest(operation, blob, download.feed(), signal);
      download.remove();
      return layer;
    } catch (error) {
      if (ShaleError.is(error, "DATA_LOSS")) download.remove(); // as a whole they are wrong, whoever sent them
      throw error;
    }
  }

  async #fill(download: Download, { digest, size, namespace }: Blob, signal: AbortSignal): Promise<void> {
    for await (const bytes of this.#content.read(namespace, digest, download.received, signal)) {
      if (download.received + bytes.length > size) {
        throw new ShaleError(
          "DATA_LOSS",
          `Cannot store layer ${digest}: containerd has more than the ${size} bytes it said`,
        );
      }
      download.write(bytes);
    }
  }
}

function sourceOf({ digest, mediaType, size }: Blob) {
  return { digest, mediaType, size };
}

function namespaceOf(call: Call, active: ActiveSnapshot | undefined): string {
  return call.header("containerd-namespace") ?? NAMESPACED_KEY.exec(active?.key ?? "")?.[1] ?? DEFAULT_NAMESPACE;
}

/** INVALID_ARGUMENT for what no differ could apply, UNIMPLEMENTED for what another may. */
function checkDescriptor(diff: WireDescriptor | null, namespace: string): Blob {
  if (diff === null) throw new ShaleError("INVALID_ARGUMENT", "Cannot apply a layer: the request has no descriptor");
  const digest = parseDigest(diff.digest, "descriptor", "digest");
  const mediaType = essenceOf(diff.mediaType);
  if (!Number.isSafeInteger(diff.size) || diff.size < 0) {
    throw new ShaleError("INVALID_ARGUMENT", `Cannot apply layer ${digest}: its size is ${diff.size}`);
  }
  const blob = { digest, mediaType, size: diff.size, namespace };
  if (findLayerType(mediaType) === undefined) throw notOurs(blob, `${diff.mediaType} is no layer that shale reads`);
  return blob;
}

function notOurs({ digest }: Blob, why: string): ShaleError {
  return new ShaleError("UNIMPLEMENTED", `Cannot apply layer ${digest}: ${why}`);
}
