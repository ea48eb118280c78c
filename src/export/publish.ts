/**
 * Putting exported files in place: at any moment, power cuts included, the name is absent, or what was there before, or all of
 * the new file. One writer for each name at a time, across processes.
 */
import { basename, dirname, join } from "node:path";
import { ShaleError } from "../errors/index.ts";
import {
  acquireLock,
  crashPoint,
  createNewFile,
  fileSystemStatus,
  findFile,
  linkIfAbsent,
  type Lock,
  rename,
  type StagedFile,
  syncDirectory,
  tryLock,
  unlink,
} from "../sys/index.ts";
import { findExported, type Sidecar, sidecarPath, stageSidecar, writeSidecar } from "./sidecar.ts";

/** Left for the file system's own bookkeeping when free space is checked beforehand. */
const SPACE_RESERVE = 1 << 20;
const PERMISSIONS = 0o644;

export interface PublishOptions {
  /** What the file is: one with the same request has the same bytes. */
  readonly request: string;
  /** A file that was at `target` before the call will do as well, if its sidecar says so; otherwise only one made meanwhile does. */
  readonly reuse?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Runs `write` with the descriptor of a new file, makes it durable, and gives it the name `target` and its sidecar's.
 * When another process makes what `request` says under that name already, waits for it and shares the result. After a failure
 * nothing of it is left, and what was at `target` is still there.
 */
export async function publishWithSidecar(
  target: string,
  { request, reuse = false, signal }: PublishOptions,
  write: (file: number) => Promise<Sidecar>,
): Promise<{ readonly path: string; readonly sidecar: Sidecar; readonly shared: boolean }> {
  const { lock, replaced } = await lockTarget(target, signal);
  try {
    if (replaced || reuse) {
      const sidecar = findExported(target);
      if (sidecar?.request === request) return { path: target, sidecar, shared: true };
    }
    using staged = new DisposableStack();
    let described: StagedFile | undefined;
    const sidecar = await writeAndRename(target, write, (made) => {
      described = staged.use(stageSidecar(target, made));
      unlink(sidecarPath(target)); // none is better than that of another file, should we die before the new one is there
    });
    described?.commit();
    return { path: target, sidecar, shared: false };
  } finally {
    lock.release({ unlink: true });
  }
}

/** As {@link publishWithSidecar} for a file that has none; always writes. */
export async function publishFile<T>(
  target: string,
  write: (file: number) => Promise<T> | T,
  options: { readonly signal?: AbortSignal | undefined } = {},
): Promise<T> {
  const { lock } = await lockTarget(target, options.signal);
  try {
    return await writeAndRename(target, write);
  } finally {
    lock.release({ unlink: true });
  }
}

/**
 * Gives an exported file the name `target` too, and a sidecar of its own. With the system's error, and nothing changed, where it
 * can't be linked: EXDEV, EPERM, EMLINK.
 */
export async function publishLink(
  { path, sidecar }: { readonly path: string; readonly sidecar: Sidecar },
  target: string,
): Promise<void> {
  const { lock } = await lockTarget(target, undefined);
  const temporary = temporaryPath(target);
  try {
    unlink(temporary);
    linkIfAbsent(path, temporary);
    using _ = { [Symbol.dispose]: () => void unlink(temporary) }; // renaming to another name of the same file does nothing
    unlink(sidecarPath(target));
    rename(temporary, target);
    syncDirectory(dirname(target));
    writeSidecar(target, sidecar);
  } finally {
    lock.release({ unlink: true });
  }
}

async function writeAndRename<T>(
  target: string,
  write: (file: number) => Promise<T> | T,
  beforeRename?: (made: T) => void,
): Promise<T> {
  // Without a name where the file system can: of a writer that is killed, hours and many GiB may be left otherwise.
  using file = createNewFile(target, PERMISSIONS, temporaryPath(target));
  const result = await write(file.fd);
  crashPoint("export:written");
  file.publish(() => {
    crashPoint("export:synced");
    beforeRename?.(result);
  });
  return result;
}

/** Only a kill leaves it, and the next one who makes `target` takes it over. */
function temporaryPath(target: string): string {
  return join(dirname(target), `.${basename(target)}.shale-new`);
}

/** Locked by who makes `target`. */
export function lockPath(target: string): string {
  return join(dirname(target), `.${basename(target)}.shale-lock`);
}

/** `replaced`: another writer was waited for, and what is at `target` is not what was there before. */
async function lockTarget(
  target: string,
  signal: AbortSignal | undefined,
): Promise<{ readonly lock: Lock; readonly replaced: boolean }> {
  const path = lockPath(target);
  const before = identityOf(target);
  const command = `export to ${target}`;
  const free = tryLock(path, { command });
  if (free !== undefined) return { lock: free, replaced: false };
  const lock = await acquireLock(path, { command, what: target, ...(signal ? { signal } : {}) });
  return { lock, replaced: identityOf(target) !== before };
}

/** Of a file and its sidecar, which comes last: a writer may have been between the two. */
function identityOf(target: string): string {
  const files = [findFile(target), findFile(sidecarPath(target))];
  return files.map((file) => (file === undefined ? "none" : `${file.dev}:${file.ino}:${file.mtimeNs}`)).join(" ");
}

/** RESOURCE_EXHAUSTED when `needed` bytes do not fit beside `target`: better now than after minutes of copying. */
export function checkSpace(target: string, needed: number): void {
  const { available } = fileSystemStatus(dirname(target));
  if (needed + SPACE_RESERVE <= available) return;
  throw new ShaleError(
    "RESOURCE_EXHAUSTED",
    `Cannot write ${target}: it needs ${needed} bytes, and ${available} are free there`,
    { hint: "Free space, or choose another place with --output" },
  );
}
