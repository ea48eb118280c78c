/** dm-verity for any file: what `shale verity` and `shale verify` do. */
import { availableParallelism } from "node:os";
import { alignUp } from "../bytes/index.ts";
import { ShaleError } from "../errors/index.ts";
import { closeFile, datasync, openFile, statFile, truncate } from "../sys/index.ts";
import { parseRootHash, parseSalt } from "./derive.ts";
import type { ExportProgress } from "./progress.ts";
import { publishFile } from "./publish.ts";
import { readSidecar } from "./sidecar.ts";
import {
  appendVerity,
  type BareTree,
  HASH_BLOCK_SIZE,
  type VerityInfo,
  type VerityParameters,
  verifyImage,
  writeVerity,
} from "./verity-image.ts";
import { SEGMENT_SIZE } from "./verity-segments.ts";
import { VerityThreads } from "./verity-threads.ts";

export { parseRootHash, parseSalt, parseUuid } from "./derive.ts";

export interface VerityRunning {
  readonly jobs?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly progress?: ExportProgress | undefined;
}

/**
 * Computes the tree of a file, and writes it: with `append` behind the data, with `output` to that file. After a failure the data
 * is as it was.
 */
export async function verityOfFile(
  path: string,
  parameters: VerityParameters,
  options: VerityRunning & { readonly append?: boolean; readonly output?: string } = {},
): Promise<VerityInfo> {
  const { append = false, output, signal, progress, jobs } = options;
  const file = openRegular(path, append ? "read-write" : "read");
  try {
    const { size } = statFile(file);
    // They start while the place of the tree is made ready; with one segment there is nothing to share.
    await using threads = new VerityThreads(Math.min(jobs ?? availableParallelism(), Math.ceil(size / SEGMENT_SIZE)));
    const running = { threads, signal, onHashed: progress?.advance };
    progress?.step("hashing", size);
    if (append) return await appendDurably(file, size, parameters, running);
    if (output === undefined) return await writeVerity({ file, size }, undefined, parameters, running);
    return await publishFile(
      output,
      (tree) => writeVerity({ file, size }, { file: tree, hashOffset: 0 }, parameters, running),
      { signal },
    );
  } finally {
    closeFile(file);
  }
}

async function appendDurably(
  file: number,
  size: number,
  parameters: VerityParameters,
  running: Parameters<typeof appendVerity>[2],
): Promise<VerityInfo> {
  try {
    const info = await appendVerity({ file, size }, parameters, running);
    datasync(file);
    return info;
  } catch (error) {
    truncate(file, size);
    throw error;
  }
}

/** What is known about the tree; what is absent comes from the sidecar, then from the superblock. */
export interface VerifyRequest {
  /** Hexadecimal; required. Never taken from the sidecar, which anyone may have written. */
  readonly rootHash: string | undefined;
  readonly hashFile?: string | undefined;
  readonly hashOffset?: number | undefined;
  readonly dataBlocks?: number | undefined;
  readonly dataBlockSize?: number | undefined;
  readonly hashBlockSize?: number | undefined;
  readonly salt?: string | undefined;
  readonly superblock?: boolean | undefined;
}

/** Checks a file. DATA_LOSS when a bit of data or tree is wrong, INVALID_ARGUMENT when too little is known. */
export async function verifyFile(
  path: string,
  request: VerifyRequest,
  { jobs, signal, progress }: VerityRunning = {},
): Promise<{ readonly dataBlocks: number; readonly dataBlockSize: number }> {
  const refuse = (problem: string, hint: string) =>
    new ShaleError("INVALID_ARGUMENT", `Cannot verify ${path}: ${problem}`, { hint });
  if (request.rootHash === undefined) throw refuse("there is no root hash", "Give the trusted one with --root-hash");
  const rootHash = parseRootHash(request.rootHash);
  const explicit = request.hashFile !== undefined || request.hashOffset !== undefined || request.superblock === false;
  const known = explicit ? undefined : readSidecar(path)?.verity;
  const file = openRegular(path, "read");
  const tree = request.hashFile === undefined ? file : openRegular(request.hashFile, "read");
  try {
    const hashOffset = request.hashOffset ?? known?.hashOffset ?? (tree === file ? undefined : 0);
    if (hashOffset === undefined) {
      throw refuse("nothing says where its tree is", "Give --hash-file or --hash-offset, or keep the .json beside it");
    }
    const superblock = request.superblock ?? known?.superblock ?? true;
    const bare: BareTree | undefined = superblock
      ? undefined
      : {
          dataBlocks:
            request.dataBlocks ??
            known?.dataBlocks ??
            Math.floor(hashOffset / (request.dataBlockSize ?? HASH_BLOCK_SIZE)),
          dataBlockSize: request.dataBlockSize ?? known?.dataBlockSize ?? HASH_BLOCK_SIZE,
          hashBlockSize: request.hashBlockSize ?? known?.hashBlockSize ?? HASH_BLOCK_SIZE,
          salt: parseSalt(request.salt ?? known?.salt ?? ""),
        };
    progress?.step("verifying", tree === file ? alignUp(hashOffset, 512) : statFile(file).size);
    const data = { file };
    return await verifyImage(data, { file: tree, hashOffset }, rootHash, {
      bare,
      jobs,
      signal,
      onHashed: progress?.advance,
    });
  } finally {
    closeFile(file);
    if (tree !== file) closeFile(tree);
  }
}

function openRegular(path: string, mode: "read" | "read-write"): number {
  const file = openFile(path, mode, { followSymlink: true });
  if (statFile(file).kind === "file") return file;
  closeFile(file);
  throw new ShaleError("INVALID_ARGUMENT", `Cannot hash ${path}: it is not a regular file`);
}
