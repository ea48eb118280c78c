/**
 * Images for tests of the store and of what stands on it: tars from short descriptions, OCI layouts of them, and what a
 * store gives back, in a form that two stores can be compared by. For tests only.
 */
import assert from "node:assert/strict";
import { createHash, hash } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { enableCompileCache } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { displayBytes } from "../../bytes/index.ts";
import { TAR_END, type TarHeader } from "../../formats/tar/index.ts";
import { entryBytes } from "../../formats/tar/testing.ts";
import { openImageTree } from "../../images/files.ts";
import { type Origin, openOrigin } from "../../images/origin.ts";
import { type PullOptions, type PullResult, pullImage } from "../../images/pull.ts";
import type { DiffId, Digest } from "../../oci/index.ts";
import { type CheckReport, type IngestResult, Store, type StoreOperation } from "../index.ts";

// Every store starts threads and many tests start processes: without a cache each would strip the types of 60 modules.
process.env.NODE_COMPILE_CACHE ??= join(tmpdir(), "shale-test-compile-cache");
enableCompileCache(process.env.NODE_COMPILE_CACHE);

/** Path -> content of a file; "x/" is a directory; a header, with or without content, for everything else. */
export type Files = Readonly<Record<string, string | Buffer | (Partial<TarHeader> & { readonly content?: Buffer })>>;

/** Bytes that compress badly and repeat nowhere; the same for the same seed. */
export function noise(size: number, seed: number | string): Buffer {
  const parts: Buffer[] = [];
  for (let at = 0, block = 0; at < size; at += 64, block++) {
    parts.push(hash("sha512", `${seed} ${block}`, "buffer"));
  }
  return Buffer.concat(parts).subarray(0, size);
}

export function tar(files: Files): Buffer {
  const entries = Object.entries(files).map(([path, what]) => {
    if (typeof what === "string")
      return what === "" && path.endsWith("/") ? directory(path) : file(path, Buffer.from(what));
    if (Buffer.isBuffer(what)) return file(path, what);
    const { content = Buffer.alloc(0), ...header } = what;
    return entryBytes({ path, ...header }, content.toString("latin1"));
  });
  return Buffer.concat([...entries, TAR_END]);
}

const file = (path: string, content: Buffer) => entryBytes({ path }, content.toString("latin1"));
const directory = (path: string) => entryBytes({ path, type: "directory" });

export interface MadeLayer {
  readonly tar: Buffer;
  readonly diffId: DiffId;
  readonly digest: Digest;
  /** As the manifest names it. */
  readonly blob: Buffer;
}

export interface MadeImage {
  readonly directory: string;
  readonly tag: string;
  readonly layers: readonly MadeLayer[];
  readonly diffIds: readonly DiffId[];
  readonly manifest: { readonly bytes: Buffer; readonly digest: Digest };
  readonly config: { readonly bytes: Buffer; readonly digest: Digest };
}

export const sha256 = (bytes: Uint8Array): string => hash("sha256", bytes);
const digestOf = (bytes: Uint8Array): Digest => `sha256:${sha256(bytes)}` as Digest;

export const GZIP_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip";
export const MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json";
export const CONFIG_TYPE = "application/vnd.oci.image.config.v1+json";

/** An image in memory; `diffIds` replaces what its config says about its layers. */
export function makeImage(
  tag: string,
  tars: readonly Buffer[],
  options: { readonly diffIds?: readonly string[]; readonly directory?: string } = {},
): MadeImage {
  const layers = tars.map((bytes): MadeLayer => {
    const blob = gzipSync(bytes, { level: 1 });
    return { tar: bytes, diffId: digestOf(bytes) as string as DiffId, digest: digestOf(blob), blob };
  });
  const diffIds = options.diffIds ?? layers.map((layer) => layer.diffId);
  const config = Buffer.from(
    JSON.stringify({
      architecture: "amd64",
      os: "linux",
      config: { Labels: { tag } },
      rootfs: { type: "layers", diff_ids: diffIds },
    }),
  );
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: MANIFEST_TYPE,
      config: { mediaType: CONFIG_TYPE, digest: digestOf(config), size: config.length },
      layers: layers.map(({ blob, digest }) => ({ mediaType: GZIP_LAYER, digest, size: blob.length })),
    }),
  );
  return {
    directory: options.directory ?? "",
    tag,
    layers,
    diffIds: layers.map((layer) => layer.diffId),
    manifest: { bytes: manifest, digest: digestOf(manifest) },
    config: { bytes: config, digest: digestOf(config) },
  };
}

/** Writes an image into the OCI layout `directory`, beside those that it has. */
export function writeImage(
  directory: string,
  tag: string,
  tars: readonly Buffer[],
  options: { readonly diffIds?: readonly string[] } = {},
): MadeImage {
  const image = makeImage(tag, tars, { ...options, directory });
  mkdirSync(join(directory, "blobs/sha256"), { recursive: true });
  const put = (bytes: Buffer) => writeFileSync(join(directory, "blobs/sha256", sha256(bytes)), bytes);
  for (const layer of image.layers) put(layer.blob);
  put(image.config.bytes);
  put(image.manifest.bytes);
  writeFileSync(join(directory, "oci-layout"), '{"imageLayoutVersion":"1.0.0"}');
  const index = join(directory, "index.json");
  const { manifests } = readJson(index) ?? { manifests: [] };
  const annotations = { "org.opencontainers.image.ref.name": tag };
  const { digest, bytes } = image.manifest;
  manifests.push({ mediaType: MANIFEST_TYPE, digest, size: bytes.length, annotations });
  writeFileSync(index, JSON.stringify({ schemaVersion: 2, manifests }));
  return image;
}

function readJson(path: string): { manifests: object[] } | undefined {
  try {
    return JSON.parse(readFileSync(path, "utf8")) as { manifests: object[] };
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return undefined;
    throw error;
  }
}

const noRegistry = () => Promise.reject(new Error("this test has no registry"));

export function layoutOrigin(directory: string, tag: string): Promise<Origin> {
  return openOrigin({ kind: "oci-layout", directory, name: tag }, { registry: noRegistry });
}

/** Pulls `tag` of the OCI layout `directory` under the name `tag`. */
export async function pull(
  store: Store,
  directory: string,
  tag: string,
  options: Pick<PullOptions, "merge"> = {},
): Promise<PullResult> {
  return pullImage(store, await layoutOrigin(directory, tag), { name: tag, ...options });
}

/** Stages one layer from a file that is written for it. */
export function ingest(
  operation: StoreOperation,
  path: string,
  bytes: Uint8Array,
  expected: { readonly digest?: Digest; readonly diffId?: DiffId } = {},
  options: { readonly deduplicate?: boolean; readonly signal?: AbortSignal } = {},
): Promise<IngestResult> {
  writeFileSync(path, bytes);
  return operation.ingest({ path, offset: 0, length: bytes.length }, expected, options);
}

/** Every file of an image as `path -> type, size and SHA-256`, read through our own reader. */
export function contentOf(store: Store, name: string): Record<string, string> {
  const result: Record<string, string> = {};
  using operation = store.begin(`read ${name}`);
  const manifest = store.manifestsOf(name)[0];
  assert.ok(manifest, `the store has no image ${name}`);
  using tree = openImageTree(operation, manifest);
  for (const { path, inode, target } of tree.list("/", { recursive: true })) {
    const type = (inode.mode & 0o170000).toString(8);
    const isFile = type === "100000";
    const hasher = createHash("sha256");
    if (isFile) for (const piece of tree.read(Buffer.from(path, "latin1").toString())) hasher.update(piece);
    result[displayBytes(path)] = isFile ? `${inode.size} ${hasher.digest("hex")}` : `${type} ${target ?? ""}`;
  }
  return result;
}

/** SHA-256 of each layer's rebuilt tar must be its diffId. */
export function assertTars(store: Store, name: string): void {
  using operation = store.begin(`save ${name}`);
  for (const { diffId } of store.manifestsOf(name).flatMap((manifest) => manifest.layers)) {
    using layer = operation.openTar(operation.getLayer(diffId));
    const hasher = createHash("sha256");
    for (const piece of layer.read()) hasher.update(piece);
    assert.equal(`sha256:${hasher.digest("hex")}`, diffId);
  }
}

export async function check(store: Store, options: { readonly quick?: boolean } = {}): Promise<CheckReport> {
  using operation = store.begin("check");
  return await operation.check(options);
}

/** The store has nothing that `check` could complain about. */
export async function assertSound(store: Store, context = ""): Promise<void> {
  assert.deepEqual((await check(store)).findings, [], context);
}

export function collect(store: Store, options: { readonly dryRun?: boolean } = {}) {
  using operation = store.begin("gc");
  return operation.collectGarbage(options);
}

/** Opens a store, runs, closes. */
export async function withStore<T>(root: string, use: (store: Store) => T | Promise<T>): Promise<T> {
  await using store = Store.open(root, { create: true });
  return await use(store);
}
