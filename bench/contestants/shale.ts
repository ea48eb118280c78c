/** shale itself, by its command line, as a user starts it: no daemon. */
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { ShaleError } from "../../src/errors/index.ts";
import { type RunOptions, run } from "../process.ts";
import type { Attempt, Contestant } from "./contestant.ts";

const SHALE = join(import.meta.dirname, "../../shale");

/** Runs `shale --root ROOT ARGS...` and returns its standard output. */
export function shaleCommand(root: string, args: readonly string[], options: RunOptions = {}): Promise<string> {
  if (!existsSync(SHALE)) throw new ShaleError("NOT_FOUND", `Cannot run shale: ${SHALE} is missing`);
  return run([SHALE, "--root", root, ...args], options);
}

export const shale: Contestant = {
  id: "shale",
  title: "shale",
  version: async () => (await run([SHALE, "--version"])).trim(),
  async prepare({ signal }, directory): Promise<Attempt> {
    const root = join(directory, "root");
    const mounted: string[] = [];
    return {
      async pull({ name, reference }) {
        const mountPoint = join(directory, `mnt-${name}`);
        mkdirSync(mountPoint);
        await shaleCommand(root, ["mount", "--pull", "--quiet", "--tls-verify=false", reference, mountPoint], {
          signal,
        });
        mounted.push(mountPoint);
        return mountPoint;
      },
      async [Symbol.asyncDispose]() {
        for (const mountPoint of mounted) await shaleCommand(root, ["umount", mountPoint]);
      },
    };
  },
};
