/**
 * What a mount of a chain stands on: EROFS mounts of layers or of a merged image, and directories of plain snapshots. Decided
 * once, when a snapshot is prepared, and recorded with it.
 */
import { hash } from "node:crypto";
import { type ChainId, chainIdOf, type DiffId } from "../oci/index.ts";
import type { SnapshotRecord } from "../store/index.ts";
import { SNAPSHOTTER_LIMITS } from "./limits.ts";
import type { MountMode } from "./types.ts";

/** One item, before it has a number: what to mount, or whose directory. */
export type Base =
  /** One tree for the lowest layers of a chain, whiteouts applied. */
  | { readonly kind: "chain"; readonly diffIds: readonly DiffId[] }
  /** One layer as it is, for an overlay: its whiteouts hide what is below. */
  | { readonly kind: "layer"; readonly diffId: DiffId }
  | { readonly kind: "directory"; readonly id: number };

/** Bytes that one base needs in the lowerdir option, relative to the root: "snapshots/1234567/fs:". */
const BASE_LENGTH = 21;

/**
 * The bases of `chain` (lowest snapshot first), uppermost first. `bare`: where there is one only, it is shown as it is, not
 * through an overlay.
 */
export function planBases(
  chain: readonly SnapshotRecord[],
  mode: MountMode,
  { bare = false }: { readonly bare?: boolean } = {},
): readonly Base[] {
  const upwards = chain.flatMap((snapshot): Base[] => [
    ...(snapshot.diffId === undefined ? [] : [{ kind: "layer", diffId: snapshot.diffId } as const]),
    ...(snapshot.directory ? [{ kind: "directory", id: snapshot.id } as const] : []),
  ]);
  const plain = upwards.findIndex((base) => base.kind !== "layer");
  const lowest = upwards
    .slice(0, plain < 0 ? upwards.length : plain)
    .flatMap((base) => (base.kind === "layer" ? [base.diffId] : []));
  const tooMany =
    upwards.length > SNAPSHOTTER_LIMITS.bases || upwards.length * BASE_LENGTH > SNAPSHOTTER_LIMITS.lowerOption;
  // As a chain of one, a layer shows none of its whiteouts; an overlay hides them itself.
  const single = bare && upwards.length === 1;
  const merged = mode === "merged" || tooMany || single ? lowest : [];
  const rest = upwards.slice(merged.length);
  return [...(merged.length === 0 ? [] : [{ kind: "chain", diffIds: merged } as const]), ...rest].reverse();
}

/** The layers of a chain as an image has them, lowest first; undefined when a snapshot of it is something else. */
export function imageLayers(chain: readonly SnapshotRecord[]): readonly DiffId[] | undefined {
  const diffIds = chain.flatMap(({ diffId, exact, directory }) =>
    diffId !== undefined && exact && !directory ? [diffId] : [],
  );
  return diffIds.length === chain.length ? diffIds : undefined;
}

/** How a mount is recorded. The same base has the same text, so it is mounted once. */
export interface BaseDescription {
  /** Chain id of the layers. */
  readonly chain?: ChainId;
  readonly layer?: DiffId;
  /** Which files of the store the layers were: after a repair they are others. */
  readonly files?: string;
  readonly directory?: number;
}

/** `idsOf` answers the store's own ids of layers. */
export function describeBase(
  base: Base,
  idsOf: (diffIds: readonly DiffId[]) => readonly string[],
): { readonly description: BaseDescription; readonly diffIds: readonly DiffId[] } {
  if (base.kind === "directory") return { description: { directory: base.id }, diffIds: [] };
  const diffIds = base.kind === "chain" ? base.diffIds : [base.diffId];
  const files = hash("sha256", idsOf(diffIds).join(" ")).slice(0, 24);
  if (base.kind === "layer") return { description: { layer: base.diffId, files }, diffIds };
  return { description: { chain: chainIdOf(diffIds), files }, diffIds };
}
