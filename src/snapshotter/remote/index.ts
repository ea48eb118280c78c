/**
 * Layers that containerd leaves to the snapshotter: fetched from the registry that the labels of a Prepare name, with our
 * own client and credentials.
 *
 * Guarantees
 * - A layer is handed out only if it makes, with those below it, the chain id that containerd asked for. Labels, manifests
 *   and configs that say otherwise are nobody's: that Prepare is left to containerd, which verifies for itself.
 * - A layer that the store has costs no request, whatever image it came by. The others of an image are fetched side by side,
 *   once for all Prepare calls that want them.
 * - What runs at a time, and the bytes of it, are bounded (limits.ts), and nothing begins above the disk's high mark.
 * - A registry that can't be used (down, refused, lying) fails nothing: containerd is told to fetch the layer itself. Only a
 *   full disk and a cancelled call are errors: containerd's own copy would need more room, not less.
 *
 * docs/adr/0017.
 */
import { ShaleError } from "../../errors/index.ts";
import { type ChainId, type DiffId, digestHex, extendChain, formatReference, isDigest } from "../../oci/index.ts";
import type { RegistryClient } from "../../registry/index.ts";
import type { Store, StoreOperation } from "../../store/index.ts";
import type { RemoteLayers, RemoteRequest } from "../types.ts";
import { type DiskBudget, isDiskFull } from "./disk-budget.ts";
import type { RemoteEvent } from "./events.ts";
import { type FetchContext, ImageFetch } from "./image-fetch.ts";
import { readLabels, type WantedLayer } from "./labels.ts";
import { DEFAULT_REMOTE_LIMITS, LINGER_MS, type RemoteLimits } from "./limits.ts";
import { Slots } from "../../async/index.ts";

export { DiskBudget, type DiskBudgetOptions, isDiskFull } from "./disk-budget.ts";
export type { RemoteEvent } from "./events.ts";
export { DEFAULT_REMOTE_LIMITS, type RemoteLimits } from "./limits.ts";

export interface RemoteOptions {
  readonly store: Store;
  /** Closed by its owner, after this. */
  readonly client: RegistryClient;
  readonly disk: DiskBudget;
  readonly limits?: Partial<RemoteLimits>;
  /** How long a fetch that nobody asks for any more goes on. */
  readonly lingerMs?: number;
  readonly onEvent?: (event: RemoteEvent) => void;
}

export class RegistryLayers implements RemoteLayers, AsyncDisposable {
  readonly #context: FetchContext;
  /** By repository and manifest. */
  readonly #images = new Map<string, ImageFetch>();
  readonly #closing = new Set<Promise<void>>();
  #closed = false;

  constructor(options: RemoteOptions) {
    const limits = { ...DEFAULT_REMOTE_LIMITS, ...options.limits };
    this.#context = {
      store: options.store,
      client: options.client,
      disk: options.disk,
      limits,
      images: new Slots(limits.images),
      layers: new Slots(limits.layers),
      bytes: new Slots(limits.bytesInFlight),
      lingerMs: options.lingerMs ?? LINGER_MS,
      onEvent: options.onEvent ?? (() => undefined),
    };
  }

  async fetch<T>(
    request: RemoteRequest,
    use: (operation: StoreOperation, diffId: DiffId) => T,
  ): Promise<T | undefined> {
    const wanted = this.#wanted(request);
    if (wanted === undefined) return undefined;
    const known = this.#useKnown(request, wanted, use);
    if (known !== undefined) {
      this.#prefetch(request, wanted);
      return known.value;
    }
    const outcome = await this.#join(wanted).withLayer(request, use);
    if ("value" in outcome) return outcome.value;
    if (!mayFallBack(outcome.failure)) throw outcome.failure;
    this.#context.onEvent({ kind: "left", chainId: request.chainId, error: outcome.failure });
    return undefined;
  }

  /** Stops all fetches, and calls that wait with CANCELLED; resolves when all have stopped. Later calls are left to containerd. */
  async close(): Promise<void> {
    this.#closed = true;
    for (const image of this.#images.values()) image.close();
    await Promise.all(this.#closing);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Undefined when the labels name no image, or what they say can't be meant. */
  #wanted(request: RemoteRequest): WantedLayer | undefined {
    if (this.#closed || !isDigest(request.chainId)) return undefined;
    try {
      return readLabels(request.labels);
    } catch (error) {
      if (!ShaleError.is(error)) throw error;
      this.#context.onEvent({ kind: "left", chainId: request.chainId, error });
      return undefined;
    }
  }

  /**
   * The fast way, without a request: the store knows which layer came out of that blob. Whoever wrote that down, it is right
   * if it makes the chain id; nothing else would.
   */
  #useKnown<T>(
    request: RemoteRequest,
    wanted: WantedLayer,
    use: (operation: StoreOperation, diffId: DiffId) => T,
  ): { readonly value: T } | undefined {
    if (wanted.layer === undefined) return undefined;
    const { store, onEvent } = this.#context;
    const started = performance.now();
    const parent = parentChain(request);
    if (parent === "unknown") return undefined;
    const diffId = store.diffIdsOfBlob(wanted.layer).find((one) => extendChain(parent, one) === request.chainId);
    if (diffId === undefined) return undefined;
    using operation = store.begin(`prepare ${formatReference(wanted.reference)}`);
    if (operation.claimLayer(diffId) === undefined) return undefined;
    const value = use(operation, diffId);
    this.#images.get(keyOf(wanted))?.taken(request.chainId);
    const durationMs = performance.now() - started;
    const image = formatReference(wanted.reference);
    onEvent({ kind: "layer", image, digest: wanted.layer, diffId, state: "known", received: 0, durationMs });
    return { value };
  }

  /** This layer was there; if one of those above is not, its fetch begins now rather than when containerd comes to it. */
  #prefetch(request: RemoteRequest, wanted: WantedLayer): void {
    const { store } = this.#context;
    if (this.#images.has(keyOf(wanted))) return;
    if (wanted.layers.every((digest) => store.diffIdsOfBlob(digest).length > 0)) return;
    this.#join(wanted).prefetch(request);
  }

  #join(wanted: WantedLayer): ImageFetch {
    const key = keyOf(wanted);
    let image = this.#images.get(key);
    if (image === undefined) {
      const { host, repository } = wanted.reference;
      const reference =
        wanted.manifest === undefined ? wanted.reference : { host, repository, digest: wanted.manifest };
      image = new ImageFetch(this.#context, reference, (closing) => {
        this.#images.delete(key);
        this.#closing.add(closing);
        void closing.finally(() => this.#closing.delete(closing));
      });
      this.#images.set(key, image);
    }
    return image;
  }
}

function keyOf({ reference, manifest }: WantedLayer): string {
  const { host, repository } = reference;
  return manifest === undefined ? formatReference(reference) : `${host}/${repository}@${manifest}`;
}

/**
 * Chain id of what is below; undefined for nothing. Where a plain directory is below, containerd has named it by its chain id
 * ("<namespace>/<n>/sha256:..."), and what `extendChain` makes of that name is either the chain id asked for or of no use.
 */
function parentChain({ parentDiffIds, parent }: RemoteRequest): ChainId | undefined | "unknown" {
  if (parentDiffIds !== undefined) {
    return parentDiffIds.reduce<ChainId | undefined>((chain, diffId) => extendChain(chain, diffId), undefined);
  }
  const name = parent.slice(parent.lastIndexOf("/") + 1);
  return isDigest(name) && digestHex(name).length === 64 ? (name as string as ChainId) : "unknown";
}

/** Whether containerd may help itself: everything but a full disk, a cancelled call, and mistakes of our own. */
function mayFallBack(error: unknown): boolean {
  if (!ShaleError.is(error) || error.code === "CANCELLED") return false;
  return error.code !== "RESOURCE_EXHAUSTED" || !isDiskFull(error);
}
