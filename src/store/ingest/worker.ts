/**
 * The ingest worker thread: one layer at a time, in one streaming pass. Inflation runs ahead on another thread (libuv's
 * pool or ISA-L's), this one hashes, splits and writes meanwhile. Nothing outside the job's staging directory is written.
 */
import { createHash, randomBytes } from "node:crypto";
import { join } from "node:path";
import { parentPort } from "node:worker_threads";
import { ShaleError } from "../../errors/index.ts";
import { decompress, detectCompression } from "../../formats/compression/index.ts";
import { TarDecoder } from "../../formats/tar/index.ts";
import { makeDirectory } from "../../sys/index.ts";
import { loadIsal } from "../../sys/isal.ts";
import { Database } from "../database.ts";
import { LIMITS } from "../limits.ts";
import { NO_DEDUPE, storeDedupeIndex } from "./dedupe-index.ts";
import { readFeed } from "./feed.ts";
import { LayerWriter } from "./layer-writer.ts";
import { CONTROL_CONSUMED, CONTROL_STOP, type IngestJob, type IngestResult, type WorkerReply } from "./protocol.ts";
import { serializeError } from "./serialize-error.ts";

const port = parentPort!;
const inflate = loadIsal();

port.on("message", (job: IngestJob) => {
  ingest(job).then(
    (result) => reply({ kind: "done", number: job.number, result }),
    (error: unknown) => reply({ kind: "failed", number: job.number, error: serializeError(error) }),
  );
});
reply({ kind: "ready" });

function reply(message: WorkerReply): void {
  port.postMessage(message);
}

async function ingest(job: IngestJob): Promise<IngestResult> {
  const control = new BigInt64Array(job.control);
  const stop = new AbortController();
  const stopIfAsked = () => {
    if (Atomics.load(control, CONTROL_STOP) !== 0n) stop.abort(new ShaleError("CANCELLED", "Stopped on request"));
  };
  // Bytes that don't come must not keep a stopped ingest waiting.
  using _ = repeat(stopIfAsked, 250);
  const algorithm = job.digest?.slice(0, job.digest.indexOf(":")) ?? "sha256";
  const compressedHash = createHash(algorithm);
  const tarHash = createHash("sha256");
  let size = 0;
  let tarSize = 0;

  using database = Database.open(job.database, { readOnly: true });
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
    randomBytes(4).readUInt32LE(),
  );
  const decoder = new TarDecoder(writer);

  const feed = readFeed(job.feed, stop.signal);
  const first = await feed.next();
  const head = first.done === true ? new Uint8Array(0) : first.value;
  const compression = detectCompression(head);
  async function* counted(): AsyncGenerator<Uint8Array> {
    for (let next = first; next.done !== true; next = await feed.next()) {
      stopIfAsked();
      compressedHash.update(next.value);
      size += next.value.length;
      Atomics.store(control, CONTROL_CONSUMED, BigInt(size));
      yield next.value;
    }
  }

  try {
    for await (const piece of decompress(counted(), compression, {
      inflate,
      signal: stop.signal,
      maximumSize: LIMITS.layerTarSize,
    })) {
      tarHash.update(piece);
      tarSize += piece.length;
      decoder.write(piece);
    }
    decoder.end();
  } catch (error) {
    // A broken transfer looks like a broken format. Which of the two it is, the digest of all bytes tells.
    if (ShaleError.is(error, "INVALID_ARGUMENT") && job.digest !== undefined) {
      for (let next = await feed.next(); next.done !== true; next = await feed.next())
        compressedHash.update(next.value);
      checkDigest(job.digest, `${algorithm}:${compressedHash.digest("hex")}`, error);
    }
    throw error;
  } finally {
    await feed.return(undefined);
  }

  const digest = `${algorithm}:${compressedHash.digest("hex")}`;
  if (job.digest !== undefined) checkDigest(job.digest, digest, undefined);
  const diffId = `sha256:${tarHash.digest("hex")}`;
  if (job.diffId !== undefined && job.diffId !== diffId) {
    throw new ShaleError(
      "DATA_LOSS",
      `Cannot store layer ${digest}: its tar is ${diffId}, the image's config says ${job.diffId}`,
      {
        hint: "The image is inconsistent: its publisher has to push it again",
      },
    );
  }
  return { ...writer.finish(), id: job.id, directory: job.directory, digest, diffId, tarSize, size };
}

function checkDigest(expected: string, found: string, cause: unknown): void {
  if (expected === found) return;
  throw new ShaleError("DATA_LOSS", `Cannot store layer ${expected}: the bytes that arrived are ${found}`, {
    cause,
    hint: "The transfer or its origin is damaged: try again",
  });
}

function repeat(action: () => void, everyMs: number): Disposable {
  const timer = setInterval(action, everyMs);
  return { [Symbol.dispose]: () => clearInterval(timer) };
}
