/**
 * Checkout: an image as a plain directory, for those who can't mount EROFS.
 *
 * Guarantees
 * - The directory appears complete and durable, or not at all, whatever crashes when; see `target.ts`.
 * - Everything that the image says of a file is on disk: owner, mode, xattrs, nanosecond times, hard links, devices, holes,
 *   whiteouts of layers. What this process may not write, or the file system does not take, is counted and named, never dropped
 *   in silence.
 * - Nothing outside of the directory is written, whatever the image says and whatever another process does meanwhile.
 * - With `hardlink`, files that agree in content, owner, mode, xattrs and time are one inode in all checkouts: to write to one is
 *   to write to all. That is never chosen unasked.
 * - Memory does not grow with the files, only with the directories (some 200 bytes for each that waits).
 *
 * Reads through the store's lease and files, writes in threads (`crew.ts`), never uses the network.
 */
import { throwIfAborted } from "../async/index.ts";
import { type ByteString, displayBytes } from "../bytes/index.ts";
import { errnoOf, ShaleError } from "../errors/index.ts";
import { ErofsReader } from "../formats/erofs/index.ts";
import { explainWriteError } from "../images/write-error.ts";
import { PAYLOAD_ALIGNMENT } from "../formats/payload-table/index.ts";
import type { ImageFiles, LinkArea, ManifestRecord, StoreOperation } from "../store/index.ts";
import {
  closeFile,
  crashPoint,
  createFileAt,
  fileSource,
  makeDirectoryAt,
  openDirectoryBeneath,
  openFile,
  processRights,
  setPermissions,
  shareRange,
  syncFileSystemOf,
  syncMeanwhile,
  unlinkAt,
} from "../sys/index.ts";
import { Attributes, attributesOf } from "./attributes.ts";
import type { Crew, CrewProgress } from "./crew.ts";
import { Losses, LOSSES_LISTED, newTally } from "./losses.ts";
import {
  type CheckoutJob,
  CONTROL_SLOTS,
  type DirectoryTask,
  type Loss,
  type LossKind,
  type Tally,
  type ThreadResult,
  type TreeFiles,
} from "./protocol.ts";
import { Target } from "./target.ts";

export { Crew, type CrewProgress } from "./crew.ts";
export { LOSSES_LISTED } from "./losses.ts";
export type { LossKind, Tally } from "./protocol.ts";

/** Other file systems, or ones without the feature. A smaller image than a block is EINVAL, and worth no reflink. */
const NO_REFLINK = new Set(["EXDEV", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "ENOTTY", "EINVAL", "EPERM"]);

/** `auto` is reflink where the file systems can, otherwise copy. The others fall down the ladder hardlink, reflink, copy. */
export type LinkMode = "auto" | "reflink" | "hardlink" | "copy";

export interface CheckoutOptions {
  readonly link?: LinkMode;
  /** Each layer into a directory of its own, 0 being the lowest, as lower directories of an overlay. */
  readonly layers?: boolean;
  /** Swaps an existing directory for the new one; otherwise one that exists is ALREADY_EXISTS. */
  readonly replace?: boolean;
  /** Reads what is shared by hard link before it is handed on. */
  readonly verify?: boolean;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: CrewProgress) => void;
}

export interface CheckoutResult extends Tally {
  /** Absolute. */
  readonly path: string;
  /** Directories of the layers, the lowest first; empty unless asked for. */
  readonly layers: readonly string[];
  /** Whether files have inodes that other checkouts have or may get: they are not to be written to. */
  readonly sharesInodes: boolean;
  /** Marks of layers are in `user.overlay.`: mount with `userxattr`. */
  readonly userXattrs: boolean;
  /** The first {@link LOSSES_LISTED} of each kind. */
  readonly lost: readonly { readonly kind: LossKind; readonly path: string; readonly detail: string }[];
  /** The replaced tree, where it is in use; the next checkout to this target removes it. */
  readonly leftOver: string | undefined;
  /** Why content did not come as it was asked to: "hardlink: EXDEV". */
  readonly fallbacks: readonly string[];
}

/**
 * Writes the image of `manifest` to `target`. The operation's lease must last until this settles, which it does after all work
 * has stopped. ALREADY_EXISTS, RESOURCE_EXHAUSTED (full disk), CANCELLED; after a failure nothing is left.
 */
export async function checkoutImage(
  operation: StoreOperation,
  manifest: ManifestRecord,
  target: string,
  crew: Crew,
  options: CheckoutOptions = {},
): Promise<CheckoutResult> {
  const { signal, layers = false, replace = false } = options;
  if (manifest.layers.length === 0) {
    throw new ShaleError("FAILED_PRECONDITION", `Cannot check out ${manifest.digest}: it has no layers`);
  }
  const rights = processRights();
  try {
    using place = await Target.open(target, { replace, rights, signal, storeRoot: operation.storeRoot });
    const { link = "auto" } = options;
    const files = treesOf(operation, manifest, layers);
    const reflink = link !== "copy" && canReflink(place, files[0]!);
    const area = link === "hardlink" ? await operation.openLinkArea(signal ? { signal } : {}) : undefined;
    const job: CheckoutJob = {
      trees: files.map((tree) => ({ ...tree, clones: undefined })),
      layers,
      cloning: false,
      reflink,
      root: place.root,
      pool: place.pool,
      sources: area?.directory,
      verify: options.verify ?? false,
      rights,
      control: new SharedArrayBuffer(CONTROL_SLOTS * BigInt64Array.BYTES_PER_ELEMENT),
    };
    const trees = reflink && link !== "hardlink" ? await cloneTrees(operation, files, job, crew, signal) : job.trees;
    makeLayerDirectories(job);
    const results = await write(crew, { ...job, trees }, options);
    throwIfAborted(signal);
    const own = finishRoot(place, job, results, area);
    const leftOver = place.publish();
    const fallbacks = link === "reflink" && !reflink ? ["reflink: not possible between the store and here"] : [];
    return { ...merge(place.path, job, [...results, { ...own, fallbacks }]), leftOver };
  } catch (error) {
    // When the removal of what was made fails too, the first failure is the one to tell: the next checkout removes the rest.
    const first = error instanceof SuppressedError ? error.suppressed : error;
    throw explainWriteError(first, `Cannot check out to ${target}`);
  }
}

function treesOf(operation: StoreOperation, manifest: ManifestRecord, layers: boolean): ImageFiles[] {
  const diffIds = manifest.layers.map(({ diffId }) => diffId);
  if (!layers) return [operation.mergedFiles(diffIds)];
  return diffIds.map((diffId) => operation.layerFiles(operation.getLayer(diffId)));
}

/** Whether the store and the checkout can share blocks: tried with one. */
function canReflink(place: Target, { image }: ImageFiles): boolean {
  const source = openFile(image);
  const probe = createFileAt(place.pool, "probe", 0o600);
  try {
    shareRange(source, 0, probe, 0, PAYLOAD_ALIGNMENT);
    return true;
  } catch (error) {
    if (NO_REFLINK.has(errnoOf(error) ?? "")) return false;
    throw error;
  } finally {
    closeFile(probe);
    closeFile(source);
    unlinkAt(place.pool, "probe");
  }
}

/** The trees with their directories of clones, which are made for those that have none. */
async function cloneTrees(
  operation: StoreOperation,
  files: readonly ImageFiles[],
  job: CheckoutJob,
  crew: Crew,
  signal: AbortSignal | undefined,
): Promise<TreeFiles[]> {
  const trees: TreeFiles[] = [];
  const options = signal ? { signal } : {};
  for (const tree of files) {
    const fill = async (clones: string) => {
      const cloning = { ...job, trees: [{ ...tree, clones }], layers: false, cloning: true, sources: undefined };
      await crew.run(cloning, firstTasks(cloning), options);
      throwIfAborted(signal);
    };
    trees.push({ ...tree, clones: await operation.ensureClones(tree, fill, options) });
  }
  return trees;
}

/** Most of the time is the disk's: it works from the beginning. */
async function write(crew: Crew, job: CheckoutJob, options: CheckoutOptions): Promise<ThreadResult[]> {
  await using _syncing = syncMeanwhile(job.root);
  return await crew.run(job, firstTasks(job), options);
}

function makeLayerDirectories({ trees, layers, root }: CheckoutJob): void {
  if (layers) for (const number of trees.keys()) makeDirectoryAt(root, String(number));
}

function firstTasks({ trees, layers }: CheckoutJob): DirectoryTask[] {
  return trees.map(({ image }, tree): DirectoryTask => {
    const path = layers ? String(tree) : "";
    using source = fileSource(image);
    return { tree, nid: new ErofsReader(source).rootNid, path, inside: "" };
  });
}

/** Everything that must wait until all files are there; then all of it is made durable. */
function finishRoot(
  place: Target,
  job: CheckoutJob,
  results: readonly ThreadResult[],
  area: LinkArea | undefined,
): ThreadResult {
  const tally = newTally();
  const losses = new Losses(tally.losses);
  place.dropPool();
  crashPoint("checkout:filled");
  const closed = results.flatMap((result) => result.closed);
  for (const { path, mode } of closed.sort((a, b) => b.path.length - a.path.length)) {
    const directory = openDirectoryBeneath(place.root, path);
    try {
      setPermissions(directory, mode);
    } finally {
      closeFile(directory);
    }
  }
  if (job.layers) setPermissions(place.root, 0o755);
  else {
    using source = fileSource(job.trees[0]!.image);
    const reader = new ErofsReader(source);
    const root = reader.root;
    const attributes = new Attributes(job.rights, false, losses);
    attributes.applyTo(place.root, attributes.wanted(attributesOf(root), reader.xattrs(root), ""), 0o700, "");
  }
  syncFileSystemOf(place.root);
  area?.settle();
  return { tally, losses: losses.listed, closed: [], fallbacks: [] };
}

function merge(
  path: string,
  { trees, layers, rights }: CheckoutJob,
  results: readonly ThreadResult[],
): Omit<CheckoutResult, "leftOver"> {
  const tally = newTally();
  const lost: Loss[] = [];
  const fallbacks = new Set<string>();
  for (const result of results) {
    add(tally, result.tally);
    lost.push(...result.losses);
    for (const fallback of result.fallbacks) fallbacks.add(fallback);
  }
  return {
    ...tally,
    path,
    layers: layers ? trees.map((_, number) => `${path}/${number}`) : [],
    sharesInodes: tally.linked + tally.published > 0,
    userXattrs: layers && !rights.trusted,
    lost: firstOfEachKind(lost).map((loss) => ({
      ...loss,
      path: displayBytes(loss.path),
      detail: displayBytes(loss.detail),
    })),
    fallbacks: [...fallbacks].sort(),
  };
}

function add(sum: Tally, { losses, ...counts }: Tally): void {
  for (const key of Object.keys(counts) as (keyof typeof counts)[]) sum[key] += counts[key];
  for (const key of Object.keys(losses) as LossKind[]) sum.losses[key] += losses[key];
}

/** In the order of their paths, so that runs can be compared. */
function firstOfEachKind(losses: readonly Loss[]): Loss[] {
  const key = (loss: Loss): ByteString => `${loss.kind}\0${loss.path}`;
  const seen = new Map<LossKind, number>();
  return [...losses]
    .sort((a, b) => (key(a) < key(b) ? -1 : 1))
    .filter(({ kind }) => {
      const count = seen.get(kind) ?? 0;
      seen.set(kind, count + 1);
      return count < LOSSES_LISTED;
    });
}
