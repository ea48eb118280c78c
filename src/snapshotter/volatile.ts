/**
 * Overlays with `volatile`: nothing is synced. The kernel leaves a mark while one is mounted, also after it is unmounted,
 * and mounts the same upper directory no second time while the mark is there (Documentation/filesystems/overlayfs.rst).
 */
import { join } from "node:path";
import { ShaleError } from "../errors/index.ts";
import { bootId, findFile, removeTree } from "../sys/index.ts";

export const VOLATILE = "volatile";

/**
 * Lets the overlay be mounted (again) where that is sound: in the boot `since` that wrote it, the page cache has everything.
 * FAILED_PRECONDITION after another boot, if it was in use when that one ended.
 */
export function admitVolatile(key: string, work: string, since: string | undefined): void {
  const mark = join(work, "work/incompat/volatile");
  if (findFile(mark) === undefined) return;
  if (since !== bootId()) {
    throw new ShaleError(
      "FAILED_PRECONDITION",
      `snapshot ${key} is volatile and was in use when the machine went down: failed precondition`,
      { hint: "Remove the container and make it anew" },
    );
  }
  removeTree(mark);
}
