/**
 * The table of contents of a tar file: what its members are and where their bytes lie. Reads headers only.
 */
import { throwIfAborted } from "../async/index.ts";
import { type ByteString, displayBytes } from "../bytes/index.ts";
import { FormatError } from "../errors/index.ts";
import { TarDecoder, type TarEntry } from "../formats/tar/index.ts";
import { closeFile, openFile, readAt, statFile } from "../sys/index.ts";

/** One member by its cleaned name. */
export type Member =
  | { readonly kind: "file"; readonly offset: number; readonly size: number }
  /** The target as written. */
  | { readonly kind: "symlink" | "hardlink"; readonly target: ByteString }
  /** Two or more that are not directories. */
  | { readonly kind: "repeated" }
  | { readonly kind: "other"; readonly type: string };

/** Members of one archive: docker has at most four for a layer; each is held in memory with its name. */
const MAX_MEMBERS = 65_536;
const READ_SIZE = 64 * 1024;
const ZEROS = new Uint8Array(1 << 20);

/**
 * Reads the headers of the tar at `path` in one pass. The decoder does not look at payloads, so it is given zeros in their
 * place, and the file is read behind them: an archive of any size costs its headers only. FormatError as the tar
 * decoder's, for a member that leaves the archive, for too many, and for a tar that is cut off.
 */
export function scanMembers(path: string, signal: AbortSignal | undefined): Map<ByteString, Member> {
  const members = new Map<ByteString, Member>();
  /** Bytes of the tar that the decoder has had, and those of the current payload that it still wants. */
  let position = 0;
  let wanted = 0;
  let count = 0;
  let current: TarEntry | undefined;
  const decoder = new TarDecoder({
    raw: (bytes) => {
      position += bytes.length;
    },
    entry: (entry) => {
      if (++count > MAX_MEMBERS) {
        const problem = `has more than ${MAX_MEMBERS} members`;
        throw new FormatError("image archive", "tar", problem, { code: "RESOURCE_EXHAUSTED" });
      }
      current = entry;
      wanted = storedSize(entry);
      addMember(members, entry, position);
    },
    payload: (bytes) => {
      position += bytes.length;
      wanted -= bytes.length;
    },
    endEntry: () => {
      wanted = 0;
    },
  });

  const fd = openFile(path);
  try {
    const { size } = statFile(fd);
    const buffer = Buffer.allocUnsafe(READ_SIZE);
    while (position < size) {
      throwIfAborted(signal);
      const read = readAt(fd, buffer, position);
      if (read === 0) break;
      decoder.write(buffer.subarray(0, read));
      if (wanted === 0) continue;
      if (position + wanted > size) {
        const name = displayBytes(current?.path ?? "");
        const problem = `is cut off: the archive ends at byte ${size}, its content at ${position + wanted}`;
        throw new FormatError("image archive", name, problem);
      }
      while (wanted > 0) decoder.write(ZEROS.subarray(0, Math.min(wanted, ZEROS.length)));
    }
    decoder.end();
  } finally {
    closeFile(fd);
  }
  return members;
}

/**
 * A member's name without "." and empty components and with ".." resolved, so that "./a" and "b/../a" are "a". Undefined when
 * it leads out of the archive, or to its root.
 */
export function cleanName(name: ByteString): ByteString | undefined {
  const parts: ByteString[] = [];
  for (const part of name.split("/")) {
    if (part === "" || part === ".") continue;
    if (part !== "..") parts.push(part);
    else if (parts.pop() === undefined) return undefined;
  }
  return parts.length === 0 ? undefined : parts.join("/");
}

function addMember(members: Map<ByteString, Member>, entry: TarEntry, position: number): void {
  const name = cleanName(entry.path);
  if (name === undefined) {
    if (entry.type === "directory" && !entry.path.split("/").includes("..")) return; // "./"
    throw new FormatError("image archive", displayBytes(entry.path.slice(0, 300)), "leads out of the archive", {
      offset: entry.headerOffset,
    });
  }
  const isDirectory = entry.type === "directory";
  if (members.has(name)) {
    if (!isDirectory || members.get(name)?.kind !== "other") members.set(name, { kind: "repeated" });
    return;
  }
  members.set(name, memberOf(entry, position));
}

function memberOf(entry: TarEntry, position: number): Member {
  if (entry.type === "symlink" || entry.type === "hardlink") return { kind: entry.type, target: entry.linkTarget };
  if (entry.type !== "file") return { kind: "other", type: entry.type };
  // Its holes are not in the tar: it is no range of the file.
  if (entry.segments !== undefined) return { kind: "other", type: "sparse file" };
  return { kind: "file", offset: position, size: entry.size };
}

/** Bytes of payload in the tar. */
function storedSize(entry: TarEntry): number {
  return entry.segments?.reduce((sum, segment) => sum + segment.length, 0) ?? entry.size;
}
