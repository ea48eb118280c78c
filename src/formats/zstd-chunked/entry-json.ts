/** An entry of a zstd:chunked TOC as containers/storage writes it: members in its order, zeros and empty texts left out. */
import type { TarEntry, TarEntryType } from "../tar/index.ts";
import { goString, rfc3339, sha256Text, utf8Of } from "../toc/writing.ts";

export interface WrittenChunk {
  /** In the file. */
  readonly fileOffset: number;
  readonly size: number;
  readonly zeros: boolean;
  /** SHA-256. */
  readonly digest: Uint8Array;
  readonly blobOffset: number;
}

/** What the writer found out about a file with content. */
export interface WrittenContent {
  readonly digest: Uint8Array;
  readonly chunks: readonly WrittenChunk[];
  readonly blobEnd: number;
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

/**
 * Why an entry has no place in a TOC, or would have another in that of containers/storage, which compares its TOC with the
 * tar's headers and refuses a layer where they differ; undefined when nothing is wrong.
 */
export function obstacleOf(entry: TarEntry): string | undefined {
  const { unkept } = entry;
  if (entry.segments !== undefined) return "it is sparse";
  if (unkept?.differsInGo !== undefined) return unkept.differsInGo;
  const texts = [entry.path, entry.linkTarget, ...entry.xattrs.map(({ name }) => name)];
  if (texts.some((text) => utf8Of(text) === undefined)) return "its name, link target or an xattr's name is not UTF-8";
  const times = [timeOf(entry.mtimeSeconds, entry.mtimeNanoseconds), ...unkeptTimes(entry)];
  if (times.includes(undefined)) return "a time is out of the range of years 0 to 9999, or is none";
  return undefined;
}

/** The elements of one file: its own and, beyond the first chunk, one for each. RangeError for an entry with an obstacle. */
export function encodeEntry(entry: TarEntry, content: WrittenContent | undefined): string {
  const { unkept } = entry;
  const name = goString(entry.path);
  const [accessTime, changeTime] = unkeptTimes(entry);
  const modtime = timeOf(entry.mtimeSeconds, entry.mtimeNanoseconds);
  if (modtime === undefined || accessTime === undefined || changeTime === undefined) throw new RangeError("time");
  const chunks = content === undefined || content.chunks.length < 2 ? undefined : content.chunks;
  const parts = [
    `{"type":"${TYPES[entry.type]}","name":${name}`,
    entry.linkTarget === "" ? "" : `,"linkName":${goString(entry.linkTarget)}`,
    number("mode", unkept?.modeField ?? entry.mode),
    number("size", entry.size),
    number("uid", entry.uid),
    number("gid", entry.gid),
    text("modtime", modtime),
    text("accesstime", accessTime),
    text("changetime", changeTime),
    number("devMajor", entry.rdevMajor),
    number("devMinor", entry.rdevMinor),
    xattrs(entry),
    text("digest", content === undefined ? "" : sha256Text(content.digest)),
    number("offset", content?.chunks[0]?.blobOffset ?? 0),
    number("endOffset", content?.blobEnd ?? 0),
    chunks === undefined ? "" : chunkMembers(chunks[0]!),
    "}",
  ];
  for (const chunk of chunks?.slice(1) ?? []) {
    parts.push(`,{"type":"chunk","name":${name}${number("offset", chunk.blobOffset)}${chunkMembers(chunk)}}`);
  }
  return parts.join("");
}

function chunkMembers({ size, fileOffset, digest, zeros }: WrittenChunk): string {
  const type = zeros ? "zeros" : "";
  return `${number("chunkSize", size)}${number("chunkOffset", fileOffset)}${text("chunkDigest", sha256Text(digest))}${text("chunkType", type)}`;
}

/** Byte order of the names, as Go sorts a map. */
function xattrs(entry: TarEntry): string {
  if (entry.xattrs.length === 0) return "";
  const sorted = [...entry.xattrs].sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
  const members = sorted.map(
    ({ name, value }) => `${goString(name)}:"${Buffer.from(value, "latin1").toString("base64")}"`,
  );
  return `,"xattrs":{${members.join(",")}}`;
}

function number(key: string, value: number): string {
  return value === 0 ? "" : `,"${key}":${value}`;
}

/** Of texts that need no escapes. */
function text(key: string, value: string): string {
  return value === "" ? "" : `,"${key}":"${value}"`;
}

/** Access and change time; "" where there is none, undefined where what is there can't be told. */
function unkeptTimes({ unkept }: TarEntry): [string | undefined, string | undefined] {
  const time = (told: string | undefined) => {
    if (told === undefined) return "";
    const match = /^(-?)(\d{1,15})(?:\.(\d*))?$/.exec(told);
    if (match === null) return undefined;
    const whole = Number(match[2]);
    const nanoseconds = Number((match[3] ?? "").slice(0, 9).padEnd(9, "0"));
    if (match[1] === "") return timeOf(whole, nanoseconds);
    return nanoseconds === 0 ? timeOf(0 - whole, 0) : timeOf(-whole - 1, 1_000_000_000 - nanoseconds);
  };
  return [time(unkept?.accessTime), time(unkept?.changeTime)];
}

/** Go's zero time, the first second of year 1, counts as none. */
function timeOf(seconds: number, nanoseconds: number): string | undefined {
  if (seconds === -62_135_596_800 && nanoseconds === 0) return "";
  return rfc3339(seconds, nanoseconds);
}
