/** Bytes that lie in a file, and reading them piece by piece. */
import { throwIfAborted } from "../async/index.ts";
import { type ErrorCode, errnoOf, ShaleError } from "../errors/index.ts";
import { closeFile, openFile, readAt } from "../sys/index.ts";

/** `length` bytes of the file at `path` from byte `offset`. */
export interface FileRange {
  readonly path: string;
  readonly offset: number;
  readonly length: number;
}

const UNREADABLE: Readonly<Record<string, readonly [code: ErrorCode, state: string]>> = {
  EACCES: ["PERMISSION_DENIED", "this user may not read it"],
  EPERM: ["PERMISSION_DENIED", "this user may not read it"],
  ELOOP: ["FAILED_PRECONDITION", "its symlinks lead in a circle"],
  EIO: ["DATA_LOSS", "the disk can't read it"],
};

/** Runs `read`; what the machine has against reading `what`, somebody else's file, becomes a ShaleError that names it. */
export function explainUnreadable<T>(what: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    const [code, state] = UNREADABLE[errnoOf(error) ?? ""] ?? [];
    if (code === undefined) throw error;
    throw new ShaleError(code, `Cannot read ${what}: ${state}`, { cause: error });
  }
}

/** Large enough for the system call to be cheap, small enough that two of a slow client's don't matter. */
const PIECE = 256 * 1024;

/**
 * The bytes of a range in order, each piece in a buffer of its own that the reader may keep. The file is opened at the
 * first piece and closed when the iteration ends, early or not. DATA_LOSS when the file ends before the range does,
 * PERMISSION_DENIED when it may not be read.
 */
export function* readFileRange(range: FileRange, options: { readonly signal?: AbortSignal } = {}): Generator<Buffer> {
  const fd = explainUnreadable(range.path, () => openFile(range.path));
  try {
    for (let done = 0; done < range.length; ) {
      throwIfAborted(options.signal);
      const piece = Buffer.allocUnsafeSlow(Math.min(PIECE, range.length - done));
      if (readAt(fd, piece, range.offset + done) !== piece.length) {
        throw new ShaleError(
          "DATA_LOSS",
          `Cannot read ${range.path}: it ends before byte ${range.offset + range.length}`,
        );
      }
      done += piece.length;
      yield piece;
    }
  } finally {
    closeFile(fd);
  }
}
