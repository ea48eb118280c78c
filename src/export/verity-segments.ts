/**
 * The work that threads share when a file is hashed: segments of data, claimed one after another from a counter in shared
 * memory. Where a digest goes depends on its block alone, so the result is the same for any number of threads.
 */
import { ShaleError } from "../errors/index.ts";
import { BlockHasher, DIGEST_SIZE, planTree, type TreeShape, type VerityBlocks } from "../formats/verity/index.ts";
import { readAt, writeAt } from "../sys/index.ts";
import { loadBlockDigests } from "../sys/openssl-sha256.ts";
import { type Assembly, AssemblyReader } from "./assembly.ts";

/** About so much data is claimed at a time: small beside any file that is worth a second thread. */
export const SEGMENT_SIZE = 4 * 1024 * 1024;
/** Read and hashed while it is in the processor's cache. A multiple of every block size. */
const PIECE_SIZE = 512 * 1024;
/** {@link STOP} wakes nobody who waits for the head. */
const HEAD_POLL_MS = 20;

export interface HashJob extends VerityBlocks {
  /** Descriptors are those of the process, the same in all its threads. */
  readonly file: number;
  readonly salt: Uint8Array;
  /** What of the data comes from other files. */
  readonly assembly: Assembly | undefined;
  /** So many bytes at the start are there only when the slot HEAD is not 0; what is behind them is hashed before. */
  readonly headSize: number;
  /**
   * What is done with the leaf level, which begins at `offset` of `file`: written, or compared with the digests of the data. In
   * memory it would be as large as 1/128 of the data.
   */
  readonly leaves: { readonly action: "write" | "compare"; readonly file: number; readonly offset: number } | undefined;
  /** {@link CONTROL_SLOTS} 64-bit numbers. */
  readonly control: SharedArrayBuffer;
  /** Filled with the digests of the leaf level's hash blocks; those on disk when comparing. */
  readonly digests: SharedArrayBuffer;
}

export const CONTROL_SLOTS = 5;
/** Next segment to claim; bytes of data done; not 0 to stop; lowest data block that differs from its leaf; not 0 with the head. */
export const NEXT = 0;
export const DONE = 1;
export const STOP = 2;
export const DAMAGED = 3;
export const HEAD = 4;
export const UNDAMAGED = 2n ** 62n;

export class SegmentRunner {
  readonly #job: HashJob;
  readonly #shape: TreeShape;
  readonly #control: BigInt64Array;
  readonly #digests: Buffer;
  readonly #reader: AssemblyReader;
  readonly #dataHasher: BlockHasher;
  readonly #hashHasher: BlockHasher;
  /** In data blocks; whole hash blocks, so that no two segments share one. */
  readonly #segmentBlocks: number;
  readonly #segments: number;
  /** Segments with bytes of the head, which are the first ones. */
  readonly #headSegments: number;
  readonly #piece: Buffer;
  readonly #leaf: Buffer;
  readonly #stored: Buffer;

  constructor(job: HashJob) {
    this.#job = job;
    this.#shape = planTree(job);
    this.#control = new BigInt64Array(job.control);
    this.#digests = Buffer.from(job.digests);
    this.#reader = new AssemblyReader(job.file, job.assembly);
    this.#dataHasher = new BlockHasher(job.dataBlockSize, job.salt, loadBlockDigests());
    this.#hashHasher = new BlockHasher(job.hashBlockSize, job.salt, loadBlockDigests());
    this.#segmentBlocks = segmentBlocks(this.#shape);
    this.#segments = segmentCount(this.#shape);
    this.#headSegments = Math.ceil(job.headSize / (this.#segmentBlocks * job.dataBlockSize));
    this.#piece = Buffer.allocUnsafeSlow(PIECE_SIZE);
    this.#leaf = Buffer.alloc((this.#segmentBlocks / this.#shape.slotsPerBlock) * job.hashBlockSize);
    this.#stored = job.leaves?.action === "compare" ? Buffer.alloc(this.#leaf.length) : this.#leaf;
  }

  /** Hashes one more segment; false when there is none left, or the job was stopped. DATA_LOSS when a file is too short. */
  next(): boolean {
    const claim = Number(Atomics.add(this.#control, NEXT, 1n));
    if (claim >= this.#segments) return false;
    const segment = (claim + this.#headSegments) % this.#segments;
    if (segment < this.#headSegments) this.#awaitHead();
    if (Atomics.load(this.#control, STOP) !== 0n) return false;
    const first = segment * this.#segmentBlocks;
    const { dataBlocks, dataBlockSize, leaves, hashBlockSize } = this.#job;
    const count = Math.min(this.#segmentBlocks, dataBlocks - first);
    this.#hashData(first, count);
    const { slotsPerBlock } = this.#shape;
    const hashBlocks = Math.ceil(count / slotsPerBlock);
    const firstHashBlock = first / slotsPerBlock;
    const bytes = this.#leaf.subarray(0, hashBlocks * hashBlockSize);
    bytes.fill(0, count * DIGEST_SIZE);
    let onDisk = bytes;
    if (leaves !== undefined) {
      const offset = leaves.offset + firstHashBlock * hashBlockSize;
      if (leaves.action === "write") writeAt(leaves.file, bytes, offset);
      else {
        onDisk = this.#stored.subarray(0, bytes.length);
        if (readAt(leaves.file, onDisk, offset) < onDisk.length) throw cutOff(offset + onDisk.length);
        this.#compare(bytes, onDisk, first, count);
      }
    }
    this.#hashHasher.hashBlocks(onDisk, this.#digests, firstHashBlock * DIGEST_SIZE);
    Atomics.add(this.#control, DONE, BigInt(count * dataBlockSize));
    return true;
  }

  #awaitHead(): void {
    while (Atomics.load(this.#control, HEAD) === 0n && Atomics.load(this.#control, STOP) === 0n) {
      Atomics.wait(this.#control, HEAD, 0n, HEAD_POLL_MS);
    }
  }

  #hashData(first: number, count: number): void {
    const { dataBlockSize } = this.#job;
    const start = first * dataBlockSize;
    const length = count * dataBlockSize;
    for (let done = 0; done < length; done += PIECE_SIZE) {
      const piece = this.#piece.subarray(0, Math.min(PIECE_SIZE, length - done));
      this.#reader.read(piece, start + done);
      this.#dataHasher.hashBlocks(piece, this.#leaf, (done / dataBlockSize) * DIGEST_SIZE);
    }
    this.#reader.startWriteback(start, length);
  }

  #compare(computed: Buffer, stored: Buffer, first: number, count: number): void {
    const used = count * DIGEST_SIZE;
    if (computed.compare(stored, 0, used, 0, used) === 0) return;
    let block = 0;
    const differs = (at: number) => computed.compare(stored, at, at + DIGEST_SIZE, at, at + DIGEST_SIZE) !== 0;
    while (!differs(block * DIGEST_SIZE)) block++;
    const found = BigInt(first + block);
    for (let lowest = Atomics.load(this.#control, DAMAGED); found < lowest; ) {
      const before = Atomics.compareExchange(this.#control, DAMAGED, lowest, found);
      if (before === lowest) break;
      lowest = before;
    }
  }
}

/** How many segments a tree's data has: no more threads than that are of use. */
export function segmentCount(shape: TreeShape): number {
  return Math.ceil(shape.dataBlocks / segmentBlocks(shape));
}

function segmentBlocks({ slotsPerBlock, dataBlockSize }: TreeShape): number {
  return slotsPerBlock * Math.max(1, Math.floor(SEGMENT_SIZE / (slotsPerBlock * dataBlockSize)));
}

function cutOff(needed: number): ShaleError {
  return new ShaleError("DATA_LOSS", `Cannot read the hash tree: it ends before byte ${needed}`);
}
