/**
 * What a mount of a chain stands on: EROFS mounts of layers or of a merged image, and directories of plain snapshots. Decided
 * once, when a snapshot is prepared, and recorded with it.
 */
import { chainIdOf, type DiffId } from "../oci/index.ts";
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

/** How a mount is recorded, and the layers that it needs. The same base has the same text, so it is mounted once. */
export function describeBase(base: Base): {
  readonly text: object;
  readonly diffIds: readonly DiffId[];
} {
  switch (base.kind) {
    case "chain":
      return { text: { chain: chainIdOf(base.diffIds) }, diffIds: base.diffIds };
    case "layer":
      return { text: { layer: base.diffId }, diffIds: [base.diffId] };
    case "directory":
      return { text: { directory: base.id }, diffIds: [] };
  }
}
