/** A checkpoint archive as its members, read forward where they lie; see index.ts for the contract. */
import { setImmediate } from "node:timers/promises";
import { throwIfAborted } from "../../async/index.ts";
import { type ByteString, displayBytes } from "../../bytes/index.ts";
import { FormatError } from "../../errors/index.ts";
import { decompress, detectCompression } from "../../formats/compression/index.ts";
import { type TarEntry, TarReader } from "../../formats/tar/index.ts";
import { type ArchiveInput, BoundedInput, FileInput, type FilePlace, StreamInput } from "./input.ts";
import { isNested, memberPath, type Section, sectionOf } from "./sections.ts";

/** Sees every byte that is read, by the section it is in: for digests. Views are valid during the call. */
export interface ArchiveObserver {
  /** Headers and padding, of the archive and of the tars in it. */
  header(section: Section, bytes: Uint8Array): void;
  /** Content of a file, in order. Of a nested tar that is opened, the contents of its files and not its own. */
  content(section: Section, entry: TarEntry, bytes: Uint8Array): void;
  /** Content that was passed over. */
  skipped(section: Section, entry: TarEntry, length: number): void;
  /** Whether content is to be read where the caller would pass over it. */
  wants(entry: TarEntry): boolean;
}

/** The stored bytes of one file: for a sparse one (`entry.segments`) its segments back to back. */
export interface Content {
  /** Bytes that were neither read nor passed over. */
  readonly remaining: number;
  /** Where the next byte lies, in a file to copy or clone from; `skip` afterwards. Undefined in compressed archives and pipes. */
  place(): FilePlace | undefined;
  /** The next bytes, at most `limit`, valid until the next call; undefined at the end. No promise where they are at hand. */
  read(limit?: number): Uint8Array | undefined | Promise<Uint8Array | undefined>;
  /** Passes over what is left, or `length` bytes of it. */
  skip(length?: number): void | Promise<void>;
  /** All of it. RESOURCE_EXHAUSTED when it is over `limit`, before memory is taken; FormatError for a sparse file. */
  bytes(limit: number): Promise<Uint8Array>;
}

/** One file of an archive or of a nested tar. Good until the next one is asked for. */
export interface ArchiveEntry {
  /** Relative and clean, see `memberPath`; "" for the root of a nested tar. */
  readonly path: ByteString;
  readonly entry: TarEntry;
  readonly content: Content;
}

export interface ArchiveMember extends ArchiveEntry {
  readonly section: Section;
  /**
   * The entries of a nested tar (`isNested(section.kind)`), read in place. containerd's rootfs-diff.tar is compressed:
   * `compression` of the result tells, and its entries are in no file. FormatError for what is no tar; also for a tar that
   * claims more than its member has.
   */
  open(): Promise<NestedTar>;
}

export interface NestedTar {
  readonly compression: "none" | "gzip" | "zstd";
  entries(): AsyncGenerator<ArchiveEntry, void, undefined>;
}

export interface PassOptions {
  readonly observer?: ArchiveObserver;
  readonly signal?: AbortSignal;
  /** Bytes of a compressed nested tar, decompressed. */
  readonly maximumSize: number;
}

const PIECE = 1024 * 1024;
/** Entries, at some 50 us each where they are restored. */
const BETWEEN_TURNS = 256;

/** One pass over an archive. */
export async function* readMembers(
  input: ArchiveInput,
  options: PassOptions,
): AsyncGenerator<ArchiveMember, void, undefined> {
  const { observer, signal } = options;
  /** Header bytes whose entry, and with it the section, is not known yet. */
  let pending: Uint8Array[] = [];
  const reader = new TarReader(
    input,
    observer === undefined ? {} : { onHeader: (bytes) => pending.push(Uint8Array.from(bytes)) },
  );
  let previous: EntryContent | undefined;
  for (let count = 1; ; count++) {
    if (count % BETWEEN_TURNS === 0) await setImmediate(); // else no Ctrl-C comes through while all bytes are at hand
    throwIfAborted(signal);
    await previous?.skip();
    const entry = await reader.next();
    if (entry === undefined) return;
    const path = memberPath(entry);
    const section = sectionOf(path);
    for (const bytes of pending) observer?.header(section, bytes);
    pending = [];
    const content = new EntryContent(reader, input, entry, section, observer, signal);
    previous = content;
    if (path === "") continue; // "./"
    yield { path, entry, section, content, open: () => openNested(path, section, entry, content, options) };
  }
}

async function openNested(
  path: ByteString,
  section: Section,
  entry: TarEntry,
  content: EntryContent,
  options: PassOptions,
): Promise<NestedTar> {
  if (!isNested(section.kind)) throw new RangeError(`${displayBytes(path)} is no nested tar`);
  if (entry.type !== "file" || entry.segments !== undefined) {
    const type = entry.type === "file" ? "sparse file" : entry.type;
    throw new FormatError("checkpoint archive", displayBytes(path), `must be a tar, a plain file: it is a ${type}`);
  }
  const { head, input } = await content.nested();
  const compression = detectCompression(head);
  const { observer, signal, maximumSize } = options;
  if (compression === "none") {
    return { compression, entries: () => readNested(input, section, observer, signal) };
  }
  const source = { [Symbol.asyncIterator]: () => piecesOf(input, section, entry, observer) };
  const stream = new StreamInput(decompress(source, compression, { maximumSize, ...(signal && { signal }) }));
  return { compression, entries: () => readNested(stream, section, undefined, signal) };
}

async function* piecesOf(
  input: ArchiveInput,
  section: Section,
  entry: TarEntry,
  observer: ArchiveObserver | undefined,
): AsyncGenerator<Uint8Array, void, undefined> {
  for (;;) {
    const piece = await input.piece(PIECE);
    if (piece.length === 0) return;
    observer?.content(section, entry, piece);
    yield piece;
  }
}

async function* readNested(
  input: ArchiveInput,
  section: Section,
  observer: ArchiveObserver | undefined,
  signal: AbortSignal | undefined,
): AsyncGenerator<ArchiveEntry, void, undefined> {
  const reader = new TarReader(
    input,
    observer === undefined ? {} : { onHeader: (bytes) => observer.header(section, bytes) },
  );
  let previous: EntryContent | undefined;
  try {
    for (let count = 1; ; count++) {
      if (count % BETWEEN_TURNS === 0) await setImmediate();
      throwIfAborted(signal);
      if (previous !== undefined && previous.remaining > 0) await previous.skip();
      const next = reader.next();
      const entry = next instanceof Promise ? await next : next;
      if (entry === undefined) return;
      const content = new EntryContent(reader, input, entry, section, observer, signal);
      previous = content;
      yield { path: memberPath(entry), entry, content };
    }
  } finally {
    await input.close();
  }
}

/** The entries of a tar that is a plain file of its own, of `size` bytes; the descriptor stays the caller's. */
export function readTarFile(fd: number, size: number, section: Section): AsyncGenerator<ArchiveEntry, void, undefined> {
  return readNested(new FileInput(fd, 0, size), section, undefined, undefined);
}

class EntryContent implements Content {
  readonly #reader: TarReader;
  readonly #input: ArchiveInput;
  readonly #entry: TarEntry;
  readonly #section: Section;
  readonly #observer: ArchiveObserver | undefined;
  readonly #signal: AbortSignal | undefined;
  /** The content is read as a tar: what it has is told by that reader, not as content of this one. */
  #opened = false;

  constructor(
    reader: TarReader,
    input: ArchiveInput,
    entry: TarEntry,
    section: Section,
    observer: ArchiveObserver | undefined,
    signal: AbortSignal | undefined,
  ) {
    this.#reader = reader;
    this.#signal = signal;
    this.#input = input;
    this.#entry = entry;
    this.#section = section;
    this.#observer = observer;
  }

  get remaining(): number {
    return this.#reader.remaining;
  }

  place(): FilePlace | undefined {
    return this.#input.place();
  }

  read(limit = PIECE): Uint8Array | undefined | Promise<Uint8Array | undefined> {
    throwIfAborted(this.#signal);
    const given = this.#reader.read(limit);
    return given instanceof Promise ? given.then((bytes) => this.#seen(bytes)) : this.#seen(given);
  }

  skip(length = this.remaining): void | Promise<void> {
    if (length === 0) return;
    if (!this.#opened && this.#observer?.wants(this.#entry)) return this.#readOver(length);
    const skipping = this.#reader.skip(length);
    const done = () => {
      if (!this.#opened) this.#observer?.skipped(this.#section, this.#entry, length);
    };
    return skipping === undefined ? done() : skipping.then(done);
  }

  async #readOver(length: number): Promise<void> {
    for (let left = length; left > 0; ) left -= (await this.read(Math.min(left, PIECE)))?.length ?? left;
  }

  async bytes(limit: number): Promise<Uint8Array> {
    const { remaining } = this;
    const name = displayBytes(this.#entry.path.slice(0, 200));
    if (this.#entry.type !== "file" || this.#entry.segments !== undefined) {
      const type = this.#entry.type === "file" ? "sparse file" : this.#entry.type;
      throw new FormatError("checkpoint archive", name, `must be a plain file: it is a ${type}`);
    }
    if (remaining > limit) {
      const problem = `has ${remaining} bytes, the limit is ${limit}`;
      throw new FormatError("checkpoint archive", name, problem, { code: "RESOURCE_EXHAUSTED" });
    }
    const bytes = Buffer.allocUnsafe(remaining);
    let at = 0;
    for (let piece = await this.read(); piece !== undefined; piece = await this.read()) {
      bytes.set(piece, at);
      at += piece.length;
    }
    return bytes;
  }

  #seen(bytes: Uint8Array | undefined): Uint8Array | undefined {
    if (bytes !== undefined && !this.#opened) this.#observer?.content(this.#section, this.#entry, bytes);
    return bytes;
  }

  /** Its bytes as a tar. The first ones are read twice, so they come from the file again or are held. */
  async nested(): Promise<{ readonly head: Uint8Array; readonly input: ArchiveInput }> {
    this.#opened = true;
    const place = this.place();
    if (place !== undefined) {
      const probe = new FileInput(place.fd, place.offset, place.offset + Math.min(this.remaining, HEAD));
      return {
        head: Uint8Array.from(probe.read(HEAD)),
        input: new FileInput(place.fd, place.offset, place.offset + this.remaining),
      };
    }
    const head = Uint8Array.from((await new BoundedInput(this).read(Math.min(HEAD, this.remaining))) ?? []);
    return { head, input: new HeadedInput(head, new BoundedInput(this)) };
  }
}

/** Enough to tell a compression. */
const HEAD = 6;

/** An input some bytes of which were taken already. */
class HeadedInput implements ArchiveInput {
  #head: Uint8Array;
  readonly #rest: ArchiveInput;

  constructor(head: Uint8Array, rest: ArchiveInput) {
    this.#head = head;
    this.#rest = rest;
  }

  read(length: number): Uint8Array | Promise<Uint8Array> {
    return this.#head.length === 0 ? this.#rest.read(length) : this.#readHead(length);
  }

  piece(limit: number): Uint8Array | Promise<Uint8Array> {
    if (this.#head.length === 0) return this.#rest.piece(limit);
    const head = this.#head.subarray(0, limit);
    this.#head = this.#head.subarray(head.length);
    return head;
  }

  async skip(length: number): Promise<number> {
    const head = Math.min(length, this.#head.length);
    this.#head = this.#head.subarray(head);
    return head + (length > head ? await this.#rest.skip(length - head) : 0);
  }

  place(): undefined {
    return undefined;
  }

  async #readHead(length: number): Promise<Uint8Array> {
    const head = this.#head.subarray(0, length);
    this.#head = this.#head.subarray(head.length);
    if (head.length === length) return head;
    return Buffer.concat([head, await this.#rest.read(length - head.length)]);
  }

  close(): void | Promise<void> {
    return this.#rest.close();
  }
}
