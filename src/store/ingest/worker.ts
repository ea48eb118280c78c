/**
 * The ingest worker thread: one layer at a time. A whole blob goes through in one streaming pass: inflation runs ahead on
 * another thread (libuv's pool or ISA-L's), this one hashes, splits and writes meanwhile. A layer with a TOC is put together
 * from parts (assemble.ts). Nothing outside the job's staging directory is written.
 */
import { createHash, randomBytes } from "node:crypto";
import { join } from "node:path";
import { parentPort } from "node:worker_threads";
import { throwIfAborted } from "../../async/index.ts";
import { ShaleError } from "../../errors/index.ts";
import { decompress, detectCompression } from "../../formats/compression/index.ts";
import type { LayerTree } from "../../formats/layer-index/merge.ts";
import { TarDecoder } from "../../formats/tar/index.ts";
import { decodeEstargzFooter, ESTARGZ_FOOTER_SIZE, type TocLocation } from "../../formats/toc/index.ts";
import { closeFile, makeDirectory, openFile, readAt } from "../../sys/index.ts";
import { loadIsal } from "../../sys/isal.ts";
import { openNestedSha256 } from "../../sys/nested-sha256.ts";
import { loadZstdFrames } from "../../sys/zstd-frames.ts";
import { Database } from "../database.ts";
import { LIMITS } from "../limits.ts";
import { writeMerged } from "../merge-image.ts";
import { ArchiveSplitter } from "./archive-splitter.ts";
import { assemble } from "./assemble.ts";
import { scanChunks } from "./chunk-scan.ts";
import { NO_DEDUPE, storeDedupeIndex } from "./dedupe-index.ts";
import { readAhead, readFeed } from "./feed.ts";
import { LayerWriter } from "./layer-writer.ts";
import {
  CONTROL_CONSUMED,
  CONTROL_STOP,
  type FeedSource,
  type IngestJob,
  type IngestResult,
  type JobResult,
  type WorkerJob,
  type WorkerReply,
} from "./protocol.ts";
import { serializeError } from "./serialize-error.ts";
import { keepToc } from "./toc-file.ts";

/**
 * Bytes of a tar that are taken without looking up: it is this thread that gives the inflating one its next work. An
 * ingest took 8 % less time than with pieces of 1 MiB; halves of these gained nothing, nor did 128 KiB.
 */
const TURN = 256 * 1024;

/** The last thing that this thread did was this layer: the merge of its image comes next as a rule, and to this thread. */
let lastIngested: { readonly id: string; readonly tree: LayerTree } | undefined;

const port = parentPort!;
const inflate = loadIsal();

port.on("message", (job: WorkerJob) => {
  work(job).then(
    (result) => reply({ kind: "done", number: job.number, result }),
    (error: unknown) => reply({ kind: "failed", number: job.number, error: serializeError(error) }),
  );
});
reply({ kind: "ready" });

function reply(message: WorkerReply): void {
  port.postMessage(message);
}

async function work(job: WorkerJob): Promise<JobResult> {
  const control = new BigInt64Array(job.control);
  const stop = new AbortController();
  const stopIfAsked = () => {
    if (Atomics.load(control, CONTROL_STOP) !== 0n) stop.abort(new ShaleError("CANCELLED", "Stopped on request"));
  };
  const check = () => {
    stopIfAsked();
    throwIfAborted(stop.signal);
  };
  // Bytes that don't come must not keep a stopped ingest waiting.
  using _ = repeat(stopIfAsked, 250);
  using database = Database.open(job.database, { readOnly: true });
  // What comes next needs the memory, unless it is a merge of just this.
  const recent = job.kind === "merge" ? lastIngested : undefined;
  lastIngested = undefined;
  switch (job.kind) {
    case "ingest":
      return await ingest(job, database, control, stopIfAsked, stop.signal);
    case "assemble":
      return await assemble(job, database, check, stop.signal);
    case "chunk scan":
      return await scanChunks(job, check, stop.signal);
    case "merge":
      return writeMerged(job.chainId, job.layers, job.target, (id) => (id === recent?.id ? recent.tree : undefined));
  }
}

async function ingest(
  job: IngestJob,
  database: Database,
  control: BigInt64Array,
  stopIfAsked: () => void,
  signal: AbortSignal,
): Promise<IngestResult> {
  const algorithm = job.digest?.slice(0, job.digest.indexOf(":")) ?? "sha256";
  const sha256 = openNestedSha256();
  let size = 0;
  let tarSize = 0;

  const layer = join(job.directory, "layer");
  makeDirectory(layer);
  using writer = new LayerWriter(
    job.id,
    {
      blob: join(job.directory, "blob"),
      spool: join(job.directory, "spool"),
      layer,
      image: join(layer, "meta.erofs"),
      recipe: join(layer, "tar.headers"),
    },
    job.deduplicate ? storeDedupeIndex(database) : NO_DEDUPE,
    sha256,
    randomBytes(4).readUInt32LE(),
  );
  // a layer is held against its digests
  const decoder =
    job.form === "archive"
      ? new TarDecoder(new ArchiveSplitter(writer))
      : new TarDecoder(writer, { mayLackPadding: job.digest !== undefined || job.diffId !== undefined });

  const feed = readFeed(job.feed, signal);
  const first = await feed.next();
  const head = first.done === true ? new Uint8Array(0) : first.value;
  const compression = detectCompression(head);
  // what is fed is the tar: one hash tells both, and hashing is most of the work of a large archive
  const isPlain = compression === "none" && algorithm === "sha256";
  const feedHash = isPlain ? undefined : createHash(algorithm);
  async function* counted(): AsyncGenerator<Uint8Array> {
    for (let next = first; next.done !== true; next = await feed.next()) {
      stopIfAsked();
      feedHash?.update(next.value);
      size += next.value.length;
      Atomics.store(control, CONTROL_CONSUMED, BigInt(size));
      yield next.value;
    }
  }

  try {
    for await (const piece of decompress(readAhead(counted()), compression, {
      inflate,
      ...(compression === "zstd" && { frames: loadZstdFrames() }),
      signal,
      maximumSize: LIMITS.layerTarSize,
    })) {
      for (let at = 0; at < piece.length; at += TURN) {
        if (at > 0) await turn();
        const part = piece.subarray(at, at + TURN);
        tarSize += part.length;
        sha256.give(part);
        try {
          decoder.write(part);
        } finally {
          sha256.settle();
        }
      }
    }
    decoder.end();
  } catch (error) {
    // A broken transfer looks like a broken format. Which of the two it is, the digest of all bytes tells.
    if (ShaleError.is(error, "INVALID_ARGUMENT") && job.digest !== undefined) {
      checkDigest(job.digest, await digestOf(job.feed, algorithm, signal), error);
    }
    throw error;
  } finally {
    await feed.return(undefined);
  }

  const diffId = `sha256:${sha256.digest().toString("hex")}`;
  const digest = feedHash === undefined ? diffId : `${algorithm}:${feedHash.digest("hex")}`;
  if (job.digest !== undefined) checkDigest(job.digest, digest, undefined);
  if (job.diffId !== undefined && job.diffId !== diffId) {
    throw new ShaleError(
      "DATA_LOSS",
      `Cannot store layer ${digest}: its tar is ${diffId}, the image's config says ${job.diffId}`,
      {
        hint: "The image is inconsistent: its publisher has to push it again",
      },
    );
  }
  const toc = job.toc ?? findEstargzToc(job);
  const kept = toc === undefined ? 0 : keepTocOf(job.feed.path, join(layer, "toc"), toc);
  const { id, directory, form } = job;
  const written = writer.finish(kept);
  const tree = writer.takeTree();
  lastIngested = tree && { id, tree };
  return { ...written, id, directory, form, digest, diffId, tarSize, size, toc };
}

/** Read again from the start: what was taken ahead, and not looked at any more, is in none of the digests that were begun. */
async function digestOf(feed: FeedSource, algorithm: string, signal: AbortSignal): Promise<string> {
  const hash = createHash(algorithm);
  for await (const piece of readFeed(feed, signal)) hash.update(piece);
  return `${algorithm}:${hash.digest("hex")}`;
}

/** Where its footer says. One that can't be read is no use for later pulls, and nothing else needs it. */
function findEstargzToc({ estargzToc, feed }: IngestJob): TocLocation | undefined {
  if (estargzToc === undefined || feed.length < ESTARGZ_FOOTER_SIZE) return undefined;
  const footer = Buffer.alloc(ESTARGZ_FOOTER_SIZE);
  const file = openFile(feed.path);
  try {
    readAt(file, footer, feed.offset + feed.length - ESTARGZ_FOOTER_SIZE);
    return decodeEstargzFooter(footer, feed.length, estargzToc);
  } catch (error) {
    if (ShaleError.is(error)) return undefined;
    throw error;
  } finally {
    closeFile(file);
  }
}

/** The blob is verified by now, and so is the TOC in it. */
function keepTocOf(blob: string, path: string, location: TocLocation): number {
  const file = openFile(blob);
  try {
    return keepToc(path, file, location);
  } finally {
    closeFile(file);
  }
}

function checkDigest(expected: string, found: string, cause: unknown): void {
  if (expected === found) return;
  throw new ShaleError("DATA_LOSS", `Cannot store layer ${expected}: the bytes that arrived are ${found}`, {
    cause,
    hint: "The transfer or its origin is damaged: try again",
  });
}

/** Lets this thread do what waits for it. */
function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

function repeat(action: () => void, everyMs: number): Disposable {
  const timer = setInterval(action, everyMs);
  return { [Symbol.dispose]: () => clearInterval(timer) };
}
