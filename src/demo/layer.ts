/**
 * From planned entries to a gzip compressed layer in an OCI layout: one pass, with everything hashed on the way.
 */
import { createHash } from "node:crypto";
import { createGzip } from "node:zlib";
import type { BlobName, OciLayoutWriter } from "../archives/index.ts";
import { throwIfAborted } from "../async/index.ts";
import { encodeTarHeader, TAR_END, tarPadding } from "../formats/tar/index.ts";
import { type DiffId, formatDigest } from "../oci/index.ts";
import type { BuiltEntry, PlannedEntry } from "./tree.ts";

export interface BuiltLayer {
  /** The compressed form. */
  readonly blob: BlobName;
  readonly diffId: DiffId;
  /** Bytes of the uncompressed tar. */
  readonly size: number;
  readonly entries: readonly BuiltEntry[];
}

export interface BuildLayerOptions {
  readonly signal?: AbortSignal;
  /** Uncompressed bytes that are through, since the last call. */
  readonly onBytes?: (bytes: number) => void;
}

/** What real builders do is 6 (docker) or 5; 1 is several times faster and makes the layer a fifth larger. */
const GZIP_LEVEL = 1;
/** Each write to zlib costs a turn of the thread pool: headers and small files are gathered. */
const PIECE = 1 << 20;

/** The same entries give the same bytes, with one version of Node. */
export async function buildLayer(
  writer: OciLayoutWriter,
  planned: readonly PlannedEntry[],
  options: BuildLayerOptions = {},
): Promise<BuiltLayer> {
  const hash = createHash("sha256");
  const entries: BuiltEntry[] = [];
  let size = 0;
  function* tar(): Generator<Uint8Array> {
    for (const piece of gather(tarParts(planned, entries))) {
      throwIfAborted(options.signal);
      hash.update(piece);
      size += piece.length;
      options.onBytes?.(piece.length);
      yield piece;
    }
  }
  const blob = await writer.writeBlob(compressed(tar()), options);
  return { blob, diffId: formatDigest("sha256", hash.digest()) as string as DiffId, size, entries };
}

/** Headers, contents and padding; notes each entry as it went in. */
function* tarParts(planned: readonly PlannedEntry[], entries: BuiltEntry[]): Generator<Uint8Array> {
  for (const { content, ...header } of planned) {
    // The size is that of the bytes that were read: a log of the host may have grown since it was looked at.
    const bytes = content?.() ?? new Uint8Array();
    const sha256 = createHash("sha256").update(bytes).digest("hex");
    const entry = { ...header, size: bytes.length };
    entries.push(content === undefined ? entry : { ...entry, sha256 });
    yield encodeTarHeader(entry);
    yield bytes;
    yield tarPadding(bytes.length);
  }
  yield TAR_END;
}

/** The same bytes in pieces of PIECE; each in a buffer of its own. */
function* gather(parts: Iterable<Uint8Array>): Generator<Buffer> {
  let piece = Buffer.allocUnsafeSlow(PIECE);
  let used = 0;
  for (const part of parts) {
    for (let done = 0; done < part.length; ) {
      const count = Math.min(part.length - done, PIECE - used);
      piece.set(part.subarray(done, done + count), used);
      used += count;
      done += count;
      if (used < PIECE) continue;
      yield piece;
      piece = Buffer.allocUnsafeSlow(PIECE);
      used = 0;
    }
  }
  if (used > 0) yield piece.subarray(0, used);
}

/** gzip in the thread pool. The header that zlib writes has no time, so the bytes depend on the input only. */
async function* compressed(source: Iterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  const gzip = createGzip({ level: GZIP_LEVEL, chunkSize: PIECE });
  const feeding = feed(source, gzip);
  try {
    for await (const piece of gzip) yield piece as Uint8Array;
  } finally {
    gzip.destroy();
    await feeding;
  }
}

/** Settles when all is written or `gzip` is destroyed, which a failing source does. Never rejects. */
async function feed(source: Iterable<Uint8Array>, gzip: ReturnType<typeof createGzip>): Promise<void> {
  try {
    for (const piece of source) {
      if (gzip.destroyed) return;
      await new Promise<void>((resolve) => {
        gzip.once("close", resolve); // the callback does not come when it is destroyed during the write
        gzip.write(piece, () => {
          gzip.off("close", resolve);
          resolve();
        });
      });
    }
    gzip.end();
  } catch (error) {
    gzip.destroy(error instanceof Error ? error : new Error("the source failed", { cause: error }));
  }
}
