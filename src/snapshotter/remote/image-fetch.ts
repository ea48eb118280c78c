/**
 * One image on its way from a registry, for any number of Prepare calls. containerd asks for its layers one after the other,
 * each when it has the one below; the first question starts them all, and every call waits for its own layer only.
 *
 *   opening ──► fetching ──► done      all that were asked for have been handed out: the lease ends
 *      │            └──────► idle ───► nobody has asked for LINGER_MS: what is under way stops, the lease ends
 *      └─► failed: remembered for GIVE_UP_MS, so that the other layers of the same pull go to containerd at once
 *
 * The lease of the fetch keeps every layer from when it is committed until a snapshot has it. A call that is cancelled
 * leaves the others' layers alone.
 */
import { cancelled, Slots, throwIfAborted } from "../../async/index.ts";
import { ShaleError } from "../../errors/index.ts";
import { LayerFetcher } from "../../images/layer-fetcher.ts";
import { type Origin, type OriginLayer, openOrigin } from "../../images/origin.ts";
import { silentProgress } from "../../images/progress.ts";
import { openManifests } from "../../images/pull.ts";
import { type ChainId, chainIds, type DiffId, type Digest, formatReference, type Reference } from "../../oci/index.ts";
import type { RegistryClient } from "../../registry/index.ts";
import type { Store, StoreOperation } from "../../store/index.ts";
import type { RemoteRequest } from "../types.ts";
import { type DiskBudget, isDiskFull } from "./disk-budget.ts";
import type { RemoteEvent } from "./events.ts";
import { GIVE_UP_MS, type RemoteLimits } from "./limits.ts";

/** What all fetches share. */
export interface FetchContext {
  readonly store: Store;
  readonly client: RegistryClient;
  readonly disk: DiskBudget;
  readonly limits: RemoteLimits;
  readonly images: Slots;
  readonly layers: Slots;
  readonly bytes: Slots;
  readonly lingerMs: number;
  readonly onEvent: (event: RemoteEvent) => void;
}

/** A layer's place in the image that was opened. */
interface Place {
  readonly layer: OriginLayer;
  readonly position: number;
  readonly chainId: ChainId;
}

interface OpenImage {
  readonly places: readonly Place[];
  readonly diffIds: readonly DiffId[];
  readonly location: string;
}

export class ImageFetch {
  readonly name: string;
  readonly #operation: StoreOperation;
  readonly #context: FetchContext;
  readonly #stopping = new AbortController();
  readonly #image: Promise<OpenImage>;
  readonly #started = new Map<ChainId, Promise<void>>();
  /** Started, and not yet taken by a call. */
  readonly #left = new Set<ChainId>();
  readonly #perImage: Slots;
  readonly #ended: (closing: Promise<void>) => void;
  #slot: Disposable | undefined;
  #fetcher: LayerFetcher | undefined;
  #idleMs: number;
  /** Some layer has been asked for. */
  #asked = false;
  #running = 0;
  #waiting = 0;
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  /** `ended` is told once, when it takes no more calls, with what resolves when nothing of it is left. */
  constructor(context: FetchContext, reference: Reference, ended: (closing: Promise<void>) => void) {
    this.name = formatReference(reference);
    this.#context = context;
    this.#ended = ended;
    this.#idleMs = context.lingerMs;
    this.#perImage = new Slots(context.limits.layersOfImage);
    this.#operation = context.store.begin(`fetch ${this.name} for containerd`);
    this.#image = this.#open(reference);
    this.#image.catch(() => {
      this.#idleMs = GIVE_UP_MS;
      this.#rest();
    });
  }

  /**
   * Calls `use` when the layer that makes `chainId` is in the store, while the lease keeps it. Starts the layers above it
   * too. Resolves with the failure where the layer can't be had: INVALID_ARGUMENT when the image has no such layer, or
   * others below it than `parents` says. Rejects with what `use` throws.
   */
  async withLayer<T>(
    { chainId, parentDiffIds, signal }: RemoteRequest,
    use: (operation: StoreOperation, diffId: DiffId) => T,
  ): Promise<{ readonly value: T } | { readonly failure: unknown }> {
    clearTimeout(this.#timer);
    this.#waiting++;
    try {
      let place: Place | undefined;
      try {
        const image = await unlessAborted(this.#image, signal);
        throwIfAborted(this.#stopping.signal);
        place = findPlace(this.name, image, chainId, parentDiffIds);
        this.#start(image, place.position);
        await unlessAborted(this.#started.get(place.chainId)!, signal);
      } catch (failure) {
        // Told to one call, and forgotten: the next one may fare better.
        if (signal?.aborted !== true && place !== undefined) this.#forget(place);
        return { failure };
      }
      const value = use(this.#operation, place.layer.diffId);
      this.#left.delete(place.chainId);
      return { value };
    } finally {
      this.#waiting--;
      this.#rest();
    }
  }

  /** Starts the layers from this one up without waiting: who has found it in the store will ask for the rest. */
  prefetch({ chainId, parentDiffIds }: RemoteRequest): void {
    void this.withLayer({ chainId, parentDiffIds, labels: {}, parent: "", signal: undefined }, () => undefined);
  }

  /** A snapshot has this layer now. */
  taken(chainId: string): void {
    if (!this.#left.delete(chainId as ChainId)) return;
    this.#rest();
  }

  /** Stops what is under way, and calls that wait with CANCELLED. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#stopping.abort(new ShaleError("CANCELLED", `Stopped fetching ${this.name}`));
    this.#ended(this.#drain());
  }

  async #drain(): Promise<void> {
    await Promise.allSettled([this.#image, ...this.#started.values()]);
    this.#releaseSlot();
    this.#operation[Symbol.dispose]();
  }

  #releaseSlot(): void {
    this.#slot?.[Symbol.dispose]();
    this.#slot = undefined;
  }

  async #open(reference: Reference): Promise<OpenImage> {
    const { client, images, store } = this.#context;
    const { signal } = this.#stopping;
    try {
      this.#slot = await images.take(1, signal);
      const origin: Origin = await openOrigin(
        { kind: "registry", reference },
        { registry: () => Promise.resolve(client), signal },
      );
      store.warm(2);
      const target = await origin.resolve(signal);
      const [manifest] = await openManifests(origin, target, { signal });
      const diffIds = manifest!.layers.map((layer) => layer.diffId);
      const chain = chainIds(diffIds);
      const places = manifest!.layers.map((layer, position) => ({ layer, position, chainId: chain[position]! }));
      return { places, diffIds, location: origin.location };
    } catch (error) {
      this.#releaseSlot();
      this.#failed(error, undefined);
      throw error;
    }
  }

  /** The largest first: with more layers than cores, a large one that begins last is what everybody waits for. */
  #start(image: OpenImage, position: number): void {
    const wanted = image.places.filter((one) => one.position >= position && !this.#started.has(one.chainId));
    this.#asked = true;
    this.#fetcher ??= new LayerFetcher(this.#operation, silentProgress);
    for (const place of wanted.sort((a, b) => b.layer.size - a.layer.size)) {
      this.#running++;
      this.#left.add(place.chainId);
      const running = this.#fetch(this.#fetcher, image, place).finally(() => this.#settled());
      running.catch(() => undefined); // its failure is for who asks for this layer, now or later
      this.#started.set(place.chainId, running);
    }
  }

  async #fetch(fetcher: LayerFetcher, { location }: OpenImage, { layer }: Place): Promise<void> {
    const { layers, bytes, disk, onEvent } = this.#context;
    const { signal } = this.#stopping;
    const started = performance.now();
    const digest = layer.digest!; // a registry names every layer by the digest of its blob
    try {
      let pulled = fetcher.findPresent(layer);
      if (pulled === undefined) {
        using _image = await this.#perImage.take(1, signal);
        using _all = await layers.take(1, signal);
        using _bytes = await bytes.take(layer.size, signal);
        await disk.admit(`fetch layer ${digest} of ${this.name}`, signal);
        pulled = await fetcher.fetch(layer, signal);
      }
      const { diffId, mediaType, size } = layer;
      this.#operation.recordSource(diffId, { location, digest, mediaType, size });
      const durationMs = performance.now() - started;
      const { state, received } = pulled;
      onEvent({ kind: "layer", image: this.name, digest, diffId, state, received, durationMs });
    } catch (error) {
      this.#failed(error, layer);
      if (isDiskFull(error)) await this.#dropDownload(digest, layer.size);
      throw error;
    }
  }

  /** Nobody is there to make room and continue: a part of a layer is the room that others need. */
  async #dropDownload(digest: Digest, size: number): Promise<void> {
    try {
      using download = await this.#operation.download(digest, size, { signal: this.#stopping.signal });
      download.remove();
    } catch (error) {
      this.#failed(error, undefined); // stays until the collector takes it; what matters to the caller is the full disk
    }
  }

  #settled(): void {
    this.#running--;
    if (this.#running > 0) return;
    this.#releaseSlot();
    if (this.#closed) return;
    // So that the next image finds the files of this one; a container may be waiting for this one.
    this.#operation.indexLayersLater((error) =>
      this.#context.onEvent({ kind: "failed", image: this.name, digest: undefined, error }),
    );
    this.#rest();
  }

  #forget(place: Place): void {
    this.#started.delete(place.chainId);
    this.#left.delete(place.chainId);
  }

  /** Ends when all is done and taken; else when nobody has asked for a while. */
  #rest(): void {
    clearTimeout(this.#timer);
    if (this.#closed || this.#waiting > 0) return;
    const finished = this.#asked && this.#running === 0 && this.#left.size === 0;
    if (finished) {
      this.close();
      return;
    }
    this.#timer = setTimeout(() => this.close(), this.#idleMs);
    this.#timer.unref();
  }

  #failed(error: unknown, layer: OriginLayer | undefined): void {
    if (this.#stopping.signal.aborted) return;
    this.#context.onEvent({ kind: "failed", image: this.name, digest: layer?.digest, error });
  }
}

function findPlace(name: string, image: OpenImage, chainId: string, parents: readonly DiffId[] | undefined): Place {
  const place = image.places.find((one) => one.chainId === chainId);
  const below = place && image.diffIds.slice(0, place.position);
  if (place === undefined || (parents !== undefined && below!.join() !== parents.join())) {
    throw new ShaleError("INVALID_ARGUMENT", `Cannot use ${name} for ${chainId}: none of its layers makes that chain`);
  }
  return place;
}

/** The result, or CANCELLED as soon as the signal is aborted; what is awaited belongs to the fetch and goes on. */
function unlessAborted<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return work;
  return new Promise((resolve, reject) => {
    const stop = () => reject(cancelled(signal));
    if (signal.aborted) return stop();
    signal.addEventListener("abort", stop, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", stop));
  });
}
