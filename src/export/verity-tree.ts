/** Making and checking dm-verity trees of files, on all cores and in bounded memory. */
import { setImmediate } from "node:timers/promises";
import { throwIfAborted } from "../async/index.ts";
import { toHex } from "../bytes/index.ts";
import { ShaleError } from "../errors/index.ts";
import {
  BlockHasher,
  buildUpperLevels,
  checkUpperLevels,
  DIGEST_SIZE,
  planTree,
  type TreeShape,
  type VerityBlocks,
} from "../formats/verity/index.ts";
import { readAt, writeAt } from "../sys/index.ts";
import {
  CONTROL_SLOTS,
  DAMAGED,
  DONE,
  HEAD,
  type HashJob,
  SegmentRunner,
  STOP,
  segmentCount,
  UNDAMAGED,
} from "./verity-segments.ts";
import { type Assembly, AssemblyReader } from "./assembly.ts";
import { VerityThreads } from "./verity-threads.ts";

export interface VerityTreeOptions extends VerityBlocks {
  /** Descriptor of the data, from byte 0. */
  readonly file: number;
  readonly salt: Uint8Array;
  /** What of the data comes from other files, and is written to this one while it is hashed. */
  readonly assembly?: Assembly | undefined;
  /** What is put at the start of the data by this thread, while others hash what is behind it. */
  readonly head?: FileHead | undefined;
  /** Threads, this one included; as many as there are cores unless given. */
  readonly jobs?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Threads that were started before; they serve this call only. */
  readonly threads?: VerityThreads | undefined;
  /** Told several times a second how many more bytes were hashed. */
  readonly onHashed?: ((bytes: number) => void) | undefined;
}

export interface FileHead {
  /** Bytes from the start that are not there before `write` has ended. */
  readonly size: number;
  readonly write: () => Promise<void>;
}

/** Where a tree is, or goes: its first byte is the top level's. */
export interface TreePlace {
  readonly file: number;
  readonly offset: number;
}

/**
 * Computes the tree of a file and writes it to `place`, if given; the root hash does not depend on `jobs`. Nothing is synced.
 * Holds 1 MiB a thread and 32 bytes for each 128 data blocks.
 */
export async function makeVerityTree(
  options: VerityTreeOptions,
  place?: TreePlace,
): Promise<{ readonly rootHash: Uint8Array; readonly shape: TreeShape }> {
  const shape = planTree(options);
  const leafOffset = shape.levels[0]?.offset ?? 0;
  const leaves = place && ({ action: "write", file: place.file, offset: place.offset + leafOffset } as const);
  const { digests } = await hashAll(options, shape, leaves);
  const { rootHash, bytes } = buildUpperLevels(shape, new BlockHasher(shape.hashBlockSize, options.salt), digests);
  if (place !== undefined && bytes.length > 0) writeAt(place.file, bytes, place.offset);
  return { rootHash, shape };
}

/**
 * Checks a file against its tree and the tree against `rootHash`, as the kernel would on reading all of it. DATA_LOSS, with
 * the first place that is wrong, when a bit of either differs, or when the tree is cut off.
 */
export async function checkVerityTree(
  options: VerityTreeOptions & { readonly rootHash: Uint8Array },
  place: TreePlace,
): Promise<void> {
  const shape = planTree(options);
  const leafOffset = shape.levels[0]?.offset ?? 0;
  const hasher = new BlockHasher(shape.hashBlockSize, options.salt);
  const upper = Buffer.alloc(leafOffset);
  if (readAt(place.file, upper, place.offset) < upper.length) {
    throw new ShaleError("DATA_LOSS", `Cannot read the hash tree: it ends before byte ${place.offset + upper.length}`);
  }
  const leaves = { action: "compare", file: place.file, offset: place.offset + leafOffset } as const;
  const { digests, damagedBlock } = await hashAll(options, shape, shape.levels.length === 0 ? undefined : leaves);
  const { rootHash, damage } = checkUpperLevels(shape, hasher, digests, upper);
  const refuse = (problem: string) => new ShaleError("DATA_LOSS", `Cannot trust the data: ${problem}`);
  // From the root down, as trust goes: below a wrong hash block, nothing says which data is right.
  if (Buffer.compare(rootHash, options.rootHash) !== 0) {
    throw refuse(`the root hash is ${toHex(rootHash)}, not ${toHex(options.rootHash)}`);
  }
  if (damage !== undefined) {
    const at = place.offset + shape.levels[damage.level]!.offset + damage.block * shape.hashBlockSize;
    throw refuse(`the hash block at byte ${at} of the tree's file is not what the level above it says`);
  }
  if (damagedBlock !== undefined) {
    const at = damagedBlock * shape.dataBlockSize;
    throw refuse(`block ${damagedBlock} (bytes ${at} to ${at + shape.dataBlockSize - 1}) does not match its hash`);
  }
}

interface Hashed {
  /** Of the leaf level's hash blocks; of the only data block when there is no tree. */
  readonly digests: Buffer;
  readonly damagedBlock: number | undefined;
}

async function hashAll(options: VerityTreeOptions, shape: TreeShape, leaves: HashJob["leaves"]): Promise<Hashed> {
  const { signal, onHashed } = options;
  throwIfAborted(signal);
  const { head } = options;
  if (shape.levels.length === 0) {
    await head?.write();
    return hashSingle(options);
  }
  const control = new SharedArrayBuffer(CONTROL_SLOTS * BigInt64Array.BYTES_PER_ELEMENT);
  const slots = new BigInt64Array(control);
  slots[DAMAGED] = UNDAMAGED;
  const digests = new SharedArrayBuffer(shape.levels[0]!.blocks * DIGEST_SIZE);
  const { dataBlocks, dataBlockSize, hashBlockSize, file, salt, assembly } = options;
  const parameters = { dataBlocks, dataBlockSize, hashBlockSize, file, salt, assembly };
  const job: HashJob = { ...parameters, headSize: head?.size ?? 0, leaves, control, digests };

  let told = 0;
  const tell = () => {
    const done = Number(Atomics.load(slots, DONE));
    if (done > told) onHashed?.(done - told);
    told = done;
  };
  const timer = onHashed && setInterval(tell, 250);
  const stop = () => Atomics.store(slots, STOP, 1n);
  signal?.addEventListener("abort", stop, { once: true });
  const useful = segmentCount(shape) - 1;
  await using own = options.threads === undefined && useful > 0 ? new VerityThreads(options.jobs) : undefined;
  const others = (options.threads ?? own)?.run(job, useful, stop) ?? [];
  const running = [runHere(job, head, stop), ...others];
  try {
    const ended = await Promise.allSettled(running);
    const failed = ended.find((one) => one.status === "rejected");
    if (failed !== undefined) throw failed.reason;
  } finally {
    clearInterval(timer);
    signal?.removeEventListener("abort", stop);
    tell();
  }
  throwIfAborted(signal);
  const damaged = slots[DAMAGED]!;
  return { digests: Buffer.from(digests), damagedBlock: damaged === UNDAMAGED ? undefined : Number(damaged) };
}

function hashSingle({ file, assembly, dataBlockSize, salt, onHashed }: VerityTreeOptions): Hashed {
  const block = Buffer.alloc(dataBlockSize);
  new AssemblyReader(file, assembly).read(block, 0);
  const digests = Buffer.alloc(DIGEST_SIZE);
  new BlockHasher(dataBlockSize, salt).hashBlocks(block, digests, 0);
  onHashed?.(dataBlockSize);
  return { digests, damagedBlock: undefined };
}

/** In this thread, a segment (some milliseconds) at a time, so that signals and progress get their turn. */
async function runHere(job: HashJob, head: FileHead | undefined, stop: () => void): Promise<void> {
  try {
    await head?.write();
    const control = new BigInt64Array(job.control);
    Atomics.store(control, HEAD, 1n);
    Atomics.notify(control, HEAD);
    const runner = new SegmentRunner(job);
    while (runner.next()) await setImmediate();
  } catch (error) {
    stop();
    throw error;
  }
}
