/**
 * Compiles the sources to few files for `./shale`, which calls this when it has no build of them or an old one:
 * `node scripts/bundle.ts [ROOT]`. Node's loader takes 0.35 ms for each module, and a command has 140 to 200 of them.
 *
 *   ROOT/node_modules/.cache/shale/current           one line, the name of the build that is used
 *   ROOT/node_modules/.cache/shale/NAME/stamp        older than what the build was made from; what changed since is not in it
 *   ROOT/node_modules/.cache/shale/NAME/package.json
 *   ROOT/node_modules/.cache/shale/NAME/src/*.js     all code, main.js among it
 *   ROOT/node_modules/.cache/shale/NAME/src/...      what the code finds by its own place: starts of threads, .proto files
 *   ROOT/node_modules/.cache/shale/NAME/compiled     V8's code cache (the launcher)
 *
 * A build is whole and on the disk before `current` names it, by a rename: whoever reads `current` finds the one before or
 * this one. A build that was broken off is never named. Builds that lost their name stay as long as a process runs from
 * them, since it loads code later too, and at least a day.
 */
import {
  closeSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { open } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join, relative, resolve } from "node:path";

type Esbuild = typeof import("esbuild");

const KEPT_MS = 24 * 60 * 60 * 1000;

export interface Sources {
  /** Sources that threads start with, as paths below `src`. */
  readonly threads: readonly string[];
  /** As paths below `src`. */
  readonly protos: readonly string[];
  /** Sources that ask for their own place, by path below `src`. */
  readonly placed: ReadonlyMap<string, string>;
}

/** Makes a build of the sources below `root` and makes it the current one. Returns its directory. Throws when that can't be done. */
export async function bundle(root: string): Promise<string> {
  const cache = join(root, "node_modules/.cache/shale");
  const name = `${Date.now().toString(36)}-${process.pid}`;
  const build = join(cache, name);
  mkdirSync(cache, { recursive: true });
  mkdirSync(build);
  try {
    stamp(join(build, "stamp"));
    const sources = findSources(join(root, "src"));
    await compile(root, build, sources);
    publish(cache, name);
  } catch (error) {
    rmSync(build, { recursive: true, force: true });
    throw error;
  }
  removeOld(cache, name);
  return build;
}

/**
 * What of the sources esbuild doesn't see by itself. Throws when a source starts a thread in a form that this function doesn't know,
 * so that no thread can be forgotten.
 */
export function findSources(src: string): Sources {
  const threads = new Set<string>();
  const protos: string[] = [];
  const placed = new Map<string, string>();
  for (const entry of readdirSync(src, { recursive: true, encoding: "utf8" }).sort()) {
    if (/(^|\/)testing(\/|\.ts$)|\.test\.ts$/.test(entry)) continue;
    if (entry.endsWith(".proto")) protos.push(entry);
    if (!entry.endsWith(".ts")) continue;
    const text = readFileSync(join(src, entry), "utf8");
    if (text.includes("import.meta")) placed.set(entry, text);
    if (!text.includes("new Worker(")) continue;
    const names = [...text.matchAll(/"\.\/([\w-]+)\.ts" : "\.\/\1\.js"/g)];
    if (names.length === 0) {
      throw new Error(`src/${entry} starts a thread, but not with ".ts") ? "./NAME.ts" : "./NAME.js"`);
    }
    for (const [, thread] of names) threads.add(join(dirname(entry), `${thread}.ts`));
  }
  return { threads: [...threads], protos, placed };
}

/**
 * Gives the stamp the time when this process began, by the file system's clock, which need not be ours. Node takes longer to
 * start than a step of that clock (4 to 10 ms), so an edit of a file that has been read, this one included, is newer.
 */
function stamp(path: string): void {
  writeFileSync(path, "");
  const { mtimeMs } = statSync(path);
  const step = mtimeMs % 1000 === 0 ? 1000 : 0; // old ext4 and NFS keep whole seconds
  const seconds = (mtimeMs - process.uptime() * 1000 - step) / 1000;
  utimesSync(path, seconds, seconds);
}

async function compile(root: string, build: string, { threads, protos, placed }: Sources): Promise<void> {
  const src = join(root, "src");
  const target = join(build, "src");
  const entryOf = (thread: string) => `thread-${thread.replace(/\.ts$/, "").replaceAll("/", "-")}`;
  // Of ROOT, and not until here: it may be missing.
  const esbuild = createRequire(join(root, "package.json"))("esbuild") as Esbuild;
  const { outputFiles } = await esbuild.build({
    absWorkingDir: root,
    entryPoints: {
      main: join(src, "cli/main.ts"),
      ...Object.fromEntries(threads.map((thread) => [entryOf(thread), join(src, thread)])),
    },
    outdir: target,
    chunkNames: "[name]-[hash]",
    bundle: true,
    splitting: true, // a command loads what it needs, as from the sources
    format: "esm",
    platform: "node",
    target: "esnext", // what runs the sources runs this
    packages: "external",
    sourcemap: "linked", // read with --enable-source-maps only
    sourcesContent: false,
    write: false,
    logLevel: "silent",
    plugins: [
      {
        name: "place",
        setup(plugin) {
          const paths = [...placed.keys()].map((path) => join(src, path).replace(/[^\w/]/g, "\\$&"));
          if (paths.length === 0) return;
          plugin.onLoad({ filter: new RegExp(`^(${paths.join("|")})$`) }, ({ path }) => {
            const own = relative(src, path);
            return { loader: "ts", contents: inPlace(own, placed.get(own)!) };
          });
        },
      },
    ],
  });
  const files = new Map<string, Uint8Array>(outputFiles.map(({ path, contents }) => [path, contents]));
  files.set(join(build, "package.json"), readFileSync(join(root, "package.json")));
  for (const proto of protos) files.set(join(target, proto), readFileSync(join(src, proto)));
  for (const thread of threads) {
    const path = join(target, thread.replace(/\.ts$/, ".js"));
    const entry = relative(dirname(path), join(target, `${entryOf(thread)}.js`));
    files.set(path, Buffer.from(`import ${JSON.stringify(entry)};\n`));
  }
  await write(files);
}

/** The source with its own URL as it would be in `NAME/src`: all code lies there, in whatever file. */
function inPlace(path: string, text: string): string {
  const own = JSON.stringify(`./${path.replace(/\.ts$/, ".js")}`);
  const placed = text.replaceAll("import.meta.url", `new URL(${own}, import.meta.url).href`);
  const other = /import\.meta\.(?!url\b)\w+/.exec(placed);
  if (other !== null) throw new Error(`src/${path} uses ${other[0]}, which scripts/bundle.ts doesn't know`);
  return placed;
}

/** On the disk before it returns: after a power cut, a build of empty files would run, do nothing and succeed. */
async function write(files: ReadonlyMap<string, Uint8Array>): Promise<void> {
  const directories = new Set<string>();
  for (const path of files.keys()) {
    mkdirSync(dirname(path), { recursive: true });
    directories.add(dirname(path));
  }
  await Promise.all(
    [...files].map(async ([path, bytes]) => {
      await using file = await open(path, "w");
      await file.writeFile(bytes);
      await file.datasync();
    }),
  );
  for (const directory of directories) syncDirectory(directory);
}

function publish(cache: string, name: string): void {
  const next = join(cache, name, "current");
  writeFileSync(next, `${name}\n`, { flush: true });
  syncDirectory(join(cache, name));
  try {
    // Its day begins now: a process may be about to run from it.
    utimesSync(join(cache, readFileSync(join(cache, "current"), "utf8").trim()), new Date(), new Date());
  } catch {
    // There is none, or it has been removed.
  }
  renameSync(next, join(cache, "current"));
  syncDirectory(cache);
}

/** As far as it may: a build is good without. */
function removeOld(cache: string, own: string): void {
  try {
    const running = commandLines();
    const current = readFileSync(join(cache, "current"), "utf8").trim(); // of another one, if that was later
    for (const name of readdirSync(cache)) {
      const path = join(cache, name);
      if (["current", current, own].includes(name) || running.includes(`${path}/`)) continue;
      if (Date.now() - statSync(path).mtimeMs >= KEPT_MS) rmSync(path, { recursive: true, force: true });
    }
  } catch {
    // No /proc, or another one removes them.
  }
}

/** Of all processes that this one may see. */
function commandLines(): string {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, "latin1");
      } catch {
        return ""; // it has ended
      }
    })
    .join("\0");
}

function syncDirectory(path: string): void {
  const fd = openSync(path, "r");
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

if (import.meta.main) {
  try {
    await bundle(resolve(process.argv[2] ?? join(import.meta.dirname, "..")));
  } catch (error) {
    // One line, which the launcher shows.
    console.log((error instanceof Error ? error.message : String(error)).trim().replace(/\s*\n\s*/g, " "));
    process.exitCode = 1;
  }
}
