/**
 * Between the decoder of a checkpoint archive and a layer writer: gives the archive's contents to the store in parts that
 * the next checkpoint of the same container has again. Every byte still passes once and in order, as headers or as the
 * content of a file, so the archive comes back bit for bit from the recipe, like any layer's tar.
 *
 * - The files of a tar inside of the archive (changed files, volumes, /dev/shm) are files of their own.
 * - A pages image of CRIU is cut at multiples of 64 KiB of the addresses that its pagemap gives, so that memory that grew in
 *   one place is the same everywhere else; without a pagemap (it comes before its pages, by name) at multiples of 64 KiB.
 * - Everything else is a file as it is.
 *
 * The tree that the layer writer makes of this has made-up names: what the archive calls its files is in the recipe alone,
 * and names there don't have to be such that a file system takes. It is not for mounting.
 */
import { FormatError } from "../../errors/index.ts";
import { decodePagemap, PAGE_SIZE, type Pagemap } from "../../formats/criu/index.ts";
import { startsWithHeader, TarDecoder, type TarEntry, type TarSink } from "../../formats/tar/index.ts";

/** Of memory; also the smallest run of zeros that becomes a hole. */
export const MEMORY_CHUNK = 64 * 1024;
/** A pagemap that is larger, or cuts its memory into more parts, is not followed. */
const MAX_PAGEMAP = 32 * 1024 * 1024;
const MAX_PARTS = 1_000_000;
/** Names in one directory of the made-up tree. */
const DIRECTORY_SIZE = 65_536;
/** Enough to see whether a file is a tar. */
const HEAD = 512;

const PAGEMAP = /(?:^|\/)pagemap-(?:shmem-)?\d{1,20}\.img$/;
const PAGES = /(?:^|\/)pages-(\d{1,10})\.img$/;

/** What becomes of the content of the archive's current member. */
type Member =
  | { readonly kind: "none" }
  | { readonly kind: "file" }
  /** Its first bytes are kept back. */
  | { readonly kind: "undecided"; readonly entry: TarEntry; readonly head: Buffer; fill: number }
  | { readonly kind: "tar"; readonly decoder: TarDecoder }
  | { readonly kind: "memory"; readonly parts: Iterator<number>; left: number; part: number };

export class ArchiveSplitter implements TarSink {
  readonly #target: TarSink;
  readonly #pagemaps = new Map<number, Pagemap>();
  readonly #gathered = Buffer.allocUnsafeSlow(MEMORY_CHUNK);
  #fill = 0;
  #member: Member = { kind: "none" };
  /** Of the current member, where it is a pagemap. */
  #pagemap: Uint8Array[] | undefined;
  #path = "";
  #files = 0;

  constructor(target: TarSink) {
    this.#target = target;
  }

  raw(bytes: Uint8Array): void {
    this.#target.raw(bytes);
  }

  entry(entry: TarEntry): void {
    this.#path = entry.path;
    this.#pagemap = undefined;
    if (entry.type !== "file" || entry.size === 0) {
      this.#member = { kind: "none" };
    } else if (entry.segments !== undefined) {
      this.#begin(entry.size, entry);
      this.#member = { kind: "file" };
    } else {
      const pages = PAGES.exec(entry.path);
      if (pages !== null) {
        const parts = partsOf(this.#pagemaps.get(Number(pages[1])), entry.size);
        this.#member = { kind: "memory", parts, left: entry.size, part: 0 };
        return;
      }
      if (PAGEMAP.test(entry.path) && entry.size <= MAX_PAGEMAP) this.#pagemap = [];
      if (entry.size >= 2 * HEAD) {
        this.#member = { kind: "undecided", entry, head: Buffer.alloc(HEAD), fill: 0 };
        return;
      }
      this.#begin(entry.size);
      this.#member = { kind: "file" };
    }
  }

  payload(bytes: Uint8Array): void {
    this.#pagemap?.push(Uint8Array.from(bytes));
    let rest = bytes;
    if (this.#member.kind === "undecided") {
      const member = this.#member;
      const count = Math.min(HEAD - member.fill, rest.length);
      member.head.set(rest.subarray(0, count), member.fill);
      member.fill += count;
      if (member.fill < HEAD) return;
      rest = rest.subarray(count);
      this.#decide(member.entry, member.head);
    }
    if (rest.length > 0) this.#content(rest);
  }

  endEntry(): void {
    const member = this.#member;
    this.#member = { kind: "none" };
    if (member.kind === "tar") this.#nested(() => member.decoder.end());
    else if (member.kind === "file") this.#target.endEntry();
    if (this.#pagemap !== undefined) this.#keepPagemap(Buffer.concat(this.#pagemap));
  }

  #decide(entry: TarEntry, head: Uint8Array): void {
    if (startsWithHeader(head)) {
      this.#member = { kind: "tar", decoder: new TarDecoder(this.#inner()) };
    } else {
      this.#begin(entry.size);
      this.#member = { kind: "file" };
    }
    this.#content(head);
  }

  #content(bytes: Uint8Array): void {
    const member = this.#member;
    if (member.kind === "file") this.#target.payload(bytes);
    else if (member.kind === "tar") this.#nested(() => member.decoder.write(bytes));
    else if (member.kind === "memory") this.#memory(member, bytes);
    else throw new RangeError(`content of a member that has none: ${member.kind}`);
  }

  /** In whole parts, so that each is hashed with one call and is never written to be taken back. */
  #memory(member: Extract<Member, { kind: "memory" }>, bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      if (member.part === 0) {
        const next = member.parts.next();
        member.part = next.done === true ? Math.min(MEMORY_CHUNK, member.left) : next.value;
      }
      const count = Math.min(member.part - this.#fill, bytes.length - at);
      if (this.#fill === 0 && count === member.part) this.#part(bytes.subarray(at, at + count));
      else {
        this.#gathered.set(bytes.subarray(at, at + count), this.#fill);
        this.#fill += count;
        if (this.#fill === member.part) this.#part(this.#gathered.subarray(0, this.#fill));
      }
      at += count;
      if (this.#fill === 0) {
        member.left -= member.part;
        member.part = 0;
      }
    }
  }

  #part(bytes: Uint8Array): void {
    this.#fill = 0;
    this.#begin(bytes.length);
    this.#target.payload(bytes);
    this.#target.endEntry();
  }

  /** What a tar in the archive has: its files' contents, and everything else as it stands. */
  #inner(): TarSink {
    const target = this.#target;
    let isFile = false;
    return {
      raw: (bytes) => target.raw(bytes),
      entry: (entry) => {
        isFile = entry.type === "file" && entry.size > 0;
        if (isFile) this.#begin(entry.size, entry);
      },
      payload: (bytes) => target.payload(bytes),
      endEntry: () => {
        if (isFile) target.endEntry();
      },
    };
  }

  #nested(work: () => void): void {
    try {
      work();
    } catch (error) {
      if (!(error instanceof FormatError)) throw error;
      throw new FormatError("checkpoint archive", this.#path, "is a tar that can't be read", {
        code: error.code,
        cause: error,
        hint: "The archive is damaged, or was cut off while it was written",
      });
    }
  }

  /** A file of the made-up tree. */
  #begin(size: number, like?: TarEntry): void {
    const number = this.#files++;
    this.#target.entry({
      ...{ type: "file", linkTarget: "", mode: 0o600, uid: 0, gid: 0 },
      ...{ mtimeSeconds: 0, mtimeNanoseconds: 0, rdevMajor: 0, rdevMinor: 0, xattrs: [] },
      path: `${Math.floor(number / DIRECTORY_SIZE)}/${(number % DIRECTORY_SIZE).toString(16).padStart(4, "0")}`,
      size,
      segments: like?.segments,
      headerOffset: like?.headerOffset ?? 0,
    });
  }

  #keepPagemap(bytes: Uint8Array): void {
    try {
      const pagemap = decodePagemap(bytes, this.#path);
      this.#pagemaps.set(pagemap.pagesId, pagemap);
    } catch (error) {
      // of another version, or damaged: its bytes are kept as they are, and its pages are cut without it
      if (!(error instanceof FormatError)) throw error;
    }
  }
}

/** Sizes of the parts of a pages image of `size` bytes, as far as a pagemap tells. */
function* partsOf(pagemap: Pagemap | undefined, size: number): Generator<number, void, void> {
  if (pagemap === undefined || pagemap.size !== size) return;
  const present = pagemap.runs.filter((run) => run.offset !== undefined);
  if (present.length + size / MEMORY_CHUNK > MAX_PARTS) return;
  for (const { address, pages } of present) {
    const end = address + pages * PAGE_SIZE;
    for (let at = address; at < end; ) {
      const next = Math.min(end, at - (at % MEMORY_CHUNK) + MEMORY_CHUNK);
      yield next - at;
      at = next;
    }
  }
}
