/** Files of the host as they are, which may be symlinks and have attributes; those of the store never are nor have. */
import * as fs from "node:fs";
import type { ByteString } from "../bytes/index.ts";
import { errnoOf } from "../errors/index.ts";
import { observed } from "./effects.ts";
import { getXattr, listXattrs } from "./libc.ts";

/** The path that all symlinks lead to; undefined when there is nothing. ELOOP when they lead in a circle. */
export function realPath(path: string): string | undefined {
  return observed("stat", path, () => {
    try {
      return fs.realpathSync(path);
    } catch (error) {
      if (errnoOf(error) === "ENOENT" || errnoOf(error) === "ENOTDIR") return undefined;
      throw error;
    }
  });
}

/** The target of a symlink, byte by byte as it is. EINVAL when the path is something else. */
export function readLink(path: string): ByteString {
  return observed("read", path, () => fs.readlinkSync(path, "latin1"));
}

/**
 * The extended attributes that this user may read, of a file, directory or symlink (which is not followed) or of a
 * descriptor, in byte order of their names. None where the file system has no such thing.
 */
export function readXattrs(path: string | number): { readonly name: ByteString; readonly value: ByteString }[] {
  return observed("read", path, () => {
    try {
      const names = listXattrs(path).sort();
      return names.map((name) => ({ name, value: getXattr(path, Buffer.from(name, "latin1")).toString("latin1") }));
    } catch (error) {
      if (errnoOf(error) === "ENOTSUP" || errnoOf(error) === "EOPNOTSUPP") return [];
      throw error;
    }
  });
}

export interface Ownership {
  /** Permission bits. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
}

/** Sets owner and permissions of a file or directory, whatever the umask. No effect that a power cut test would drop. */
export function setOwnership(path: string, { mode, uid, gid }: Ownership): void {
  fs.chownSync(path, uid, gid);
  fs.chmodSync(path, mode & 0o7777); // after the owner: changing that clears set-id bits
}
