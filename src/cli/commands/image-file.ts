/** How files of an image look in ls and stat: as GNU ls and stat show them, with numbers for owners. Pure. */
import { type ByteString, displayBytes } from "../../bytes/index.ts";
import { FileType } from "../../formats/layer-index/index.ts";
import type { ImageFile } from "../../images/files.ts";

const LETTERS: ReadonlyMap<number, readonly [letter: string, name: FileKind]> = new Map([
  [FileType.REGULAR, ["-", "file"]],
  [FileType.DIRECTORY, ["d", "directory"]],
  [FileType.SYMLINK, ["l", "symlink"]],
  [FileType.CHARACTER, ["c", "character device"]],
  [FileType.BLOCK, ["b", "block device"]],
  [FileType.FIFO, ["p", "fifo"]],
  [FileType.SOCKET, ["s", "socket"]],
]);

export type FileKind = "file" | "directory" | "symlink" | "character device" | "block device" | "fifo" | "socket";

export function kindOf(mode: number): FileKind {
  return letterOf(mode)[1];
}

function letterOf(mode: number): readonly [string, FileKind] {
  const found = LETTERS.get(mode & FileType.MASK);
  if (found === undefined) throw new RangeError(`mode 0o${mode.toString(8)} has no file type`); // the reader checks it
  return found;
}

/** "-rwsr-xr-t": strmode(3). */
export function formatMode(mode: number): string {
  const special = [0o4000, 0o2000, 0o1000];
  const triplets = [6, 3, 0].map((shift, at) => {
    const bits = (mode >> shift) & 7;
    const set = (mode & special[at]!) !== 0;
    const letter = at === 2 ? "t" : "s";
    const execute = (bits & 1) !== 0 ? (set ? letter : "x") : set ? letter.toUpperCase() : "-";
    return ((bits & 4) !== 0 ? "r" : "-") + ((bits & 2) !== 0 ? "w" : "-") + execute;
  });
  return letterOf(mode)[0] + triplets.join("");
}

/** "2026-11-22 04:26" in UTC, as --time-style=long-iso; years beyond 9999 keep their digits. */
export function formatMinutes(seconds: number): string {
  const time = new Date(seconds * 1000);
  // Outside of what a calendar of JavaScript reaches (year 275760), the number itself says it.
  if (Number.isNaN(time.getTime())) return `@${seconds}`;
  const iso = time.toISOString();
  const dot = iso.indexOf("T");
  return `${iso.slice(0, dot)} ${iso.slice(dot + 1, dot + 6)}`;
}

/** ISO 8601 with all nine digits of the second. */
export function formatTimestamp(seconds: number, nanoseconds: number): string {
  const time = new Date(seconds * 1000);
  const fraction = String(nanoseconds).padStart(9, "0");
  if (Number.isNaN(time.getTime())) return `@${seconds}.${fraction}`;
  return `${time.toISOString().slice(0, -5)}.${fraction}Z`;
}

/** Text for JSON, and the exact bytes beside it where the text had to escape some. */
export function namedBytes<K extends string>(key: K, bytes: ByteString): { readonly [name: string]: string } {
  const text = displayBytes(bytes);
  const exact = Buffer.from(text, "utf8").toString("latin1") === bytes;
  return exact ? { [key]: text } : { [key]: text, [`${key}Base64`]: Buffer.from(bytes, "latin1").toString("base64") };
}

/** One file for --json. */
export function describeFile({ path, inode, target }: ImageFile): Readonly<Record<string, unknown>> {
  const kind = kindOf(inode.mode);
  const isDevice = kind === "character device" || kind === "block device";
  return {
    ...namedBytes("path", path),
    type: kind,
    mode: (inode.mode & ~FileType.MASK).toString(8).padStart(4, "0"),
    uid: inode.uid,
    gid: inode.gid,
    size: kind === "file" ? inode.size : undefined,
    mtime: formatTimestamp(inode.mtimeSeconds, inode.mtimeNanoseconds),
    links: inode.links,
    ...(target === undefined ? {} : namedBytes("target", target)),
    device: isDevice ? { major: inode.rdevMajor, minor: inode.rdevMinor } : undefined,
  };
}

export interface LongLine {
  readonly file: ImageFile;
  /** As it is to be shown: a path or a name. */
  readonly name: ByteString;
}

type Cells = readonly [mode: string, links: string, uid: string, gid: string, size: string, time: string];

/** Lines of `ls -ln --time-style=long-iso`, UTC; columns are as wide as the widest so far. */
export class LongFormat {
  readonly #widths = [0, 0, 0, 0, 0, 0];

  /** The lines as bytes: names go through `show`. */
  format(lines: readonly LongLine[], show: (name: ByteString) => ByteString): ByteString {
    const cells = lines.map(({ file }) => cellsOf(file));
    for (const line of cells) {
      for (const [at, cell] of line.entries()) this.#widths[at] = Math.max(this.#widths[at]!, cell.length);
    }
    return lines
      .map(({ file, name }, row) => {
        const [mode, ...rest] = cells[row]!.map((cell, at) => cell.padStart(this.#widths[at]!));
        const arrow = file.target === undefined ? "" : ` -> ${show(file.target)}`;
        return `${[mode, ...rest].join(" ")} ${show(name)}${arrow}\n`;
      })
      .join("");
  }
}

function cellsOf({ inode }: ImageFile): Cells {
  const kind = kindOf(inode.mode);
  const isDevice = kind === "character device" || kind === "block device";
  return [
    formatMode(inode.mode),
    String(inode.links),
    String(inode.uid),
    String(inode.gid),
    isDevice ? `${inode.rdevMajor}, ${inode.rdevMinor}` : String(inode.size),
    formatMinutes(inode.mtimeSeconds),
  ];
}
