/**
 * Clones: for each image that was checked out by reflink, its files as files, `ROOT/clones/<image id>/<2 digits>/<nid>`.
 *
 * A range of a blob can be shared with another file only in whole blocks, and cutting the last one to size makes a copy of it:
 * a tenth of an image in each checkout, and on XFS a wait for the disk for each file. A whole file can be shared as it is. So the
 * first checkout makes these, which share all but their last blocks with the blobs, and each checkout shares with them.
 *
 * An image's clones are whole, durable and never written again once its `complete` is there; without it they are nothing. They
 * go with the image.
 */
import { join } from "node:path";
import {
  acquireLock,
  closeFile,
  crashPoint,
  createFile,
  datasync,
  ensureDirectory,
  findFile,
  list,
  makeDirectory,
  removeTree,
  syncDirectory,
  syncFileSystem,
  unlink,
} from "../sys/index.ts";
import type { StoreContext } from "./context.ts";

const COMPLETE = "complete";
const LOCK = ".lock";
const GROUPS = 64;

/** Where the clone of inode `nid` is, from the image's directory of clones. */
export function clonePath(nid: number): string {
  return `${groupName(nid % GROUPS)}/${nid}`;
}

function groupName(group: number): string {
  return String(group).padStart(2, "0");
}

/**
 * The directory of an image's clones, `fill`ed if nobody has. Waits while another process fills it. `image` is the path of its
 * metadata image.
 */
export async function ensureClones(
  { layout }: StoreContext,
  image: string,
  fill: (directory: string) => Promise<void>,
  options: { readonly signal?: AbortSignal } = {},
): Promise<string> {
  const directory = join(layout.clones, imageIdOf(image));
  const complete = join(directory, COMPLETE);
  if (findFile(complete) !== undefined) return directory;
  ensureDirectory(layout.clones);
  const lock = await acquireLock(directory + LOCK, { what: directory, ...options });
  try {
    if (findFile(complete) !== undefined) return directory;
    removeTree(directory); // of a process that died, or lost power
    makeDirectory(directory);
    for (let group = 0; group < GROUPS; group++) makeDirectory(join(directory, groupName(group)));
    await fill(directory);
    crashPoint("clones:filled");
    syncFileSystem(directory); // a reflink of what is not yet written waits for the disk, each
    const mark = createFile(complete);
    try {
      datasync(mark);
    } finally {
      closeFile(mark);
    }
    crashPoint("clones:complete");
    syncDirectory(directory);
    return directory;
  } finally {
    lock.release({ unlink: true });
  }
}

/** `merged/<id>` or `layers/<id>/meta.erofs`: ids are unique among both. */
function imageIdOf(image: string): string {
  const parts = image.split("/");
  return parts.at(-1) === "meta.erofs" ? parts.at(-2)! : parts.at(-1)!;
}

/** Clones of images that the store has no more, or of those that are `dying`. */
function* strayClones({ layout, database }: StoreContext, dying: ReadonlySet<string>): Generator<string> {
  if (findFile(layout.clones) === undefined) return;
  for (const { name } of list(layout.clones)) {
    const id = name.endsWith(LOCK) ? name.slice(0, -LOCK.length) : name;
    const known = database.get("SELECT 1 FROM merged WHERE id = ? UNION SELECT 1 FROM layers WHERE id = ?", id, id);
    if (known === undefined || dying.has(id)) yield join(layout.clones, name);
  }
}

/** Removes the clones of images that are gone, or counts them. A checkout under way has a lease, and so its image. */
export function freeClones(
  context: StoreContext,
  options: { readonly dryRun: boolean; readonly dying?: ReadonlySet<string> },
): { readonly count: number; readonly bytes: number } {
  let count = 0;
  let bytes = 0;
  for (const path of strayClones(context, options.dying ?? new Set())) {
    if (path.endsWith(LOCK)) {
      if (!options.dryRun) unlink(path);
      continue;
    }
    count++;
    bytes += allocatedBelow(path);
    if (!options.dryRun) removeTree(path);
  }
  return { count, bytes };
}

/** Bytes on disk, blocks shared with blobs and checkouts included. */
export function measureClones({ layout }: StoreContext): { readonly count: number; readonly bytes: number } {
  if (findFile(layout.clones) === undefined) return { count: 0, bytes: 0 };
  const images = list(layout.clones).filter(({ kind }) => kind === "directory");
  const bytes = images.reduce((sum, { name }) => sum + allocatedBelow(join(layout.clones, name)), 0);
  return { count: images.length, bytes };
}

function allocatedBelow(path: string): number {
  let sum = 0;
  for (const { name, kind } of list(path)) {
    const child = join(path, name);
    sum += kind === "directory" ? allocatedBelow(child) : (findFile(child)?.allocated ?? 0);
  }
  return sum;
}
