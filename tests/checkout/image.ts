/** An image of three layers with everything that a checkout must get right, and what trees are compared by. */
import { createHash } from "node:crypto";
import { lstatSync } from "node:fs";
import { join } from "node:path";
import { displayBytes } from "../../src/bytes/index.ts";
import { TAR_END, type TarHeader } from "../../src/formats/tar/index.ts";
import { entryBytes } from "../../src/formats/tar/testing.ts";
import { noise, writeImage } from "../../src/store/testing/fixtures.ts";
import { walkFiles } from "../../src/sys/index.ts";

export const TAG = "all";

/** CAP_NET_BIND_SERVICE, effective: struct vfs_cap_data, revision 2 (include/uapi/linux/capability.h). */
const CAPABILITY = Buffer.from("0100000200040000000000000000000000000000", "hex").toString("latin1");

const time = (mtimeSeconds: number, mtimeNanoseconds: number) => ({ mtimeSeconds, mtimeNanoseconds });
type Header = Partial<TarHeader>;
interface File {
  readonly content: Buffer | string;
  readonly header: Header;
}
const file = (content: Buffer | string, header: Header = {}): File => ({ content, header });

function entries(list: Readonly<Record<string, File | Header>>): Buffer {
  const parts = Object.entries(list).map(([path, what]) =>
    "content" in what
      ? entryBytes({ path, ...what.header }, Buffer.from(what.content).toString("latin1"))
      : entryBytes({ path, ...what }),
  );
  return Buffer.concat([...parts, TAR_END]);
}

const SPARSE = Buffer.concat([
  noise(5000, "head"),
  Buffer.alloc(3_000_000),
  noise(70_000, "tail"),
  Buffer.alloc(200_000),
]);

export const LAYERS: readonly Buffer[] = [
  entries({
    "./": { type: "directory", mode: 0o755, ...time(1_600_000_000, 1) },
    "bin/": { type: "directory", mode: 0o755, ...time(1_600_000_001, 999_999_999) },
    "bin/sudo": file(noise(30_001, "sudo"), { mode: 0o4755, ...time(1_500_000_000, 123_456_789) }),
    "bin/wall": file(noise(9000, "wall"), { mode: 0o2755, gid: 5 }),
    "bin/ping": file(noise(12_288, "ping"), { xattrs: [{ name: "security.capability", value: CAPABILITY }] }),
    "bin/old": file("old", time(-1_000_000, 500_000_000)),
    "bin/late": file("late", time(4_000_000_000, 7)),
    "home/": { type: "directory", mode: 0o755 },
    "home/user/": { type: "directory", mode: 0o2770, uid: 1000, gid: 1001, ...time(1_700_000_000, 42) },
    "home/user/note": file(noise(3000, "note"), {
      uid: 1000,
      gid: 1001,
      mode: 0o600,
      xattrs: [
        { name: "user.comment", value: "kept" },
        { name: "trusted.secret", value: "of root" },
      ],
    }),
    "home/user/shared": { type: "directory", mode: 0o1777, xattrs: [{ name: "user.dir", value: "d" }] },
    "home/user/closed": { type: "directory", mode: 0o000 },
    "home/user/closed/inside": file("inside", { mode: 0o400 }),
    "home/user/read-only": { type: "directory", mode: 0o555 },
    "home/user/read-only/file": file("r", { mode: 0o444 }),
    "dev/": { type: "directory" },
    "dev/null": { type: "character", mode: 0o666, rdevMajor: 1, rdevMinor: 3, ...time(1_600_000_500, 5) },
    "dev/loop": { type: "block", mode: 0o660, gid: 6, rdevMajor: 7, rdevMinor: 300 },
    "run/fifo": { type: "fifo", mode: 0o622, uid: 7 },
    "links/first": file(noise(20_000, "linked"), { uid: 3 }),
    "links/second": { type: "hardlink", linkTarget: "links/first" },
    "other/third": { type: "hardlink", linkTarget: "links/first" },
    "other/tiny": file("tiny", { mode: 0o640 }),
    "zz/tiny": { type: "hardlink", linkTarget: "other/tiny" },
    "lib/name": { type: "symlink", linkTarget: "../bin/sudo", mode: 0o777, uid: 12, ...time(1_600_000_009, 9) },
    "lib/long": { type: "symlink", linkTarget: "x/".repeat(600), mode: 0o777 },
    "lib/outside": { type: "symlink", linkTarget: "/etc", mode: 0o777 },
    "sparse/data": file(SPARSE),
    "sparse/zeros": file(Buffer.alloc(2_000_000)),
    "caf\xc3\xa9": file("utf-8"),
    "latin\xe9": file("not utf-8"),
    "back\\slash\nline": file("odd"),
    "opaque/": { type: "directory", mode: 0o711, ...time(1_600_001_000, 3) },
    "opaque/gone": file("gone"),
    "etc/": { type: "directory", mode: 0o750, gid: 33, ...time(1_600_002_000, 4) },
    "etc/removed": file(noise(10_000, "removed")),
    "etc/changed": file("before"),
    ...Object.fromEntries(
      [0, 1, 511, 2047, 2048, 2049, 4095, 4096, 4097, 8192, 65_535, 65_536, 65_537].map((size) => [
        `size/${size}`,
        file(noise(size, size)),
      ]),
    ),
  }),
  entries({
    "etc/.wh.removed": file(""),
    "etc/changed": file("after", { mode: 0o4711 }),
    "opaque/": { type: "directory", mode: 0o700 },
    "opaque/.wh..wh..opq": file(""),
    "opaque/new": file(noise(5000, "new")),
    big: file(noise(2_500_000, "big"), { mode: 0o755 }),
    ...Object.fromEntries(
      Array.from({ length: 200 }, (_, i) => [`many/${i % 20}/file-${i}`, file(noise(i * 37, `m${i}`))]),
    ),
  }),
  entries({
    "etc/top": file("top"),
    "opaque/more": file("more"),
    "copy/sudo": file(noise(30_001, "sudo"), { mode: 0o755 }),
  }),
];

export function writeLayout(directory: string): void {
  writeImage(directory, TAG, LAYERS);
}

/** Everything about each file, by path; names of one inode are told by the first of them. */
export type Description = Readonly<Record<string, string>>;

export interface DescribeOptions {
  /** Without numbers of links, and which names are one inode: of checkouts that share inodes. */
  readonly links?: boolean;
  readonly without?: (name: string) => boolean;
}

export function describeTree(
  directory: string,
  { links = true, without = () => false }: DescribeOptions = {},
): Description {
  const result: Record<string, string> = {};
  const inodes = new Map<string, string>();
  for (const one of walkFiles(directory)) {
    const name = displayBytes(one.path);
    if (without(name)) continue;
    const { dev, ino } = lstatSync(Buffer.from(join(directory, "/", one.path), "latin1"), { bigint: true });
    const key = `${dev}:${ino}`;
    const first = inodes.get(key) ?? name;
    inodes.set(key, first);
    const isFile = (one.mode & 0o170000) === 0o100000;
    const isDirectory = (one.mode & 0o170000) === 0o040000;
    const hasher = createHash("sha256");
    if (isFile) for (const piece of one.content()) hasher.update(piece);
    const xattrs = one.xattrs.map((xattr) => `${xattr.name}=${Buffer.from(xattr.value, "latin1").toString("hex")}`);
    result[name] = [
      one.mode.toString(8),
      `${one.uid}:${one.gid}`,
      one.mtimeNs,
      ...(one.rdevMajor + one.rdevMinor > 0 ? [`${one.rdevMajor}:${one.rdevMinor}`] : []),
      ...(links && !isDirectory ? [`${one.links} names, first ${first}`] : []),
      ...(isFile ? [one.size, hasher.digest("hex").slice(0, 16)] : []),
      ...(one.target === "" ? [] : [`-> ${displayBytes(one.target)}`]),
      ...xattrs,
    ].join(" ");
  }
  return result;
}
