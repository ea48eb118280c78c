/** A made-up image of three layers with everything that an export must get right, and stores that hold it. */
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before } from "node:test";
import { OciLayoutWriter } from "../../src/archives/index.ts";
import { encodeTarHeader, TAR_END, type TarHeader, tarPadding } from "../../src/formats/tar/index.ts";
import { findImage } from "../../src/images/find.ts";
import { openOrigin } from "../../src/images/origin.ts";
import { pullImage } from "../../src/images/pull.ts";
import { digestOf, MediaType, parseImageSource } from "../../src/oci/index.ts";
import { type ManifestRecord, Store, type StoreOperation } from "../../src/store/index.ts";
import { unmountBelow } from "../../src/sys/testing/filesystems.ts";

type File = Partial<TarHeader> & { readonly path: string; readonly content?: Uint8Array | string };

/** Bytes that differ everywhere, the same for the same seed. */
export function noise(length: number, seed: number): Uint8Array {
  const bytes = Buffer.alloc(length);
  for (let at = 0, i = 0; at < length; at += 32, i++)
    createHash("sha256").update(`${seed} ${i}`).digest().copy(bytes, at);
  return bytes;
}

function tarOf(files: readonly File[]): Buffer {
  const parts: Uint8Array[] = [];
  for (const [at, { content = "", ...file }] of files.entries()) {
    const type = file.type ?? (file.path.endsWith("/") ? "directory" : "file");
    const bytes = typeof content === "string" ? Buffer.from(content) : content;
    const header: TarHeader = {
      type,
      linkTarget: "",
      mode: type === "directory" ? 0o755 : 0o644,
      uid: 0,
      gid: 0,
      size: bytes.length,
      mtimeSeconds: 1_700_000_000 + at,
      mtimeNanoseconds: at % 3 === 0 ? 0 : 123_456_789,
      rdevMajor: 0,
      rdevMinor: 0,
      xattrs: [],
      ...file,
    };
    parts.push(encodeTarHeader(header), bytes, tarPadding(bytes.length));
  }
  return Buffer.concat([...parts, TAR_END]);
}

const SHARED = noise(100_000, 1);
const LAYERS: readonly Buffer[] = [
  tarOf([
    { path: "./", mode: 0o755, mtimeSeconds: 1_600_000_000 },
    { path: "bin/" },
    { path: "bin/tool", content: noise(300_001, 2), mode: 0o4755 },
    { path: "bin/copy", content: SHARED },
    { path: "dev/" },
    { path: "dev/null", type: "character", mode: 0o666, rdevMajor: 1, rdevMinor: 3 },
    { path: "etc/" },
    { path: "etc/hosts", content: "127.0.0.1 localhost\n" },
    { path: "etc/gone", content: noise(9000, 3) },
    { path: "etc/mode", content: "x", mode: 0o7711, uid: 70_000, gid: 65_534 },
    { path: "etc/xattrs", content: noise(5000, 4), xattrs: [{ name: "user.note", value: "kept" }] },
    { path: "etc/alias", type: "symlink", mode: 0o777, linkTarget: "hosts" },
    { path: "etc/long", type: "symlink", mode: 0o777, linkTarget: "t".repeat(700) },
    { path: "lib/" },
    { path: "lib/first", content: noise(20_000, 5) },
    { path: "lib/second", type: "hardlink", linkTarget: "lib/first" },
    { path: "run/fifo", type: "fifo", mode: 0o600 },
    { path: "zeros", content: new Uint8Array(2_000_000) },
    ...[0, 1, 511, 512, 513, 4031, 4095, 4096, 4097, 8192].map((size) => ({
      path: `size/${size}`,
      content: noise(size, size),
    })),
    { path: "caf\xc3\xa9", content: "utf-8\n" },
  ]),
  tarOf([
    { path: "etc/" },
    { path: "etc/.wh.gone" },
    { path: "etc/hosts", content: "127.0.0.1 other\n" },
    { path: "opt/shared", content: SHARED },
    { path: "opt/big", content: noise(3_000_000, 6) },
    ...Array.from({ length: 300 }, (_, i) => ({ path: `many/file-${i}`, content: noise(i * 40, 100 + i) })),
  ]),
  tarOf([
    { path: "size/" },
    { path: "size/.wh..wh..opq" },
    { path: "size/only", content: "left" },
    { path: "top", content: SHARED },
  ]),
];
/** On top of the image's layers it leaves one name of every file. */
const ONE_NAME_EACH = tarOf([{ path: "lib/" }, { path: "lib/.wh.second" }]);
/** Shares content with the image, so that a store that has it first keeps the image's payloads elsewhere. */
const OTHER = tarOf([
  { path: "elsewhere/big", content: noise(3_000_000, 6) },
  { path: "tool", content: noise(300_001, 2) },
]);

export const IMAGE = "image";
export const OTHER_IMAGE = "other";
/** Each has one of the image's layers, the lowest first: what came layer by layer. */
export const LAYER_IMAGES: readonly string[] = LAYERS.map((_, layer) => `layer-${layer}`);
/** The image without hard links. */
export const UNLINKED_IMAGE = "unlinked";
/** fs-verity digest of UNLINKED_IMAGE as composefs: mkcomposefs 1.0.8 over a mount of it, see `peers.lab.ts`. */
export const COMPOSEFS_DIGEST = "443bd1927fa5a43cb6757dfaa2929705de5bff680419ac25803d2db089b898ce";

/** Writes an OCI layout with all of them. */
export async function writeLayout(directory: string): Promise<void> {
  using layout = await OciLayoutWriter.open(directory);
  for (const [tag, layers] of [
    [IMAGE, LAYERS],
    [OTHER_IMAGE, [OTHER]],
    ...LAYER_IMAGES.map((tag, layer) => [tag, [LAYERS[layer]!]] as const),
    [UNLINKED_IMAGE, [...LAYERS, ONE_NAME_EACH]],
  ] as const) {
    const put = async (bytes: Uint8Array, mediaType: string) => ({ mediaType, ...(await layout.writeBlob([bytes])) });
    const blobs = [];
    for (const layer of layers) blobs.push(await put(layer, MediaType.OCI_LAYER));
    const config = {
      architecture: process.arch === "x64" ? "amd64" : process.arch,
      os: "linux",
      config: {},
      rootfs: { type: "layers", diff_ids: layers.map((layer) => digestOf(layer)) },
    };
    const configDescriptor = await put(Buffer.from(JSON.stringify(config)), MediaType.OCI_CONFIG);
    const manifest = { schemaVersion: 2, mediaType: MediaType.OCI_MANIFEST, config: configDescriptor, layers: blobs };
    const descriptor = await put(Buffer.from(JSON.stringify(manifest)), MediaType.OCI_MANIFEST);
    layout.addImage({ ...descriptor, annotations: {}, urls: [] }, { tag });
  }
  layout.commit();
}

/** A store with `image`. What it shares with the images of `before` was in the store before, and is kept where they need it. */
export async function openStoreWithImage(
  root: string,
  layout: string,
  { image = IMAGE, before: earlier = [] }: { readonly image?: string; readonly before?: readonly string[] } = {},
): Promise<{ readonly store: Store; readonly manifest: ManifestRecord; readonly name: string }> {
  mkdirSync(join(root, ".."), { recursive: true });
  const store = Store.open(root, { create: true });
  const pull = async (tag: string) => {
    const source = parseImageSource(`oci:${layout}:${tag}`);
    const origin = await openOrigin(source, { registry: () => Promise.reject(new Error("no registry is needed")) });
    return pullImage(store, origin, {});
  };
  for (const tag of earlier) await pull(tag);
  const { name } = await pull(image);
  return { store, manifest: findImage(store, name).manifest, name };
}

export interface ExportBench {
  /** A directory of its own. */
  readonly top: string;
  readonly store: Store;
  readonly manifest: ManifestRecord;
  readonly operation: StoreOperation;
}

/** For a suite: a store with the image, there from its start to its end. Mounts below are gone then, too. */
export function exportBench(name: string, parent = tmpdir()): ExportBench {
  const bench = {} as { -readonly [Name in keyof ExportBench]: ExportBench[Name] };
  before(async () => {
    bench.top = mkdtempSync(join(parent, `shale-${name}-`));
    await writeLayout(join(bench.top, "layout"));
    const { store, manifest } = await openStoreWithImage(join(bench.top, "store"), join(bench.top, "layout"));
    Object.assign(bench, { store, manifest, operation: store.begin(`test of ${name}`) });
  });
  after(async () => {
    bench.operation[Symbol.dispose]();
    await bench.store.close();
    unmountBelow(bench.top);
    rmSync(bench.top, { recursive: true, force: true });
  });
  return bench;
}
