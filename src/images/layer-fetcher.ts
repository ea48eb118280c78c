/**
 * Brings one layer from its origin into the store: resumable download, ingest that follows it, commit. Used by pull and
 * by repair.
 */
import { AsyncGroup, throwIfAborted } from "../async/index.ts";
import { ShaleError } from "../errors/index.ts";
import type { DiffId, Digest } from "../oci/index.ts";
import type { TocLocation } from "../formats/toc/index.ts";
import type { Download, IngestResult, LayerRecord, PlanSummary, StoreOperation } from "../store/index.ts";
import type { OriginLayer } from "./origin.ts";
import { findEstargzDigest, findTocIdentity, type PartialOutcome, pullInParts } from "./partial/index.ts";
import type { Progress, ProgressTask } from "./progress.ts";
import { explainWriteError } from "./write-error.ts";

export interface PulledLayer {
  /** As the image's config names it; `record` has what the layer is kept under. */
  readonly diffId: DiffId;
  readonly digest: Digest | undefined;
  /** "fetched" by this operation, "present" before it, or brought by another one meanwhile ("shared"). */
  readonly state: "fetched" | "present" | "shared";
  /** As the origin has it. */
  readonly size: number;
  /** Bytes that came from the origin in this operation. */
  readonly received: number;
  readonly record: LayerRecord;
  /** Where it was put together from parts: which. */
  readonly parts?: PlanSummary;
}

type Expected = { readonly digest?: Digest; readonly diffId: DiffId };

export class LayerFetcher {
  readonly #operation: StoreOperation;
  readonly #progress: Progress;
  readonly #whole: boolean;
  readonly #byToc: boolean;
  /** Layers that are sealed and wait for the commit that is about to happen. */
  #waiting: IngestResult[] = [];
  #scheduled: Promise<void> | undefined;

  /**
   * `whole`: layers are not pulled in parts. `byToc`: an eStargz layer may be verified by its TOC instead of its diffId; the
   * caller then refers to `record.diffId` and to nothing else.
   */
  constructor(
    operation: StoreOperation,
    progress: Progress,
    options: { readonly whole?: boolean; readonly byToc?: boolean } = {},
  ) {
    this.#operation = operation;
    this.#progress = progress;
    this.#whole = options.whole ?? false;
    this.#byToc = !this.#whole && (options.byToc ?? false);
  }

  /** The layer if the store has it; undefined when it has to be fetched. */
  findPresent(layer: OriginLayer): PulledLayer | undefined {
    const record = this.#claim(layer);
    if (record === undefined) return undefined;
    this.#progress.start(layer.diffId, { label: shortDigest(layer), total: layer.size }).done("already here");
    return { ...factsOf(layer), state: "present", received: 0, record };
  }

  /** Verified by its diffId, if there is one. */
  #claim(layer: OriginLayer): LayerRecord | undefined {
    const verified = this.#operation.claimLayer(layer.diffId);
    if (verified !== undefined || !this.#byToc) return verified;
    const identity = findTocIdentity(layer);
    return identity && this.#operation.claimLayer(identity);
  }

  /**
   * Resolves when the layer is committed, whoever did it. DATA_LOSS when the origin's bytes are not what they should be,
   * RESOURCE_EXHAUSTED when the disk is full; what was received stays for the next try where that can help.
   */
  async fetch(layer: OriginLayer, signal: AbortSignal): Promise<PulledLayer> {
    const task = this.#progress.start(layer.diffId, { label: shortDigest(layer), total: layer.size });
    try {
      const pulled =
        layer.file === undefined ? await this.#download(layer, task, signal) : await this.#read(layer, task, signal);
      task.done(pulled.state === "shared" ? "fetched by another pull" : undefined);
      return pulled;
    } catch (error) {
      task.fail();
      const hint = "Remove images and run shale gc; the pull continues where it stopped";
      throw explainWriteError(error, `Cannot store layer ${layer.digest ?? layer.diffId}`, hint);
    }
  }

  /**
   * Has a layer whose `diffId` is the identity of one that is verified by its TOC: put together from parts whatever that costs.
   * UNAVAILABLE where it can't be.
   */
  async fetchByToc(layer: OriginLayer, signal: AbortSignal): Promise<void> {
    const { diffId, digest, mediaType, size, parts } = layer;
    if (parts === undefined || digest === undefined) throw notInParts(layer, "its source gives no parts");
    const task = this.#progress.start(diffId, { label: shortDigest(layer), total: size });
    try {
      using download = await this.#operation.download(digest, size, { signal });
      if (this.#operation.claimLayer(diffId) === undefined) {
        const outcome = await pullInParts(this.#operation, { diffId, digest, mediaType, size, parts }, download, {
          signal,
          onConsumed: advances(task),
          byToc: true,
          always: true,
        });
        if (outcome.kind === "whole") throw notInParts(layer, outcome.why);
        await this.#commit(outcome.result);
      }
      download.remove();
      task.done();
    } catch (error) {
      task.fail();
      throw explainWriteError(error, `Cannot store layer ${diffId}`);
    }
  }

  /** From a file of this machine, which the ingest reads itself. */
  async #read(layer: OriginLayer, task: ProgressTask, signal: AbortSignal): Promise<PulledLayer> {
    const onConsumed = advances(task);
    const result = await this.#operation.ingest(layer.file!, expectedOf(layer), { signal, onConsumed });
    await this.#commit(result);
    return this.#fetched(layer, result.size);
  }

  async #download(layer: OriginLayer, task: ProgressTask, signal: AbortSignal): Promise<PulledLayer> {
    using download = await this.#operation.download(layer.digest!, layer.size, {
      signal,
      onWait: () => task.status("waiting for another pull"),
    });
    const there = this.#claim(layer);
    if (there !== undefined) {
      download.remove();
      return { ...factsOf(layer), state: "shared", received: 0, record: there };
    }
    const before = download.bytes;
    const parts = await this.#inParts(layer, download, task, signal);
    let received = download.bytes - before;
    if (parts?.kind === "sealed") {
      await this.#commit(parts.result);
      download.remove();
      // of an eStargz layer an identity of its own: the store has chosen it
      const identity = parts.result.diffId as DiffId;
      return { ...this.#fetched(layer, received, identity), parts: parts.forecast.plan };
    }
    for (let again = false; ; again = true) {
      const start = download.bytes;
      let result: IngestResult;
      try {
        result = await this.#transfer(layer, download, task, signal, parts?.toc);
        received += download.bytes - start;
      } catch (error) {
        received += download.bytes - start;
        throwIfAborted(signal);
        // Wrong as a whole: bytes that an earlier try left may be why; else a second fetch tells a broken transfer from
        // a broken image. Any other verdict on the bytes is final, and failures of the network keep what there is.
        const retry = ShaleError.is(error, "DATA_LOSS") && !again;
        if (isVerdict(error) && !retry) download.remove();
        if (!retry) throw error;
        task.status("damaged in transfer, once more");
        download.restart();
        continue;
      }
      // A commit that fails (a full disk, say) is no verdict on the bytes: they stay for the next try.
      await this.#commit(result);
      download.remove();
      return this.#fetched(layer, received);
    }
  }

  /** The layer put together from parts, if it has a TOC and that is cheaper; undefined where parts are not to be had. */
  async #inParts(
    layer: OriginLayer,
    download: Download,
    task: ProgressTask,
    signal: AbortSignal,
  ): Promise<PartialOutcome | undefined> {
    const { diffId, digest, mediaType, size, parts } = layer;
    if (this.#whole || parts === undefined || digest === undefined) return undefined;
    const outcome = await pullInParts(this.#operation, { diffId, digest, mediaType, size, parts }, download, {
      signal,
      onConsumed: advances(task),
      byToc: this.#byToc,
      onProblem: () => task.status("some parts were wrong, once more"),
    });
    if (outcome.kind === "whole") task.status("as a whole");
    return outcome;
  }

  /** Download and ingest side by side; the first failure stops the other, and both have ended when this settles. */
  async #transfer(
    layer: OriginLayer,
    download: Download,
    task: ProgressTask,
    signal: AbortSignal,
    toc: TocLocation | undefined,
  ): Promise<IngestResult> {
    await using group = new AsyncGroup(signal);
    const onConsumed = advances(task);
    const estargzToc = findEstargzDigest(layer);
    const ingest = group.run((stop) =>
      this.#operation.ingest(download.feed(), expectedOf(layer), {
        signal: stop,
        onConsumed,
        ...(toc ? { toc } : {}),
        ...(estargzToc ? { estargzToc } : {}),
      }),
    );
    const transfer = group.run(async (stop) => {
      try {
        // One gap, up to the end, unless a pull of parts has been here before.
        for (const { offset, end } of download.gaps()) {
          let at = offset;
          for await (const bytes of layer.open!(offset, stop, end)) {
            download.write(bytes, at);
            at += bytes.length;
            layer.release?.(bytes);
          }
        }
        download.complete();
      } catch (error) {
        download.fail();
        throw error;
      }
    });
    const [result] = await group.all([ingest, transfer]);
    return result;
  }

  /** One durable commit for all layers that are sealed at the same moment. */
  #commit(result: IngestResult): Promise<void> {
    this.#waiting.push(result);
    this.#scheduled ??= new Promise((resolve, reject) => {
      setImmediate(() => {
        const batch = this.#waiting;
        this.#waiting = [];
        this.#scheduled = undefined;
        try {
          this.#operation.commitLayers(batch);
          resolve();
        } catch (error) {
          reject(error);
        }
      });
    });
    return this.#scheduled;
  }

  #fetched(layer: OriginLayer, received: number, identity = layer.diffId): PulledLayer {
    // Claimed, not just found: if another process committed it first, a collection may have condemned that one since.
    const record = this.#operation.claimLayer(identity) ?? this.#operation.getLayer(identity);
    return { ...factsOf(layer), state: "fetched", received, record };
  }
}

function factsOf({ diffId, digest, size }: OriginLayer) {
  return { diffId, digest, size };
}

function expectedOf({ diffId, digest }: OriginLayer): Expected {
  return digest === undefined ? { diffId } : { diffId, digest };
}

function notInParts({ diffId }: OriginLayer, why: string): ShaleError {
  return new ShaleError("UNAVAILABLE", `Cannot put layer ${diffId} together again: ${why}`, {
    hint: "Pull its image with --whole",
  });
}

/** Twelve digits tell layers apart on a screen. */
function shortDigest(layer: OriginLayer): string {
  const digest = layer.digest ?? layer.diffId;
  return digest.slice(digest.indexOf(":") + 1, digest.indexOf(":") + 13);
}

/** From counts so far to steps; a second try counts again from the start and shows nothing until it is further. */
function advances(task: ProgressTask): (bytes: number) => void {
  let shown = 0;
  return (bytes) => {
    if (bytes > shown) task.advance(bytes - shown);
    shown = Math.max(shown, bytes);
  };
}

/** The bytes themselves are why: fetching the same ones again would not help. */
function isVerdict(error: unknown): boolean {
  return (
    ShaleError.is(error) &&
    ["DATA_LOSS", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED"].includes(error.code)
  );
}
