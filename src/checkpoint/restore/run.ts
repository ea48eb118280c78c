/** From restored directories to running processes: the overlay is mounted in the bundle, and the runtime restores from there. */
import { dirname, join, resolve } from "node:path";
import { ShaleError } from "../../errors/index.ts";
import { ensureDirectory, mountOverlay, readFile, runDetaching, unmount } from "../../sys/index.ts";
import { MEMBER } from "../archive/index.ts";
import { ROOTFS } from "./bundle.ts";

export interface RunCheckpointOptions {
  /** runc, crun, or the path of one. */
  readonly runtime: string;
  readonly id: string;
  readonly bundle: string;
  readonly upper: string;
  readonly lower: readonly string[];
  readonly signal?: AbortSignal;
}

/** Where the container's stdout and stderr go on, in the bundle. */
const OUTPUT = "output.log";
const LOG_SIZE_MAX = 16 * 1024 * 1024;

/**
 * Restores the processes, detached, and answers the container's id. After a failure the mount is gone again, the directories
 * stay. FAILED_PRECONDITION with what CRIU said when the runtime can't restore.
 */
export async function runCheckpoint(options: RunCheckpointOptions): Promise<string> {
  const { runtime, id, signal } = options;
  const bundle = resolve(options.bundle);
  const upper = resolve(options.upper);
  const rootfs = join(bundle, ROOTFS);
  const work = join(dirname(upper), "work"); // of the same file system, as overlayfs wants it; beside "diff", where engines have it
  ensureDirectory(work);
  mountOverlay({ lower: options.lower.map((path) => resolve(path)), upper, work, target: rootfs });
  let runs = false;
  try {
    const images = join(bundle, MEMBER.images);
    const args = ["restore", "--detach", "--bundle", bundle, "--image-path", images, "--work-path", bundle, id];
    const { code, said } = await runDetaching(runtime, args, {
      output: join(bundle, OUTPUT),
      ...(signal && { signal }),
    });
    if (code !== 0) throw restoreError(runtime, said, join(bundle, "restore.log"));
    runs = true;
    return id;
  } finally {
    if (!runs) unmount(rootfs, { lazy: true });
  }
}

function restoreError(runtime: string, stderr: string, log: string): ShaleError {
  let said = "";
  try {
    const lines = readFile(log, LOG_SIZE_MAX).toString().split("\n");
    said = lines
      .filter((line) => /\bError\b/.test(line))
      .slice(0, 3)
      .join("; ");
  } catch (error) {
    if (!(error instanceof Error && "code" in error && error.code === "ENOENT")) throw error;
  }
  const why = [stderr.trim(), said].filter((text) => text !== "").join("; ") || "it does not say why";
  return new ShaleError("FAILED_PRECONDITION", `Cannot restore the processes with ${runtime}: ${why}`, {
    hint: `CRIU's log is ${log}; the restored directories are in place`,
  });
}
