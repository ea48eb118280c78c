/**
 * Where objects are written before they get their names: a directory among them that only its lock makes somebody's. What killed
 * exports left is removed by the next one, whatever image that is of; exports that run at the same time leave each other alone.
 */
import { join } from "node:path";
import { errnoOf } from "../errors/index.ts";
import {
  closeFile,
  findFile,
  list,
  makeDirectory,
  openFile,
  removeTree,
  statFile,
  tryLockDescriptor,
} from "../sys/index.ts";

const PREFIX = ".shale-new-";

export interface ObjectStaging extends Disposable {
  readonly path: string;
}

/** Dispose of it to remove it with what is still in it. */
export function openStaging(objects: string): ObjectStaging {
  for (const { name } of list(objects)) if (name.startsWith(PREFIX)) removeAbandoned(join(objects, name));
  for (;;) {
    const path = join(objects, `${PREFIX}${crypto.randomUUID()}`);
    makeDirectory(path, 0o700);
    const fd = lockedDirectory(path);
    if (fd === undefined) continue; // another export has just found it without its lock
    return {
      path,
      [Symbol.dispose]() {
        try {
          removeTree(path);
        } finally {
          closeFile(fd);
        }
      },
    };
  }
}

function removeAbandoned(path: string): void {
  const fd = lockedDirectory(path);
  if (fd === undefined) return;
  try {
    removeTree(path);
  } finally {
    closeFile(fd);
  }
}

/** Undefined when it is locked by another, or gone. */
function lockedDirectory(path: string): number | undefined {
  let fd: number;
  try {
    fd = openFile(path);
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return undefined;
    throw error;
  }
  if (tryLockDescriptor(fd, path) && findFile(path)?.ino === statFile(fd).ino) return fd;
  closeFile(fd);
  return undefined;
}
