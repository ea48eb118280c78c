/** zstd:chunked images on a scripted registry, and what stores make of them. For tests only. */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { gunzipSync, gzipSync } from "node:zlib";
import { displayBytes } from "../../../bytes/index.ts";
import { frameCompressor } from "../../../formats/compression/index.ts";
import type { ErofsWalkEntry } from "../../../formats/erofs/index.ts";
import { EstargzWriter } from "../../../formats/estargz/index.ts";
import { FileType, type Xattr } from "../../../formats/layer-index/index.ts";
import { encodeTarHeader, TAR_END, tarPadding } from "../../../formats/tar/index.ts";
import { ESTARGZ_FOOTER_SIZE, TocAnnotation } from "../../../formats/toc/index.ts";
import { encodeEstargzFooter, memorySpool } from "../../../formats/toc/writing.ts";
import { ZstdChunkedWriter } from "../../../formats/zstd-chunked/index.ts";
import { type DiffId, type ImageSource, parseReference } from "../../../oci/index.ts";
import { RegistryClient } from "../../../registry/index.ts";
import { FAST_RETRY } from "../../../registry/testing/fixtures.ts";
import { parts } from "../../../registry/testing/parts.ts";
import type { ScriptedServer, Step, Stored } from "../../../registry/testing/scripted-server.ts";
import type { Store, StoreOperation } from "../../../store/index.ts";
import { CONFIG_TYPE, MANIFEST_TYPE, sha256 } from "../../../store/testing/fixtures.ts";
import { openOrigin } from "../../origin.ts";
import { type PullResult, pullImage } from "../../pull.ts";

export const ZSTD_LAYER = "application/vnd.oci.image.layer.v1.tar+zstd";
const GZIP_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip";

export interface ChunkedLayer {
  readonly blob: Buffer;
  readonly annotations: Readonly<Record<string, string>>;
  readonly diffId: string;
  /** Of the TOC in the blob. */
  readonly tocOffset: number;
  /** Zstd unless given. */
  readonly mediaType?: string;
}

export async function chunkedLayer(tar: Uint8Array): Promise<ChunkedLayer> {
  const compressor = frameCompressor({ kind: "zstd", level: 3 });
  const writer = new ZstdChunkedWriter({ compressor, openSpool: memorySpool });
  const pieces: Uint8Array[] = [];
  for await (const piece of writer.write(only(tar))) pieces.push(piece);
  const { annotations } = writer;
  const diffId = `sha256:${sha256(tar)}`;
  return { blob: Buffer.concat(pieces), annotations, diffId, tocOffset: tocOffsetOf(annotations) };
}

/** As shale writes it: the tar of the layer has a landmark and the TOC beside the files of `tar`. */
export async function estargzLayer(tar: Uint8Array): Promise<ChunkedLayer> {
  const compressor = frameCompressor({ kind: "gzip", level: 6 });
  const writer = new EstargzWriter({ compressor, openSpool: memorySpool });
  const pieces: Uint8Array[] = [];
  for await (const piece of writer.write(only(tar))) pieces.push(piece);
  const blob = Buffer.concat(pieces);
  const { annotations, tarDigest } = writer.result;
  return estargzBlob(blob, annotations, `sha256:${Buffer.from(tarDigest).toString("hex")}`);
}

/** A blob that ends with the footer of eStargz. */
export function estargzBlob(
  blob: Buffer,
  annotations: Readonly<Record<string, string>>,
  diffId: string,
): ChunkedLayer & { readonly mediaType: string } {
  const tocOffset = Number(`0x${blob.subarray(-ESTARGZ_FOOTER_SIZE).toString("latin1", 16, 32)}`);
  return { blob, annotations, diffId, tocOffset, mediaType: GZIP_LAYER };
}

/** A layer that skopeo made; see skopeo/layers.json. "two" has most of the content of "one". */
export function skopeoLayer(name: "one" | "two"): ChunkedLayer {
  const directory = join(import.meta.dirname, "skopeo");
  const blob = readFileSync(join(directory, `${name}.blob`));
  const all = JSON.parse(readFileSync(join(directory, "layers.json"), "utf8")) as Readonly<
    Record<typeof name, { readonly diffId: string; readonly annotations: Readonly<Record<string, string>> }>
  >;
  const { diffId, annotations } = all[name];
  return { blob, annotations, diffId, tocOffset: tocOffsetOf(annotations) };
}

function tocOffsetOf(annotations: Readonly<Record<string, string>>): number {
  const [, position] = Object.entries(annotations).find(([key]) => key.endsWith(".manifest-position"))!;
  return Number(position.split(":")[0]);
}

async function* only(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}

export interface PublishOptions {
  /** In place of a right answer for the first layer's blob. */
  readonly steps?: readonly Step[];
  /** In place of the layer's own. */
  readonly annotations?: Readonly<Record<string, string>>;
  readonly mediaType?: string;
  /** "app" unless given. */
  readonly repository?: string;
}

/** Puts an image of these layers on the server, as `HOST/app:TAG`. Gives the blobs. */
export function publish(
  server: ScriptedServer,
  tag: string,
  layers: readonly ChunkedLayer[],
  options: PublishOptions = {},
): readonly Stored[] {
  const { repository = "app" } = options;
  const blobs = layers.map(({ blob, mediaType = ZSTD_LAYER }, at) =>
    server.blob(
      repository,
      blob,
      options.mediaType ?? mediaType,
      ...((at === 0 ? options.steps : undefined) ?? [parts(blob)]),
    ),
  );
  const rootfs = { type: "layers", diff_ids: layers.map(({ diffId }) => diffId) };
  const config = server.blob(
    repository,
    Buffer.from(JSON.stringify({ architecture: "amd64", os: "linux", config: { Labels: { tag } }, rootfs })),
    CONFIG_TYPE,
  );
  const plain = ({ mediaType: type, digest, size }: Stored) => ({ mediaType: type, digest, size });
  server.manifest(repository, tag, {
    schemaVersion: 2,
    mediaType: MANIFEST_TYPE,
    config: plain(config),
    layers: blobs.map((blob, at) => ({ ...plain(blob), annotations: options.annotations ?? layers[at]!.annotations })),
  });
  return blobs;
}

export function testClient(): RegistryClient {
  return new RegistryClient({
    env: { HOME: "/nonexistent", XDG_RUNTIME_DIR: "/nonexistent" },
    hostsDirs: [],
    stallTimeoutMs: 2000,
    retry: FAST_RETRY,
  });
}

/** Pulls `HOST/app:TAG` under the name TAG. */
export async function pullFrom(
  store: Store,
  server: { readonly host: string },
  tag: string,
  options: { readonly signal?: AbortSignal; readonly whole?: boolean } = {},
): Promise<PullResult> {
  await using client = testClient();
  const source: ImageSource = { kind: "registry", reference: parseReference(`${server.host}/app:${tag}`) };
  const origin = await openOrigin(source, { registry: async () => client });
  return await pullImage(store, origin, { name: tag, ...options });
}

/** Bytes of blobs that the server has sent or was asked for: the sum of the ranges, the whole blob without. */
export function askedBytes(server: ScriptedServer, blob: Stored): number {
  let bytes = 0;
  for (const { headers } of server.requestsTo(`/v2/app/blobs/${blob.digest}`)) {
    const ranges = /^bytes=(.+)$/.exec(headers.range ?? "")?.[1];
    if (ranges === undefined) bytes += blob.size;
    for (const range of ranges?.split(",") ?? []) {
      const [first, last] = range.split("-").map(Number);
      bytes += last! - first! + 1;
    }
  }
  return bytes;
}

/** Everything that a layer's index says, in an order that does not depend on where contents lie. */
export function layerIndexOf(store: Store, name: string): string[][] {
  using operation = store.begin(`read ${name}`);
  return store.manifestsOf(name)[0]!.layers.map(({ diffId }) => treeIndexOf(operation, diffId));
}

export function treeIndexOf(operation: StoreOperation, diffId: DiffId): string[] {
  const links = new Map<number, string>();
  return readTree(operation, diffId, ({ path, inode, xattrs, target, content }) => {
    const first = links.get(inode.nid);
    if (first !== undefined) return `${displayBytes(path)} = ${first}`;
    links.set(inode.nid, displayBytes(path));
    const { mode, uid, gid, size, links: count, mtimeSeconds, mtimeNanoseconds, rdevMajor, rdevMinor } = inode;
    const numbers = [mode, uid, gid, size, count, mtimeSeconds, mtimeNanoseconds, rdevMajor, rdevMinor].join(" ");
    const pairs = xattrs.map(({ name, value }) => `${displayBytes(name)}=${displayBytes(value)}`);
    return `${displayBytes(path)} ${numbers} ${pairs.join(",")} ${target ?? content ?? ""}`;
  });
}

export interface ReadEntry extends ErofsWalkEntry {
  readonly xattrs: readonly Xattr[];
  readonly target: string | undefined;
  /** SHA-256 of a regular file. */
  readonly content: string | undefined;
}

/** What `use` makes of each entry of a layer, in the order of the tree. */
export function readTree<T>(operation: StoreOperation, diffId: DiffId, use: (entry: ReadEntry) => T): T[] {
  using tree = operation.openLayer(operation.getLayer(diffId));
  const { reader } = tree;
  return Array.from(reader.walk(), (entry) => {
    const { inode } = entry;
    const type = inode.mode & FileType.MASK;
    const content = type === FileType.REGULAR ? createHash("sha256") : undefined;
    for (let at = 0; content !== undefined && at < inode.size; at += 1 << 20) {
      content.update(reader.read(inode, at, 1 << 20));
    }
    return use({
      ...entry,
      xattrs: reader.xattrs(inode),
      target: type === FileType.SYMLINK ? reader.readlink(inode) : undefined,
      content: content?.digest("hex"),
    });
  });
}

/** An entry of a TOC as it is written. */
export type TocJson = Record<string, string | number | undefined>;

/** The same tar but for the TOC in it, changed, and everything around it made right again. */
export function withToc(layer: ChunkedLayer, change: (entries: TocJson[]) => void): ChunkedLayer {
  const { blob, tocOffset } = layer;
  const member = gunzipSync(blob.subarray(tocOffset));
  const size = Number.parseInt(member.toString("latin1", 124, 135), 8);
  const toc = JSON.parse(member.toString("utf8", 512, 512 + size)) as { entries: TocJson[] };
  change(toc.entries);
  const json = Buffer.from(JSON.stringify(toc));
  const header = encodeTarHeader({
    ...{ type: "file", path: "stargz.index.json", linkTarget: "", mode: 0, uid: 0, gid: 0, size: json.length },
    ...{ mtimeSeconds: 0, mtimeNanoseconds: 0, rdevMajor: 0, rdevMinor: 0, xattrs: [] },
  });
  const end = gzipSync(Buffer.concat([header, json, tarPadding(json.length), TAR_END]));
  const whole = Buffer.concat([blob.subarray(0, tocOffset), end, encodeEstargzFooter(tocOffset)]);
  return estargzBlob(
    whole,
    { ...layer.annotations, [TocAnnotation.ESTARGZ_DIGEST]: `sha256:${sha256(json)}` },
    `sha256:${sha256(gunzipSync(whole))}`,
  );
}
