/** What a snapshot looks like when it is mounted: every path with all that can be told apart by looking. */
import { createHash } from "node:crypto";
import { closeSync, lstatSync, mkdirSync, openSync, readdirSync, readlinkSync, readSync } from "node:fs";
import { join } from "node:path";
import type { Machine } from "./machine.ts";
import { must, run } from "./processes.ts";

export type Shown = ReadonlyMap<string, string>;

/** All of `directory`, by path: type, mode, owner, size, times, device, link target, content, xattrs. */
export async function look(directory: string): Promise<Shown> {
  const seen = new Map<string, string>();
  const xattrs = await xattrsBelow(directory);
  const visit = (path: string) => {
    const at = join(directory, path);
    const status = lstatSync(at, { bigint: true });
    const facts: Record<string, unknown> = {
      mode: status.mode.toString(8),
      owner: `${status.uid}:${status.gid}`,
      xattrs: xattrs.get(path) ?? "",
    };
    // The root is the upper directory's, made with the container.
    if (path !== ".") facts.mtime = String(status.mtimeNs);
    // Sizes and links of directories are the file system's own business.
    if (!status.isDirectory()) Object.assign(facts, { size: String(status.size), links: String(status.nlink) });
    if (status.isBlockDevice() || status.isCharacterDevice()) facts.device = status.rdev.toString(16);
    if (status.isSymbolicLink()) facts.target = readlinkSync(at);
    if (status.isFile()) facts.sha256 = digestOf(at);
    seen.set(path, JSON.stringify(facts));
    if (status.isDirectory()) for (const name of readdirSync(at).sort()) visit(join(path, name));
  };
  visit(".");
  return seen;
}

/** Paths that differ, with both sides. */
export function differences(a: Shown, b: Shown): readonly string[] {
  return [...new Set([...a.keys(), ...b.keys()])]
    .filter((path) => a.get(path) !== b.get(path))
    .map((path) => `${path}: ${a.get(path)} / ${b.get(path)}`);
}

/**
 * Looks at an image's root as a container on `snapshotter` has it: mounted on the host, as the answer to Mounts says. A
 * container that is never started keeps the snapshot from containerd's collector.
 */
export async function viewOf(machine: Machine, name: string, snapshotter: string): Promise<Shown> {
  const id = `view-${snapshotter}-${counter++}`;
  const target = join(machine.directory, id);
  mkdirSync(target);
  await machine.mustCtr("containers", "create", "--snapshotter", snapshotter, machine.reference(name), id);
  try {
    return await lookAtMounts(machine, id, snapshotter, target);
  } finally {
    await machine.mustCtr("containers", "rm", id);
  }
}

async function lookAtMounts(machine: Machine, key: string, snapshotter: string, target: string): Promise<Shown> {
  await must(["sh", "-ec", await machine.mustCtr("snapshots", "--snapshotter", snapshotter, "mounts", target, key)]);
  try {
    return await look(target);
  } finally {
    await must(["umount", target]);
  }
}

let counter = 0;

function digestOf(path: string): string {
  const hash = createHash("sha256");
  const file = openSync(path, "r");
  const buffer = Buffer.alloc(1 << 16);
  try {
    for (let count = readSync(file, buffer); count > 0; count = readSync(file, buffer)) {
      hash.update(buffer.subarray(0, count));
    }
  } finally {
    closeSync(file);
  }
  return hash.digest("hex");
}

/** By path; overlayfs's own are not part of what is seen. */
async function xattrsBelow(directory: string): Promise<ReadonlyMap<string, string>> {
  const found = new Map<string, string>();
  const { stdout } = await run(["sh", "-c", 'cd "$0" && getfattr -R -P -h -d -m - -e hex .', directory]);
  for (const block of stdout.split("\n\n")) {
    const [head, ...lines] = block.trim().split("\n");
    const path = head?.replace(/^# file: /, "");
    const own = lines.filter((line) => !line.startsWith("trusted.overlay."));
    if (path !== undefined && path !== "" && own.length > 0) found.set(path, own.sort().join());
  }
  return found;
}
