/**
 * Writing an OCI image layout, also into one that exists. OCI image specification v1.1, image-layout.md.
 *
 * Invariants: (1) a file under blobs/ has exactly the content that its name says; (2) index.json refers only to blobs that
 * are there and durable. So each blob is written under another name, synced and renamed, and index.json is replaced last,
 * after the directories of the blobs are synced. A crash leaves the layout as it was, plus complete blobs that nothing
 * refers to yet, plus `.shale-tmp/`, which the next writer removes.
 */
import { createHash } from "node:crypto";
import { dirname, join, resolve } from "node:path";
import { throwIfAborted } from "../async/index.ts";
import { displayBytes, fromUtf8 } from "../bytes/index.ts";
import { FormatError, ShaleError } from "../errors/index.ts";
import {
  type Descriptor,
  type Digest,
  type DigestAlgorithm,
  decodeManifest,
  digestAlgorithm,
  encodePlatform,
  formatDigest,
  MAX_MANIFEST_SIZE,
  MediaType,
} from "../oci/index.ts";
import {
  acquireLock,
  closeFile,
  copyRange,
  createFile,
  datasync,
  ensureDirectory,
  findFile,
  list,
  type Lock,
  openFile,
  readFile,
  removeTree,
  rename,
  syncDirectory,
  writeAt,
  writeFileDurably,
} from "../sys/index.ts";
import { type FileRange, readFileRange } from "./file-range.ts";
import { type BlobName, blobPath, CONTAINERD_NAME, checkLayoutFile, REF_NAME } from "./oci-layout.ts";

/** Layouts are made to be handed on: readable by everyone, unlike the files of a store. */
const FILE_PERMISSIONS = 0o644;
const DIRECTORY_PERMISSIONS = 0o755;
const LAYOUT_FILE = "oci-layout";
const LOCK = ".shale.lock";
const TEMPORARY = ".shale-tmp";

type Bytes = Iterable<Uint8Array> | AsyncIterable<Uint8Array>;

export interface ImageNames {
  /** org.opencontainers.image.ref.name: a tag. An entry of this name is replaced. */
  readonly tag?: string;
  /** io.containerd.image.name: a full reference, for `ctr image import`. */
  readonly fullName?: string;
}

/** index.json as it is, with members that we don't know. */
interface RawIndex {
  readonly [key: string]: unknown;
  readonly manifests: readonly unknown[];
}

/**
 * One writer at a time: it holds the lock `.shale.lock` of the layout until it is closed. Blobs may be written
 * concurrently. `close` without `commit` leaves index.json as it was.
 */
export class OciLayoutWriter implements Disposable {
  readonly directory: string;
  readonly #lock: Lock;
  readonly #touched = new Set<string>();
  readonly #added: { readonly descriptor: Descriptor; readonly names: ImageNames }[] = [];
  #temporaries = 0;
  #closed = false;

  /**
   * Opens the layout in `directory`, making it when there is none. Waits for another writer. FormatError when what is there
   * is not a layout of a version that we know; ALREADY_EXISTS when it is a directory of something else.
   */
  static async open(directory: string, options: { readonly signal?: AbortSignal } = {}): Promise<OciLayoutWriter> {
    const path = resolve(directory);
    ensureDirectory(path, DIRECTORY_PERMISSIONS);
    refuseForeign(path);
    const lock = await acquireLock(join(path, LOCK), { ...options, what: `the OCI layout ${path}` });
    try {
      if (findFile(join(path, LAYOUT_FILE)) === undefined) {
        writeFileDurably(join(path, LAYOUT_FILE), Buffer.from('{"imageLayoutVersion":"1.0.0"}'), FILE_PERMISSIONS);
      }
      checkLayoutFile(path);
      ensureDirectory(join(path, "blobs/sha256"), DIRECTORY_PERMISSIONS);
      removeTree(join(path, TEMPORARY));
      ensureDirectory(join(path, TEMPORARY), DIRECTORY_PERMISSIONS);
      return new OciLayoutWriter(path, lock);
    } catch (error) {
      lock.release({ unlink: true });
      throw error;
    }
  }

  private constructor(directory: string, lock: Lock) {
    this.directory = directory;
    this.#lock = lock;
  }

  /** Whether a file of this digest and size is there. Its content is trusted: see invariant 1. */
  hasBlob(blob: BlobName): boolean {
    const status = findFile(blobPath(this.directory, blob.digest));
    return status?.kind === "file" && status.size === blob.size;
  }

  /**
   * Stores bytes under their digest, computed on the way. With `expected`, DATA_LOSS when size or digest differ, as soon
   * as that is known; a blob that is there already is kept and `source` is not read.
   */
  async writeBlob(
    source: Bytes,
    options: { readonly expected?: BlobName; readonly algorithm?: DigestAlgorithm; readonly signal?: AbortSignal } = {},
  ): Promise<BlobName> {
    const { expected, signal } = options;
    if (expected !== undefined && this.hasBlob(expected)) return expected;
    const algorithm = expected ? digestAlgorithm(expected.digest) : (options.algorithm ?? "sha256");
    return this.#stage(algorithm, expected, async (fd, hash) => {
      let size = 0;
      for await (const piece of source) {
        throwIfAborted(signal);
        if (expected !== undefined && size + piece.byteLength > expected.size) {
          throw different(expected, `more than its ${expected.size} bytes arrived`);
        }
        hash(piece);
        writeAt(fd, piece, size);
        size += piece.byteLength;
      }
      return size;
    });
  }

  /** Stores a range of a file by reflink where the file system can, else by copy; verified like `writeBlob`. */
  async copyBlob(range: FileRange, expected: BlobName, options: { readonly signal?: AbortSignal } = {}): Promise<void> {
    if (this.hasBlob(expected)) return;
    if (range.length !== expected.size) throw different(expected, `${range.length} bytes are there`);
    await this.#stage(digestAlgorithm(expected.digest), expected, async (fd, hash) => {
      const source = openFile(range.path);
      try {
        copyRange(source, range.offset, fd, 0, range.length);
      } finally {
        closeFile(source);
      }
      for (const piece of readFileRange(range, options)) hash(piece);
      return range.length;
    });
  }

  /** Names an image whose blobs were all written. Takes effect with `commit`. */
  addImage(descriptor: Descriptor, names: ImageNames = {}): void {
    this.#added.push({ descriptor, names });
  }

  /** Publishes the added images: when this returns, they survive a power cut. May be called again after further images. */
  commit(): void {
    for (const { descriptor } of this.#added) {
      if (!this.hasBlob(descriptor)) {
        throw new ShaleError("FAILED_PRECONDITION", `Cannot add ${descriptor.digest}: its blob was not written`);
      }
    }
    for (const directory of this.#touched) syncDirectory(directory);
    this.#touched.clear();
    const index = this.#added.reduce(withImage, this.#readIndex());
    const bytes = Buffer.from(JSON.stringify(index));
    if (bytes.length > MAX_MANIFEST_SIZE) {
      const problem = `index.json would have ${bytes.length} bytes, the limit is ${MAX_MANIFEST_SIZE}`;
      throw new ShaleError("RESOURCE_EXHAUSTED", `Cannot add an image to ${this.directory}: ${problem}`);
    }
    writeFileDurably(join(this.directory, "index.json"), bytes, FILE_PERMISSIONS);
    this.#added.length = 0;
  }

  /** Gives the layout free for others. Idempotent. */
  close(): void {
    try {
      if (!this.#closed) removeTree(join(this.directory, TEMPORARY));
    } finally {
      this.#closed = true;
      this.#lock.release({ unlink: true });
    }
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** Runs `fill` on a file without a name of its own; gives it the name of its digest when it is as expected. */
  async #stage(
    algorithm: DigestAlgorithm,
    expected: BlobName | undefined,
    fill: (fd: number, hash: (piece: Uint8Array) => void) => Promise<number>,
  ): Promise<BlobName> {
    const temporary = join(this.directory, TEMPORARY, String(this.#temporaries++));
    const fd = createFile(temporary, FILE_PERMISSIONS);
    let renamed = false;
    try {
      const hash = createHash(algorithm);
      const size = await fill(fd, (piece) => hash.update(piece));
      const digest = formatDigest(algorithm, hash.digest());
      if (expected !== undefined && size !== expected.size) throw different(expected, `only ${size} bytes arrived`);
      if (expected !== undefined && digest !== expected.digest) throw different(expected, `its digest is ${digest}`);
      datasync(fd);
      this.#publish(temporary, digest);
      renamed = true;
      return { digest, size };
    } finally {
      closeFile(fd);
      if (!renamed) removeTree(temporary);
    }
  }

  #publish(temporary: string, digest: Digest): void {
    const path = blobPath(this.directory, digest);
    ensureDirectory(dirname(path), DIRECTORY_PERMISSIONS);
    rename(temporary, path);
    this.#touched.add(dirname(path));
  }

  #readIndex(): RawIndex {
    const path = join(this.directory, "index.json");
    if (findFile(path) === undefined) {
      return { schemaVersion: 2, mediaType: MediaType.OCI_INDEX, manifests: [] };
    }
    const bytes = readFile(path, MAX_MANIFEST_SIZE);
    const decoded = decodeManifest(bytes, MediaType.OCI_INDEX); // FormatError unless it is sound
    if (decoded.kind !== "index") throw new FormatError("OCI layout", "index.json", "is not an image index");
    return JSON.parse(bytes.toString("utf8")) as RawIndex;
  }
}

/** The index with one image more; an entry of the same tag, or the same image without a name, makes room. */
function withImage(index: RawIndex, image: { readonly descriptor: Descriptor; readonly names: ImageNames }): RawIndex {
  const { descriptor, names } = image;
  const { tag, fullName } = names;
  const annotations = {
    ...descriptor.annotations,
    ...(tag === undefined ? {} : { [REF_NAME]: tag }),
    ...(fullName === undefined ? {} : { [CONTAINERD_NAME]: fullName }),
  };
  const { mediaType, digest, size, platform, artifactType } = descriptor;
  const entry = {
    mediaType,
    digest,
    size,
    ...(platform === undefined ? {} : { platform: encodePlatform(platform) }),
    ...(artifactType === undefined ? {} : { artifactType }),
    ...(Object.keys(annotations).length === 0 ? {} : { annotations }),
  };
  const kept = index.manifests.filter((one) => {
    const there = one as { digest: string; annotations?: Record<string, string> | null };
    const name = there.annotations?.[REF_NAME];
    if (tag !== undefined && name === tag) return false;
    return there.digest !== digest || name !== undefined;
  });
  return { ...index, manifests: [...kept, entry] };
}

/** A directory with something else in it does not become a layout by mistake ("shale save -o /etc"). */
function refuseForeign(path: string): void {
  if (findFile(join(path, LAYOUT_FILE)) !== undefined) return;
  const foreign = list(path).find(({ name }) => name !== LOCK && name !== `${LAYOUT_FILE}.tmp`);
  if (foreign === undefined) return;
  const problem = `it has no file ${LAYOUT_FILE}, but ${displayBytes(fromUtf8(foreign.name))}`;
  throw new ShaleError("ALREADY_EXISTS", `Cannot make an OCI layout in ${path}: ${problem}`, {
    hint: "Name an empty directory, one that does not exist, or an OCI layout",
  });
}

function different(expected: BlobName, state: string): ShaleError {
  return new ShaleError("DATA_LOSS", `Cannot store ${expected.digest}: ${state}`);
}
