/** The kernel as judge: mounts what was exported, in a mount namespace of its own, and describes every entry that it shows. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export type Plan =
  | {
      readonly kind: "erofs";
      readonly source: string;
      readonly devices?: readonly string[];
      readonly backing?: "file" | "loop";
    }
  /** Lowest first. */
  | { readonly kind: "overlay"; readonly layers: readonly Plan[] }
  | { readonly kind: "composefs"; readonly image: string; readonly objects: string }
  | { readonly kind: "ext4"; readonly source: string };

/** By path: mode, owner, mtime, links, size, device, content and xattrs, and which earlier path is the same file. */
export type Description = Readonly<Record<string, string>>;

/** Needs root. The mounts end with the process that makes them. */
export function describeMounts(plans: readonly Plan[]): Description[] {
  const directory = mkdtempSync(join(tmpdir(), "shale-mounts-"));
  try {
    writeFileSync(join(directory, "plans"), JSON.stringify(plans));
    const child = join(import.meta.dirname, "mounts-child.ts");
    const words = [
      "--mount",
      "--propagation",
      "private",
      process.execPath,
      "--disable-warning=ExperimentalWarning",
      child,
      directory,
    ];
    const run = spawnSync("unshare", words, { encoding: "utf8", maxBuffer: 1 << 28 });
    if (run.status !== 0) throw new Error(`unshare ended with ${run.status ?? run.error}: ${run.stderr}`);
    return JSON.parse(run.stdout) as Description[];
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}
