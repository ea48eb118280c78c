/**
 * A tar file whose members are read where they lie: nothing is extracted. Its names are somebody else's: they are only
 * compared, never used as paths.
 */
import { throwIfAborted } from "../async/index.ts";
import { type ByteString, displayBytes, fromUtf8 } from "../bytes/index.ts";
import { type ErrorCode, FormatError, ShaleError } from "../errors/index.ts";
import { detectCompression } from "../formats/compression/index.ts";
import { realPath, statFile } from "../sys/index.ts";
import { cleanName, type Member, scanMembers } from "./docker-members.ts";
import { readHead, spoolArchive } from "./docker-spool.ts";
import { explainUnreadable, type FileRange, readFileRange } from "./file-range.ts";

/** Links from one member to another that are followed, one after the other. */
const MAX_LINKS = 16;

export interface OpenTarOptions {
  /** A directory for the decompressed form of a .tar.gz or .tar.zst. The caller removes it when done with the layers. */
  readonly spoolDirectory?: string;
  /** Bytes that the decompressed form may have; 64 GiB by default. RESOURCE_EXHAUSTED beyond. */
  readonly maximumSize?: number;
  readonly signal?: AbortSignal;
}

export class TarFile {
  /** As the user named it. */
  readonly path: string;
  /** Where the members lie: the file itself, or its decompressed copy. */
  readonly #tar: string;
  readonly #members: ReadonlyMap<ByteString, Member>;
  readonly #signal: AbortSignal | undefined;

  private constructor(
    path: string,
    tar: string,
    members: ReadonlyMap<ByteString, Member>,
    signal: AbortSignal | undefined,
  ) {
    this.path = path;
    this.#tar = tar;
    this.#members = members;
    this.#signal = signal;
  }

  /**
   * Reads the headers of the tar at `path`, which must stay as it is from then on. NOT_FOUND when there is no file;
   * FAILED_PRECONDITION when it is compressed and no spool directory was given; FormatError for what is malformed.
   */
  static async open(path: string, options: OpenTarOptions = {}): Promise<TarFile> {
    const { spoolDirectory, signal } = options;
    let tar = explainUnreadable(path, () => realPath(path));
    if (tar === undefined) throw new ShaleError("NOT_FOUND", `Cannot open ${path}: no such file`);
    if (statFile(tar).kind !== "file") {
      const hint = "Layers are read from their places in the file: a pipe or directory can't be used";
      throw new ShaleError("FAILED_PRECONDITION", `Cannot open ${path}: it is not a regular file`, { hint });
    }
    const file = tar;
    const compression = explainUnreadable(path, () => detectCompression(readHead(file)));
    if (compression !== "none") {
      if (spoolDirectory === undefined) {
        const hint = `Decompress it first, with ${compression === "gzip" ? "gunzip" : "unzstd"}`;
        throw new ShaleError("FAILED_PRECONDITION", `Cannot open ${path}: it is compressed with ${compression}`, {
          hint,
        });
      }
      tar = await spoolArchive(tar, compression, spoolDirectory, options);
    }
    return new TarFile(path, tar, scanMembers(tar, signal), signal);
  }

  /** Whether there is a member of this (clean) name, of any kind. */
  has(name: string): boolean {
    return this.#members.has(fromUtf8(name));
  }

  /**
   * Where the bytes of a member are; symlinks and hard links are followed inside of the archive, as old docker versions
   * need it. FormatError when it is missing, no regular file, or there more than once.
   */
  locate(name: string): FileRange {
    let at = cleanName(fromUtf8(name));
    for (let links = 0; links <= MAX_LINKS; links++) {
      const member = at === undefined ? undefined : this.#members.get(at);
      if (at === undefined || member === undefined) {
        const target = at === undefined ? "a place outside of the archive" : displayBytes(at);
        throw memberError(name, links === 0 ? "is missing" : `is a link to ${target}, which is missing`);
      }
      switch (member.kind) {
        case "file":
          return { path: this.#tar, offset: member.offset, length: member.size };
        case "repeated":
          throw memberError(name, "is there more than once, and readers differ about which one counts");
        case "other":
          throw memberError(name, `must be a regular file or a link to one: it is a ${member.type}`);
        case "hardlink":
          at = cleanName(member.target);
          break;
        case "symlink":
          at = cleanName(member.target.startsWith("/") ? member.target : `${parentOf(at)}/${member.target}`);
      }
    }
    throw memberError(name, `is a link that leads over more than ${MAX_LINKS} others`);
  }

  /** All bytes of a member. RESOURCE_EXHAUSTED over `limit`, before memory is taken. */
  readDocument(name: string, limit: number): Buffer {
    const range = this.locate(name);
    if (range.length > limit) {
      throw memberError(name, `has ${range.length} bytes, the limit is ${limit}`, "RESOURCE_EXHAUSTED");
    }
    throwIfAborted(this.#signal);
    return Buffer.concat([...readFileRange(range)]);
  }
}

export function memberError(name: string, problem: string, code?: ErrorCode): FormatError {
  const shown = displayBytes(fromUtf8(name.length <= 300 ? name : `${name.slice(0, 300)}...`));
  return new FormatError("image archive", shown, problem, code === undefined ? {} : { code });
}

function parentOf(name: ByteString): ByteString {
  return name.slice(0, Math.max(0, name.lastIndexOf("/")));
}
