/**
 * A disk: one EROFS image with everything in one file, metadata first, payloads behind it, each once and in the order of the
 * tree; optionally a dm-verity tree after that. No device table: any kernel with EROFS mounts it, a VM's too.
 */
import { indexFromErofs, planErofs } from "../formats/erofs/index.ts";
import type { StoreOperation } from "../store/index.ts";
import { closeFile, openFile, truncate, writeAt } from "../sys/index.ts";
import { assemblyOf } from "./assembly.ts";
import { canReflink, copyRuns } from "./copy-runs.ts";
import { deriveSalt, deriveUuid, formatUuid } from "./derive.ts";
import { planPayloads } from "./payload-plan.ts";
import type { ExportProgress } from "./progress.ts";
import { checkSpace, publishWithSidecar } from "./publish.ts";
import { imageOf, requestOf, type Sidecar } from "./sidecar.ts";
import { checkSource, digestOf, type ExportSource, openSource } from "./source.ts";
import { appendVerity, HASH_BLOCK_SIZE, type VerityInfo, type VerityParameters, veritySize } from "./verity-image.ts";
import { VerityThreads } from "./verity-threads.ts";

export interface VerityOptions {
  /** Appends a tree: with the superblock of veritysetup, or bare as nydus and Kata have it. */
  readonly verity?: "superblock" | "bare" | undefined;
  /** Derived from the image's digest unless given; none in the bare form, since Kata has no place for it. */
  readonly salt?: Uint8Array | undefined;
}

export interface DiskOptions extends VerityOptions {
  /** 4096 unless given; 512 needs Linux 6.4. Also the data block size of the verity tree. */
  readonly blockSize?: 512 | 4096 | undefined;
  /** Of the file system; derived from the image's digest unless given. */
  readonly uuid?: Uint8Array | undefined;
  /** Threads that hash; one for each core unless given. */
  readonly jobs?: number | undefined;
  /** What is at the target will do, if its sidecar says that it is this very disk. */
  readonly reuse?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly progress?: ExportProgress | undefined;
}

export interface ExportedDisk {
  readonly path: string;
  readonly sidecar: Sidecar;
  /** Not made by this call: another process made it at the same moment, or it was there and could be reused. */
  readonly shared: boolean;
}

/**
 * Writes a disk and its sidecar. Deterministic: the same image and options give the same bytes on any machine. Resolves when
 * both are durable; after a failure what was at `target` is still there.
 * RESOURCE_EXHAUSTED when it does not fit on the file system, or into 32-bit block numbers.
 */
export async function exportDisk(
  operation: StoreOperation,
  source: ExportSource,
  target: string,
  options: DiskOptions = {},
): Promise<ExportedDisk> {
  checkSource(source);
  const { blockSize = 4096, reuse, signal, progress, jobs } = options;
  const digest = digestOf(source);
  const uuid = options.uuid ?? deriveUuid(digest, "file system");
  const verity = verityParameters(options, digest, blockSize);
  const request = requestOf(source, {
    format: "disk",
    blockSize,
    uuid: formatUuid(uuid),
    verity: requestedVerity(verity),
  });

  return publishWithSidecar(target, { request, reuse, signal }, async (file) => {
    await using threads = verity && new VerityThreads(jobs);
    using open = openSource(operation, source);
    const index = indexFromErofs(open.reader);
    const { runs, size } = planPayloads(index, open);
    let written = 0;
    const { image, write } = planErofs(index, {
      devices: size === 0 ? [] : [{ tag: "payloads", blocks: size / blockSize }],
      uuid,
      blockSize,
      selfContained: true,
      readInline: (inode) => open.reader.read(open.reader.inode(index.contentOffset(inode)), 0, index.size(inode)),
      write(bytes) {
        writeAt(file, bytes, written);
        written += bytes.length;
      },
    });
    const total = image.totalSize;
    truncate(file, total);
    using closing = new DisposableStack();
    const blobs = open.files.devices.map((path) => {
      const blob = openFile(path);
      closing.defer(() => closeFile(blob));
      return blob;
    });
    const place = { file, offset: image.size };
    const reflink = canReflink(runs, blobs, place);
    const tree = verity === undefined ? 0 : veritySize(total, verity);
    checkSpace(target, tree + image.size + (reflink ? 0 : size));
    let info: VerityInfo | undefined;
    if (verity === undefined) {
      write();
      progress?.step(reflink ? "sharing payloads" : "copying payloads", size);
      await copyRuns(runs, blobs, place, { reflink, signal, onCopied: progress?.advance });
    } else {
      // The longest work begins at once: what is shared is hashed where it comes from, what is not is copied by who hashes it.
      progress?.step(reflink ? "hashing" : "copying and hashing", total);
      const head = {
        size: image.size,
        async write() {
          write();
          if (reflink) await copyRuns(runs, blobs, place, { reflink, signal });
        },
      };
      const assembly = assemblyOf(runs, blobs, { offset: image.size, write: !reflink });
      const running = { threads, assembly, head, signal, onHashed: progress?.advance };
      info = await appendVerity({ file, size: total }, verity, running);
    }
    return {
      version: 1,
      format: "disk",
      image: imageOf(source),
      ...(source.layer === undefined ? {} : { layer: source.layer }),
      fileSystem: { type: "erofs", blockSize, uuid: formatUuid(uuid), size: total },
      ...(info === undefined ? {} : { verity: info }),
      size: total + tree,
      request,
    };
  });
}

/** The parameters of an appended tree; undefined for none. */
export function verityParameters(
  { verity, salt }: VerityOptions,
  digest: string,
  dataBlockSize: number,
): VerityParameters | undefined {
  if (verity === undefined) return undefined;
  const bare = verity === "bare";
  return {
    dataBlockSize,
    hashBlockSize: HASH_BLOCK_SIZE,
    salt: salt ?? (bare ? new Uint8Array(0) : deriveSalt(digest)),
    superblockUuid: bare ? undefined : deriveUuid(digest, "verity superblock"),
  };
}

/** What of it makes a difference to the bytes, for `requestOf`. */
export function requestedVerity(parameters: VerityParameters | undefined): unknown {
  if (parameters === undefined) return null;
  return { salt: Buffer.from(parameters.salt).toString("hex"), superblock: parameters.superblockUuid !== undefined };
}
