/**
 * Reading an OCI image layout. OCI image specification v1.1, image-layout.md.
 *
 * The directory is somebody else's: every small blob is verified against the digest that names it and met by a limit
 * before it is read, every large one has its size checked, and what is not a regular file is refused. A tar of such a
 * directory (an OCI archive) is read in place by the same code.
 */
import { join, resolve } from "node:path";
import { FormatError, ShaleError, shownValue } from "../errors/index.ts";
import {
  type Descriptor,
  decodeManifest,
  digestAlgorithm,
  digestHex,
  type Index,
  isDigest,
  isIndexMediaType,
  MAX_MANIFEST_SIZE,
  type Manifest,
  MediaType,
  verifyDigest,
} from "../oci/index.ts";
import { findFile, readFile, realPath } from "../sys/index.ts";
import { explainUnreadable, type FileRange, readFileRange } from "./file-range.ts";
import type { TarFile } from "./tar-file.ts";

/** The name of an index entry: a tag, by the specification; some tools write a whole reference. */
export const REF_NAME = "org.opencontainers.image.ref.name";
/** containerd's full reference of an index entry. */
export const CONTAINERD_NAME = "io.containerd.image.name";
const LAYOUT_VERSION = "1.0.0";
/** Bytes of the `oci-layout` file; it has 30. */
const MAX_LAYOUT_FILE = 4096;
/** Indexes inside of indexes that are searched for a name or digest. Tools write one level. */
const MAX_DEPTH = 4;
/** Indexes that one search reads: a hostile layout could otherwise ask for millions. */
const MAX_SEARCHED = 256;

/** A descriptor with exactly the two members that lead to its blob. */
export type BlobName = Pick<Descriptor, "digest" | "size">;

export interface OciLayout {
  /** Absolute; of an OCI archive the file. */
  readonly directory: string;
  /** Entries of index.json as they were when the layout was opened. */
  readonly entries: readonly Descriptor[];
  /** Names that `get` takes: of each entry its tag or reference; entries without a name are left out. */
  listNames(): readonly string[];
  /**
   * The manifest or index called `name`: the tag (or whatever the entry is called), a full reference, or a digest. Entries of
   * nested indexes are searched after those of index.json. Without a name: the only image of the layout.
   * NOT_FOUND, telling what there is; FAILED_PRECONDITION when several images would fit.
   */
  get(name?: string): Descriptor;
  /** As `get`, but undefined when nothing fits. */
  find(name?: string): Descriptor | undefined;
  /** A verified manifest or index of at most 4 MiB, with the bytes that its digest names. */
  readManifest(descriptor: Descriptor): { readonly bytes: Uint8Array; readonly manifest: Manifest | Index };
  /** All bytes of a blob, verified. RESOURCE_EXHAUSTED when it is over `limit` bytes, NOT_FOUND, DATA_LOSS. */
  readBlob(blob: BlobName, limit: number): Uint8Array;
  /** Where a blob of any size lies. Its size is checked, its content is not: the reader has to hash it. */
  getBlob(blob: BlobName): FileRange;
  /** As `getBlob` for a blob whose size is not known; undefined when there is none. */
  findBlob(digest: Descriptor["digest"]): FileRange | undefined;
}

/** Opens a layout for reading. NOT_FOUND when the directory is none, PERMISSION_DENIED; FormatError for what is in it and malformed. */
export function openOciLayout(path: string): OciLayout {
  const directory = resolve(path);
  checkLayoutFile(directory);
  const index = readSmallFile(directory, "index.json", MAX_MANIFEST_SIZE);
  return new Layout(directory, decodeEntries(index), (digest) => findBlobFile(directory, digest));
}

/** The layout in a tar that is open. FormatError when there is none in it. */
export function readOciArchive(tar: TarFile): OciLayout {
  checkVersion(tar.readDocument("oci-layout", MAX_LAYOUT_FILE));
  const index = tar.readDocument("index.json", MAX_MANIFEST_SIZE);
  return new Layout(resolve(tar.path), decodeEntries(index), (digest) => {
    const name = blobPath("", digest);
    return tar.has(name) ? tar.locate(name) : undefined;
  });
}

function decodeEntries(bytes: Uint8Array): readonly Descriptor[] {
  const root = decodeManifest(bytes, MediaType.OCI_INDEX);
  if (root.kind !== "index") throw new FormatError("OCI layout", "index.json", "is not an image index");
  return root.manifests;
}

/** Throws NOT_FOUND unless `directory` is a layout, and FormatError unless it is of the version that we know. */
export function checkLayoutFile(directory: string): void {
  checkVersion(readSmallFile(directory, "oci-layout", MAX_LAYOUT_FILE));
}

function checkVersion(bytes: Uint8Array): void {
  const found = readVersion(bytes);
  if (found !== LAYOUT_VERSION) {
    const problem = `must be ${LAYOUT_VERSION}: current value is ${shownValue(found)}`;
    throw new FormatError("OCI layout", "imageLayoutVersion", problem, { code: "UNIMPLEMENTED" });
  }
}

function readVersion(bytes: Uint8Array): unknown {
  try {
    const value: unknown = JSON.parse(Buffer.from(bytes).toString("utf8"));
    const isObject = typeof value === "object" && value !== null;
    return isObject && "imageLayoutVersion" in value ? value.imageLayoutVersion : undefined;
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    throw new FormatError("OCI layout", "oci-layout", "is not JSON", { cause: error });
  }
}

/** Path of a blob; digests are hexadecimal by grammar, so it is always below `directory`. */
export function blobPath(directory: string, digest: Descriptor["digest"]): string {
  return join(directory, "blobs", digestAlgorithm(digest), digestHex(digest));
}

class Layout implements OciLayout {
  readonly directory: string;
  readonly entries: readonly Descriptor[];
  readonly #find: (digest: Descriptor["digest"]) => FileRange | undefined;

  constructor(
    directory: string,
    entries: readonly Descriptor[],
    find: (digest: Descriptor["digest"]) => FileRange | undefined,
  ) {
    this.directory = directory;
    this.entries = entries;
    this.#find = find;
  }

  listNames(): readonly string[] {
    const names = this.entries.map((entry) => entry.annotations[REF_NAME] ?? entry.annotations[CONTAINERD_NAME]);
    return [...new Set(names.filter((name) => name !== undefined))];
  }

  get(name?: string): Descriptor {
    const found = this.find(name);
    if (found !== undefined) return found;
    const names = this.listNames();
    const shown = names.slice(0, 20).join(", ") + (names.length > 20 ? `, ${names.length - 20} more` : "");
    const state = name === undefined ? "the layout has no images" : "no such name or digest in the layout";
    throw new ShaleError("NOT_FOUND", `Cannot find ${name ?? "an image"} in ${this.directory}: ${state}`, {
      hint: names.length === 0 ? "Name the image by its digest" : `The layout has: ${shown}`,
    });
  }

  find(name?: string): Descriptor | undefined {
    for (const entries of this.#levels()) {
      if (name === undefined) return this.#only(entries, "an image");
      for (const matches of MATCHES) {
        const found = entries.filter((entry) => matches(entry, name));
        if (found.length > 0) return this.#only(found, name);
      }
    }
    return undefined;
  }

  readManifest(descriptor: Descriptor): { readonly bytes: Uint8Array; readonly manifest: Manifest | Index } {
    const bytes = this.readBlob(descriptor, MAX_MANIFEST_SIZE);
    return { bytes, manifest: decodeManifest(bytes, descriptor.mediaType) };
  }

  readBlob(blob: BlobName, limit: number): Uint8Array {
    if (blob.size > limit) {
      const problem = `its ${blob.size} bytes are over the limit of ${limit}`;
      throw new ShaleError("RESOURCE_EXHAUSTED", `Cannot read blob ${blob.digest}: ${problem}`);
    }
    const bytes = Buffer.concat([...readFileRange(this.getBlob(blob))]);
    verifyDigest(bytes, blob.digest, `blob ${blob.digest} of ${this.directory}`);
    return bytes;
  }

  getBlob(blob: BlobName): FileRange {
    const range = this.findBlob(blob.digest);
    if (range === undefined) {
      throw new ShaleError("NOT_FOUND", `Cannot read blob ${blob.digest}: ${this.directory} does not have it`);
    }
    if (range.length !== blob.size) {
      const problem = `its descriptor says ${blob.size} bytes, the file has ${range.length}`;
      throw new ShaleError("DATA_LOSS", `Cannot read blob ${blob.digest}: ${problem}`);
    }
    return range;
  }

  findBlob(digest: Descriptor["digest"]): FileRange | undefined {
    return this.#find(digest);
  }

  /** Entries of index.json, then those of the indexes among them, and so on. Damaged or missing nested ones end it. */
  *#levels(): Generator<readonly Descriptor[]> {
    let level = this.entries;
    let searched = 0;
    for (let depth = 0; depth < MAX_DEPTH && level.length > 0; depth++) {
      yield level;
      const next: Descriptor[] = [];
      for (const entry of level) {
        if (!isIndexMediaType(entry.mediaType) || searched++ >= MAX_SEARCHED) continue;
        // A sparse layout (skopeo copy --multi-arch=index-only) lacks blobs on purpose.
        if (this.findBlob(entry.digest) === undefined) continue;
        const { manifest } = this.readManifest(entry);
        if (manifest.kind === "index") next.push(...manifest.manifests);
      }
      level = next;
    }
  }

  #only(entries: readonly Descriptor[], name: string): Descriptor {
    const digests = new Set(entries.map((entry) => entry.digest));
    if (digests.size > 1) {
      const state = `${digests.size} images of ${this.directory} fit`;
      const names = this.listNames().slice(0, 20).join(", ");
      const hint = names === "" ? "Name one by its digest" : `Name one by its digest, or one of: ${names}`;
      throw new ShaleError("FAILED_PRECONDITION", `Cannot choose ${name}: ${state}`, { hint });
    }
    return entries[0]!;
  }
}

/** Ways to mean an entry, the most exact first. */
const MATCHES: readonly ((entry: Descriptor, name: string) => boolean)[] = [
  (entry, name) => isDigest(name) && entry.digest === name,
  ({ annotations }, name) => annotations[REF_NAME] === name,
  ({ annotations }, name) => annotations[CONTAINERD_NAME] === name,
  // "v1" of an entry that is called "registry/name:v1"
  ({ annotations }, name) => annotations[REF_NAME]?.endsWith(`:${name}`) ?? false,
  ({ annotations }, name) => annotations[CONTAINERD_NAME]?.endsWith(`:${name}`) ?? false,
];

function readSmallFile(directory: string, name: string, limit: number): Uint8Array {
  return explainUnreadable(join(directory, name), () => readRegularFile(directory, name, limit));
}

function readRegularFile(directory: string, name: string, limit: number): Uint8Array {
  const path = realPath(join(directory, name));
  const status = path === undefined ? undefined : findFile(path);
  if (path === undefined || status === undefined) {
    throw new ShaleError("NOT_FOUND", `Cannot open OCI layout ${directory}: it has no file ${name}`);
  }
  if (status.kind !== "file") throw new FormatError("OCI layout", name, "is not a regular file");
  return readFile(path, limit);
}

function findBlobFile(directory: string, digest: Descriptor["digest"]): FileRange | undefined {
  const name = blobPath(directory, digest);
  // Bazel makes layouts whose blobs are symlinks. What they lead to is verified like any.
  const path = explainUnreadable(name, () => realPath(name));
  if (path === undefined) return undefined;
  const status = findFile(path);
  if (status === undefined) return undefined;
  // Opening a fifo would block, a device could do anything.
  if (status.kind !== "file") {
    throw new ShaleError("FAILED_PRECONDITION", `Cannot read blob ${digest}: it is not a regular file`);
  }
  return { path, offset: 0, length: status.size };
}
