/** An archive of any dialect in one form: members, metadata documents, and the changes of the root file system. */
import { type ByteString, displayBytes, fromUtf8 } from "../../bytes/index.ts";
import { FormatError } from "../../errors/index.ts";
import { decompress } from "../../formats/compression/index.ts";
import type { TarEntry } from "../../formats/tar/index.ts";
import {
  type ArchiveMember,
  type CheckpointArchive,
  cleanPath,
  decodeIndex,
  type Dialect,
  DialectDetector,
  INDEX_SIZE_MAX,
  MEMBER,
  openArchive,
  openArchiveStream,
  readTarFile,
  type SectionKind,
  sectionOf,
} from "../archive/index.ts";
import type { Member } from "../layout/plan.ts";
import { decodeDeleted, MAX_METADATA } from "../show/index.ts";
import type { EntrySource, SourceEntry } from "../sources/entry.ts";
import { archiveMembers, contentAt, nestedSource } from "../sources/metadata.ts";
import { type Changes, changesOf } from "./changes.ts";
import { spool } from "./spool.ts";

/** Members that are read as a whole, and made anew where the other dialect wants them otherwise. */
export const DOCUMENTS = [
  MEMBER.config,
  MEMBER.spec,
  MEMBER.network,
  MEMBER.mounts,
  "status",
  "status.dump",
] as const satisfies readonly string[];
export type DocumentName = (typeof DOCUMENTS)[number];

export interface LoadedArchive {
  readonly dialect: Dialect;
  /** All but documents and changes. */
  readonly members: readonly Member[];
  readonly documents: ReadonlyMap<DocumentName, Uint8Array>;
  /** Undefined when nothing was changed or deleted. */
  readonly changes: Changes | undefined;
  /** Things that a header here has no place for, by what they are, with how many files have them. */
  readonly unkept: ReadonlyMap<string, number>;
}

export interface LoadOptions {
  /** Where compressed bytes are unpacked to, in files without a name. */
  readonly spoolDirectory: string;
  readonly signal?: AbortSignal;
}

/** What is opened stays open with `opened`. FormatError for a damaged archive. */
export async function loadArchive(
  path: string,
  opened: AsyncDisposableStack,
  options: LoadOptions,
): Promise<LoadedArchive> {
  const archive = await openPlain(path, opened, options);
  const dialect = new DialectDetector();
  const found = new Found();
  for await (const member of archive.members()) {
    dialect.member(member.path, member.section);
    await found.add(member);
  }
  const source = await changesSource(archive, found, dialect, opened, options);
  const { deleted, opaque } = found;
  const changes = await changesOf(source, { deleted, opaque, whiteouts: dialect.dialect === "containerd" });
  const taken = new Set<SectionKind>(["config", "spec", "network", "mounts", "status"]);
  const members = await archiveMembers(archive, ({ kind }) => taken.has(kind));
  return { dialect: dialect.dialect, members, documents: found.documents, changes, unkept: found.unkept };
}

/** The archive as a plain file: its parts are wanted in another order, and some of them twice. */
async function openPlain(
  path: string,
  opened: AsyncDisposableStack,
  { spoolDirectory, signal }: LoadOptions,
): Promise<CheckpointArchive> {
  const stop = signal ? { signal } : {};
  const { readDescriptor } = await import("../../sys/index.ts");
  const archive = opened.use(
    path === "-" ? await openArchiveStream(readDescriptor(0, stop), "stdin", stop) : await openArchive(path, stop),
  );
  if (archive.repeatable && archive.compression === "none") return archive;
  const unpacked = opened.use(await spool(spoolDirectory, archive.bytes(), signal));
  return opened.use(await openArchive(`/proc/self/fd/${unpacked.fd}`, stop));
}

/** What the first pass sees. */
class Found {
  readonly documents = new Map<DocumentName, Uint8Array>();
  readonly unkept = new Map<string, number>();
  /** Entries below rootfs-diff/, by their paths there. */
  readonly inline: SourceEntry[] = [];
  deleted: readonly ByteString[] = [];
  opaque: readonly ByteString[] = [];
  rootfs: "none" | "plain" | { readonly fd: number; readonly offset: number; readonly size: number } = "none";

  async add(member: ArchiveMember): Promise<void> {
    const { path, section, entry, content } = member;
    this.note(entry);
    const name = DOCUMENTS.find((each) => each === path);
    if (name !== undefined && entry.type === "file") {
      this.documents.set(name, await content.bytes(MAX_METADATA));
    } else if (section.kind === "deleted") {
      this.deleted = decodeDeleted(await content.bytes(MAX_METADATA)).map(containerPath);
    } else if (section.kind === "index") {
      this.opaque = decodeIndex(await content.bytes(INDEX_SIZE_MAX)).opaque;
    } else if (section.kind === "rootfs-inline") {
      this.#addInline(member);
    } else if (section.kind === "rootfs") {
      const place = content.place();
      const size = content.remaining;
      const { compression } = await member.open();
      if (compression === "none") this.rootfs = "plain";
      else if (place !== undefined) this.rootfs = { ...place, size };
    }
  }

  note({ ignoredRecords = [] }: TarEntry): void {
    for (const record of ignoredRecords) this.unkept.set(record, (this.unkept.get(record) ?? 0) + 1);
  }

  #addInline({ path, entry, content }: ArchiveMember): void {
    const inner = path === MEMBER.inline ? "." : path.slice(MEMBER.inline.length + 1);
    // the target of a hard link is a name in the archive, like the path
    const target = entry.type === "hardlink" ? withoutPrefix(entry) : entry.linkTarget;
    const header = { ...entry, path: inner, linkTarget: target };
    const place = content.place();
    if (inner === ".") return;
    this.inline.push(entry.size > 0 && place !== undefined ? { header, content: contentAt(place) } : { header });
  }
}

function withoutPrefix({ linkTarget, headerOffset }: TarEntry): ByteString {
  const fail = (problem: string) =>
    new FormatError("checkpoint archive", `hard link to "${displayBytes(linkTarget.slice(0, 200))}"`, problem, {
      offset: headerOffset,
    });
  const clean = cleanPath(linkTarget, fail);
  if (!clean.startsWith(`${MEMBER.inline}/`)) throw fail("leads out of rootfs-diff/");
  return clean.slice(MEMBER.inline.length + 1);
}

/** deleted.files has absolute paths of the container. */
function containerPath(path: string): ByteString {
  const fail = (problem: string) =>
    new FormatError("checkpoint archive", `deleted.files, "${displayBytes(path.slice(0, 200))}"`, problem);
  const clean = cleanPath(fromUtf8(path.replace(/^\/+/, "")), fail);
  if (clean === "") throw fail("is the root");
  return clean;
}

async function changesSource(
  archive: CheckpointArchive,
  { inline, rootfs }: Found,
  dialect: DialectDetector,
  opened: AsyncDisposableStack,
  { spoolDirectory, signal }: LoadOptions,
): Promise<EntrySource | undefined> {
  if (inline.length > 0) return { entries: () => inline };
  if (rootfs === "none") return undefined;
  if (rootfs === "plain") return nestedSource(archive, MEMBER.rootfs);
  // containerd's layer: unpacked once, since its entries are gone through more than once
  dialect.rootfs("gzip");
  const { fd, offset, size } = rootfs;
  const { readAt } = await import("../../sys/index.ts");
  async function* layer(): AsyncGenerator<Uint8Array, void, undefined> {
    const buffer = Buffer.allocUnsafeSlow(1024 * 1024);
    for (let at = 0; at < size; ) {
      const count = readAt(fd, buffer.subarray(0, Math.min(buffer.length, size - at)), offset + at);
      if (count === 0) return; // the decompressor says that it is cut off
      at += count;
      yield buffer.subarray(0, count);
    }
  }
  const first = Buffer.alloc(6);
  readAt(fd, first, offset);
  const kind = first[0] === 0x1f ? "gzip" : "zstd"; // the reader has seen which of the two
  const limit = { maximumSize: MAX_LAYER, ...(signal && { signal }) };
  const unpacked = opened.use(await spool(spoolDirectory, decompress(layer(), kind, limit), signal));
  return {
    async *entries() {
      for await (const { path, entry, content } of readTarFile(unpacked.fd, unpacked.size, sectionOf(MEMBER.rootfs))) {
        const place = content.place();
        const header = { ...entry, path: path === "" ? "." : path };
        yield entry.size > 0 && place !== undefined ? { header, content: contentAt(place) } : { header };
      }
    },
  };
}

/** Of a layer, unpacked. */
const MAX_LAYER = 2 ** 40;
