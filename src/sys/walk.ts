/** A tree of the host with everything that a file can have, names byte by byte: to compare a mount with what it should be. */
import * as fs from "node:fs";
import { type ByteString, byteString, bytesOf, fromUtf8 } from "../bytes/index.ts";
import { errnoOf } from "../errors/index.ts";
import { observed } from "./effects.ts";
import { getXattr, listXattrs } from "./libc.ts";

export interface WalkedFile {
  /** Relative to where the walk began; "." is that directory. */
  readonly path: ByteString;
  /** Type and permission bits, st_mode. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly size: number;
  readonly mtimeNs: bigint;
  readonly links: number;
  /** Equal for the names of one file, while nothing is removed: "dev:ino". */
  readonly identity: string;
  readonly rdevMajor: number;
  readonly rdevMinor: number;
  /** Of a symlink; else "". */
  readonly target: ByteString;
  /** In byte order of their names; those that this user may read. */
  readonly xattrs: readonly { readonly name: ByteString; readonly value: ByteString }[];
  /** A regular file's bytes. A piece is only valid until the next one is asked for. */
  content(): Generator<Uint8Array>;
}

const PIECE = 1 << 20;

/**
 * `directory` and everything below it, a directory before what is in it, never through a symlink. Costs a list per level
 * of depth in memory; content is read only where it is asked for.
 */
export function* walkFiles(directory: string): Generator<WalkedFile> {
  const start = fromUtf8(directory);
  yield* walk(start, describe(start, "."));
}

function* walk(start: ByteString, file: WalkedFile): Generator<WalkedFile> {
  yield file;
  if ((file.mode & fs.constants.S_IFMT) !== fs.constants.S_IFDIR) return;
  const place = file.path === "." ? start : `${start}/${file.path}`;
  const names = observed("list", place, () => fs.readdirSync(Buffer.from(bytesOf(place)), { encoding: "buffer" }));
  for (const name of names.map(byteString).sort()) {
    yield* walk(start, describe(start, file.path === "." ? name : `${file.path}/${name}`));
  }
}

function describe(start: ByteString, path: ByteString): WalkedFile {
  const place = Buffer.from(bytesOf(path === "." ? start : `${start}/${path}`));
  return observed("stat", path, () => {
    const status = fs.lstatSync(place, { bigint: true });
    const device = status.isCharacterDevice() || status.isBlockDevice() ? Number(status.rdev) : 0;
    return {
      path,
      mode: Number(status.mode),
      uid: Number(status.uid),
      gid: Number(status.gid),
      size: Number(status.size),
      mtimeNs: status.mtimeNs,
      links: Number(status.nlink),
      identity: `${status.dev}:${status.ino}`,
      ...splitDevice(BigInt(device)),
      target: status.isSymbolicLink() ? byteString(fs.readlinkSync(place, { encoding: "buffer" })) : "",
      xattrs: xattrsOf(place),
      content: () => read(place),
    };
  });
}

/** glibc's gnu_dev_major and gnu_dev_minor (sys/sysmacros.h): the low and high parts of both numbers are interleaved. */
function splitDevice(device: bigint): { readonly rdevMajor: number; readonly rdevMinor: number } {
  return {
    rdevMajor: Number(((device >> 8n) & 0xfffn) | ((device >> 32n) & 0xfffff000n)),
    rdevMinor: Number((device & 0xffn) | ((device >> 12n) & 0xffffff00n)),
  };
}

function xattrsOf(place: Uint8Array): { readonly name: ByteString; readonly value: ByteString }[] {
  try {
    return listXattrs(place)
      .sort()
      .map((name) => ({ name, value: byteString(getXattr(place, bytesOf(name))) }));
  } catch (error) {
    if (errnoOf(error) === "ENOTSUP" || errnoOf(error) === "EOPNOTSUPP") return [];
    throw error;
  }
}

function* read(place: Buffer): Generator<Uint8Array> {
  const fd = fs.openSync(place, fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW);
  try {
    const piece = Buffer.allocUnsafe(PIECE);
    for (;;) {
      const count = observed("read", fd, () => fs.readSync(fd, piece));
      if (count === 0) return;
      yield piece.subarray(0, count);
    }
  } finally {
    fs.closeSync(fd);
  }
}
