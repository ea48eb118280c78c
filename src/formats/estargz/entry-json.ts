/** An entry of an eStargz TOC: members in the order of stargz-snapshotter's TOCEntry, zeros and empty texts left out. */
import type { TarEntry, TarEntryType } from "../tar/index.ts";
import { goString, rfc3339, sha256Text, utf8Of } from "../toc/writing.ts";

export interface WrittenChunk {
  readonly fileOffset: number;
  /** 0 for the last one of a file, unless it is as long as any: "up to the end". */
  readonly statedSize: number;
  /** SHA-256. */
  readonly digest: Uint8Array;
  readonly blobOffset: number;
}

const TYPES: Readonly<Record<TarEntryType, string>> = {
  file: "reg",
  directory: "dir",
  symlink: "symlink",
  hardlink: "hardlink",
  character: "char",
  block: "block",
  fifo: "fifo",
};

/** Why an entry can't be told by a TOC; undefined when it can. */
export function obstacleOf(entry: TarEntry): string | undefined {
  const texts = [entry.path, entry.linkTarget, ...entry.xattrs.map(({ name }) => name)];
  if (texts.some((text) => utf8Of(text) === undefined)) return "its name, link target or an xattr's name is not UTF-8";
  if (timeOf(entry) === undefined) return "its time is out of the range of years 0 to 9999";
  return undefined;
}

/** The elements of one file. `digest` and `chunks` are of a regular file's content; no chunks when it is empty. */
export function encodeEntry(entry: TarEntry, digest: Uint8Array | undefined, chunks: readonly WrittenChunk[]): string {
  const name = `{"name":${goString(entry.path)}`;
  const [first, ...rest] = chunks;
  const own = [
    `${name},"type":"${TYPES[entry.type]}"`,
    number("size", entry.size),
    text("modtime", timeOf(entry) ?? ""),
    entry.linkTarget === "" ? "" : `,"linkName":${goString(entry.linkTarget)}`,
    number("mode", entry.unkept?.modeField ?? entry.mode),
    number("uid", entry.uid),
    number("gid", entry.gid),
    number("offset", first?.blobOffset ?? 0),
    number("devMajor", entry.rdevMajor),
    number("devMinor", entry.rdevMinor),
    xattrs(entry),
    digest === undefined ? "" : text("digest", sha256Text(digest)),
    first === undefined ? "" : chunkMembers(first),
    "}",
  ];
  for (const chunk of rest)
    own.push(`,${name},"type":"chunk"${number("offset", chunk.blobOffset)}${chunkMembers(chunk)}}`);
  return own.join("");
}

function chunkMembers({ fileOffset, statedSize, digest }: WrittenChunk): string {
  return `${number("chunkOffset", fileOffset)}${number("chunkSize", statedSize)}${text("chunkDigest", sha256Text(digest))}`;
}

function xattrs(entry: TarEntry): string {
  if (entry.xattrs.length === 0) return "";
  const sorted = [...entry.xattrs].sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
  const members = sorted.map(
    ({ name, value }) => `${goString(name)}:"${Buffer.from(value, "latin1").toString("base64")}"`,
  );
  return `,"xattrs":{${members.join(",")}}`;
}

/** "" for the epoch, which readers take an absent time for; with the fraction of a second, which they all read. */
function timeOf({ mtimeSeconds, mtimeNanoseconds }: TarEntry): string | undefined {
  return mtimeSeconds === 0 && mtimeNanoseconds === 0 ? "" : rfc3339(mtimeSeconds, mtimeNanoseconds);
}

function number(key: string, value: number): string {
  return value === 0 ? "" : `,"${key}":${value}`;
}

/** Of texts that need no escapes. */
function text(key: string, value: string): string {
  return value === "" ? "" : `,"${key}":"${value}"`;
}
