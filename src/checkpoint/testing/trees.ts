/** Trees on disk for tests: made from a description, and described again to be compared. Needs root. */
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { byteString } from "../../bytes/index.ts";
import { walkFiles } from "../../sys/index.ts";
import { mknod, setTimes, setXattr } from "../../sys/libc.ts";

export interface FileSpec {
  readonly type: "file" | "directory" | "symlink" | "hardlink" | "character" | "fifo" | "whiteout";
  readonly name: string;
  readonly mode: number;
  readonly uid: number;
  readonly nanoseconds: number;
  /** Of a file: data, a hole, data, ... by their lengths. */
  readonly extents: readonly number[];
  readonly opaque: boolean;
  readonly xattr: string | undefined;
}

const NAMES = fc.oneof(
  fc.constantFrom("a", "b", "c", "dir", "etc", "x".repeat(120), "new\nline", "spa ce", ".wh", "ü"),
  fc.string({ minLength: 1, maxLength: 8 }).map((text) => text.replace(/[/\0]/g, "_").replace(/^\.{1,2}$/, "dots")),
);
const LENGTHS = fc.constantFrom(0, 1, 511, 512, 4095, 4096, 16383, 16384, 16385, 40_000, 65_536, 300_001);

export const FILE_SPEC: fc.Arbitrary<FileSpec> = fc.record({
  type: fc.constantFrom(
    "file",
    "file",
    "file",
    "directory",
    "directory",
    "symlink",
    "hardlink",
    "character",
    "fifo",
    "whiteout",
  ),
  name: NAMES,
  mode: fc.constantFrom(0o644, 0o755, 0o600, 0o4755, 0o1777, 0o2750, 0o000, 0o777),
  uid: fc.constantFrom(0, 0, 1000, 4_000_000),
  nanoseconds: fc.integer({ min: 0, max: 999_999_999 }),
  extents: fc.array(LENGTHS, { minLength: 1, maxLength: 3 }),
  opaque: fc.boolean(),
  xattr: fc.option(fc.string({ maxLength: 20 }), { nil: undefined }),
});

/** Makes the files in `directory`, each below the last directory whose turn it is. */
export function makeTree(directory: string, specs: readonly FileSpec[], marks: boolean): void {
  const directories = [directory];
  /** Where nothing of lower layers shows: a whiteout there means nothing, and is not kept. */
  const closed = new Set<string>();
  const files: string[] = [];
  const made: { path: string; spec: FileSpec }[] = [];
  specs.forEach((spec, index) => {
    const parent = directories[index % directories.length]!;
    const path = join(parent, spec.name);
    if (fs.existsSync(path) || isLink(path)) return;
    switch (spec.type) {
      case "file":
        writeExtents(path, spec.extents, index);
        files.push(path);
        break;
      case "directory":
        fs.mkdirSync(path);
        directories.push(path);
        if (spec.opaque || closed.has(parent)) closed.add(path);
        break;
      case "symlink":
        fs.symlinkSync(`../${spec.name}-target`, path);
        break;
      case "hardlink": {
        const target = files[index % Math.max(1, files.length)];
        if (target === undefined) return;
        fs.linkSync(target, path);
        return; // its attributes are those of the other name
      }
      case "character":
        mknod(path, 0o020000 | 0o600, 1, 3);
        break;
      case "fifo":
        mknod(path, 0o010000 | 0o600, 0, 0);
        break;
      case "whiteout":
        if (!marks || closed.has(parent)) return;
        mknod(path, 0o020000, 0, 0);
        return;
    }
    made.push({ path, spec });
  });
  for (const { path, spec } of made.reverse()) {
    fs.lchownSync(path, spec.uid, spec.uid);
    if (spec.type !== "symlink") fs.chmodSync(path, spec.mode);
    if (spec.xattr !== undefined && (spec.type === "file" || spec.type === "directory")) {
      setXattr(path, "user.test", Buffer.from(spec.xattr));
      setXattr(path, "trusted.test", Buffer.from([0, 10, 255]));
    }
    if (marks && spec.opaque && spec.type === "directory") setXattr(path, "trusted.overlay.opaque", Buffer.from("y"));
    const time = { seconds: 1_700_000_000, nanoseconds: spec.nanoseconds };
    setTimes(path, time, time);
  }
}

function isLink(path: string): boolean {
  return fs.lstatSync(path, { throwIfNoEntry: false }) !== undefined;
}

/** Bytes that differ from file to file, without runs of zeros. */
export function writeExtents(path: string, extents: readonly number[], seed: number): void {
  const fd = fs.openSync(path, "wx");
  let at = 0;
  extents.forEach((length, index) => {
    if (index % 2 === 0) {
      const bytes = Buffer.alloc(length, `${seed}:${index}:${path.length}-`);
      fs.writeSync(fd, bytes, 0, length, at);
    }
    at += length;
  });
  fs.ftruncateSync(fd, at);
  fs.closeSync(fd);
}

/** One line for each file with all that a file can have; `times: false` leaves those of directories out. */
export function describeTree(
  directory: string,
  options: { readonly marks?: boolean; readonly xattrs?: boolean } = {},
): string[] {
  const { marks = true, xattrs: withXattrs = true } = options;
  const names = new Map<string, string>();
  return [...walkFiles(directory)].map((file) => {
    const hash = createHash("sha256");
    if ((file.mode & 0o170000) === 0o100000) for (const piece of file.content()) hash.update(piece);
    const { ino } = fs.lstatSync(Buffer.from(`${byteString(Buffer.from(directory))}/${file.path}`, "latin1"));
    const first = names.get(`${ino}`);
    if (first === undefined) names.set(`${ino}`, file.path);
    const xattrs = file.xattrs
      .filter(({ name }) => withXattrs && !/^(system\.|security\.selinux)/.test(name))
      .filter(({ name }) => marks || !name.startsWith("trusted.overlay."))
      .filter(({ name }) => !/^trusted\.overlay\.(origin|impure|uuid|nlink)$/.test(name))
      .map(({ name, value }) => `${name}=${Buffer.from(value, "latin1").toString("hex")}`);
    const rdev = `${file.rdevMajor}:${file.rdevMinor}`;
    const isWhiteout = (file.mode & 0o170000) === 0o020000 && rdev === "0:0";
    if (isWhiteout) return `${file.path} whiteout`; // its times and owner mean nothing
    return [
      ...[file.path, file.mode.toString(8), file.uid, file.gid, file.mtimeNs, file.target, rdev],
      ...[(file.mode & 0o170000) === 0o040000 ? "" : file.size, hash.digest("hex").slice(0, 12)],
      ...[first === undefined ? "" : `= ${first}`, ...xattrs],
    ].join(" ");
  });
}
