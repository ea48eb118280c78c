/** What a section is made of, wherever it comes from: headers, and contents that are opened when their turn comes. */
import { type ByteString, displayBytes } from "../../bytes/index.ts";
import { ShaleError } from "../../errors/index.ts";
import type { TarHeader } from "../../formats/tar/index.ts";
import { closeFile, isStill, type Statx } from "../../sys/index.ts";

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
    if (!isStill(fd, expected)) throw changed(path);
  };
  const close = () => closeFile(fd);
  return { fd, offset: 0, sparse: expected.allocated < expected.size, verify, [Symbol.dispose]: close };
}

export function changed(path: ByteString): ShaleError {
  return new ShaleError("ABORTED", `Cannot write ${displayBytes(path)} to the checkpoint: it was changed meanwhile`, {
    hint: "See that the container is stopped or paused while its checkpoint is written",
  });
}

/**
 * Goes through entries in order. What `step` answers is awaited, and a source that has its entries at hand is not: a promise for each
 * of 30,000 entries is a tenth of the work.
 */
export async function eachEntry(
  entries: Iterable<SourceEntry> | AsyncIterable<SourceEntry>,
  step: (entry: SourceEntry) => void | Promise<void>,
): Promise<void> {
  if (!(Symbol.iterator in entries)) {
    for await (const entry of entries) await step(entry);
    return;
  }
  for (const entry of entries) {
    const wait = step(entry);
    if (wait !== undefined) await wait;
  }
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
  const firstPass = () => {
    let seen: SourceEntry[] | undefined = [];
    return {
      see(entry: SourceEntry) {
        if (seen !== undefined && seen.push(entry) > KEPT) seen = undefined;
        return entry;
      },
      end() {
        complete = true;
        kept = seen;
      },
    };
  };
  function* atHand(entries: Iterable<SourceEntry>): Generator<SourceEntry, void, undefined> {
    const pass = firstPass();
    for (const entry of entries) yield pass.see(entry);
    pass.end();
  }
  async function* waitedFor(entries: AsyncIterable<SourceEntry>): AsyncGenerator<SourceEntry, void, undefined> {
    const pass = firstPass();
    for await (const entry of entries) yield pass.see(entry);
    pass.end();
  }
  return {
    entries() {
      if (complete) return kept ?? source.entries();
      const entries = source.entries();
      return Symbol.iterator in entries ? atHand(entries) : waitedFor(entries);
    },
  };
}
