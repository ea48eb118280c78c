/** Images for containers: a busybox, a hundred files of each kind, and layers that change them. Pushed with skopeo. */
import { execFileSync } from "node:child_process";
import { readFileSync, realpathSync } from "node:fs";
import { join } from "node:path";
import { type Files, type MadeImage, noise, tar, writeImage } from "../../../src/store/testing/fixtures.ts";
import { type Machine, PASSWORD, USER } from "./machine.ts";
import { must } from "./processes.ts";

const EACH = 100;
const APPLETS = [
  "sh",
  "true",
  "sleep",
  "cat",
  "ls",
  "mkdir",
  "mv",
  "ln",
  "chown",
  "chmod",
  "stat",
  "rm",
  "touch",
  "md5sum",
];
type Tree = Record<string, Files[string]>;

/** busybox, getfattr and setfattr with the libraries that they load. */
function programs(): Tree {
  const tree: Tree = { "bin/": "", "lib/": "", "lib64/": "", "etc/": "", "tmp/": { type: "directory", mode: 0o1777 } };
  const executable = (path: string, from: string) => {
    tree[path] = { type: "file", mode: 0o755, content: readFileSync(realpathSync(from)) };
  };
  executable("bin/busybox", "/bin/busybox");
  for (const name of APPLETS) tree[`bin/${name}`] = { type: "symlink", linkTarget: "busybox" };
  for (const name of ["getfattr", "setfattr"]) {
    executable(`bin/${name}`, `/usr/bin/${name}`);
    for (const [, library] of execFileSync("ldd", [`/usr/bin/${name}`], { encoding: "utf8" }).matchAll(/(\/\S+) \(/g)) {
      executable(library!.includes("ld-linux") ? library!.slice(1) : `lib/${library!.split("/").at(-1)}`, library!);
    }
  }
  tree["etc/passwd"] = "root:x:0:0:root:/:/bin/sh\n";
  return tree;
}

/** A hundred files of each kind that a tar can have. */
export function kinds(): Tree {
  const tree: Tree = { "kinds/": "" };
  const directory = (name: string) => {
    tree[`kinds/${name}/`] = "";
  };
  for (const name of ["empty", "small", "large", "sparse", "link", "hard", "fifo", "char", "block"]) directory(name);
  for (const name of ["setuid", "owned", "xattr", "dirs", "long", "replaced", "removed", "opaque", "moved"])
    directory(name);
  for (let i = 0; i < EACH; i++) {
    const at = (kind: string) => `kinds/${kind}/${i}`;
    tree[at("empty")] = "";
    tree[at("small")] = `small ${i}\n`;
    tree[at("large")] = noise(5_000 + 997 * i, i);
    tree[at("sparse")] = Buffer.concat([Buffer.alloc(65_536 + 4096 * i), Buffer.from(`end ${i}`)]);
    tree[at("link")] = { type: "symlink", linkTarget: i % 2 === 0 ? `../small/${i}` : `/nowhere/${i}` };
    tree[`${at("hard")}-a`] = `hard ${i}`;
    tree[`${at("hard")}-b`] = { type: "hardlink", linkTarget: `kinds/hard/${i}-a` };
    tree[at("fifo")] = { type: "fifo", mode: 0o600 + (i % 64) };
    tree[at("char")] = { type: "character", rdevMajor: 1, rdevMinor: 3 + i };
    tree[at("block")] = { type: "block", rdevMajor: 7, rdevMinor: 1000 + i };
    tree[at("setuid")] = { type: "file", mode: 0o4755 | (i % 2 === 0 ? 0o2000 : 0) };
    tree[at("owned")] = { type: "file", uid: 1000 + i, gid: i % 3 === 0 ? 65_534 : 100_000 + i, mode: i & 0o777 };
    tree[at("xattr")] = {
      type: "file",
      xattrs: [
        { name: "user.note", value: `value ${i}` },
        { name: "user.empty", value: "" },
      ],
    };
    tree[`${at("dirs")}/`] = { type: "directory", mode: 0o700 + (i % 64), uid: i, mtimeSeconds: 1_500_000_000 + i };
    tree[`kinds/long/${"x".repeat(150 + i)}`] = `long ${i}`;
    tree[at("replaced")] = `first ${i}`;
    tree[at("removed")] = `here ${i}`;
    tree[at("opaque")] = `below ${i}`;
    tree[`${at("moved")}/`] = "";
    tree[`${at("moved")}/file`] = `moved ${i}`;
  }
  return tree;
}

/** Replaces, removes and covers what `kinds` made. */
export function changes(): Tree {
  const tree: Tree = {
    "kinds/": "",
    "kinds/opaque/": "",
    "kinds/opaque/.wh..wh..opq": "",
    "kinds/opaque/new": "above",
  };
  for (let i = 0; i < EACH; i += 2) {
    tree[`kinds/replaced/${i}`] = noise(3_000 + i, `second ${i}`);
    tree[`kinds/removed/.wh.${i}`] = "";
    // A directory where a file was, and the reverse.
    tree[`kinds/replaced/${i + 1}/`] = "";
    tree[`kinds/replaced/${i + 1}/inside`] = `inside ${i}`;
    tree[`kinds/moved/${i}`] = `no directory any more ${i}`;
  }
  return tree;
}

/** A tar with an entry for every directory and a time for everything: nothing is left to who unpacks it. */
export function dated(tree: Tree): Buffer {
  const all: Tree = { "./": "" };
  const directories = new Set(Object.keys(tree).filter((path) => path.endsWith("/")));
  for (const [path, what] of Object.entries(tree)) {
    for (let at = path.indexOf("/"); at >= 0 && at < path.length - 1; at = path.indexOf("/", at + 1)) {
      const parent = path.slice(0, at + 1);
      if (!directories.has(parent)) all[parent] = "";
      directories.add(parent);
    }
    all[path] = what;
  }
  const times = new Map<string, number>();
  const entries = Object.entries(all).map(([path, what], at): [string, Files[string]] => {
    // Both names of one inode have its time, as in the tars of real builders.
    const target = typeof what === "object" && !Buffer.isBuffer(what) ? what.linkTarget : undefined;
    const mtimeSeconds = times.get(target ?? "") ?? 1_600_000_000 + at;
    times.set(path, mtimeSeconds);
    if (Buffer.isBuffer(what)) return [path, { type: "file", content: what, mtimeSeconds }];
    if (typeof what !== "string") return [path, { mtimeSeconds, ...what }];
    if (path.endsWith("/")) return [path, { type: "directory", mode: 0o755, mtimeSeconds }];
    return [path, { type: "file", content: Buffer.from(what), mtimeSeconds }];
  });
  return tar(Object.fromEntries(entries));
}

export interface Pushed {
  readonly layout: string;
  /** As `Machine.pull` wants it. */
  readonly name: string;
  readonly image: MadeImage;
}

/** Writes an image of these trees, lowest first, and pushes it as `name`. */
export async function push(machine: Machine, name: string, trees: readonly (Tree | Buffer)[]): Promise<Pushed> {
  const layout = join(machine.directory, "layout");
  const tag = name.replaceAll(/[^a-z0-9]/g, "-");
  const tars = trees.map((tree) => (Buffer.isBuffer(tree) ? tree : dated(tree)));
  const image = writeImage(layout, tag, tars);
  await must([
    ...["skopeo", "--insecure-policy", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"],
    ...(machine.guarded ? ["--dest-creds", `${USER}:${PASSWORD}`] : []),
    ...[`oci:${layout}:${tag}`, `docker://${machine.reference(name)}`],
  ]);
  return { layout, name, image };
}

/** The three images of one chain: a base, what is put on it, and what changes both. */
export async function pushChain(machine: Machine): Promise<readonly [base: Pushed, app: Pushed, changed: Pushed]> {
  const base = dated(programs());
  const app = dated(kinds());
  const changed = dated(changes());
  return [
    await push(machine, "test/base:v1", [base]),
    await push(machine, "test/app:v1", [base, app]),
    await push(machine, "test/changed:v1", [base, app, changed]),
  ];
}
