/**
 * Places for tests: temporary directories, and real file systems on loop devices. Everything is cleaned up when the callback
 * ends, however it ends. For tests only; the loop file systems need root.
 */
import { mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as libc from "../libc.ts";
import { attachLoop } from "../loop.ts";
import { mountInfo } from "../mount-info.ts";
import { unmount } from "../mounts.ts";
import { closeFile } from "../files.ts";
import { isRoot, run } from "../process.ts";

/** Options of a test that mounts or makes devices: it says why when it does not run. CI is root. */
export const needsRoot = { skip: isRoot() ? false : "needs root" } as const;

/** Runs `use` with a new directory, on the file system of $TMPDIR, and removes it, mounts inside included. */
export async function withTemporaryDirectory<T>(use: (directory: string) => T | Promise<T>): Promise<T> {
  const directory = mkdtempSync(join(tmpdir(), "shale-test-"));
  try {
    return await use(directory);
  } finally {
    unmountBelow(directory);
    rmSync(directory, { recursive: true, force: true });
  }
}

/** Unmounts everything at and below `directory`, the uppermost first; lazily where it is still in use. */
export function unmountBelow(directory: string): void {
  const inside = mountInfo().filter((m) => m.mountPoint === directory || m.mountPoint.startsWith(`${directory}/`));
  for (const { mountPoint } of inside.reverse()) unmount(mountPoint, { lazy: true });
}

export type LoopFileSystem = "ext4" | "xfs" | "btrfs";

/** Smallest sizes that the mkfs programs take, with room for tests. The file is sparse. */
const DEFAULT_SIZE: Readonly<Record<LoopFileSystem, number>> = { ext4: 64 << 20, xfs: 300 << 20, btrfs: 128 << 20 };

const MKFS: Readonly<Record<LoopFileSystem, readonly string[]>> = {
  // Blocks as on any real disk; mkfs would choose 1 KiB for small ones, where a full disk is SIGBUS to a mapped file.
  ext4: ["-q", "-F", "-m0", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
  xfs: ["-q", "-f"], // reflink=1 is the default since xfsprogs 5.1
  btrfs: ["-q", "-f"],
};

export interface LoopFileSystemOptions {
  /** Bytes of the whole device. */
  readonly size?: number;
}

/** Runs `use` with the root directory of a freshly made file system. */
export function withLoopFilesystem<T>(
  type: LoopFileSystem,
  options: LoopFileSystemOptions,
  use: (directory: string) => T | Promise<T>,
): Promise<T> {
  return withTemporaryDirectory(async (scratch) => {
    const image = join(scratch, "image");
    const target = join(scratch, "mnt");
    writeFileSync(image, "");
    truncateSync(image, options.size ?? DEFAULT_SIZE[type]);
    mkdirSync(target);
    const mkfs = await run(`mkfs.${type}`, [...MKFS[type], image], { timeoutMs: 60_000 });
    if (mkfs.code !== 0) throw new Error(`mkfs.${type} failed: ${mkfs.stderr.toString()}`);
    mountBlockFile(type, image, target);
    try {
      return await use(target);
    } finally {
      unmountBelow(target);
    }
  });
}

function mountBlockFile(type: LoopFileSystem, image: string, target: string): void {
  using loop = attachLoop(image, { readOnly: false });
  const context = libc.fsopen(type);
  let mount: number | undefined;
  try {
    libc.fsconfig(context, libc.FSCONFIG_SET_STRING, "source", loop.path);
    libc.fsconfig(context, libc.FSCONFIG_CMD_CREATE, null, null);
    mount = libc.fsmount(context, 0);
    libc.moveMount(mount, target);
  } finally {
    if (mount !== undefined) closeFile(mount);
    closeFile(context);
  }
}
