/**
 * ext4 images for guests whose kernel has no EROFS: mke2fs -d over a mount of the image. Read-only use is meant: no journal, and
 * hardly any free space.
 */
import { basename, dirname, join } from "node:path";
import { alignUp } from "../bytes/index.ts";
import { ShaleError } from "../errors/index.ts";
import type { ErofsReader } from "../formats/erofs/index.ts";
import { FileType } from "../formats/layer-index/index.ts";
import type { StoreOperation } from "../store/index.ts";
import { findFile, makeDirectory, mountErofs, removeDirectory, run, truncate, unmount, which } from "../sys/index.ts";
import { deriveUuid, formatUuid } from "./derive.ts";
import { type DiskOptions, type ExportedDisk, requestedVerity, verityParameters } from "./disk.ts";
import { checkSpace, publishWithSidecar } from "./publish.ts";
import { imageOf, requestOf } from "./sidecar.ts";
import { checkSource, digestOf, type ExportSource, openSource } from "./source.ts";
import { appendVerity, veritySize } from "./verity-image.ts";

const BLOCK_SIZE = 4096;
const INODE_SIZE = 256;
/** Inodes that ext4 keeps for itself, lost+found, and rounding to whole blocks of every group. */
const SPARE_INODES = 512;
/** Group descriptors, bitmaps, extent blocks, directory indexes: below 3 % with groups of 128 MiB. */
const OVERHEAD = 1.05;
const SPARE_BYTES = 8 * 1024 * 1024;
const SBIN = ["/usr/sbin", "/sbin"];

/**
 * Writes an ext4 image and its sidecar. Deterministic for one version of mke2fs. NOT_FOUND without mke2fs, PERMISSION_DENIED without
 * the right to mount, RESOURCE_EXHAUSTED when it does not fit.
 */
export async function exportExt4(
  operation: StoreOperation,
  source: ExportSource,
  target: string,
  options: Omit<DiskOptions, "blockSize"> = {},
): Promise<ExportedDisk> {
  checkSource(source);
  const mke2fs = findMke2fs();
  const { signal, progress, jobs } = options;
  const digest = digestOf(source);
  const uuid = formatUuid(options.uuid ?? deriveUuid(digest, "file system"));
  const verity = verityParameters(options, digest, BLOCK_SIZE);
  const request = requestOf(source, { format: "ext4", uuid, verity: requestedVerity(verity) });
  return publishWithSidecar(target, { request, signal }, async (file) => {
    using open = openSource(operation, source);
    const { inodes, bytes } = measure(open.reader);
    const size = alignUp(Math.ceil((bytes + inodes * INODE_SIZE) * OVERHEAD) + SPARE_BYTES, BLOCK_SIZE);
    const tree = verity === undefined ? 0 : veritySize(size, verity);
    checkSpace(target, size + tree);
    truncate(file, size);
    progress?.step("running mke2fs", 0);
    using mounted = mountBeside(target, open.files.image, open.files.devices);
    const words = [
      "-q",
      "-F",
      "-t",
      "ext4",
      "-b",
      `${BLOCK_SIZE}`,
      "-I",
      `${INODE_SIZE}`,
      "-m",
      "0",
      "-N",
      `${inodes}`,
    ];
    words.push("-U", uuid, "-E", `hash_seed=${uuid},lazy_itable_init=0,nodiscard`, "-O", "^has_journal,^resize_inode");
    words.push("-d", mounted.directory, `/proc/${process.pid}/fd/${file}`);
    // The time of everything that has no time of its own; 1.47.1 and later know the second name.
    const time = `${Math.max(1, open.reader.root.mtimeSeconds)}`;
    const env = { ...process.env, LC_ALL: "C", E2FSPROGS_FAKE_TIME: time, SOURCE_DATE_EPOCH: time };
    const { code, stderr } = await run(mke2fs, words, { env, ...(signal ? { signal } : {}) });
    if (code !== 0) throw failureOf(stderr.toString().trim(), target);
    progress?.step("hashing", verity === undefined ? 0 : size);
    const info = verity && (await appendVerity({ file, size }, verity, { jobs, signal, onHashed: progress?.advance }));
    return {
      version: 1,
      format: "ext4",
      image: imageOf(source),
      ...(source.layer === undefined ? {} : { layer: source.layer }),
      fileSystem: { type: "ext4", blockSize: BLOCK_SIZE, uuid, size },
      ...(info === undefined ? {} : { verity: info }),
      size: size + tree,
      request,
    };
  });
}

/** mke2fs says with errors as with warnings what the system said, and ends with 1 for all. */
function failureOf(said: string, target: string): ShaleError {
  if (/: No space left on device|: Disk quota exceeded/.test(said)) {
    return new ShaleError("RESOURCE_EXHAUSTED", `Cannot write ${target}: the disk is full`, {
      cause: new Error(`mke2fs failed: ${said.slice(-500)}`),
      hint: "Free space, or choose another place with --output",
    });
  }
  return new ShaleError("INTERNAL", `Cannot export to ${target}: mke2fs failed: ${said.slice(-500)}`);
}

function findMke2fs(): string {
  const found = which("mke2fs") ?? which("mke2fs", SBIN.join(":"));
  if (found !== undefined) return found;
  throw new ShaleError("NOT_FOUND", "Cannot export as ext4: mke2fs is not installed", {
    hint: "On Debian: apt-get install e2fsprogs",
  });
}

/** What ext4 needs: inodes, and bytes of blocks for content, directories, long links and xattrs. */
function measure(reader: ErofsReader): { readonly inodes: number; readonly bytes: number } {
  const seen = new Set<number>();
  let inodes = SPARE_INODES;
  let bytes = 0;
  for (const { inode } of reader.walk()) {
    const type = inode.mode & FileType.MASK;
    if (inode.links > 1 && type !== FileType.DIRECTORY) {
      if (seen.has(inode.nid)) continue;
      seen.add(inode.nid);
    }
    inodes++;
    // A directory's block is at most half empty after a split; short links and few xattrs are in the inode.
    bytes += alignUp(type === FileType.DIRECTORY ? 2 * inode.size + 1 : inode.size, BLOCK_SIZE);
    if (inode.xattrSize > 0) bytes += BLOCK_SIZE;
  }
  return { inodes, bytes };
}

/** The image's mount, at a directory beside `target` while the target's lock is held. */
function mountBeside(
  target: string,
  image: string,
  devices: readonly string[],
): Disposable & { readonly directory: string } {
  const directory = join(dirname(target), `.${basename(target)}.shale-mount`);
  const clean = () => {
    unmount(directory, { lazy: true });
    removeDirectory(directory);
  };
  if (findFile(directory) !== undefined) clean(); // of an export that was killed
  makeDirectory(directory, 0o700);
  try {
    mountErofs({ source: image, devices, target: directory });
  } catch (error) {
    removeDirectory(directory);
    throw error;
  }
  return { directory, [Symbol.dispose]: clean };
}
