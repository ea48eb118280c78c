/**
 * The image store: everything below ROOT, and nothing else has its files or its database open.
 *
 * Guarantees
 * - A layer is either absent or complete and durable, whatever crashed or lost power when (G1-G3).
 * - No network, decompression, hashing, copying or unlinking happens under a lock that others wait for (G6).
 * - What an operation uses can't be collected while it runs: operations hold a lease bound to their process (G5).
 * - Every payload in the dedupe index was hashed by us; bytes from outside meet a trusted digest before a commit (G8).
 * - Losing a race to the same layer is success; a damaged one is out of sight, not in the way (G7, G9, G10).
 *
 * Life cycle of a layer:  stage -> ingest (seal) -> commit -> in sight -> condemned -> removed
 *                          \__ abandoned with its lease __/     \__ claimed back by an image __/
 *
 * Never uses the network. Design: docs/design/store.md.
 */
import { resolve } from "node:path";
import { ShaleError } from "../errors/index.ts";
import type { TocLocation } from "../formats/toc/index.ts";
import type { DiffId, Digest, ImageConfig } from "../oci/index.ts";
import { ensureDirectory, findFile } from "../sys/index.ts";
import { type CheckOptions, type CheckReport, checkSize, quarantineDamage } from "./check-report.ts";
import * as chunks from "./chunks.ts";
import { ensureClones } from "./clones.ts";
import type { StoreContext } from "./context.ts";
import { Database } from "./database.ts";
import { Download } from "./downloads.ts";
import * as encodings from "./encodings.ts";
import { collectGarbage, type GarbageReport } from "./garbage.ts";
import * as images from "./images.ts";
import type { Arrivals } from "./ingest/arrivals.ts";
import { IngestPool } from "./ingest/pool.ts";
import type { AssembleOutcome, BadSource, FeedSource, IngestResult, LayerForm, PlanOffer } from "./ingest/protocol.ts";
import { LateIndexer } from "./late-index.ts";
import * as layers from "./layers.ts";
import { Layout } from "./layout.ts";
import { Lease, recoverFromReboot, recoverStaging } from "./leases.ts";
import { type LinkArea, openLinkArea } from "./links.ts";
import { ensureMergedInThread } from "./merged.ts";
import * as mountRecords from "./mount-records.ts";
import { indexLayers } from "./payload-index.ts";
import { Reserve } from "./reserve.ts";
import { SnapshotRegister } from "./snapshot-register.ts";
import * as snapshots from "./snapshots.ts";
import { tocIdentity } from "./toc-identity.ts";
import { type ImageSummary, imagesOfLayers, type StoreTotals, sumLayers, summarizeImages } from "./summaries.ts";
import {
  type ImageFiles,
  type LayerTar,
  layerFiles,
  mergedFiles,
  type OpenTree,
  openChain,
  openLayer,
  openTar,
} from "./trees.ts";
import { measureUsage, type Usage } from "./usage.ts";

export type { CheckOptions, CheckReport, Finding } from "./check-report.ts";
export { clonePath } from "./clones.ts";
export type { Download } from "./downloads.ts";
export type { Encoding } from "./encodings.ts";
export type { GarbageItem, GarbageReport } from "./garbage.ts";
export type { HostMount, HostMountRegister } from "./host-mounts.ts";
export type { Document, ImageRecord, LayerSource, ManifestLayer, ManifestRecord, NewImage } from "./images.ts";
export { manifestRecord } from "./images.ts";
export { Arrivals } from "./ingest/arrivals.ts";
export type { AssembleOutcome, BadSource, FeedSource, IngestResult, LayerForm, PlanOffer } from "./ingest/protocol.ts";
export type { PlanSummary } from "./ingest/toc-plan.ts";
export type { LayerRecord } from "./layers.ts";
export { LIMITS as STORE_LIMITS } from "./limits.ts";
export type { LinkArea, LinkUsage } from "./links.ts";
export type { MountRecord } from "./mount-records.ts";
export { alreadyExists, type NewSnapshot, notFound, SnapshotRegister } from "./snapshot-register.ts";
export {
  REF_LABEL,
  type SnapshotKind,
  type SnapshotRecord,
  type SnapshotSelection,
} from "./snapshots.ts";
export type { ImageSummary, StoreTotals } from "./summaries.ts";
export { isTocIdentity, tocDigestOf, tocIdentity } from "./toc-identity.ts";
export type { ImageFiles, LayerTar, OpenTree, StoredPayload } from "./trees.ts";
export type { ImageUsage, LayerUsage, Usage, UsageNumbers } from "./usage.ts";

export class Store implements AsyncDisposable {
  readonly #context: StoreContext;
  readonly #reserve: Reserve;
  readonly #pool = new IngestPool();
  readonly #lateIndexer: LateIndexer;

  private constructor(context: StoreContext, reserve: Reserve) {
    this.#context = context;
    this.#reserve = reserve;
    this.#lateIndexer = new LateIndexer(context, () => this.begin("index payloads"));
  }

  /**
   * Opens the store at `root`. Without `create`, NOT_FOUND when there is none: commands that only look make nothing.
   * FAILED_PRECONDITION for a store of a newer shale. Leftovers of dead processes are removed on the way.
   */
  static open(root: string, options: { readonly create?: boolean } = {}): Store {
    const layout = new Layout(resolve(root));
    if (findFile(layout.database) === undefined) {
      if (options.create !== true) {
        throw new ShaleError("NOT_FOUND", `Cannot open the store: ${layout.root} has none`, {
          hint: "Pull an image first, or choose another directory with --root",
        });
      }
      for (const directory of layout.directories) ensureDirectory(directory);
    }
    const reserve = new Reserve(layout.root, layout.reserve);
    const database = reserve.run(() => Database.open(layout.database, { create: options.create === true }));
    const context = { layout, database };
    try {
      reserve.run(() => recoverStaging(layout, database));
      reserve.run(() => recoverFromReboot(layout, database));
      reserve.refill();
      return new Store(context, reserve);
    } catch (error) {
      database.close();
      throw error;
    }
  }

  get root(): string {
    return this.#context.layout.root;
  }

  /** Ends the worker threads and closes the database. Leases must have ended. */
  async close(): Promise<void> {
    await this.#lateIndexer.close();
    await this.#pool.close();
    this.#context.database.close();
    this.#reserve.refill();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  // --- looking: no lease needed, rows are consistent in themselves

  listImages(): images.ImageRecord[] {
    return images.listImages(this.#context);
  }
  /** With sizes, from the database alone: fast for any store. */
  summarizeImages(): ImageSummary[] {
    return summarizeImages(this.#context);
  }
  /** Number and bytes of all layers, from the database alone. */
  totals(): StoreTotals {
    return sumLayers(this.#context);
  }
  /** Names of the images that have each layer. */
  imagesOfLayers(): Map<DiffId, readonly string[]> {
    return imagesOfLayers(this.#context);
  }
  /** By normalised name. */
  findImage(name: string): images.ImageRecord | undefined {
    return images.findImage(this.#context, name);
  }
  /** By (a beginning of) the digest of target, manifest or config: "sha256:ab12". */
  findImagesByDigest(prefix: string): images.ImageRecord[] {
    return images.findImagesByDigest(this.#context, prefix);
  }
  manifestsOf(name: string): images.ManifestRecord[] {
    return images.manifestsOf(this.#context, name);
  }
  getDocument(digest: Digest): images.Document {
    return images.getDocument(this.#context, digest);
  }
  findDocument(digest: string): images.Document | undefined {
    return images.findDocument(this.#context, digest);
  }
  getConfig(manifest: images.ManifestRecord): ImageConfig {
    return images.getConfig(this.#context, manifest);
  }
  findLayer(diffId: DiffId): layers.LayerRecord | undefined {
    return layers.findLayer(this.#context, diffId);
  }
  listLayers(): layers.LayerRecord[] {
    return layers.listLayers(this.#context);
  }
  sourcesOf(diffId: DiffId): images.LayerSource[] {
    return images.sourcesOf(this.#context, diffId);
  }
  /** Layers in sight that came out of a blob with this digest: what a registry calls them. */
  diffIdsOfBlob(digest: Digest): DiffId[] {
    return images.diffIdsOfBlob(this.#context, digest);
  }
  findEncoding(diffId: DiffId, encoder: string): encodings.Encoding | undefined {
    return encodings.findEncoding(this.#context, diffId, encoder);
  }
  findEncodingByDigest(digest: Digest): encodings.Encoding | undefined {
    return encodings.findEncodingByDigest(this.#context, digest);
  }
  /** Layers that `check` took out of sight and that nobody has fetched again since. */
  listDamagedLayers(): DiffId[] {
    return layers.listDamagedLayers(this.#context);
  }
  listMounts(): mountRecords.MountRecord[] {
    return mountRecords.listMounts(this.#context);
  }
  findMount(target: string): mountRecords.MountRecord | undefined {
    return mountRecords.findMountRecord(this.#context, target);
  }
  /** Snapshots of containerd, by rising id. */
  listSnapshots(selection: snapshots.SnapshotSelection = {}): Iterable<snapshots.SnapshotRecord> {
    return snapshots.listSnapshots(this.#context, selection);
  }
  countSnapshots(): Readonly<Record<snapshots.SnapshotKind, number>> {
    return snapshots.countSnapshots(this.#context);
  }
  measureUsage(): Usage {
    return measureUsage(this.#context);
  }

  // --- names: one transaction each

  removeImage(name: string): void {
    this.#reserve.run(() => images.removeImage(this.#context, name));
  }
  setPinned(name: string, pinned: boolean): void {
    images.setPinned(this.#context, name, pinned);
  }
  forgetMount(target: string): void {
    this.#reserve.run(() => mountRecords.forgetMount(this.#context, target));
  }

  /** Becomes the one that makes and removes snapshots; FAILED_PRECONDITION, naming the process, while another one is. */
  openSnapshots(): SnapshotRegister {
    return this.#reserve.run(() => SnapshotRegister.open(this.#context));
  }

  /** Starts worker threads before the first ingest, so that their start overlaps with other waiting. */
  warm(count: number): void {
    this.#pool.warm(count);
  }

  /** Ends idle worker threads, and so gives back the memory that large layers left with them. */
  rest(): Promise<void> {
    return this.#pool.rest();
  }

  /** Begins an operation that reads or writes layers. `what` names it to others that wait for it. */
  begin(what: string): StoreOperation {
    const lease = this.#reserve.run(() => Lease.begin(this.#context.layout, this.#context.database, what));
    return new StoreOperation(this.#context, this.#reserve, this.#pool, this.#lateIndexer, lease, what);
  }
}

/** What can be done under a lease. Ends with `using`; whatever was staged and not committed is abandoned then. */
export class StoreOperation implements Disposable {
  readonly #context: StoreContext;
  readonly #reserve: Reserve;
  readonly #pool: IngestPool;
  readonly #lateIndexer: LateIndexer;
  readonly #lease: Lease;
  readonly #what: string;
  #chunksIndexed: Promise<void> | undefined;

  constructor(
    context: StoreContext,
    reserve: Reserve,
    pool: IngestPool,
    lateIndexer: LateIndexer,
    lease: Lease,
    what: string,
  ) {
    this.#context = context;
    this.#reserve = reserve;
    this.#pool = pool;
    this.#lateIndexer = lateIndexer;
    this.#lease = lease;
    this.#what = what;
  }

  /** The layer if it is in sight, or can be brought back into sight; it stays for as long as this operation. */
  claimLayer(diffId: DiffId, form: LayerForm = "tree"): layers.LayerRecord | undefined {
    return layers.claimLayer(this.#context, diffId, form);
  }

  /** The resumable download of one blob; waits while another task or process has it. */
  download(
    digest: Digest,
    size: number,
    options: { readonly signal?: AbortSignal; readonly onWait?: () => void } = {},
  ): Promise<Download> {
    return Download.open(this.#context, digest, size, { ...options, command: this.#what });
  }

  /**
   * Stages and seals one layer: verified against `digest` and `diffId`, synced, not yet visible. Runs in a worker thread.
   * `deduplicate: false` makes it refer to nothing else.
   */
  ingest(
    feed: FeedSource,
    expected: { readonly digest?: Digest; readonly diffId?: DiffId },
    options: {
      readonly signal?: AbortSignal;
      readonly onConsumed?: (bytes: number) => void;
      readonly deduplicate?: boolean;
      /** "archive": the layer is a checkpoint archive, kept in parts; "tree" unless given. */
      readonly form?: LayerForm;
      /** Where the blob has its TOC, if it has one: it is kept for later pulls of parts. */
      readonly toc?: TocLocation;
      /** Or its digest, for an eStargz blob in a file of its own. */
      readonly estargzToc?: Uint8Array;
    } = {},
  ): Promise<IngestResult> {
    const { signal, onConsumed, toc, estargzToc, deduplicate = true, form = "tree" } = options;
    this.#lateIndexer.catchUp();
    return this.#pool.ingest(
      {
        ...this.#lease.stage(),
        database: this.#context.layout.database,
        feed,
        digest: expected.digest,
        diffId: expected.diffId,
        deduplicate,
        form,
        ...(toc ? { toc } : {}),
        ...(estargzToc ? { estargzToc } : {}),
        ...(onConsumed ? { onConsumed } : {}),
      },
      signal ? { signal } : {},
    );
  }

  /** Whether there is anything that a layer could share. */
  get hasContent(): boolean {
    return layers.hasLayers(this.#context);
  }

  /** Lets `assemble` find the small files and chunks of stored layers; a pull that needs none does not pay for it. */
  indexChunks(options: { readonly signal?: AbortSignal } = {}): Promise<void> {
    // Once for all layers of the operation, which ask at the same time.
    this.#chunksIndexed ??= chunks.indexChunks(this.#context, this.#pool, options).catch((error: unknown) => {
      this.#chunksIndexed = undefined;
      throw error;
    });
    return this.#chunksIndexed;
  }

  /**
   * As `ingest`, for a layer with a TOC: what the store has is not fetched. `location.region` of the download has to be
   * there. `onPlan` is told what is missing, and gives the `Arrivals` where it marks each part once `download` has it, or
   * undefined to leave it. The result is sealed when its tar has the diffId; "again" names bytes that were wrong, for the
   * caller to take out of use (`reportBadSources`, `Download.forget`). Errors of the TOC are those of formats/toc.
   *
   * An eStargz TOC can't give the tar: that layer is sealed when all contents have the digests of the TOC, and is kept under
   * its identity (toc-identity.ts), never under `expected.diffId`.
   */
  assemble(
    download: Download,
    location: TocLocation,
    expected: { readonly digest: Digest; readonly diffId: DiffId },
    options: {
      readonly onPlan: (offer: PlanOffer) => Arrivals | undefined;
      readonly onConsumed?: (bytes: number) => void;
      readonly signal?: AbortSignal;
    },
  ): Promise<AssembleOutcome> {
    const { signal, ...told } = options;
    const { layout } = this.#context;
    this.#lateIndexer.catchUp();
    return this.#pool.assemble(
      {
        ...this.#lease.stage(),
        ...told,
        database: layout.database,
        root: layout.root,
        file: download.path,
        location,
        digest: expected.digest,
        diffId: location.format === "estargz" ? tocIdentity(location.digest) : expected.diffId,
      },
      signal ? { signal } : {},
    );
  }

  /** Takes damaged bytes, and the layers that have them, out of use (G9). Returns the layers. */
  reportBadSources(bad: readonly BadSource[]): DiffId[] {
    return chunks.reportBadSources(this.#context, bad);
  }

  /** Makes sealed layers visible, in one batch. */
  commitLayers(ingested: readonly IngestResult[]): void {
    layers.commitLayers(this.#context, ingested);
  }

  commitImage(image: images.NewImage): void {
    images.commitImage(this.#context, image);
  }

  /** Has a manifest refer to these layers, which say the same as those that it referred to; ABORTED when one is not here. */
  replaceLayers(record: images.ManifestRecord): void {
    images.replaceLayers(this.#context, record);
  }

  /** Lets later ingests find the payloads of committed layers that are not in the index yet. */
  indexLayers(): void {
    for (const _ of indexLayers(this.#context));
  }

  /**
   * The same in a while, a piece at a time, for who has others to serve: before the next `ingest` or `assemble` in this
   * process all the same. `onError` is told what went wrong, of which a later call has another try.
   */
  indexLayersLater(onError: (error: unknown) => void): void {
    this.#lateIndexer.request(onError);
  }

  /** NOT_FOUND when it is absent, DATA_LOSS when `check` took it out of sight. */
  getLayer(diffId: DiffId): layers.LayerRecord {
    return layers.getLayer(this.#context, diffId);
  }
  openLayer(layer: layers.LayerRecord): OpenTree {
    return openLayer(this.#context, layer);
  }
  /** One tree for a whole chain, lowest layer first. */
  openChain(diffIds: readonly DiffId[]): OpenTree {
    return openChain(this.#context, this.#lease, diffIds);
  }
  layerFiles(layer: layers.LayerRecord): ImageFiles {
    return layerFiles(this.#context, layer);
  }
  /** Has the merged image of a chain made by a thread, so that `mergedFiles` and `openChain` find it. */
  async ensureMerged(diffIds: readonly DiffId[]): Promise<void> {
    await ensureMergedInThread(this.#context, this.#lease, this.#pool, diffIds);
  }
  mergedFiles(diffIds: readonly DiffId[]): ImageFiles {
    return mergedFiles(this.#context, this.#lease, diffIds);
  }
  openTar(layer: layers.LayerRecord): LayerTar & Disposable {
    return openTar(this.#context, layer);
  }

  /** Remembers where a layer was seen, for a repair and for `diffIdsOfBlob`. `digest` and `diffId` were verified together. */
  recordSource(diffId: DiffId, source: images.LayerSource): void {
    images.recordSource(this.#context, diffId, source);
  }
  /** Remembers what a layer becomes under an encoder; it is forgotten with the layer. */
  recordEncoding(encoding: encodings.Encoding): void {
    encodings.recordEncoding(this.#context, encoding);
  }
  /** A new directory for files of this operation; removed with everything in it when the operation ends, also by a crash. */
  temporaryDirectory(): string {
    return this.#lease.stage().directory;
  }

  /** Where checkouts keep what they share by hard link; waits while another process cleans up after a crash. */
  openLinkArea(options: { readonly signal?: AbortSignal } = {}): Promise<LinkArea> {
    return openLinkArea(this.#context, this.#lease, options);
  }

  /**
   * The directory of files that checkouts of an image share blocks with (`clonePath`), `fill`ed unless it is there already; waits
   * while another process does so. It stays for as long as the image.
   */
  ensureClones(
    files: ImageFiles,
    fill: (directory: string) => Promise<void>,
    options: { readonly signal?: AbortSignal } = {},
  ): Promise<string> {
    return ensureClones(this.#context, files.image, fill, options);
  }

  /** ROOT, absolute. */
  get storeRoot(): string {
    return this.#context.layout.root;
  }
  /** Directory for the mount points and upper directories that shale makes. */
  get mountsDirectory(): string {
    return this.#context.layout.mounts;
  }
  recordMount(mount: mountRecords.MountRecord): void {
    mountRecords.recordMount(this.#context, mount);
  }

  collectGarbage(options: { readonly dryRun?: boolean; readonly signal?: AbortSignal } = {}): GarbageReport {
    return this.#reserve.run(() => collectGarbage(this.#context, this.#lease, options));
  }
  checkSize(): number {
    return checkSize(this.#context);
  }
  async check(options: CheckOptions = {}): Promise<CheckReport> {
    const { checkStore } = await import("./check.ts");
    return await checkStore(this.#context, this.#lease, options);
  }
  quarantineDamage(report: CheckReport): DiffId[] {
    return quarantineDamage(this.#context, report);
  }

  [Symbol.dispose](): void {
    this.#lease.release();
  }
}
