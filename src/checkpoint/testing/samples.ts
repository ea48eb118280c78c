/** Checkpoints for tests: metadata as CRIU and podman leave it, without processes. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { encodeTarHeader, TAR_END, type TarHeader, tarPadding } from "../../formats/tar/index.ts";

/** Incompressible, and different for each seed. */
export function noise(length: number, seed = 1): Buffer {
  const bytes = Buffer.allocUnsafe(length);
  let state = seed * 2_654_435_761 || 1;
  for (let i = 0; i < length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    bytes[i] = state;
  }
  return bytes;
}

export const PAGES = noise(200_000, 7);

/** A directory with CRIU's images and podman's documents. */
export function makeMetadata(directory: string): string {
  mkdirSync(join(directory, "checkpoint"), { recursive: true });
  writeFileSync(join(directory, "config.dump"), '{"id":"c0ffee","name":"web"}', { mode: 0o600 });
  writeFileSync(join(directory, "spec.dump"), '{"ociVersion":"1.0.0","root":{"path":"/x"},"mounts":[]}', {
    mode: 0o600,
  });
  writeFileSync(join(directory, "network.status"), "null", { mode: 0o600 });
  writeFileSync(join(directory, "checkpoint/inventory.img"), "inventory");
  writeFileSync(join(directory, "checkpoint/pages-1.img"), PAGES, { mode: 0o600 });
  return directory;
}

export const HEADER: TarHeader = {
  ...{ type: "file", path: "x", linkTarget: "", mode: 0o600, uid: 0, gid: 0, size: 0 },
  ...{ mtimeSeconds: 0, mtimeNanoseconds: 0, rdevMajor: 0, rdevMinor: 0, xattrs: [] },
};

export interface TarFileSpec {
  readonly header: Partial<TarHeader>;
  readonly content?: Uint8Array;
}

export function tarOf(...files: readonly TarFileSpec[]): Buffer {
  const parts = files.flatMap(({ header, content = new Uint8Array(0) }) => [
    encodeTarHeader({ ...HEADER, size: content.length, ...header }),
    content,
    tarPadding(content.length),
  ]);
  return Buffer.concat([...parts, TAR_END]);
}

/** An archive as podman writes it: its changes in `rootfs`. */
export function archiveOf(rootfs: Uint8Array, ...more: readonly TarFileSpec[]): Buffer {
  return tarOf(
    { header: { path: "config.dump" }, content: Buffer.from('{"id":"c0ffee"}') },
    { header: { path: "checkpoint", type: "directory", mode: 0o700 } },
    { header: { path: "checkpoint/pages-1.img" }, content: Buffer.from("pages") },
    { header: { path: "rootfs-diff.tar" }, content: rootfs },
    ...more,
  );
}
