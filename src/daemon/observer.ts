/** From what happens to log lines: which of it an operator wants to read, at which level. Counting is in metrics/. */
import { ShaleError } from "../errors/index.ts";
import type { Log, LogFields, LogLevel } from "../log/index.ts";
import type { CallRecord, StatusName } from "../rpc/index.ts";
import type { SnapshotterEvent } from "../snapshotter/index.ts";
import type { AppliedLayer } from "./metrics/index.ts";
import type { RemoteEvent } from "../snapshotter/remote/index.ts";

/** A call that takes longer is worth a line although it succeeded; those that fetch or unpack take their time. */
const SLOW_MS = 5_000;
const PATIENT = new Set(["Prepare", "Apply", "Diff"]);

/** Answers that are part of the protocol: containerd asks for what is not there, and takes "already exists" for "go on". */
const EXPECTED: ReadonlySet<StatusName> = new Set([
  ...(["OK", "NOT_FOUND", "ALREADY_EXISTS", "CANCELLED", "FAILED_PRECONDITION", "UNIMPLEMENTED"] as const),
]);

export function logCall(log: Log, { method, status, durationMs, fields, error }: CallRecord): void {
  const shown: LogFields = { ...fields, code: status.name, ms: Math.round(durationMs) };
  const level = levelOf(method.name, status.name, durationMs);
  const message = status.name === "OK" ? method.name : `${method.name}: ${status.details}`;
  log[level](message, error !== undefined && isMistake(error) ? { ...shown, stack: stackOf(error) } : shown);
}

function levelOf(method: string, status: StatusName, durationMs: number): LogLevel {
  if (!EXPECTED.has(status)) return "error";
  return durationMs > SLOW_MS && !PATIENT.has(method) ? "warn" : "debug";
}

/** No ShaleError and no system error: ours to mend, and the stack says where. */
function isMistake(error: unknown): boolean {
  return !ShaleError.is(error) && !(error instanceof Error && "code" in error);
}

function stackOf(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}

/** The message with the causes that say more, for a line of the log. */
export function describeError(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const { cause } = error;
  const inner = cause instanceof Error && !error.message.includes(cause.message) ? `: ${describeError(cause)}` : "";
  return `${error.message}${inner}`;
}

export function logSnapshotterEvent(log: Log, event: SnapshotterEvent): void {
  switch (event.kind) {
    case "recovered":
      log[event.directories > 0 ? "info" : "debug"]("Took up what the last daemon left half-made", {
        directories: event.directories,
        ms: Math.round(event.durationMs),
      });
      break;
    case "mounted":
      log.debug(event.again ? "Mounted again" : "Mounted", { path: event.path, ms: Math.round(event.durationMs) });
      break;
    case "unmounted":
      log.debug("Unmounted", { path: event.path });
      break;
    case "merged":
      log.debug("Merged layers", { layers: event.layers, ms: Math.round(event.durationMs) });
      break;
    case "converted":
      log.info("Made a layer of a directory", {
        key: event.key,
        layer: event.diffId,
        ms: Math.round(event.durationMs),
      });
      break;
    case "not-converted":
      log.info("Kept a directory as it is", { key: event.key, why: event.why });
      break;
    case "removed":
      log.debug("Deleted removed snapshots", {
        directories: event.directories,
        bytes: event.bytes,
        ms: Math.round(event.durationMs),
      });
      break;
    case "trouble":
      log.error(`${event.what}: ${describeError(event.error)}`);
      break;
  }
}

export function logApplied(log: Log, layer: AppliedLayer & { readonly key: string; readonly digest: string }): void {
  const { key, digest, state, bytes, durationMs } = layer;
  log[state === "stored" ? "info" : "debug"](state === "stored" ? "Stored a layer" : "Had a layer", {
    ...{ key, layer: digest, bytes, ms: Math.round(durationMs) },
  });
}

export function logRemoteEvent(log: Log, event: RemoteEvent): void {
  switch (event.kind) {
    case "layer": {
      const { image, digest, diffId, state, received, durationMs } = event;
      const level = state === "fetched" ? "info" : "debug";
      log[level](state === "fetched" ? "Fetched a layer" : "Had a layer", {
        ...{ image, layer: digest ?? diffId, state, bytes: received, ms: Math.round(durationMs) },
      });
      break;
    }
    case "failed":
      log.warn(`Could not fetch: ${describeError(event.error)}`, { image: event.image, layer: event.digest });
      break;
    case "left":
      log.warn(`Left a layer to containerd: ${describeError(event.error)}`, { chainId: event.chainId });
      break;
  }
}
