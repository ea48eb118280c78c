/** What travels between the main thread and an ingest worker. Plain data and one shared counter; no functions. */
import type { ErrorCode } from "../../errors/index.ts";
import type { WrittenLayer } from "./layer-writer.ts";

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

export interface IngestJob {
  readonly number: number;
  readonly id: string;
  readonly directory: string;
  readonly database: string;
  readonly feed: FeedSource;
  /** Expected digest of the bytes as fed, "algorithm:hex"; undefined when only the tar is known. */
  readonly digest: string | undefined;
  /** Expected sha256 of the tar; undefined when whoever asks wants to learn it. */
  readonly diffId: string | undefined;
  readonly deduplicate: boolean;
  /** Shared counter of consumed compressed bytes, for progress; index 0. Setting index 1 to 1 stops the ingest. */
  readonly control: SharedArrayBuffer;
}

export interface IngestResult extends WrittenLayer {
  readonly id: string;
  readonly directory: string;
  /** "algorithm:hex" of the bytes as fed, with the algorithm of the expected digest or sha256. */
  readonly digest: string;
  readonly diffId: string;
  readonly tarSize: number;
  /** Bytes as fed. */
  readonly size: number;
}

export interface SerializedError {
  readonly code: ErrorCode | undefined;
  /** "ENOSPC" and the like, of a system error. */
  readonly errno: string | undefined;
  readonly name: string;
  readonly message: string;
  readonly hint: string | undefined;
  readonly stack: string | undefined;
  readonly cause: SerializedError | undefined;
}

export type WorkerReply =
  | { readonly kind: "ready" }
  | { readonly kind: "done"; readonly number: number; readonly result: IngestResult }
  | { readonly kind: "failed"; readonly number: number; readonly error: SerializedError };

/** Slots of `IngestJob.control`, a BigInt64Array. */
export const CONTROL_CONSUMED = 0;
export const CONTROL_STOP = 1;
export const CONTROL_SIZE = 16;
