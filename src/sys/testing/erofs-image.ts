/** A small EROFS image with one device, made by mkfs.erofs: for tests of mounting. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { run } from "../process.ts";

export interface ErofsImage {
  /** Metadata only. */
  readonly source: string;
  /** The file that has the content of `big`. */
  readonly device: string;
  readonly big: Buffer;
}

/** Makes `directory`/meta.erofs and `directory`/blob of a tree with a file "big" and an empty directory "dir". */
export async function makeErofsImage(directory: string): Promise<ErofsImage> {
  const tree = join(directory, "tree");
  const big = Buffer.from(Uint32Array.from({ length: 64 * 1024 }, (_, i) => i * 2654435761).buffer);
  mkdirSync(join(tree, "dir"), { recursive: true });
  writeFileSync(join(tree, "big"), big);
  const source = join(directory, "meta.erofs");
  const device = join(directory, "blob");
  const mkfs = await run("mkfs.erofs", ["--chunksize=4096", `--blobdev=${device}`, source, tree]);
  if (mkfs.code !== 0) throw new Error(`mkfs.erofs failed: ${mkfs.stderr.toString()}`);
  return { source, device, big };
}
