/**
 * Putting exported files in place: at any moment, power cuts included, the name is absent, or what was there before, or all of
 * the new file. One writer for each name at a time, across processes.
 */
import { basename, dirname, join } from "node:path";
import { ShaleError } from "../errors/index.ts";
import {
  acquireLock,
  closeFile,
  crashPoint,
  createFile,
  datasync,
  type FileStatus,
  fileSystemStatus,
  findFile,
  type Lock,
  rename,
  syncDirectory,
  tryLock,
  unlink,
} from "../sys/index.ts";
import { readSidecar, type Sidecar, sidecarPath, writeSidecar } from "./sidecar.ts";

/** Left for the file system's own bookkeeping when free space is checked beforehand. */
const SPACE_RESERVE = 1 << 20;
const PERMISSIONS = 0o644;

/**
 * Runs `write` with the descriptor of a new file, makes it durable, and gives it the name `target` and its sidecar's.
 * When another process makes what `request` says under that name already, waits for it and shares the result. After a failure
 * nothing of it is left, and what was at `target` is still there.
 */
export async function publishWithSidecar(
  target: string,
  { request, signal }: { readonly request: string; readonly signal?: AbortSignal | undefined },
  write: (file: number) => Promise<Sidecar>,
): Promise<{ readonly path: string; readonly sidecar: Sidecar; readonly shared: boolean }> {
  const { lock, replaced } = await lockTarget(target, signal);
  try {
    if (replaced) {
      const sidecar = readSidecar(target);
      if (sidecar?.request === request) return { path: target, sidecar, shared: true };
    }
    const sidecar = await writeAndRename(target, write, () => {
      unlink(sidecarPath(target)); // none is better than that of another file, should we die before the new one is there
    });
    writeSidecar(target, sidecar);
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

async function writeAndRename<T>(
  target: string,
  write: (file: number) => Promise<T> | T,
  beforeRename?: () => void,
): Promise<T> {
  const temporary = temporaryPath(target);
  unlink(temporary); // of a writer that was killed: its lock is gone with it
  using onFailure = new DisposableStack();
  const file = createFile(temporary, PERMISSIONS);
  onFailure.defer(() => unlink(temporary));
  let result: T;
  try {
    result = await write(file);
    crashPoint("export:written");
    datasync(file);
  } finally {
    closeFile(file);
  }
  crashPoint("export:synced");
  beforeRename?.();
  rename(temporary, target);
  onFailure.move();
  crashPoint("export:renamed");
  syncDirectory(dirname(target));
  return result;
}

function temporaryPath(target: string): string {
  return join(dirname(target), `.${basename(target)}.shale-new`);
}

/** `replaced`: another writer was waited for, and there is another file at `target` since. */
async function lockTarget(
  target: string,
  signal: AbortSignal | undefined,
): Promise<{ readonly lock: Lock; readonly replaced: boolean }> {
  const path = join(dirname(target), `.${basename(target)}.shale-lock`);
  const before = findFile(target);
  const command = `export to ${target}`;
  const free = tryLock(path, { command });
  if (free !== undefined) return { lock: free, replaced: false };
  const lock = await acquireLock(path, { command, what: target, ...(signal ? { signal } : {}) });
  const now = findFile(target);
  return { lock, replaced: now !== undefined && !isSameFile(before, now) };
}

function isSameFile(a: FileStatus | undefined, b: FileStatus): boolean {
  return a !== undefined && a.ino === b.ino && a.dev === b.dev && a.mtimeNs === b.mtimeNs;
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
