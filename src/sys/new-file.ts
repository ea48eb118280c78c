/** A file that appears at its path complete or not at all, and of which a crash leaves nothing. */
import * as fs from "node:fs";
import { basename, dirname, join } from "node:path";
import { fromUtf8 } from "../bytes/index.ts";
import { errnoOf } from "../errors/index.ts";
import { effect, observed } from "./effects.ts";
import { closeFile, createFile, datasync, rename, syncDirectory, unlink } from "./files.ts";
import { linkDescriptor } from "./libc-at.ts";

/** Of this machine: include/uapi/asm-generic/fcntl.h with O_DIRECTORY, whose number differs between machines. */
const O_TMPFILE = 0o20000000 | fs.constants.O_DIRECTORY;
/** No such thing here: a file system (NFS, some FUSE), or a kernel that took the flags for those of a directory. */
const UNSUPPORTED = new Set(["EOPNOTSUPP", "ENOTSUP", "EISDIR", "EINVAL", "ENOENT"]);

export interface NewFile extends Disposable {
  readonly fd: number;
  /**
   * Makes the content durable and puts the file at its path, in place of a file that is there. After an error the path
   * has what it had before, or the complete new file. `beforeRename` runs when the content is durable and only the name is missing.
   */
  publish(beforeRename?: () => void): void;
}

/**
 * A new file for `path`; dispose of it, which closes it and drops what was not published. It has no name until then where
 * the file system can (O_TMPFILE); else a temporary one beside it, which only a kill leaves behind. Who has a lock on `path` may
 * give a temporary path in the same directory: what a killed process left there is replaced.
 */
export function createNewFile(path: string, permissions = 0o600, temporaryPath?: string): NewFile {
  const directory = dirname(path);
  const temporary = temporaryPath ?? join(directory, `.${basename(path)}.${process.pid}.new`);
  let named = false;
  let fd: number;
  try {
    fd = observed("open", directory, () => fs.openSync(directory, O_TMPFILE | fs.constants.O_RDWR, permissions));
  } catch (error) {
    // ENOENT also when the directory is missing; then creating the file says so
    if (!UNSUPPORTED.has(errnoOf(error) ?? "")) throw error;
    if (temporaryPath !== undefined) unlink(temporary);
    fd = createFile(temporary, permissions);
    named = true;
  }
  let open = true;
  return {
    fd,
    publish(beforeRename) {
      datasync(fd);
      if (!named) {
        unlink(temporary); // of an earlier process that had our number and was killed
        effect("link", fd, () => linkDescriptor(fd, fromUtf8(temporary)), { to: temporary });
        named = true;
      }
      beforeRename?.();
      rename(temporary, path);
      named = false;
      syncDirectory(directory);
    },
    [Symbol.dispose]() {
      if (!open) return;
      open = false;
      try {
        if (named) unlink(temporary);
      } finally {
        closeFile(fd);
      }
    },
  };
}
