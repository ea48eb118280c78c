/** What the kill tests share: the image, running the driver, and its crash points. */
import { spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join, relative } from "node:path";
import { noise, sha256, tar, writeImage } from "../../src/store/testing/fixtures.ts";

export const TAG = "app";
const DRIVER = join(import.meta.dirname, "driver.ts");
const MAIN = join(import.meta.dirname, "../../src/cli/main.ts");

export interface Place {
  readonly root: string;
  /** A directory of its own, in which everything is made. */
  readonly out: string;
  readonly target: string;
}

export interface DriverEnd {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Small, with a payload in each layer, one of them twice. */
export function writeImages(layout: string): void {
  writeImage(layout, TAG, [
    tar({
      "etc/": "",
      "etc/hosts": "localhost",
      "bin/tool": noise(70_000, "tool"),
      "bin/again": noise(70_000, "tool"),
    }),
    tar({ "srv/data": noise(20_000, "data"), "srv/link": { type: "symlink", linkTarget: "data" } }),
  ]);
}

export function runDriver(what: string, place: Place, env: Readonly<Record<string, string>> = {}): Promise<DriverEnd> {
  return runScript(DRIVER, [place.root, what, place.target], env);
}

/** The command itself. */
export function runShale(args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<DriverEnd> {
  return runScript(MAIN, args, env);
}

function runScript(script: string, args: readonly string[], env: Readonly<Record<string, string>>): Promise<DriverEnd> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, ["--disable-warning=ExperimentalWarning", script, ...args], {
      env: { ...process.env, ...env },
      stdio: ["ignore", "pipe", "pipe"],
    });
    const said = { stdout: "", stderr: "" };
    for (const name of ["stdout", "stderr"] as const) {
      child[name].on("data", (chunk: Buffer) => {
        said[name] += chunk.toString();
      });
    }
    child.on("error", reject);
    child.on("close", (code, signal) => resolve({ code, signal, ...said }));
  });
}

/** Points of the export itself, as NAME#K where K counts from the start of the process: those after the lease was taken. */
export function pointsOf(log: string, isOwn: (path: string) => boolean): string[] {
  const seen = new Map<string, number>();
  const points: string[] = [];
  let begun = false;
  for (const line of readFileSync(log, "utf8").trimEnd().split("\n")) {
    const [name, path] = line.split("\t") as [string, string];
    const count = (seen.get(name) ?? 0) + 1;
    seen.set(name, count);
    const own = isOwn(path);
    begun ||= own;
    if (own || (begun && name.startsWith("export:"))) points.push(`${name}#${count}`);
  }
  return points;
}

/** Every file below a directory with its digest; of links what they say. */
export function filesBelow(directory: string): Readonly<Record<string, string>> {
  if (!existsSync(directory)) return {};
  const entries = readdirSync(directory, { recursive: true, withFileTypes: true }).filter(
    (entry) => !entry.isDirectory(),
  );
  const paths = entries.map((entry) => join(entry.parentPath, entry.name)).sort();
  return Object.fromEntries(paths.map((path) => [relative(directory, path), sha256(readFileSync(path))]));
}
