/**
 * composefs: the image of the tree, and a directory of objects that has each content once under its fs-verity digest. Any number of
 * images may share a directory of objects.
 */
import { dirname, join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { throwIfAborted } from "../async/index.ts";
import { alignUp, toHex } from "../bytes/index.ts";
import { INLINE_LIMIT, objectPath, writeComposefs } from "../formats/composefs/index.ts";
import { indexFromErofs } from "../formats/erofs/index.ts";
import { Content, FileType, type LayerIndex } from "../formats/layer-index/index.ts";
import { FsVerityHasher, fsVerityDigest } from "../formats/verity/index.ts";
import type { ManifestRecord, StoreOperation } from "../store/index.ts";
import {
  closeFile,
  copyRange,
  crashPoint,
  createFile,
  ensureDirectory,
  findFile,
  openFile,
  rename,
  syncDirectory,
  syncFileSystem,
  truncate,
  writeAt,
} from "../sys/index.ts";
import type { ExportProgress } from "./progress.ts";
import { openStaging } from "./object-staging.ts";
import { checkSpace, publishFile } from "./publish.ts";
import { checkSource, type OpenSource, openSource } from "./source.ts";

const PIECE_SIZE = 1024 * 1024;
const BLOCK_SIZE = 4096;
/** Bytes between two turns of the event loop. */
const TURN_SIZE = 16 * 1024 * 1024;
const OBJECT_PERMISSIONS = 0o644;

export interface ComposefsOptions {
  /** Where objects go; "objects" beside the image unless given. */
  readonly objects?: string | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly progress?: ExportProgress | undefined;
}

export interface ComposefsExport {
  readonly image: string;
  readonly objects: string;
  /** fs-verity digest of the image: what `mount.composefs -o digest=` and a signature are about. */
  readonly digest: string;
  readonly objectCount: number;
  /** Of them, those that were not there before. */
  readonly newObjects: number;
}

/**
 * Writes an image to `target` and its objects. An object's name is there only when its content is complete and durable, and the
 * image only after all its objects. Objects share their blocks with the store where the file system can.
 */
export async function exportComposefs(
  operation: StoreOperation,
  manifest: ManifestRecord,
  target: string,
  options: ComposefsOptions = {},
): Promise<ComposefsExport> {
  const source = { manifest, layer: undefined };
  checkSource(source);
  const { signal, progress, objects = join(dirname(target), "objects") } = options;
  using open = openSource(operation, source);
  const index = indexFromErofs(open.reader);
  const contents = new Contents(index, open);
  const digests = await contents.digestAll(signal, progress);
  ensureDirectory(objects, 0o755);
  const written = await writeObjects(contents, digests, objects, signal, progress);
  const image = writeComposefs(index, {
    readInline: (inode) => contents.read(inode, 0, index.size(inode)),
    digestOf: (inode) => Buffer.from(digests.get(inode)!, "hex"),
  });
  throwIfAborted(signal);
  checkSpace(target, image.length);
  await publishFile(target, (file) => writeAt(file, image, 0), { signal });
  return { image: target, objects, digest: toHex(fsVerityDigest(image)), ...written };
}

/** Contents of regular files, in the store's blobs or in its metadata image. */
class Contents {
  readonly index: LayerIndex;
  readonly open: OpenSource;

  constructor(index: LayerIndex, open: OpenSource) {
    this.index = index;
    this.open = open;
  }

  read(inode: number, offset: number, length: number): Uint8Array {
    const { index, open } = this;
    if (index.contentKind(inode) === Content.EXTENT) {
      return open.devices[index.contentDevice(inode)]!.read(index.contentOffset(inode) + offset, length);
    }
    return open.reader.read(open.reader.inode(index.contentOffset(inode)), offset, length);
  }

  /** By inode: the digest of each file that becomes an object. Content that the store has once is hashed once. */
  async digestAll(
    signal: AbortSignal | undefined,
    progress: ExportProgress | undefined,
  ): Promise<ReadonlyMap<number, string>> {
    const { index } = this;
    const digests = new Map<number, string>();
    const known = new Map<string, string>();
    const inodes: number[] = [];
    let total = 0;
    for (let inode = 0; inode < index.inodeCount; inode++) {
      if (index.type(inode) !== FileType.REGULAR || index.size(inode) <= INLINE_LIMIT) continue;
      inodes.push(inode);
      total += index.size(inode);
    }
    progress?.step("hashing files", total);
    let sinceTurn = 0;
    for (const inode of inodes) {
      const size = index.size(inode);
      const place = `${index.contentKind(inode)} ${index.contentDevice(inode)} ${index.contentOffset(inode)} ${size}`;
      let digest = known.get(place);
      if (digest === undefined) {
        const hasher = new FsVerityHasher();
        for (let at = 0; at < size; at += PIECE_SIZE)
          hasher.update(this.read(inode, at, Math.min(PIECE_SIZE, size - at)));
        digest = toHex(hasher.digest());
        known.set(place, digest);
      }
      digests.set(inode, digest);
      progress?.advance(size);
      sinceTurn += size;
      if (sinceTurn < TURN_SIZE) continue;
      sinceTurn = 0;
      await setImmediate();
      throwIfAborted(signal);
    }
    return digests;
  }
}

async function writeObjects(
  contents: Contents,
  digests: ReadonlyMap<number, string>,
  objects: string,
  signal: AbortSignal | undefined,
  progress: ExportProgress | undefined,
): Promise<{ readonly objectCount: number; readonly newObjects: number }> {
  const { index, open } = contents;
  const byDigest = new Map<string, number>();
  for (const [inode, digest] of digests) if (!byDigest.has(digest)) byDigest.set(digest, inode);
  const missing = [...byDigest].filter(([digest]) => findFile(join(objects, objectPath(digest))) === undefined);
  const total = missing.reduce((sum, [, inode]) => sum + alignUp(index.size(inode), BLOCK_SIZE), 0);
  progress?.step("writing objects", total);
  using closing = new DisposableStack();
  const blobs = open.files.devices.map((path) => {
    const blob = openFile(path);
    closing.defer(() => closeFile(blob));
    return blob;
  });
  // Written first, then synced all at once, then named: a sync for each would take longer than all else.
  using staging = openStaging(objects);
  let checked = false;
  for (const [digest, inode] of missing) {
    throwIfAborted(signal);
    const file = createFile(join(staging.path, digest), OBJECT_PERMISSIONS);
    try {
      const isShared = writeObject(contents, inode, blobs, file);
      if (!checked && isShared === false) checkSpace(join(objects, "*"), total); // which may be another disk than the image's
      checked ||= isShared !== undefined;
    } finally {
      closeFile(file);
    }
    progress?.advance(alignUp(index.size(inode), BLOCK_SIZE));
    await setImmediate();
  }
  syncFileSystem(objects);
  crashPoint("export:objects-synced");
  const directories = new Set<string>();
  for (const [digest] of missing) {
    const path = join(objects, objectPath(digest));
    const directory = dirname(path);
    if (!directories.has(directory)) ensureDirectory(directory, 0o755);
    directories.add(directory);
    rename(join(staging.path, digest), path);
  }
  for (const directory of directories) syncDirectory(directory);
  return { objectCount: byDigest.size, newObjects: missing.length };
}

/** Whether its blocks are shared with the store; undefined for content that is in the metadata image. */
function writeObject(contents: Contents, inode: number, blobs: readonly number[], file: number): boolean | undefined {
  const { index } = contents;
  const size = index.size(inode);
  if (index.contentKind(inode) !== Content.EXTENT) {
    writeAt(file, contents.read(inode, 0, size), 0);
    return undefined;
  }
  // Whole blocks, so that they can be shared; the store pads payloads with zeros.
  const padded = alignUp(size, BLOCK_SIZE);
  const method = copyRange(blobs[index.contentDevice(inode)]!, index.contentOffset(inode), file, 0, padded);
  truncate(file, size);
  return method === "reflink";
}
