/** Everyone in the race; `bare` is the floor, not a peer. One file per contestant. */
import { ShaleError } from "../../src/errors/index.ts";
import { bare } from "./bare.ts";
import { containerdErofs } from "./containerd-erofs.ts";
import { containerdOverlayfs } from "./containerd-overlayfs.ts";
import type { Contestant } from "./contestant.ts";
import { podman } from "./podman.ts";
import { shale, shaleCommand } from "./shale.ts";
import { umoci } from "./umoci.ts";

export type { Attempt, Contestant } from "./contestant.ts";
export { shale, shaleCommand };

export const CONTESTANTS: readonly Contestant[] = [shale, bare, containerdOverlayfs, containerdErofs, umoci, podman];

/** Those that the goals compare shale with. */
export const PEERS: readonly Contestant[] = CONTESTANTS.filter((c) => c !== shale && c !== bare);

/** Throws INVALID_ARGUMENT for an unknown id. */
export function contestantsNamed(ids: readonly string[]): Contestant[] {
  return ids.map((id) => {
    const found = CONTESTANTS.find((c) => c.id === id);
    if (found) return found;
    const known = CONTESTANTS.map((c) => c.id).join(", ");
    throw new ShaleError("INVALID_ARGUMENT", `Cannot run contestant "${id}": there is none of that name`, {
      hint: `One of ${known}`,
    });
  });
}
