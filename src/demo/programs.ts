/**
 * Programs of the host with all that they need to run in a chroot: interpreter, libraries, and the symlinks to them.
 */
import { dirname, join } from "node:path";
import { errnoOf, FormatError } from "../errors/index.ts";
import { fileSource, findFile, list, readFile, realPath } from "../sys/index.ts";
import { type ElfDependencies, readElfDependencies } from "./elf.ts";
import type { HostFiles } from "./host-files.ts";

const PROGRAM_DIRECTORIES = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];
/** Where the dynamic loaders of Debian, Fedora, Arch and Alpine look without configuration, ld.so(8). */
const LIBRARY_DIRECTORIES = ["/lib64", "/usr/lib64", "/lib", "/usr/lib"];
const MAX_CONFIG = 1 << 20;

/** Adds the program called `name` with its libraries. False when the host has none that can be read. */
export function addProgram(files: HostFiles, name: string): boolean {
  for (const directory of PROGRAM_DIRECTORIES) {
    if (findFile(join(directory, name)) === undefined) continue;
    const real = files.addFile(join(directory, name));
    if (real === undefined) continue;
    addDependencies(files, real, new Set());
    return true;
  }
  return false;
}

/** Adds what the ELF object at `path` needs, and what that needs. A script needs nothing that can be told from it. */
function addDependencies(files: HostFiles, path: string, done: Set<string>): void {
  if (done.has(path)) return;
  done.add(path);
  const needs = dependenciesOf(path);
  if (needs === undefined) return;
  if (needs.interpreter !== undefined) files.addFile(needs.interpreter);
  const origin = dirname(path);
  const own = needs.searchPath.map((directory) => directory.replace(/\$(?:ORIGIN|\{ORIGIN\})/g, origin));
  const directories = [...own, ...libraryDirectories()];
  for (const name of needs.needed) {
    const candidates = name.includes("/") ? [name] : directories.map((directory) => join(directory, name));
    const found = candidates.find((candidate) => candidate.startsWith("/") && realPath(candidate) !== undefined);
    // A library that is nowhere is the program's problem here as it is on the host.
    const real = found === undefined ? undefined : files.addFile(found);
    if (real !== undefined) addDependencies(files, real, done);
  }
}

function dependenciesOf(path: string): ElfDependencies | undefined {
  try {
    using source = fileSource(path);
    return readElfDependencies(source);
  } catch (error) {
    // A damaged program of the host is added like any other file.
    if (error instanceof FormatError || errnoOf(error) === "EACCES") return undefined;
    throw error;
  }
}

let directories: readonly string[] | undefined;

/** Directories of /etc/ld.so.conf, then the defaults with Debian's multiarch directories. Read once. */
function libraryDirectories(): readonly string[] {
  directories ??= [...new Set([...configured("/etc/ld.so.conf", 0), ...multiarch(), ...LIBRARY_DIRECTORIES])];
  return directories;
}

/** ld.so.conf(5): directories, comments, and "include" with a pattern in the last component. */
function configured(path: string, depth: number): string[] {
  const real = realPath(path);
  if (real === undefined || findFile(real)?.kind !== "file" || depth > 4) return [];
  return readFile(real, MAX_CONFIG)
    .toString()
    .split("\n")
    .map((line) => line.replace(/#.*/, "").trim())
    .flatMap((line) => {
      const pattern = /^include\s+(.+)$/.exec(line)?.[1];
      if (pattern === undefined) return line.startsWith("/") ? [line] : [];
      const directory = realPath(dirname(join("/etc", pattern.replace(/^\/etc\//, ""))));
      if (directory === undefined || !pattern.endsWith("*.conf")) return [];
      const names = list(directory).filter((entry) => entry.name.endsWith(".conf"));
      return names.flatMap((entry) => configured(join(directory, entry.name), depth + 1));
    });
}

function multiarch(): string[] {
  return ["/usr/lib", "/lib"].flatMap((directory) => {
    const real = realPath(directory);
    if (real === undefined) return [];
    const triplets = list(real).filter(
      ({ name, kind }) => kind === "directory" && /^\w+-linux-(?:gnu|musl)/.test(name),
    );
    return triplets.map(({ name }) => join(real, name));
  });
}
