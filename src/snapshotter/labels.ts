/** Labels of snapshots: which of them mean something here, and what clients may send. */
import { ShaleError } from "../errors/index.ts";
import type { IdRange } from "../sys/index.ts";
import { SNAPSHOTTER_LIMITS } from "./limits.ts";
import type { Labels } from "./types.ts";

/**
 * The overlay is volatile; with the value "false" it is not, whatever the option says. nydus-snapshotter has the same label
 * (its presence counts there); containerd passes on all that begin so.
 */
export const VOLATILE_LABEL = "containerd.io/snapshot/overlay.volatile";
const UID_LABEL = "containerd.io/snapshot/uidmapping";
const GID_LABEL = "containerd.io/snapshot/gidmapping";
/** The layers of the image that is pulled, from this one up. */
const IMAGE_LAYERS_LABEL = "containerd.io/snapshot/cri.image-layers";

/** Ids of a user namespace: what is `inside` on disk is shown as `outside`. */
export interface IdMapping {
  readonly uids: readonly IdRange[];
  readonly gids: readonly IdRange[];
}

/** Whether a layer is the uppermost of the image that is pulled; undefined where its labels don't tell. */
export function isUppermost(labels: Labels): boolean | undefined {
  const layers = labels[IMAGE_LAYERS_LABEL];
  return layers === undefined ? undefined : !layers.includes(",");
}

/** INVALID_ARGUMENT for a name or labels over a limit. */
export function checkName(name: string): void {
  if (name === "") throw invalid("snapshot without a name");
  if (Buffer.byteLength(name) > SNAPSHOTTER_LIMITS.name || name.includes("\0")) {
    throw invalid(`snapshot name of more than ${SNAPSHOTTER_LIMITS.name} bytes, or with a NUL`);
  }
}

export function checkLabels(labels: Labels): void {
  let sum = 0;
  for (const [key, value] of Object.entries(labels)) {
    const size = Buffer.byteLength(key) + Buffer.byteLength(value);
    sum += size;
    if (key === "") throw invalid("label without a key");
    if (size > SNAPSHOTTER_LIMITS.label) {
      throw invalid(`label ${key.slice(0, 64)} of more than ${SNAPSHOTTER_LIMITS.label} bytes, key and value together`);
    }
  }
  if (sum > SNAPSHOTTER_LIMITS.labels) throw invalid(`labels of more than ${SNAPSHOTTER_LIMITS.labels} bytes`);
}

/** Undefined when no mapping is asked for; INVALID_ARGUMENT for one that can't be meant. */
export function mappingOf(labels: Labels): IdMapping | undefined {
  const uids = labels[UID_LABEL];
  const gids = labels[GID_LABEL];
  if (uids === undefined && gids === undefined) return undefined;
  if (uids === undefined || gids === undefined) throw invalid(`one of the labels ${UID_LABEL} and ${GID_LABEL}`);
  return { uids: parseRanges(UID_LABEL, uids), gids: parseRanges(GID_LABEL, gids) };
}

/** "container:host:size[,...]" */
function parseRanges(label: string, text: string): IdRange[] {
  const ranges = text.split(",", SNAPSHOTTER_LIMITS.idRanges + 1).map((range): IdRange => {
    const match = /^(\d{1,10}):(\d{1,10}):(\d{1,10})$/.exec(range);
    const [inside, outside, length] = (match ?? []).slice(1).map(Number);
    if (inside === undefined || outside === undefined || length === undefined || length === 0) {
      throw invalid(`label ${label}: ${JSON.stringify(range.slice(0, 40))} is not CONTAINER:HOST:SIZE`);
    }
    if (Math.max(inside, outside) + length > 2 ** 32) throw invalid(`label ${label}: ${range} ends above 2^32`);
    return { inside, outside, length };
  });
  if (ranges.length > SNAPSHOTTER_LIMITS.idRanges) {
    throw invalid(`label ${label} with more than ${SNAPSHOTTER_LIMITS.idRanges} ranges`);
  }
  return ranges;
}

/** What an id on disk is on the host; the id itself where the mapping has none. */
export function mapId(ranges: readonly IdRange[], id: number): number {
  const range = ranges.find(({ inside, length }) => id >= inside && id < inside + length);
  return range === undefined ? id : range.outside + (id - range.inside);
}

export function isVolatile(labels: Labels, otherwise: boolean): boolean {
  const value = labels[VOLATILE_LABEL];
  return value === undefined ? otherwise : value !== "false";
}

/** The labels after an update by a field mask. INVALID_ARGUMENT for another path. */
export function updatedLabels(current: Labels, wanted: Labels, paths: readonly string[]): Labels {
  if (paths.length === 0) return wanted;
  let labels: Labels = current;
  for (const path of paths) {
    if (path === "labels") labels = wanted;
    else if (path.startsWith("labels.") && path.length > "labels.".length) {
      const key = path.slice("labels.".length);
      const { [key]: _, ...others } = labels;
      const value = Object.hasOwn(wanted, key) ? wanted[key]! : "";
      labels = value === "" ? others : { ...others, [key]: value };
    } else throw invalid(`field ${JSON.stringify(path.slice(0, 100))} of a snapshot can't be updated`);
  }
  return labels;
}

function invalid(what: string): ShaleError {
  return new ShaleError("INVALID_ARGUMENT", `${what}: invalid argument`);
}
