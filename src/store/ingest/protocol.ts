/** What travels between the main thread and an ingest worker. Plain data and one shared counter; no functions. */
import type { MessagePort } from "node:worker_threads";
import type { ByteRange } from "../../bytes/index.ts";
import type { ErrorCode } from "../../errors/index.ts";
import type { TocLocation } from "../../formats/toc/index.ts";
import type { ChainId } from "../../oci/index.ts";
import type { MergedImage, MergeSource } from "../merge-image.ts";
import type { WrittenLayer } from "./layer-writer.ts";
import type { PlanSummary } from "./toc-plan.ts";

/**
 * What a layer's image shows: its tree, or an archive's contents in parts under made-up names (archive-splitter.ts), for
 * getting the archive back and nothing else.
 */
export type LayerForm = "tree" | "archive";

/** Where the bytes of a layer blob are: a range of a file, which may still be growing. */
export interface FeedSource {
  readonly path: string;
  /** First byte in the file. */
  readonly offset: number;
  /** Bytes from `offset`; for a growing file the size that its descriptor promises. */
  readonly length: number;
  /** Present while the file is being written by this process; see `FeedProgress`. */
  readonly growth?: SharedArrayBuffer;
}

interface Job {
  readonly number: number;
  readonly database: string;
  /** Shared counter of consumed compressed bytes, for progress; index 0. Setting index 1 to 1 stops the work. */
  readonly control: SharedArrayBuffer;
}

export interface IngestJob extends Job {
  readonly kind: "ingest";
  readonly id: string;
  readonly directory: string;
  readonly feed: FeedSource;
  /** Expected digest of the bytes as fed, "algorithm:hex"; undefined when only the tar is known. */
  readonly digest: string | undefined;
  /** Expected sha256 of the tar; undefined when whoever asks wants to learn it. */
  readonly diffId: string | undefined;
  readonly deduplicate: boolean;
  readonly form: LayerForm;
  /** Where the blob has its TOC: it is kept beside the layer. */
  readonly toc?: TocLocation;
  /** Of the TOC of an eStargz blob, whose footer says where it is. */
  readonly estargzToc?: Uint8Array;
}

/** Puts a layer together from its TOC; see assemble.ts. */
export interface AssembleJob extends Job {
  readonly kind: "assemble";
  readonly id: string;
  readonly directory: string;
  readonly root: string;
  /** The blob, as far as it has come: `location.region` is there. */
  readonly file: string;
  readonly location: TocLocation;
  /** Of the blob. It is not computed: the tar is what is verified. */
  readonly digest: string;
  readonly diffId: string;
  /** Carries one PlanOffer there and one PlanAnswer back. */
  readonly port: MessagePort;
}

/** Finds the chunks of a layer that is in the store; see chunk-scan.ts. */
export interface ChunkScanJob extends Job {
  readonly kind: "chunk scan";
  readonly root: string;
  readonly id: string;
  readonly toc: TocLocation | undefined;
}

/** Writes the merged image of a chain; see ../merge-image.ts. */
export interface MergeJob extends Job {
  readonly kind: "merge";
  /** That the image will have; for messages. */
  readonly id: string;
  readonly chainId: ChainId;
  /** Lowest first. */
  readonly layers: readonly MergeSource[];
  readonly target: string;
}

export type WorkerJob = IngestJob | AssembleJob | ChunkScanJob | MergeJob;

export interface PlanOffer {
  readonly summary: PlanSummary;
  /** What has to be fetched: half-open ranges of the blob, rising. */
  readonly offsets: Float64Array<ArrayBuffer>;
  readonly ends: Float64Array<ArrayBuffer>;
}

export interface PlanAnswer {
  /** Of an `Arrivals` with one part for each range; undefined: leave it. */
  readonly arrived: SharedArrayBuffer | undefined;
}

/** Bytes of the store that don't have the digest under which they were found. */
export interface BadSource {
  /** Of a blob, or, `inline`, of a layer. */
  readonly id: string;
  readonly inline: boolean;
  readonly offset: number;
  readonly digest: Uint8Array;
}

export type AssembleOutcome =
  | { readonly kind: "done"; readonly plan: PlanSummary; readonly result: IngestResult }
  | { readonly kind: "declined"; readonly plan: PlanSummary }
  | {
      readonly kind: "again";
      readonly plan: PlanSummary;
      readonly problem: string;
      readonly badSources: readonly BadSource[];
      /** Of the blob. */
      readonly badRanges: readonly ByteRange[];
    };

/** Rows for the chunk index, in columns. */
export interface ChunkRows {
  /** 32 bytes each. */
  readonly digests: Uint8Array;
  readonly owners: readonly string[];
  /** Index in `owners`. */
  readonly ownerNumbers: readonly number[];
  readonly inline: readonly boolean[];
  readonly offsets: readonly number[];
  readonly lengths: readonly number[];
}

export interface IngestResult extends WrittenLayer {
  readonly id: string;
  readonly form: LayerForm;
  readonly directory: string;
  /** "algorithm:hex" of the bytes as fed, with the algorithm of the expected digest or sha256. */
  readonly digest: string;
  readonly diffId: string;
  readonly tarSize: number;
  /** Bytes as fed. */
  readonly size: number;
  /** Where the TOC that is kept beside the layer was in the blob. */
  readonly toc: TocLocation | undefined;
}

export interface SerializedError {
  readonly code: ErrorCode | undefined;
  /** "ENOSPC" and the like, of a system error. */
  readonly errno: string | undefined;
  /** Of an error of the system: what was called, and on which path. */
  readonly syscall: string | undefined;
  readonly path: string | undefined;
  readonly name: string;
  readonly message: string;
  readonly hint: string | undefined;
  readonly stack: string | undefined;
  readonly cause: SerializedError | undefined;
}

/** What a job ends with, by its kind. */
export type JobResult = IngestResult | AssembleOutcome | ChunkRows | MergedImage;

export type WorkerReply =
  | { readonly kind: "ready" }
  | { readonly kind: "done"; readonly number: number; readonly result: JobResult }
  | { readonly kind: "failed"; readonly number: number; readonly error: SerializedError };

/** Slots of `IngestJob.control`, a BigInt64Array. */
export const CONTROL_CONSUMED = 0;
export const CONTROL_STOP = 1;
export const CONTROL_SIZE = 16;
