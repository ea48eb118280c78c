/**
 * Pulling a layer in parts: its table of contents first, then what the store does not have, verified and sealed like any
 * other layer. Everything that speaks against it leads to the whole blob, which continues with the bytes that came, so a
 * layer that can be pulled at all is never refused here.
 *
 * TOC -> plan -> fetch the missing -> verify -> seal. The plan is made, and the layer put together, in a worker thread of
 * the store; this module locates the TOC, decides, and fetches. docs/partial.md, docs/adr/0021, 0023, 0031.
 *
 * An eStargz layer comes in parts only for a caller that says `byToc`: what is sealed then has an identity of its own
 * instead of the diffId, and whoever asked has to refer to that.
 */
import { AsyncGroup, throwIfAborted } from "../../async/index.ts";
import { ShaleError } from "../../errors/index.ts";
import {
  decodeEstargzFooter,
  ESTARGZ_FOOTER_SIZE,
  findTocPointer,
  findZstdChunkedFooter,
  type TocLocation,
  ZSTD_FOOTER_SIZE,
} from "../../formats/toc/index.ts";
import type { DiffId, Digest } from "../../oci/index.ts";
import {
  Arrivals,
  type AssembleOutcome,
  type Download,
  type IngestResult,
  type PlanSummary,
  type StoreOperation,
  tocIdentity,
} from "../../store/index.ts";
import { fetchParts, fetchRanges, missingOf, type PartsSource } from "./parts-fetcher.ts";
import { estimateFetch, type FetchEstimate, isWorthwhile } from "./requests.ts";

export type { PartsSource } from "./parts-fetcher.ts";
export { LinkMeter } from "./requests.ts";

/** Smaller blobs come whole: asking twice would take longer. */
const MINIMUM_SIZE = 128 * 1024;
/** A zstd layer without annotations is asked for a footer from this size on: most have none. */
const FOOTER_SIZE_FROM = 16 * 1024 * 1024;
/**
 * Where an eStargz TOC begins is told by the blob's last 51 bytes. They are fetched with what is mostly the end of the TOC: all
 * of it for a small layer, which so takes one request; of the layer, this much may be fetched in vain.
 */
const ESTARGZ_TAIL = 64 * 1024;
const ESTARGZ_TAIL_SHARE = 1 / 64;
/** Tries with other sources after bytes were wrong. */
const MAX_ATTEMPTS = 4;

export interface PartialLayer {
  readonly diffId: DiffId;
  readonly digest: Digest;
  readonly mediaType: string;
  readonly size: number;
  readonly parts: PartsSource;
}

/** What a pull of this layer would fetch. */
export interface LayerForecast {
  /** Bytes that are fetched for the TOC. */
  readonly tocBytes: number;
  readonly plan: PlanSummary;
  readonly fetch: FetchEstimate;
  /** Of the whole blob, as far as it is missing. */
  readonly whole: FetchEstimate;
  readonly worthwhile: boolean;
}

export type PartialOutcome =
  | { readonly kind: "sealed"; readonly result: IngestResult; readonly forecast: LayerForecast }
  /** To be pulled whole; `why` for people. `toc` is kept with it where it is known. */
  | {
      readonly kind: "whole";
      readonly why: string;
      readonly toc: TocLocation | undefined;
      readonly forecast?: LayerForecast;
    };

export interface PartialOptions {
  readonly signal: AbortSignal;
  readonly onConsumed?: (bytes: number) => void;
  /** Told of each attempt that wrong bytes ended. */
  readonly onProblem?: (problem: string) => void;
  /** Stop with the forecast: nothing but the TOC is fetched. */
  readonly forecastOnly?: boolean;
  /** Also an eStargz layer, which is verified by its TOC alone. */
  readonly byToc?: boolean;
  /** Whatever it costs: for a layer that has to be what it was. */
  readonly always?: boolean;
}

interface AnnotatedLayer {
  readonly size: number;
  readonly parts?: Pick<PartsSource, "annotations">;
}

/** Digest of the TOC of an eStargz layer; undefined for any other, and for annotations that are malformed. */
export function findEstargzDigest({ size, parts }: AnnotatedLayer): Uint8Array | undefined {
  if (parts === undefined) return undefined;
  try {
    const pointer = findTocPointer(parts.annotations, size);
    return pointer?.format === "estargz" ? pointer.digest : undefined;
  } catch (error) {
    if (ShaleError.is(error)) return undefined; // it comes whole
    throw error;
  }
}

/** What a layer is kept under when it comes in parts and is verified by its TOC; undefined for one that can't be. */
export function findTocIdentity(layer: AnnotatedLayer): DiffId | undefined {
  const digest = findEstargzDigest(layer);
  return digest && tocIdentity(digest);
}

/** Puts a layer together if that is cheaper. CANCELLED; errors of network and disk as for a whole pull. */
export async function pullInParts(
  operation: StoreOperation,
  layer: PartialLayer,
  download: Download,
  options: PartialOptions,
): Promise<PartialOutcome> {
  const { signal } = options;
  let toc: TocLocation | undefined;
  try {
    toc = annotatedLocation(layer);
    if (!options.always) {
      if (!operation.hasContent) return { kind: "whole", why: "the store is empty", toc };
      if (layer.size < MINIMUM_SIZE) return { kind: "whole", why: "it is small", toc };
      if (layer.parts.ability() === "none") return { kind: "whole", why: "the registry serves no ranges", toc };
    }
    if (!options.byToc && findTocIdentity(layer) !== undefined) {
      return { kind: "whole", why: "an eStargz layer in parts would not be verified by its diffId", toc };
    }
    const [location] = await Promise.all([
      locate(layer, toc, download, options).then(async (found) => {
        if (found !== undefined) await ensureTail(layer, found, download, options);
        return found;
      }),
      operation.indexChunks({ signal }),
    ]);
    if (location === undefined) return { kind: "whole", why: "it has no table of contents", toc };
    toc = location;
    return await new PartialPull(operation, layer, download, location, options).run();
  } catch (error) {
    throwIfAborted(signal);
    if (!speaksAgainstParts(error)) throw error;
    return { kind: "whole", why: error.message, toc };
  }
}

/** What the TOC says, or the way that the registry answers; the whole blob may do better, and has errors of its own. */
const AGAINST_PARTS: readonly string[] = ["DATA_LOSS", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED"];

function speaksAgainstParts(error: unknown): error is ShaleError {
  return ShaleError.is(error) && AGAINST_PARTS.includes(error.code);
}

class NoRanges extends ShaleError {
  constructor() {
    super("UNIMPLEMENTED", "the registry serves no ranges");
  }
}

/** Where the TOC is as far as annotations say. */
function annotatedLocation(layer: PartialLayer): TocLocation | undefined {
  const pointer = findTocPointer(layer.parts.annotations, layer.size);
  return pointer?.format === "zstd:chunked" ? pointer.location : undefined;
}

async function locate(
  layer: PartialLayer,
  known: TocLocation | undefined,
  download: Download,
  options: PartialOptions,
): Promise<TocLocation | undefined> {
  if (known !== undefined) return known;
  const pointer = findTocPointer(layer.parts.annotations, layer.size);
  if (pointer?.format === "estargz") {
    const size = Math.max(ESTARGZ_FOOTER_SIZE, Math.min(ESTARGZ_TAIL, Math.floor(layer.size * ESTARGZ_TAIL_SHARE)));
    return decodeEstargzFooter(await readTail(layer, size, download, options), layer.size, pointer.digest);
  }
  if (!layer.mediaType.endsWith("zstd") || layer.size < FOOTER_SIZE_FROM) return undefined;
  return findZstdChunkedFooter(await readTail(layer, ZSTD_FOOTER_SIZE, download, options), layer.size);
}

/** The last bytes of the blob. */
async function readTail(
  layer: PartialLayer,
  size: number,
  download: Download,
  options: PartialOptions,
): Promise<Uint8Array> {
  const offset = layer.size - size;
  await ensureRange(layer, offset, layer.size, download, options);
  return download.read(offset, size);
}

/** TOC and tar-split in one request, with the few bytes behind them: then the whole blob ends where the TOC begins. */
function ensureTail(
  layer: PartialLayer,
  location: TocLocation,
  download: Download,
  options: PartialOptions,
): Promise<void> {
  return ensureRange(layer, location.region.offset, layer.size, download, options);
}

async function ensureRange(
  layer: PartialLayer,
  offset: number,
  end: number,
  download: Download,
  { signal, always }: PartialOptions,
): Promise<void> {
  const gaps = download.gaps(offset, end);
  if (gaps.length === 0) return;
  const stop = new AbortController();
  try {
    // A registry that sends the whole blob instead is better read from its start, by an ingest that follows.
    const onWhole = always ? undefined : () => stop.abort(new NoRanges());
    const either = AbortSignal.any([signal, stop.signal]);
    await fetchRanges(layer.parts, gaps, download, undefined, either, onWhole);
  } catch (error) {
    if (stop.signal.aborted && !signal.aborted) throw new NoRanges();
    throw error;
  } finally {
    layer.parts.meter.pause();
  }
}

class PartialPull {
  readonly #operation: StoreOperation;
  readonly #layer: PartialLayer;
  readonly #download: Download;
  readonly #location: TocLocation;
  readonly #options: PartialOptions;
  #forecast: LayerForecast | undefined;

  constructor(
    operation: StoreOperation,
    layer: PartialLayer,
    download: Download,
    location: TocLocation,
    options: PartialOptions,
  ) {
    this.#operation = operation;
    this.#layer = layer;
    this.#download = download;
    this.#location = location;
    this.#options = options;
  }

  async run(): Promise<PartialOutcome> {
    const { signal, onProblem } = this.#options;
    const whole = (why: string): PartialOutcome => ({
      kind: "whole",
      why,
      toc: this.#location,
      ...(this.#forecast === undefined ? {} : { forecast: this.#forecast }),
    });
    for (let attempt = 1; attempt <= MAX_ATTEMPTS; attempt++) {
      let outcome: AssembleOutcome;
      try {
        outcome = await this.#attempt(attempt > 1 || this.#options.always === true);
      } catch (error) {
        // The TOC itself may have come wrong: once more, then the blob as a whole, whose digest decides.
        if (!ShaleError.is(error, "DATA_LOSS") || attempt > 1) throw error;
        throwIfAborted(signal);
        onProblem?.(error.message);
        this.#download.forget(this.#location.region.offset, this.#layer.size);
        await ensureTail(this.#layer, this.#location, this.#download, this.#options);
        continue;
      }
      if (outcome.kind === "done") return { kind: "sealed", result: outcome.result, forecast: this.#forecast! };
      if (outcome.kind === "declined") return whole("the store has too little of it");
      onProblem?.(outcome.problem);
      this.#operation.reportBadSources(outcome.badSources);
      for (const { offset, end } of outcome.badRanges) this.#download.forget(offset, end);
    }
    return whole("too many of its parts were wrong");
  }

  /** The worker and the fetching side by side. `committed`: an attempt before decided that it is worth it. */
  async #attempt(committed: boolean): Promise<AssembleOutcome> {
    const { signal, onConsumed, forecastOnly } = this.#options;
    await using group = new AsyncGroup(signal);
    const work: Promise<unknown>[] = [];
    const assembling = group.run((stop) =>
      this.#operation.assemble(this.#download, this.#location, this.#layer, {
        signal: stop,
        ...(onConsumed === undefined ? {} : { onConsumed }),
        onPlan: (offer) => {
          this.#forecast = this.#forecastOf(offer);
          if (forecastOnly || !(committed || this.#forecast.worthwhile)) return undefined;
          const arrivals = new Arrivals(offer.offsets.length);
          work.push(
            group.run(async (stopFetch) => {
              try {
                await fetchParts(this.#layer.parts, offer, this.#download, arrivals, stopFetch);
              } catch (error) {
                arrivals.fail();
                throw error;
              }
            }),
          );
          return arrivals;
        },
      }),
    );
    let outcome: AssembleOutcome;
    try {
      outcome = await assembling;
    } catch (error) {
      await group.all(work); // throws the first failure, which may be that of the fetching
      throw error;
    }
    // An attempt that ended early leaves the rest of its parts to the next one.
    if (outcome.kind === "done") await group.all(work);
    return outcome;
  }

  #forecastOf(offer: Parameters<Parameters<StoreOperation["assemble"]>[3]["onPlan"]>[0]): LayerForecast {
    const { ability, meter } = this.#layer.parts;
    const link = meter.estimate;
    const fetch = estimateFetch(missingOf(offer, this.#download), link, ability());
    const whole = estimateFetch(this.#download.gaps(), link, "none");
    const tocBytes = this.#layer.size - this.#location.region.offset;
    return { tocBytes, plan: offer.summary, fetch, whole, worthwhile: isWorthwhile(fetch, whole, offer.summary) };
  }
}
