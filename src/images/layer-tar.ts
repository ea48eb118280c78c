/**
 * A layer's tar on its way out of the store: rebuilt piece by piece, verified on the way, and never so much at a time that
 * signals, sockets and other requests would have to wait.
 */
import { createHash } from "node:crypto";
import { throwIfAborted } from "../async/index.ts";
import { FormatError, ShaleError } from "../errors/index.ts";
import { formatDigest } from "../oci/index.ts";
import type { LayerRecord, LayerTar, StoreOperation } from "../store/index.ts";

/** Rebuilding is synchronous work of the main thread; after so many bytes others get their turn. */
const TURN = 1024 * 1024;
const HINT = "Run shale check --repair, or pull the image again";

export interface ReadTarOptions {
  readonly signal?: AbortSignal;
  /** Told of the bytes of the tar as they come. */
  readonly onBytes?: (count: number) => void;
}

/**
 * The whole tar of a layer, bit for bit what its diffId is the digest of. The last piece comes only when the digest was
 * right, so what was written from a damaged layer is never complete: DATA_LOSS. Pieces are of at most 1 MiB and are not
 * written to again.
 */
export async function* readLayerTar(
  operation: StoreOperation,
  layer: LayerRecord,
  options: ReadTarOptions = {},
): AsyncGenerator<Uint8Array, void, undefined> {
  using tar = openTar(operation, layer);
  const hash = createHash("sha256");
  let done = 0;
  const verify = () => {
    const digest = formatDigest("sha256", hash.digest());
    if (digest !== (layer.diffId as string)) throw damaged(layer, `its tar came out as ${digest}`);
  };
  for await (const piece of inTurns(layer, tar, 0, options)) {
    hash.update(piece);
    done += piece.length;
    if (done >= tar.size) verify();
    yield piece;
  }
  if (tar.size === 0) verify();
  if (done !== tar.size) throw damaged(layer, `${done} bytes came out instead of ${tar.size}`);
}

/**
 * Bytes `start` up to `end` of a layer's tar. A part can't be verified against the digest of the whole: its reader has
 * to. Damage that shows in the structures on the way is DATA_LOSS.
 */
export async function* readLayerTarRange(
  operation: StoreOperation,
  layer: LayerRecord,
  start: number,
  end: number,
  options: ReadTarOptions = {},
): AsyncGenerator<Uint8Array, void, undefined> {
  using tar = openTar(operation, layer);
  yield* takeRange(inTurns(layer, tar, start, options), 0, end - start);
}

/** Bytes `start` up to `end` of a stream. The rest of it is not asked for. */
export async function* takeRange(
  source: AsyncIterable<Uint8Array>,
  start: number,
  end: number,
): AsyncGenerator<Uint8Array, void, undefined> {
  let at = 0;
  if (start === end) return;
  for await (const piece of source) {
    const from = Math.max(start - at, 0);
    const to = Math.min(end - at, piece.length);
    if (from < to) yield from === 0 && to === piece.length ? piece : piece.subarray(from, to);
    at += piece.length;
    if (at >= end) return;
  }
}

function openTar(operation: StoreOperation, layer: LayerRecord): LayerTar & Disposable {
  try {
    return operation.openTar(layer);
  } catch (error) {
    throw explain(layer, error);
  }
}

async function* inTurns(
  layer: LayerRecord,
  tar: LayerTar,
  from: number,
  { signal, onBytes }: ReadTarOptions,
): AsyncGenerator<Uint8Array, void, undefined> {
  throwIfAborted(signal);
  let sinceTurn = 0;
  for (const piece of guarded(layer, tar.read(from))) {
    onBytes?.(piece.length);
    yield piece;
    sinceTurn += piece.length;
    if (sinceTurn < TURN) continue;
    sinceTurn = 0;
    await new Promise((resolve) => setImmediate(resolve));
    throwIfAborted(signal);
  }
}

function* guarded(layer: LayerRecord, pieces: Iterable<Uint8Array>): Generator<Uint8Array, void, undefined> {
  try {
    yield* pieces;
  } catch (error) {
    throw explain(layer, error);
  }
}

/** What the formats call malformed was written by us: here it is a loss. */
function explain(layer: LayerRecord, error: unknown): unknown {
  return error instanceof FormatError ? damaged(layer, "its files in the store are damaged", error) : error;
}

function damaged(layer: LayerRecord, state: string, cause?: unknown): ShaleError {
  const options = cause === undefined ? { hint: HINT } : { hint: HINT, cause };
  return new ShaleError("DATA_LOSS", `Cannot rebuild layer ${layer.diffId}: ${state}`, options);
}
