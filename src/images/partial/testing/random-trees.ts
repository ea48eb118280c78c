/**
 * Random layers for the property of pulls in parts: everything that a tar can say, and what the tree of it has to be, made from
 * the same description without any of our readers. For tests only.
 */
import { hash } from "node:crypto";
import fc from "fast-check";
import { type Files, noise, tar } from "../../../store/testing/fixtures.ts";
import { block, padded } from "../../../formats/tar/testing.ts";

/** More than one chunk of eStargz (4 MiB), more than one frame of zstd:chunked (1 MiB), and cheap to compress. */
const LARGE = 4_500_000;

/** Contents come from few seeds, with changes in their middle, so that files, chunks and small files are shared. */
const content = fc.record({
  seed: fc.nat(5),
  size: fc.constantFrom(1, 700, 2048, 2049, 4096, 30_000, 200_000),
  cutAt: fc.option(fc.double({ min: 0, max: 1, noNaN: true })),
  /** That many zeros at the cut. */
  zeros: fc.constantFrom(0, 0, 0, 900, 5000, 300_000),
});
const EMPTY = { seed: 0, size: 0, cutAt: null, zeros: 0 };
const node = fc.oneof(
  { weight: 12, arbitrary: content.map((one) => ({ kind: "file" as const, ...one })) },
  { weight: 1, arbitrary: fc.constant({ kind: "file" as const, ...EMPTY }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("large" as const), head: fc.nat(1), tail: fc.nat(3) }) },
  { weight: 1, arbitrary: fc.nat(5).map((seed) => ({ kind: "sparse" as const, seed })) },
  ...(["directory", "hardlink", "whiteout", "opaque", "fifo"] as const).map((kind) => ({
    weight: kind === "hardlink" ? 3 : 1,
    arbitrary: fc.constant({ kind }),
  })),
  { weight: 2, arbitrary: fc.nat(9).map((target) => ({ kind: "symlink" as const, target })) },
  ...(["character", "block"] as const).map((kind) => ({
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant(kind),
      major: fc.constantFrom(1, 4095),
      minor: fc.constantFrom(3, 70_000),
    }),
  })),
);
const attributes = fc.record({
  mode: fc.constantFrom(0o644, 0o755, 0o4755, 0o2750, 0o1777, 0o600, 0),
  uid: fc.constantFrom(0, 0, 1000, 70_000, 4_294_967_294),
  gid: fc.constantFrom(0, 0, 1000, 3_000_000_000),
  mtimeSeconds: fc.constantFrom(0, 1_700_000_000, -86_401, 8_000_000_000),
  mtimeNanoseconds: fc.constantFrom(0, 0, 123_456_789, 999_999_999),
  xattrs: fc.oneof(
    { weight: 3, arbitrary: fc.constant([]) },
    {
      weight: 1,
      arbitrary: fc.uniqueArray(
        fc.record({
          name: fc.constantFrom("user.a", "user.b", "trusted.t", "security.capability"),
          value: fc.constantFrom("", "x", "\x01\0\0\x02\xff\n=", "v".repeat(300)),
        }),
        { selector: ({ name }) => name, minLength: 1, maxLength: 3 },
      ),
    },
  ),
});

/** "ü" as the bytes that it has in UTF-8; a name for which tar needs a PAX record; a line end. */
const NAMES = ["", "", "", " \xc3\xbc", "l".repeat(200), "\n"] as const;
const DIRECTORIES = ["d0", "d1", `deep-${"x".repeat(120)}/${"y".repeat(130)}`] as const;

export const randomItem = fc.record({
  node,
  attributes,
  directory: fc.constantFrom(...DIRECTORIES),
  name: fc.constantFrom(...NAMES),
});
type Generated = typeof randomItem extends fc.Arbitrary<infer T> ? T : never;
/** `number` makes its name unique in the images of a run. */
export type Item = Generated & { readonly number: number };

interface SparseFile {
  readonly path: string;
  readonly size: number;
  readonly data: Buffer;
  readonly offset: number;
}

/** In every image, and more than half of most. */
const BALLAST: Files = { "./": { type: "directory", mode: 0o711 }, ballast: noise(500_000, "ballast") };

export interface RandomLayer {
  readonly tar: Buffer;
  readonly source: SourceTree;
  /** What of everything that there is it has. */
  readonly features: ReadonlySet<string>;
}

/** `sparse`: with files that the tar itself has with a hole, of which no zstd:chunked layer can be made. */
export function randomLayer(items: readonly Item[], options: { readonly sparse: boolean }): RandomLayer {
  const files: Record<string, Files[string]> = { ...BALLAST };
  const sparse: SparseFile[] = [];
  const features = new Set<string>();
  let lastFile: string | undefined;
  for (const { node: one, attributes: given, directory, name, number } of items) {
    for (let at = directory.indexOf("/"); at >= 0; at = directory.indexOf("/", at + 1)) {
      files[`${directory.slice(0, at)}/`] ??= "";
    }
    files[`${directory}/`] ??= "";
    const path = `${directory}/n${number}${name}`;
    if (one.kind === "hardlink" && lastFile === undefined) continue;
    if (one.kind === "sparse" && !options.sparse) continue;
    features.add(one.kind);
    if (name.length > 100) features.add("long name");
    switch (one.kind) {
      case "file":
      case "large": {
        const bytes = one.kind === "file" ? contentOf(one) : largeContent(one);
        files[path] = { ...given, content: bytes };
        lastFile = path;
        if (bytes.length === 0) features.add("empty file");
        break;
      }
      case "sparse":
        sparse.push({ path: `sparse-${number}`, size: 400_000, data: noise(3000, one.seed), offset: 131_072 });
        break;
      case "directory":
        files[`${path}/`] = { type: "directory", ...given };
        break;
      case "symlink":
        files[path] = { type: "symlink", linkTarget: `../d${one.target}/${"x".repeat(one.target * 20)}`, ...given };
        break;
      case "hardlink":
        files[path] = { type: "hardlink", linkTarget: lastFile! };
        break;
      case "whiteout":
        files[`${directory}/.wh.gone${number}`] = "";
        break;
      case "opaque":
        files[`${directory}/.wh..wh..opq`] = "";
        break;
      case "fifo":
        files[path] = { type: "fifo", ...given };
        break;
      case "character":
      case "block":
        files[path] = { type: one.kind, rdevMajor: one.major, rdevMinor: one.minor, ...given };
        break;
    }
    if (["file", "large", "directory", "symlink"].includes(one.kind) && given.xattrs.length > 0) features.add("xattrs");
  }
  const bytes = Buffer.concat([...sparse.map(sparseEntry), tar(files)]);
  return { tar: bytes, source: sourceTree(files, sparse), features };
}

function contentOf({ seed, size, cutAt, zeros }: Extract<Generated["node"], { kind: "file" }>): Buffer {
  const base = noise(size, seed);
  const cut = Math.floor((cutAt ?? 1) * size);
  const changed = cutAt === null ? Buffer.alloc(0) : noise(17, `change ${cut}`);
  return Buffer.concat([base.subarray(0, cut), changed, Buffer.alloc(zeros), base.subarray(cut)]);
}

/** Two of the same head and other tails have large chunks in common: one of 4 MiB, or up to the hole. */
function largeContent({ head, tail }: Extract<Generated["node"], { kind: "large" }>): Buffer {
  const hole = Buffer.alloc(2000);
  return Buffer.concat([noise(head * 70_000, "head"), Buffer.alloc(LARGE, "a"), hole, noise(500 + tail * 9000, tail)]);
}

/** GNU tar's format 1.0: the map stands before the data. */
function sparseEntry({ path, size, data, offset }: SparseFile): Buffer {
  const map = Buffer.alloc(512);
  map.write(`2\n${offset}\n${data.length}\n${size}\n0\n`);
  const records = Object.entries({
    "GNU.sparse.major": "1",
    "GNU.sparse.minor": "0",
    "GNU.sparse.name": path,
    "GNU.sparse.realsize": String(size),
  }).map(([key, value]) => record(`${key}=${value}`));
  const pax = records.join("");
  const stored = Buffer.concat([map, data]);
  return Buffer.concat([
    ...[block({ name: "pax", type: "x", size: pax.length }), padded(pax)],
    ...[block({ name: "stored", size: stored.length }), padded(stored)],
  ]);
}

/** "LENGTH KEY=VALUE\n"; the length counts itself. */
function record(text: string): string {
  let length = text.length + 2;
  while (`${length} ${text}\n`.length !== length) length++;
  return `${length} ${text}\n`;
}

/** What a file has to be; of a whiteout only that it is one. */
export interface SourceFile {
  readonly mode: string;
  readonly owner: string;
  readonly time: string;
  readonly device: string;
  readonly xattrs: readonly string[];
  /** Not of directories, whose size and link count are the file system's. */
  readonly size?: number;
  readonly content?: string;
  readonly target?: string;
  /** All names of it, sorted. */
  readonly names?: readonly string[];
}

/** By path; the root is "". */
export type SourceTree = Readonly<Record<string, SourceFile | "whiteout">>;

const OPAQUE_MARK = "trusted.overlay.opaque=79";
const TYPES = {
  file: 0o100000,
  directory: 0o040000,
  symlink: 0o120000,
  character: 0o020000,
  block: 0o060000,
  fifo: 0o010000,
};

function sourceTree(files: Files, sparse: readonly SparseFile[]): SourceTree {
  const tree: Record<string, SourceFile | "whiteout"> = {};
  const names = new Map<string, string[]>();
  const opaque = new Set<string>();
  for (const { path, size, data, offset } of sparse) {
    const content = Buffer.alloc(size);
    data.copy(content, offset);
    // what `block` writes: mode and owner are 0644, in octal
    tree[path] = { ...plain(0o100644, content), owner: `${0o644}:${0o644}`, names: [path] };
  }
  for (const [written, what] of Object.entries(files)) {
    const path = written.replace(/\/$/, "").replace(/^\.$/, "");
    const name = path.slice(path.lastIndexOf("/") + 1);
    const parent = path.slice(0, Math.max(0, path.length - name.length - 1));
    if (name === ".wh..wh..opq") opaque.add(parent);
    else if (name.startsWith(".wh.")) tree[`${parent}/${name.slice(4)}`] = "whiteout";
    else if (typeof what === "object" && !Buffer.isBuffer(what) && what.type === "hardlink") {
      names.get(what.linkTarget!)!.push(path);
      names.set(path, names.get(what.linkTarget!)!);
    } else {
      tree[path] = fileOf(written, what);
      names.set(path, [path]);
    }
  }
  for (const directory of opaque) {
    const file = tree[directory] as SourceFile;
    tree[directory] = { ...file, xattrs: [...file.xattrs, OPAQUE_MARK].sort() };
  }
  for (const [path, all] of names) {
    const file = tree[path] ?? tree[all[0]!]!;
    tree[path] = file === "whiteout" || file.mode.startsWith("4") ? file : { ...file, names: all.toSorted() };
  }
  return tree;
}

function fileOf(written: string, what: Files[string]): SourceFile {
  if (typeof what === "string" || Buffer.isBuffer(what)) {
    return written.endsWith("/") ? plain(0o040755, undefined) : plain(0o100644, Buffer.from(what));
  }
  const { type = written.endsWith("/") ? "directory" : "file", content = Buffer.alloc(0), linkTarget = "" } = what;
  const {
    mode,
    uid = 0,
    gid = 0,
    mtimeSeconds = 0,
    mtimeNanoseconds = 0,
    rdevMajor = 0,
    rdevMinor = 0,
    xattrs = [],
  } = what;
  // Linux gives every symlink all permissions
  const permissions = type === "symlink" ? 0o777 : (mode ?? (type === "directory" ? 0o755 : 0o644));
  const bits = TYPES[type as keyof typeof TYPES] | permissions;
  const isFile = type === "file";
  return {
    ...plain(bits, isFile ? content : undefined),
    owner: `${uid}:${gid}`,
    time: `${mtimeSeconds} ${mtimeNanoseconds}`,
    device: `${rdevMajor}:${rdevMinor}`,
    xattrs: xattrs.map(({ name, value }) => `${name}=${Buffer.from(value, "latin1").toString("hex")}`).sort(),
    ...(type === "symlink" ? { target: linkTarget, size: linkTarget.length } : {}),
  };
}

function plain(mode: number, content: Buffer | undefined): SourceFile {
  const isDirectory = (mode & 0o170000) === TYPES.directory;
  return {
    mode: mode.toString(8),
    ...{ owner: "0:0", time: "0 0", device: "0:0", xattrs: [] },
    ...(isDirectory ? {} : { size: content?.length ?? 0 }),
    ...(content === undefined ? {} : { content: hash("sha256", content) }),
  };
}
