/** Durability of many files at once. */
import * as fs from "node:fs";
import { closeFile } from "./files.ts";
import { syncfs } from "./libc.ts";

/**
 * Everything that was written to the file system of `path`, an existing directory, survives a power cut afterwards (syncfs), what
 * other programs wrote there included. For thousands of small files, where a sync for each would take milliseconds each.
 */
export function syncFileSystem(path: string): void {
  const fd = fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY);
  try {
    syncfs(fd, path);
  } finally {
    closeFile(fd);
  }
}
