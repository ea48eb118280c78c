/** A directory like a checkout of this repository, with builds of its own: the real launcher, scripts/bundle.ts, Node and packages. */
import { copyFileSync, cpSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";

const ROOT = join(import.meta.dirname, "../..");

/** Made at `path`, with `sources` below its `src`, or with all sources of shale. */
export function makeRepository(path: string, sources?: Readonly<Record<string, string>>): void {
  for (const directory of ["scripts", "node_modules/.bin"]) mkdirSync(join(path, directory), { recursive: true });
  for (const name of ["package.json", "package-lock.json", "tsconfig.json", "shale", "scripts/bundle.ts"]) {
    copyFileSync(join(ROOT, name), join(path, name));
  }
  for (const name of readdirSync(join(ROOT, "node_modules"))) {
    if (!name.startsWith(".")) symlinkSync(join(ROOT, "node_modules", name), join(path, "node_modules", name));
  }
  symlinkSync(process.execPath, join(path, "node_modules/.bin/node"));
  writeFileSync(join(path, "node_modules/.package-lock.json"), "{}"); // npm has nothing to do
  if (sources === undefined) cpSync(join(ROOT, "src"), join(path, "src"), { recursive: true });
  for (const [name, text] of Object.entries(sources ?? {})) {
    mkdirSync(join(path, "src", dirname(name)), { recursive: true });
    writeFileSync(join(path, "src", name), text);
  }
}
