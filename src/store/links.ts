/**
 * Keeping link sources (`link-sources.ts`): their use by a checkout, their garbage, their check.
 *
 * Sources get their names before they are durable, since a sync for each would take milliseconds. So while a checkout makes
 * some, a durable mark `unsynced-<lease>` stands in `links/`, and goes after the checkout's sync. A mark of a dead process says
 * what to do: of this boot, nothing is lost, and a sync makes it durable; of another boot, a power cut may have cut any source
 * short, and all are dropped. They are a cache: checkouts keep their own names.
 */
import { join } from "node:path";
import type { ByteString } from "../bytes/index.ts";
import {
  acquireLock,
  bootId,
  closeFile,
  crashPoint,
  ensureDirectory,
  findAt,
  findFile,
  list,
  openDirectory,
  openDirectoryBeneath,
  readFile,
  syncFileSystem,
  unlink,
  unlinkAt,
  writeFileDurably,
} from "../sys/index.ts";
import type { StoreContext } from "./context.ts";
import { type Lease, livingLeases } from "./leases.ts";
import { fingerprintOfFile } from "./link-sources.ts";

const MARK = "unsynced-";
const MARK_LIMIT = 4096;

/** The right of one checkout to make link sources. */
export interface LinkArea {
  /** For `new LinkSources()`, in any thread. */
  readonly directory: string;
  /** Call when everything on the file system of `directory` has been synced. */
  settle(): void;
}

/** Opens the area for a checkout; waits while another process cleans up after a crash. */
export async function openLinkArea(
  { layout }: StoreContext,
  lease: Lease,
  options: { readonly signal?: AbortSignal } = {},
): Promise<LinkArea> {
  ensureDirectory(layout.links);
  const lock = await acquireLock(layout.linksLock, { what: layout.links, ...options });
  try {
    const { ids } = livingLeases(layout);
    const left = marksIn(layout.links).filter((name) => !ids.has(name.slice(MARK.length)));
    const boots = left.map((name) => readFile(join(layout.links, name), MARK_LIMIT).toString());
    if (boots.some((boot) => boot !== bootId())) {
      for (const source of linkSourcesIn(layout.links)) source.remove();
      crashPoint("links:dropped");
    }
    if (left.length > 0) syncFileSystem(layout.links);
    for (const name of left) unlink(join(layout.links, name));
  } finally {
    lock.release();
  }
  const mark = join(layout.links, MARK + lease.id);
  writeFileDurably(mark, Buffer.from(bootId()));
  return {
    directory: layout.links,
    settle() {
      unlink(mark);
    },
  };
}

function marksIn(directory: string): string[] {
  return list(directory).flatMap(({ name }) => (name.startsWith(MARK) && !name.endsWith(".tmp") ? [name] : []));
}

interface LinkSource {
  readonly fingerprint: ByteString;
  /** Its own name included: 1 when no checkout has it. */
  readonly links: number;
  readonly allocated: number;
  remove(): void;
  /** Reads all of it. */
  isSound(): boolean;
}

/** All link sources. What vanishes meanwhile is left out. */
function* linkSourcesIn(path: string): Generator<LinkSource> {
  if (findFile(path) === undefined) return;
  const directory = openDirectory(path);
  try {
    for (const { name: group, kind } of list(path)) {
      if (kind !== "directory") continue;
      const parent = openDirectoryBeneath(directory, group);
      try {
        for (const { name } of list(join(path, group))) {
          const status = findAt(parent, name);
          if (status === undefined) continue;
          const fingerprint = `${group}/${name}`;
          yield {
            fingerprint,
            links: status.links,
            allocated: status.allocated,
            remove: () => unlinkAt(parent, name),
            isSound: () => {
              const found = fingerprintOfFile(directory, fingerprint);
              return found === fingerprint || found === undefined;
            },
          };
        }
      } finally {
        closeFile(parent);
      }
    }
  } finally {
    closeFile(directory);
  }
}

export interface LinkUsage {
  readonly count: number;
  /** Bytes on disk; shared with the checkouts that link them. */
  readonly bytes: number;
  /** Of `bytes`, what no checkout has: gc frees it. */
  readonly unusedBytes: number;
}

export function measureLinks({ layout }: StoreContext): LinkUsage {
  let count = 0;
  let bytes = 0;
  let unusedBytes = 0;
  for (const { links, allocated } of linkSourcesIn(layout.links)) {
    count++;
    bytes += allocated;
    if (links === 1) unusedBytes += allocated;
  }
  return { count, bytes, unusedBytes };
}

/**
 * Removes the sources that no checkout has, or with `dryRun` only counts them. A checkout that links one at this moment keeps
 * its file, and only shares it with nobody.
 */
export function freeLinks(
  { layout }: StoreContext,
  options: { readonly dryRun: boolean; readonly signal?: AbortSignal | undefined },
): { readonly count: number; readonly bytes: number } {
  let count = 0;
  let bytes = 0;
  for (const source of linkSourcesIn(layout.links)) {
    if (options.signal?.aborted) break; // what is left is found by the next run
    if (source.links !== 1) continue;
    if (!options.dryRun) {
      source.remove();
      crashPoint("gc:link-removed");
    }
    count++;
    bytes += source.allocated;
  }
  return { count, bytes };
}

/** All sources, each read and compared with its name: one that is not sound was written to through a checkout. */
export function* checkedLinks({ layout }: StoreContext): Generator<{
  readonly path: string;
  readonly links: number;
  readonly size: number;
  readonly sound: boolean;
}> {
  for (const source of linkSourcesIn(layout.links)) {
    const path = join(layout.links, source.fingerprint);
    yield { path, links: source.links, size: source.allocated, sound: source.isSound() };
  }
}
