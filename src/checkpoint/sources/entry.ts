/** What a section is made of, wherever it comes from: headers, and contents that are opened when their turn comes. */
import { type ByteString, displayBytes } from "../../bytes/index.ts";
import { ShaleError } from "../../errors/index.ts";
import type { TarHeader } from "../../formats/tar/index.ts";
import { closeFile, type Statx, statDescriptor } from "../../sys/index.ts";

export interface SourceEntry {
  /** `path` is relative to the section, "." for the root of a tree; `size` is that of the content. */
  readonly header: TarHeader;
  /** Of a regular file that is not empty. */
  readonly content?: SourceContent;
}

export type SourceContent = Uint8Array | FileContent;

export interface FileContent {
  open(): OpenContent;
}

export interface OpenContent extends Disposable {
  readonly fd: number;
  readonly offset: number;
  /** Whether the file may have holes. */
  readonly sparse: boolean;
  /** Throws ABORTED when the file is not what it was when the entry was made. Called after its bytes were taken. */
  verify(): void;
}

/** Entries that can be gone through more than once; each pass gives the same. */
export interface EntrySource {
  entries(): Iterable<SourceEntry> | AsyncIterable<SourceEntry>;
}

/** A file whose size and times must stay as they were in `expected`. */
export function openUnchanged(fd: number, expected: Statx, path: ByteString): OpenContent {
  const verify = () => {
    const now = statDescriptor(fd);
    const same =
      now.ino === expected.ino &&
      now.size === expected.size &&
      now.mtimeSeconds === expected.mtimeSeconds &&
      now.mtimeNanoseconds === expected.mtimeNanoseconds;
    if (!same) throw changed(path);
  };
  const close = () => closeFile(fd);
  return { fd, offset: 0, sparse: expected.allocated < expected.size, verify, [Symbol.dispose]: close };
}

export function changed(path: ByteString): ShaleError {
  return new ShaleError("ABORTED", `Cannot write ${displayBytes(path)} to the checkpoint: it was changed meanwhile`, {
    hint: "See that the container is stopped or paused while its checkpoint is written",
  });
}

/** At some 600 bytes each. */
const KEPT = 32_000;

/**
 * Remembers the entries of the first pass, so that the second costs nothing; of a source with more than 32,000 entries
 * none, so that memory stays bounded: it is gone through again.
 */
export function remember(source: EntrySource): EntrySource {
  let kept: SourceEntry[] | undefined;
  let complete = false;
  async function* firstPass(): AsyncGenerator<SourceEntry, void, undefined> {
    const seen: SourceEntry[] = [];
    let fits = true;
    for await (const entry of source.entries()) {
      if (fits && seen.push(entry) > KEPT) {
        fits = false;
        seen.length = 0;
      }
      yield entry;
    }
    complete = true;
    if (fits) kept = seen;
  }
  return {
    entries: () => (complete ? (kept ?? source.entries()) : firstPass()),
  };
}
