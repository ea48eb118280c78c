/** What is mounted, as the kernel tells: proc_pid_mountinfo(5). */
import { readdirSync, readFileSync, readlinkSync, realpathSync } from "node:fs";
import { byteString, bytesOf } from "../bytes/index.ts";
import { errnoOf } from "../errors/index.ts";

export interface MountEntry {
  readonly id: number;
  readonly parentId: number;
  /** "259:3". */
  readonly device: string;
  /** The directory of the file system that is the root of this mount: "/" but for binds. */
  readonly root: string;
  readonly mountPoint: string;
  /** Options of the mount: "ro", "relatime". */
  readonly options: readonly string[];
  /** Propagation: "shared:1", "master:2". */
  readonly propagation: readonly string[];
  readonly type: string;
  readonly source: string;
  /** Options of the file system: "lowerdir+=/a", "directio". */
  readonly superOptions: readonly string[];
}

/** All mounts of this mount namespace that are below this process's root, in the kernel's order: a later one covers an earlier one. */
export function mountInfo(): MountEntry[] {
  return parseMountInfo(readFileSync("/proc/self/mountinfo"));
}

/** Pure part of {@link mountInfo}. Names that are not UTF-8 lose bytes: shale's own are. */
export function parseMountInfo(content: Uint8Array): MountEntry[] {
  const entries: MountEntry[] = [];
  for (const line of byteString(content).split("\n")) {
    if (line === "") continue;
    const fields = line.split(" ");
    const dash = fields.indexOf("-", 6);
    if (dash < 0 || fields.length < dash + 3) throw new RangeError(`mountinfo line without a file system: ${line}`);
    entries.push({
      id: Number(fields[0]),
      parentId: Number(fields[1]),
      device: fields[2]!,
      root: decodeOctal(fields[3]!),
      mountPoint: decodeOctal(fields[4]!),
      options: fields[5]!.split(","),
      propagation: fields.slice(6, dash),
      type: decodeOctal(fields[dash + 1]!),
      source: decodeOctal(fields[dash + 2]!),
      superOptions: (fields[dash + 3] ?? "").split(",").map(decodeOctal),
    });
  }
  return entries;
}

/** The kernel writes space, tab, newline, backslash and "#" as three octal digits. */
function decodeOctal(field: string): string {
  const bytes = field.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)));
  return Buffer.from(bytesOf(bytes)).toString();
}

/** The uppermost mount on `path` itself (symlinks followed), or undefined when it is not a mount point. ENOENT when absent. */
export function findMount(path: string): MountEntry | undefined {
  const real = realpathSync(path);
  return mountInfo().findLast((entry) => entry.mountPoint === real);
}

export function isMountPoint(path: string): boolean {
  return findMount(path) !== undefined;
}

/** "mnt:[4026531841]": equal for processes that see the same mounts. */
export function mountNamespaceId(): string {
  return readlinkSync("/proc/self/ns/mnt");
}

/**
 * Mount namespaces that some process is in, as `mountNamespaceId` names them; undefined where this user may not look into
 * every process. A namespace that is only kept by a bind mount of its file is not seen.
 */
export function livingMountNamespaces(): ReadonlySet<string> | undefined {
  const namespaces = new Set<string>();
  for (const pid of readdirSync("/proc")) {
    if (!/^\d+$/.test(pid)) continue;
    try {
      namespaces.add(readlinkSync(`/proc/${pid}/ns/mnt`));
    } catch (error) {
      const errno = errnoOf(error);
      if (errno === "EACCES" || errno === "EPERM") return undefined;
      if (errno !== "ENOENT" && errno !== "ESRCH") throw error; // it has ended since the listing
    }
  }
  return namespaces;
}
