/** The kernel as judge: mounts images in a mount namespace of their own and describes what it shows there. */
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Description } from "./trees.ts";

export interface KernelImage {
  readonly bytes: Uint8Array;
  readonly devices: readonly { readonly tag: string; readonly bytes: Uint8Array }[];
}

/** What `kernel-child.ts` is told: per stack of images, an empty directory to mount in, and the files, lowest first. */
export type KernelRequest = readonly {
  readonly directory: string;
  readonly images: readonly { readonly source: string; readonly devices: readonly string[] }[];
}[];

export const canMount = process.getuid?.() === 0;

/**
 * Describes the mount of each stack: of its only image, or of an overlay of all (lowest first). Needs root. Nothing is
 * left behind: the mounts end with the process that made them. One process for many stacks, it takes half a second.
 */
export function describeByKernel(stacks: readonly (readonly KernelImage[])[]): Description[] {
  const top = mkdtempSync(join(tmpdir(), "ek-"));
  try {
    const request: KernelRequest = stacks.map((images, s) => {
      const directory = join(top, `${s}`);
      mkdirSync(directory);
      return { directory, images: images.map((image, i) => writeFiles(image, join(directory, `i${i}`))) };
    });
    writeFileSync(join(top, "request"), JSON.stringify(request));
    const child = join(import.meta.dirname, "kernel-child.ts");
    const words = ["--mount", "--propagation", "private", process.execPath, child, join(top, "request")];
    const run = spawnSync("unshare", words, { encoding: "latin1", maxBuffer: 1 << 28 });
    if (run.status !== 0) throw new Error(`unshare ended with ${run.status ?? run.error}: ${run.stderr}`);
    return JSON.parse(run.stdout) as Description[];
  } finally {
    rmSync(top, { recursive: true, force: true });
  }
}

function writeFiles({ bytes, devices }: KernelImage, source: string): KernelRequest[number]["images"][number] {
  writeFileSync(source, bytes);
  const files = devices.map((device, i) => {
    const file = `${source}-${i}`;
    writeFileSync(file, device.bytes);
    return file;
  });
  return { source, devices: files };
}
