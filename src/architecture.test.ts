/**
 * The arrows of ARCHITECTURE.md, under test. Each module names what it may import; whatever isn't in its row fails.
 * Tests, `testing.ts` and `testing/` are exempt from the rows, and nothing else may import them.
 */
import assert from "node:assert/strict";
import { globSync, readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { describe, test } from "node:test";

const SOURCE = import.meta.dirname;

interface Rule {
  /** Other modules, by directory. */
  readonly modules: readonly string[];
  /** Built-in modules of Node ("node:path") and npm packages. Types may come from anywhere. */
  readonly packages: readonly string[];
  /** Bytes and values in, bytes and values out: no clock, no randomness, no process. */
  readonly pure?: true;
}

const BASE = ["errors", "bytes", "async"] as const;
const FORMATS = [
  "formats/tar",
  "formats/compression",
  "formats/layer-index",
  "formats/layer-index/builder",
  "formats/payload-table",
] as const;
const BUILDER = [...BASE, "formats/layer-index", "formats/payload-table", "formats/tar"] as const;
const ALL_FORMATS = [...FORMATS, "formats/erofs", "formats/tar-recipe"] as const;

/** From the bottom to the top; a module imports only what stands above it in this table. */
const MODULES: Readonly<Record<string, Rule>> = {
  errors: { modules: [], packages: [], pure: true },
  bytes: { modules: ["errors"], packages: ["node:zlib"], pure: true },
  async: { modules: ["errors"], packages: ["node:timers/promises"] },
  log: { modules: [], packages: [], pure: true },
  "formats/payload-table": { modules: BASE, packages: [], pure: true },
  "formats/layer-index": { modules: [...BASE, "formats/payload-table"], packages: [], pure: true },
  "formats/tar": { modules: [...BASE, "formats/layer-index"], packages: [], pure: true },
  // Files with a row of their own: the index is at the bottom, building one from a tar is above the tar decoder.
  "formats/layer-index/tar-attributes": { modules: BUILDER, packages: [], pure: true },
  "formats/layer-index/hard-links": { modules: BUILDER, packages: [], pure: true },
  "formats/layer-index/builder": {
    modules: [...BUILDER, "formats/layer-index/tar-attributes", "formats/layer-index/hard-links"],
    packages: [],
    pure: true,
  },
  "formats/compression": {
    modules: BASE,
    packages: ["node:zlib", "node:stream", "node:buffer", "node:util"],
    pure: true,
  },
  "formats/erofs": { modules: [...BASE, ...FORMATS], packages: ["node:crypto"], pure: true },
  "formats/toc": { modules: [...BASE, ...FORMATS], packages: ["node:crypto", "node:buffer"], pure: true },
  "formats/zstd-chunked": {
    modules: [...BASE, ...FORMATS, "formats/toc"],
    packages: ["node:crypto"],
    pure: true,
  },
  "formats/estargz": { modules: [...BASE, ...FORMATS, "formats/toc"], packages: ["node:crypto"], pure: true },
  "formats/tar-recipe": { modules: [...BASE, ...FORMATS], packages: ["node:zlib"], pure: true },
  "formats/verity": { modules: BASE, packages: ["node:crypto"], pure: true },
  "formats/composefs": {
    modules: [...BASE, ...FORMATS, "formats/erofs", "formats/verity"],
    packages: ["node:crypto"],
    pure: true,
  },
  "formats/criu": { modules: BASE, packages: [], pure: true },
  oci: { modules: BASE, packages: ["node:crypto"], pure: true },
  // isal.ts implements the InflateBackend of formats/compression with a library of the machine, openssl-sha256.ts the BlockDigests of
  // formats/verity.
  sys: { modules: [...BASE, "formats/compression", "formats/verity"], packages: ["node:*", "koffi"] },
  rpc: {
    modules: ["errors", "async", "sys"],
    packages: ["@grpc/grpc-js", "protobufjs", "node:net", "node:url"],
  },
  registry: {
    modules: [...BASE, "log", "oci", "sys"],
    packages: [
      ...[
        "undici",
        "undici/lib/dispatcher/agent.js",
        "smol-toml",
        "node:crypto",
        "node:path",
        "node:stream",
        "node:url",
        "node:tls",
        "node:os",
      ],
      ...["node:net", "node:http", "node:https"], // tunnels through proxies
    ],
  },
  archives: {
    modules: [...BASE, "oci", "sys", "formats/tar", "formats/compression"],
    packages: ["node:crypto", "node:path"],
  },
  store: {
    modules: [...BASE, ...ALL_FORMATS, "formats/toc", "formats/zstd-chunked", "formats/criu", "oci", "sys"],
    packages: ["node:sqlite", "node:path", "node:crypto", "node:worker_threads", "node:os", "node:events"],
  },
  server: {
    modules: [...BASE, "oci", "sys", "archives", "formats/compression"],
    packages: ["node:http", "node:net", "node:crypto", "node:stream", "node:zlib"],
  },
  images: {
    modules: [
      ...[...BASE, ...ALL_FORMATS, "formats/toc", "formats/zstd-chunked", "formats/estargz"],
      ...["oci", "sys", "registry", "archives", "server", "store"],
    ],
    packages: ["node:path", "node:os", "node:crypto", "node:worker_threads", "node:stream"],
  },
  export: {
    modules: [...BASE, ...ALL_FORMATS, "formats/verity", "formats/composefs", "oci", "sys", "store", "images"],
    packages: ["node:path", "node:os", "node:crypto", "node:worker_threads", "node:timers/promises"],
  },
  // The door for containerd; how layers come from registries is in snapshotter/remote, which has a row of its own.
  snapshotter: {
    modules: [...BASE, ...ALL_FORMATS, "oci", "sys", "store"],
    packages: ["node:path", "node:crypto", "node:timers/promises"],
  },
  "snapshotter/remote": {
    modules: [...BASE, "oci", "sys", "registry", "store", "images", "snapshotter"],
    packages: [],
  },
  checkpoint: {
    modules: [
      ...BASE,
      ...["formats/tar", "formats/compression", "formats/criu", "oci", "sys", "registry", "store", "images"],
    ],
    packages: [
      ...["node:path", "node:crypto", "node:util", "node:os", "node:zlib", "node:timers/promises"],
      "node:sqlite", // podman's database: engines/podman-database.ts
    ],
  },
  "cri-proxy": { modules: [...BASE, "oci", "registry", "rpc"], packages: [] },
  kubernetes: {
    modules: [...BASE, "oci", "sys", "registry"],
    packages: ["node:http", "node:https", "node:path", "yaml"],
  },
  daemon: {
    modules: [
      ...[...BASE, ...FORMATS, "log", "oci", "sys", "rpc", "registry", "store", "images", "export"],
      ...["snapshotter", "snapshotter/remote", "cri-proxy", "kubernetes"],
    ],
    packages: [
      ...["node:http", "node:path", "node:url", "node:crypto", "node:timers/promises", "node:worker_threads"],
      "smol-toml",
    ],
  },
  demo: {
    modules: [...BASE, ...ALL_FORMATS, "oci", "sys", "registry", "archives", "server", "store", "images"],
    packages: ["node:path", "node:os", "node:crypto", "node:zlib"],
  },
  checkout: {
    modules: [...BASE, ...ALL_FORMATS, "oci", "sys", "store", "images"],
    packages: ["node:path", "node:os", "node:crypto", "node:worker_threads"],
  },
  cli: {
    modules: [
      ...BASE,
      "log",
      "formats/layer-index",
      "formats/criu",
      "oci",
      "sys",
      "registry",
      "archives",
      "server",
      "store",
      "images",
      "export",
      "checkout",
      "checkpoint",
      "daemon",
      "demo",
    ],
    packages: ["node:path", "node:util", "node:module", "node:os", "cli-progress"],
  },
};

/** Doors of a module beside its index.ts, with the reason. */
const PUBLIC_FILES: Readonly<Record<string, string>> = {
  "formats/layer-index/merge.ts": "only merged images need it",
  "formats/layer-index/overlay.ts": "the overlay marks: whoever asks for them has an index, and no builder",
  "store/clones.ts": "the threads of a checkout need nothing else of the store",
  "store/link-sources.ts": "the threads of a checkout need nothing else of the store",
  "store/ingest/serialize-error.ts": "errors across threads: a checkout has threads too",
  "export/verity-file.ts":
    "verity and verify hash any file: without images and stores, which take as long to load as a small file takes",
  "export/entries.ts": "rm asks what the cache of exports has, and makes none",
  "images/write-error.ts": "checkout: a full disk is told as in an export",
  "formats/toc/writing.ts": "the writers of blobs with a TOC",
  "sys/isal.ts": "the workers that inflate load that library, nothing else does",
  "sys/zstd-frames.ts": "the workers that decompress zstd load that library, nothing else does",
  "sys/openssl-sha256.ts": "the threads that hash blocks load that library, nothing else does",
  "sys/nested-sha256.ts": "the threads that hash layers load that library, nothing else does",
  // images/ has a door for each operation, so that a command loads what it needs: half of the time of a short one is loading.
  "registry/log.ts": "who writes a log, without loading the client",
  "images/containerd-content.ts": "the daemon's differ",
  "images/origin.ts": "pull, load, demo, remote layers",
  "images/pull.ts": "pull, load, demo, remote layers",
  "images/forecast.ts": "pull --dry-run",
  "images/layer-fetcher.ts": "remote layers: one layer of an image at a time",
  "images/find.ts": "all that name an image",
  "images/mount.ts": "mount, umount, gc, demo",
  "images/files.ts": "ls, cat, stat, diff, demo",
  "images/diff.ts": "diff, demo",
  "images/repair.ts": "check",
  "images/complete.ts": "save, push, convert, serve, export",
  "images/save.ts": "save",
  "images/push.ts": "push",
  "images/convert.ts": "convert",
  "images/load.ts": "load",
  "images/serve.ts": "serve",
  // checkpoint/ too: reading archives, and each thing that is done with them.
  "checkpoint/archive/index.ts": "all that read archives",
  "checkpoint/show/index.ts": "checkpoint show, checkpoint ls",
  "checkpoint/convert/index.ts": "checkpoint convert",
  "checkpoint/verify/index.ts": "checkpoint verify",
  "checkpoint/diff/index.ts": "checkpoint diff",
  "checkpoint/transport/index.ts": "checkpoint push, checkpoint pull",
  "checkpoint/vault/index.ts": "checkpoint import, checkpoint export, checkpoint list",
  "images/layer-tar.ts": "checkpoint export",
  "images/partial-file.ts": "checkpoint pull, checkpoint export",
  "checkpoint/write.ts": "checkpoint write, checkpoint save",
  "checkpoint/restore.ts": "checkpoint restore",
  "checkpoint/restore/run.ts": "checkpoint restore --run",
  "checkpoint/save.ts": "checkpoint save",
  "images/progress.ts": "an interface that the command line implements, without loading images",
};

/** The library's own door: it only re-exports. */
const NOT_MODULES = new Set(["index.ts"]);

interface Import {
  readonly from: string;
  readonly specifier: string;
  readonly typeOnly: boolean;
}

describe("architecture", () => {
  const files = globSync("**/*.ts", { cwd: SOURCE }).sort();
  const sources = new Map(files.map((path) => [path, readFileSync(join(SOURCE, path), "utf8")]));

  test("every source file belongs to a module of the table", () => {
    assert.ok(files.length > 20, `only ${files.length} files were found`);
    const strays = files.filter((path) => moduleOf(path) === undefined && !isTest(path) && !NOT_MODULES.has(path));
    assert.deepEqual(strays, []);
  });

  test("every module of the table imports only from rows above its own", () => {
    const names = Object.keys(MODULES);
    const upward = Object.entries(MODULES).flatMap(([name, rule], at) =>
      rule.modules.filter((target) => !names.slice(0, at).includes(target)).map((target) => `${name} -> ${target}`),
    );
    assert.deepEqual(upward, []);
  });

  test("imports follow the table", () => {
    assert.deepEqual(violations(sources), []);
  });

  const CASES: readonly {
    readonly name: string;
    readonly path: string;
    readonly text: string;
    readonly says: RegExp;
  }[] = [
    {
      name: "an import upwards",
      path: "store/a.ts",
      text: `import { x } from "../images/index.ts";`,
      says: /store\/a\.ts imports images/,
    },
    {
      name: "an import upwards over several lines",
      path: "oci/a.ts",
      text: `import {\n  x,\n  y,\n} from "../sys/index.ts";`,
      says: /oci\/a\.ts imports sys/,
    },
    {
      name: "a re-export upwards",
      path: "sys/a.ts",
      text: `export * from "../store/index.ts";`,
      says: /imports store/,
    },
    { name: "a dynamic import", path: "bytes/a.ts", text: `await import("../oci/index.ts");`, says: /imports oci/ },
    {
      name: "a type from above",
      path: "sys/a.ts",
      text: `import type { S } from "../store/index.ts";`,
      says: /imports store/,
    },
    {
      name: "a file behind another module's index",
      path: "images/a.ts",
      text: `import { x } from "../store/database.ts";`,
      says: /store\/database\.ts, which is behind store\/index\.ts/,
    },
    { name: "files outside sys", path: "formats/tar/a.ts", text: `import fs from "node:fs";`, says: /imports node:fs/ },
    { name: "koffi outside sys", path: "store/a.ts", text: `import koffi from "koffi";`, says: /imports koffi/ },
    {
      name: "SQLite outside store",
      path: "images/a.ts",
      text: `import { x } from "node:sqlite";`,
      says: /imports node:sqlite/,
    },
    { name: "a bare side-effect import", path: "oci/a.ts", text: `import "node:net";`, says: /imports node:net/ },
    {
      name: "test code",
      path: "sys/a.ts",
      text: `import { x } from "./testing/faults.ts";`,
      says: /imports test code/,
    },
    {
      name: "the clock in a pure module",
      path: "formats/tar/a.ts",
      text: "const t = Date.now();",
      says: /is pure but uses Date\.now/,
    },
  ];
  for (const { name, path, text, says } of CASES) {
    test(`violations() reports ${name}`, () => {
      assert.match(violations(new Map([[path, text]])).join("\n"), says);
    });
  }

  test("violations() accepts what the table allows, and reads no comments", () => {
    const text = `
      // import { x } from "../images/index.ts"; Date.now() is not used here
      import type { Stats } from "node:fs";
      import { crc32c } from "../../bytes/index.ts";
      import { helper } from "./helper.ts";
      export const url = "https://example.com/x";`;
    assert.deepEqual(violations(new Map([["formats/tar/a.ts", text]])), []);
  });
});

function violations(sources: ReadonlyMap<string, string>): readonly string[] {
  const found: string[] = [];
  for (const [path, text] of sources) {
    const name = moduleOf(path);
    if (name === undefined || isTest(path)) continue;
    const rule = MODULES[name]!;
    const code = withoutComments(text);
    for (const each of importsOf(path, code)) {
      const problem = problemOf(each, name, rule);
      if (problem !== undefined) found.push(`${path} imports ${problem}`);
    }
    const impure = rule.pure ? IMPURE.exec(code)?.[0] : undefined;
    if (impure !== undefined) found.push(`${path} is pure but uses ${impure}`);
  }
  return found;
}

const IMPURE =
  /\bDate\.now\b|\bnew Date\(\)|\bMath\.random\b|\bperformance\.now\b|\bprocess\.(?:env|cwd|hrtime|argv|std\w+)\b|\bset(?:Timeout|Interval)\(|\brandom(?:UUID|Bytes|FillSync)\b/;

function problemOf({ from, specifier, typeOnly }: Import, own: string, rule: Rule): string | undefined {
  if (!specifier.startsWith(".")) {
    const allowed = rule.packages.some(
      (each) => each === specifier || (each === "node:*" && specifier.startsWith("node:")),
    );
    return allowed || typeOnly ? undefined : `${specifier}: not in the row of ${own}`;
  }
  const target = normalize(join(dirname(from), specifier));
  if (isTest(target)) return `test code: ${target}`;
  const module = moduleOf(target);
  if (module === undefined) return `${target}: outside every module`;
  // A file with a row of its own still belongs to its directory.
  if (module === own || own.startsWith(`${module}/`)) return undefined;
  if (!rule.modules.includes(module)) return `${module}: not in the row of ${own}`;
  if (target === `${module}/index.ts` || target === `${module}.ts` || Object.hasOwn(PUBLIC_FILES, target))
    return undefined;
  return `${target}, which is behind ${module}/index.ts`;
}

/** The longest module name that the path begins with. */
function moduleOf(path: string): string | undefined {
  return Object.keys(MODULES)
    .filter((name) => path.startsWith(`${name}/`) || path === `${name}.ts`)
    .sort((a, b) => b.length - a.length)[0];
}

function isTest(path: string): boolean {
  return path.endsWith(".test.ts") || path.endsWith("/testing.ts") || path.split("/").includes("testing");
}

function importsOf(from: string, code: string): readonly Import[] {
  const statements = /\b(import|export)\s+(type\s+)?(?:[\w$*\s{},]+?\s+from\s+)?["']([^"'\n]+)["']/g;
  const calls = /\b(?:import|require)\(\s*["']([^"'\n]+)["']/g;
  return [
    ...[...code.matchAll(statements)].map((match) => ({
      from,
      specifier: match[3]!,
      typeOnly: match[2] !== undefined,
    })),
    ...[...code.matchAll(calls)].map((match) => ({ from, specifier: match[1]!, typeOnly: false })),
  ];
}

/** Good enough for imports: a "//" after a colon is a URL in a string, not a comment. */
function withoutComments(text: string): string {
  return text.replace(/\/\*[\s\S]*?\*\//g, "").replace(/(^|[^:"'`])\/\/.*$/gm, "$1");
}
