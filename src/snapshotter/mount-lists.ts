/** From what a snapshot stands on to the list of mounts that containerd performs, and back. */
import { join } from "node:path";
import { ShaleError } from "../errors/index.ts";
import type { SnapshotMount } from "./types.ts";

export interface MountParts {
  /** Paths, uppermost first. */
  readonly bases: readonly string[];
  /** snapshots/<id>; undefined for a view that stands on something. */
  readonly directory: string | undefined;
  readonly writable: boolean;
  /** Further options of an overlay. */
  readonly options: readonly string[];
}

/** Where files of an active snapshot are, in its directory. */
export const UPPER = "fs";
export const WORK = "work";

/**
 * One mount: a bind of the only directory there is, else an overlay. Paths go into options unescaped, since containerd takes
 * them apart again: `checkRoot` refuses what that would break.
 */
export function mountList({ bases, directory, writable, options }: MountParts): readonly SnapshotMount[] {
  if (!writable) {
    const only = bases.length === 0 ? join(directory!, UPPER) : bases[0]!;
    if (bases.length <= 1) return [{ type: "bind", source: only, options: ["rbind", "ro"] }];
    return [{ type: "overlay", source: "overlay", options: [...options, "redirect_dir=follow", lower(bases)] }];
  }
  const upper = join(directory!, UPPER);
  if (bases.length === 0) return [{ type: "bind", source: upper, options: ["rbind", "rw"] }];
  // Without index the kernel keeps no file handles of lower layers, so it does not mind that they are mounted anew. With
  // redirects, a directory of a lower layer can be renamed, as anywhere else.
  const own = ["index=off", "redirect_dir=on", `workdir=${join(directory!, WORK)}`, `upperdir=${upper}`];
  return [{ type: "overlay", source: "overlay", options: [...options, ...own, lower(bases)] }];
}

function lower(bases: readonly string[]): string {
  return `lowerdir=${bases.join(":")}`;
}

/** The snapshot directory that a list of mounts writes to; undefined when it is none below `snapshots`. */
export function writtenDirectory(mounts: readonly SnapshotMount[], snapshots: string): number | undefined {
  const [mount] = mounts;
  if (mounts.length !== 1 || mount === undefined) return undefined;
  const upper =
    mount.type === "overlay"
      ? mount.options.find((option) => option.startsWith("upperdir="))?.slice("upperdir=".length)
      : mount.source;
  const prefix = `${snapshots}/`;
  if (!upper?.startsWith(prefix)) return undefined;
  const match = /^([1-9]\d{0,15})\/fs$/.exec(upper.slice(prefix.length));
  return match === null ? undefined : Number(match[1]);
}

/** Whatever the order of the options: they have travelled through containerd. */
export function equalMounts(a: readonly SnapshotMount[], b: readonly SnapshotMount[]): boolean {
  const spell = (mounts: readonly SnapshotMount[]) =>
    JSON.stringify(
      mounts.map(({ type, source, target, options }) => [type, source, target ?? "", [...options].sort()]),
    );
  return spell(a) === spell(b);
}

/** FAILED_PRECONDITION for a root whose path overlayfs or containerd would read as something else. */
export function checkRoot(root: string): void {
  if (!/[:,\\\s"]/.test(root)) return;
  throw new ShaleError(
    "FAILED_PRECONDITION",
    `Cannot serve snapshots of ${root}: a colon, comma, backslash, quote or blank in its path can't be in mount options`,
    { hint: "Choose another --root" },
  );
}
