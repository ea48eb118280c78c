/** Opening an archive: a file or a stream, plain or compressed. */
import { displayBytes } from "../../bytes/index.ts";
import { FormatError, ShaleError } from "../../errors/index.ts";
import {
  decodeSeekableIndex,
  SEEKABLE_FOOTER_SIZE,
  type SeekableFrame,
  seekableIndexSize,
} from "../../formats/compression/index.ts";
import { closeFile, openFile, readAt, readDescriptor, statFile } from "../../sys/index.ts";
import { type ArchiveMember, type ArchiveObserver, readMembers } from "./archive.ts";
import { type ArchiveCompression, decompressArchive, detectArchiveCompression, MAGIC_SIZE } from "./compression.ts";
import { type ArchiveInput, FileInput, StreamInput } from "./input.ts";
import { SeekableInput } from "./seekable-input.ts";

export interface OpenOptions {
  readonly signal?: AbortSignal;
  /** Bytes of a compressed archive, decompressed; 1 TiB unless given. RESOURCE_EXHAUSTED beyond. */
  readonly maximumSize?: number;
}

export interface MembersOptions {
  readonly observer?: ArchiveObserver;
}

export interface CheckpointArchive extends AsyncDisposable {
  /** As the user named it; for messages. */
  readonly name: string;
  readonly compression: ArchiveCompression;
  /**
   * How members that are not read are passed over: "seek" at no cost (a plain file, zstd with an index of frames), "read"
   * at that of reading and decompressing them.
   */
  readonly access: "seek" | "read";
  /** Size of the file; undefined for a stream. */
  readonly size: number | undefined;
  /** Whether `members` can be asked for again: not for a stream. */
  readonly repeatable: boolean;
  /**
   * The members in their order, "./" left out; each is good until the next one is asked for. FormatError for what breaks
   * the format and for a truncated archive (noticed where it is reached). One pass at a time; FAILED_PRECONDITION for a
   * second pass over a stream.
   */
  members(options?: MembersOptions): AsyncGenerator<ArchiveMember, void, undefined>;
  /** The tar itself, decompressed, as a pass like that of `members`; each piece is valid until the next is asked for. */
  bytes(): AsyncGenerator<Uint8Array, void, undefined>;
  close(): Promise<void>;
}

const DEFAULT_MAXIMUM = 1024 ** 4;
const PIECE = 1024 * 1024;

/**
 * Opens the archive at `path`, which must stay as it is while it is open. NOT_FOUND; FAILED_PRECONDITION for a directory.
 * A named pipe or a character device is read as a stream.
 */
export async function openArchive(path: string, options: OpenOptions = {}): Promise<CheckpointArchive> {
  const fd = openArchiveFile(path);
  using onFailure = new DisposableStack();
  onFailure.defer(() => closeFile(fd));
  const { kind, size } = statFile(fd);
  if (kind === "directory") {
    throw new ShaleError("FAILED_PRECONDITION", `Cannot read the checkpoint ${path}: it is a directory`, {
      hint: "Name the archive (a tar), or make one from a directory with shale checkpoint write --meta",
    });
  }
  if (kind !== "file") {
    const stream = await openArchiveStream(readDescriptor(fd, options), path, options);
    onFailure.move();
    return withClose(stream, () => closeFile(fd));
  }
  const head = Buffer.alloc(MAGIC_SIZE);
  const compression = detectArchiveCompression(head.subarray(0, readAt(fd, head, 0)));
  const frames = compression === "zstd" ? findFrames(fd, size) : undefined;
  onFailure.move();
  const { maximumSize = DEFAULT_MAXIMUM, signal } = options;
  const open = (): ArchiveInput => {
    if (compression === "none") return new FileInput(fd, 0, size);
    if (frames !== undefined) return new SeekableInput(fd, frames);
    return new StreamInput(
      decompressArchive(fileBytes(fd, size), compression, { maximumSize, ...(signal && { signal }) }),
    );
  };
  const archive = {
    name: path,
    compression,
    access: compression === "none" || frames !== undefined ? "seek" : "read",
    size,
    repeatable: true,
  } as const;
  return withClose(archiveOver(archive, open, maximumSize, signal), () => closeFile(fd));
}

/** As {@link openArchive} for bytes that come once: stdin, a pipe, a registry. `name` is for messages. */
export async function openArchiveStream(
  source: AsyncIterable<Uint8Array>,
  name: string,
  options: OpenOptions = {},
): Promise<CheckpointArchive> {
  const { maximumSize = DEFAULT_MAXIMUM, signal } = options;
  const iterator = source[Symbol.asyncIterator]();
  const { head, rest } = await takeHead(iterator);
  const compression = detectArchiveCompression(head);
  let taken = false;
  const open = (): ArchiveInput => {
    if (taken) {
      throw new ShaleError("FAILED_PRECONDITION", `Cannot read ${name} twice: it is a stream`, {
        hint: "Save it to a file first",
      });
    }
    taken = true;
    return new StreamInput(
      compression === "none" ? rest : decompressArchive(rest, compression, { maximumSize, ...(signal && { signal }) }),
    );
  };
  const archive = { name, compression, access: "read", size: undefined, repeatable: false } as const;
  return withClose(archiveOver(archive, open, maximumSize, signal), async () => {
    if (!taken) await iterator.return?.();
  });
}

type Facts = Pick<CheckpointArchive, "name" | "compression" | "access" | "size" | "repeatable">;

function archiveOver(
  facts: Facts,
  open: () => ArchiveInput,
  maximumSize: number,
  signal: AbortSignal | undefined,
): Omit<CheckpointArchive, "close" | keyof AsyncDisposable> {
  return {
    ...facts,
    async *members({ observer }: MembersOptions = {}) {
      const input = open();
      let any = false;
      try {
        const settings = { maximumSize, ...(observer && { observer }), ...(signal && { signal }) };
        for await (const member of readMembers(input, settings)) {
          any = true;
          yield member;
        }
      } finally {
        await input.close();
      }
      if (!any) throw new FormatError("checkpoint archive", displayBytes(facts.name), "has no members");
    },
    async *bytes() {
      const input = open();
      try {
        for (let piece = await input.piece(PIECE); piece.length > 0; piece = await input.piece(PIECE)) {
          signal?.throwIfAborted();
          yield piece;
        }
      } finally {
        await input.close();
      }
    },
  };
}

function withClose(
  archive: Omit<CheckpointArchive, "close" | keyof AsyncDisposable>,
  release: () => void | Promise<void>,
): CheckpointArchive {
  let open = true;
  const close = async () => {
    if (!open) return;
    open = false;
    await release();
  };
  return { ...archive, close, [Symbol.asyncDispose]: close };
}

function openArchiveFile(path: string): number {
  try {
    return openFile(path, "read", { followSymlink: true });
  } catch (cause) {
    const code = cause instanceof Error && "code" in cause ? cause.code : undefined;
    if (code !== "ENOENT" && code !== "ENOTDIR") throw cause;
    throw new ShaleError("NOT_FOUND", `Cannot open the checkpoint ${path}: no such file`, { cause });
  }
}

/** The frames of a zstd file that ends in an index; undefined for any other zstd. */
function findFrames(fd: number, size: number): readonly SeekableFrame[] | undefined {
  const footer = Buffer.alloc(SEEKABLE_FOOTER_SIZE);
  if (size < footer.length || readAt(fd, footer, size - footer.length) !== footer.length) return undefined;
  const indexSize = seekableIndexSize(footer);
  if (indexSize === undefined || indexSize > size) return undefined;
  const index = Buffer.allocUnsafe(indexSize);
  return readAt(fd, index, size - indexSize) === indexSize ? decodeSeekableIndex(index, size) : undefined;
}

/** A file from its first byte. A piece is valid until the next one is asked for. */
async function* fileBytes(fd: number, size: number): AsyncGenerator<Uint8Array, void, undefined> {
  const buffer = Buffer.allocUnsafeSlow(PIECE);
  for (let at = 0; at < size; ) {
    const count = readAt(fd, buffer.subarray(0, Math.min(PIECE, size - at)), at);
    if (count === 0) return; // it became shorter: the format notices
    at += count;
    yield buffer.subarray(0, count);
  }
}

/** The first bytes, and all bytes. */
async function takeHead(
  source: AsyncIterator<Uint8Array>,
): Promise<{ readonly head: Uint8Array; readonly rest: AsyncGenerator<Uint8Array, void, undefined> }> {
  let head = new Uint8Array(0);
  let ended = false;
  while (head.length < MAGIC_SIZE && !ended) {
    const next = await source.next();
    if (next.done === true) ended = true;
    else head = new Uint8Array(Buffer.concat([head, next.value]));
  }
  async function* rest(): AsyncGenerator<Uint8Array, void, undefined> {
    try {
      if (head.length > 0) yield head;
      while (!ended) {
        const next = await source.next();
        if (next.done === true) return;
        yield next.value;
      }
    } finally {
      await source.return?.();
    }
  }
  return { head: head.subarray(0, MAGIC_SIZE), rest: rest() };
}
