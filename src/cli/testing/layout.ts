/** A small OCI layout with two images for tests of whole commands. */
import { gzipSync } from "node:zlib";
import { OciLayoutWriter } from "../../archives/index.ts";
import type { ByteString } from "../../bytes/index.ts";
import { encodeTarHeader, TAR_END, type TarHeader, tarPadding } from "../../formats/tar/index.ts";
import { digestOf, MediaType } from "../../oci/index.ts";

/** 2026-01-02 03:04:05 UTC. */
const MTIME = 1767323045;

type File = Partial<TarHeader> & { readonly path: ByteString; readonly content?: string };

function tarOf(files: readonly File[]): Buffer {
  const parts: Uint8Array[] = [];
  for (const { content = "", ...file } of files) {
    const type = file.type ?? "file";
    const header: TarHeader = {
      type,
      linkTarget: "",
      mode: type === "directory" ? 0o755 : 0o644,
      uid: 0,
      gid: 0,
      size: Buffer.byteLength(content),
      mtimeSeconds: MTIME,
      mtimeNanoseconds: 0,
      rdevMajor: 0,
      rdevMinor: 0,
      xattrs: [],
      ...file,
    };
    parts.push(encodeTarHeader(header), Buffer.from(content), tarPadding(header.size));
  }
  parts.push(TAR_END);
  return Buffer.concat(parts);
}

const directory = (path: string): File => ({ path, type: "directory" });

/** 10,000 bytes: over the inline limit, so they have a payload in a blob. */
export const LARGE = "0123456789".repeat(1000);

const BASE = tarOf([
  directory("bin"),
  { path: "bin/tool", content: LARGE, mode: 0o4755 },
  directory("dev"),
  { path: "dev/null", type: "character", mode: 0o666, rdevMajor: 1, rdevMinor: 3 },
  directory("etc"),
  { path: "etc/hosts", content: "127.0.0.1 localhost\n" },
  { path: "etc/passwd", content: "root:x:0:0::/root:/bin/sh\n", xattrs: [{ name: "user.note", value: "kept" }] },
  { path: "etc/alias", type: "symlink", mode: 0o777, linkTarget: "passwd" },
  { path: "caf\xe9", content: "latin1\n" },
]);
const APP_1 = tarOf([
  directory("app"),
  { path: "app/main", content: "one\n" },
  { path: "app/old", content: `${LARGE}?` },
  directory("etc"),
  { path: "etc/.wh.hosts" },
  { path: ".wh..wh.plnk", content: "leftover of aufs" },
]);
const APP_2 = tarOf([
  directory("app"),
  { path: "app/main", content: "two, and longer\n" },
  { path: "app/new", content: `${LARGE}!` },
  { path: "app/tool-copy", content: LARGE },
]);

/** Writes app:1 (base and a layer that hides etc/hosts) and app:2 (the same base and another layer) as "v1" and "v2". */
export async function writeLayout(path: string): Promise<void> {
  using layout = await OciLayoutWriter.open(path);
  await addImage(layout, "v1", APP_1);
  await addImage(layout, "v2", APP_2);
  layout.commit();
}

async function addImage(layout: OciLayoutWriter, name: string, top: Buffer): Promise<void> {
  const write = (bytes: Uint8Array) => layout.writeBlob([bytes]);
  const base = await write(gzipSync(BASE));
  const upper = await write(top);
  const config = await write(
    Buffer.from(
      JSON.stringify({
        os: "linux",
        architecture: process.arch === "x64" ? "amd64" : process.arch,
        created: "2026-01-02T03:04:05Z",
        config: {
          Entrypoint: ["/bin/tool", "two words"],
          Cmd: ["--help"],
          Env: ["PATH=/bin", "A=\u001b[31mred"],
          User: "1000",
          Labels: { maintainer: "someone" },
        },
        rootfs: { type: "layers", diff_ids: [digestOf(BASE), digestOf(top)] },
        history: [
          { created: "2026-01-02T03:04:05Z", created_by: "ADD base" },
          { created: "2026-01-02T03:04:06Z", created_by: "ENV A=red", empty_layer: true },
          { created: "2026-01-02T03:04:07Z", created_by: `RUN ${"x".repeat(100)}`, comment: name },
        ],
      }),
    ),
  );
  const manifest = {
    schemaVersion: 2,
    mediaType: MediaType.OCI_MANIFEST,
    config: { mediaType: MediaType.OCI_CONFIG, ...config },
    layers: [
      { mediaType: MediaType.OCI_LAYER_GZIP, ...base },
      { mediaType: MediaType.OCI_LAYER, ...upper },
    ],
  };
  const bytes = Buffer.from(JSON.stringify(manifest));
  const blob = await write(bytes);
  layout.addImage({ mediaType: MediaType.OCI_MANIFEST, ...blob, annotations: {}, urls: [] }, { tag: name });
}
