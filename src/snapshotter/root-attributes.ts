/** Owner and permissions of a new snapshot's root directory. */
import { IMPLIED_XATTR } from "../formats/layer-index/overlay.ts";
import { type Ownership, readXattrs, statFile } from "../sys/index.ts";
import { type IdMapping, mapId } from "./labels.ts";

/**
 * What the root of `bases` (paths, uppermost first) shows: in an overlay the upper directory's own attributes hide those of
 * the layers. Layers that only imply their root, since no entry of their tar is about it, don't count. 0755 for no bases.
 */
export function rootOf(bases: readonly string[], mapping: IdMapping | undefined): Ownership {
  const base =
    bases.find((path) => !readXattrs(path).some(({ name }) => name === IMPLIED_XATTR)) ?? bases[bases.length - 1];
  if (base === undefined)
    return { mode: 0o755, uid: mapId(mapping?.uids ?? [], 0), gid: mapId(mapping?.gids ?? [], 0) };
  const { mode, uid, gid } = statFile(base); // through an idmapped mount: mapped already
  return { mode: mode & 0o7777, uid, gid };
}
