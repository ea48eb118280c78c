/**
 * The metadata of a checkpoint and CRIU's images: a directory (a container's bundle after the checkpoint, or what CRIU
 * wrote), or a tar that an engine exported without the root file system.
 */
import { type ByteString, displayBytes } from "../../bytes/index.ts";
import { ShaleError } from "../../errors/index.ts";
import {
  type CheckpointArchive,
  isNested,
  MEMBER,
  openArchive,
  readTarFile,
  type Section,
  sectionOf,
} from "../archive/index.ts";
import type { Member, NestedMember } from "../layout/plan.ts";
import type { EntrySource, FileContent, SourceEntry } from "./entry.ts";
import { headerOf, type Tree, type TreeFile } from "./tree.ts";

/** Members of an archive beside those in nested tars: a process has some ten CRIU images. */
const MEMBERS_MAX = 1_000_000;
/** What every CRIU image directory has. */
const INVENTORY = "inventory.img";

/**
 * Members from a directory: what the format has a name for. All else stays where it is: a bundle also has sockets, the mounts
 * of a running container and its secrets. A directory of CRIU images becomes checkpoint/.
 */
export function directoryMembers(tree: Tree, replaced: (section: Section) => boolean): Member[] {
  const members: Member[] = [];
  let prefix: ByteString | undefined;
  // A bundle also has mounts of the container in it: /dev/shm, secrets, its root.
  const into = ({ path }: TreeFile) => prefix !== undefined || sectionOf(path).kind !== "other";
  for (const { directory, files } of tree.walk(into)) {
    if (directory.path === "" && files.some(({ path }) => path === INVENTORY)) {
      prefix = MEMBER.images;
      members.push({ section: sectionOf(prefix), entry: { header: { ...headerOf(directory), path: prefix } } });
    }
    for (const file of files) {
      const path = prefix === undefined ? file.path : `${prefix}/${file.path}`;
      const section = sectionOf(path);
      if (replaced(section)) continue;
      if (isNested(section.kind) && section.kind !== "rootfs" && file.type === "file") {
        members.push({ section, path, source: tarFileSource(tree, file, section) });
        continue;
      }
      if (!isMetadata(section, file)) continue;
      const header = { ...headerOf(file), path };
      const entry: SourceEntry =
        header.type === "file" && header.size > 0 ? { header, content: tree.content(file) } : { header };
      members.push({ section, entry });
      if (members.length > MEMBERS_MAX) throw tooMany(tree.path);
    }
  }
  if (!members.some(({ section }) => section.kind === "images" || section.kind === "pre-images")) {
    throw noImages(tree.path);
  }
  return members;
}

function isMetadata({ kind }: Section, file: TreeFile): boolean {
  if (file.type === "socket") return false;
  if (["images", "pre-images", "artifacts"].includes(kind)) return true;
  return (
    file.type === "file" && !["other", "deleted", "index", "rootfs", "rootfs-inline", "shm", "volume"].includes(kind)
  );
}

/**
 * Members of an exported tar but for what is given separately: the changes of the root file system, and what `replaced` says.
 * Content is taken from the tar's own file, so `archive` must be open until the archive is written, and plain.
 */
export async function archiveMembers(
  archive: CheckpointArchive,
  replaced: (section: Section) => boolean,
): Promise<Member[]> {
  const members: Member[] = [];
  for await (const member of archive.members()) {
    const { path, entry, section, content } = member;
    if (["deleted", "index", "rootfs", "rootfs-inline"].includes(section.kind) || replaced(section)) continue;
    const place = content.place();
    if (entry.segments !== undefined) throw sparseMember(path, archive.name);
    if (isNested(section.kind)) {
      members.push({ section, path, source: nestedSource(archive, path) });
    } else {
      const header = { ...entry, path };
      members.push(
        entry.type === "file" && entry.size > 0 && place !== undefined
          ? { section, entry: { header, content: contentAt(place) } }
          : { section, entry: { header } },
      );
    }
    if (members.length > MEMBERS_MAX) throw tooMany(archive.name);
  }
  return members;
}

/** The entries of a tar that an engine left in a directory; what its contents are read from is opened for each. */
function tarFileSource(tree: Tree, file: TreeFile, section: Section): EntrySource {
  const content = tree.content(file);
  if (content instanceof Uint8Array) throw new RangeError("content of a tree in memory");
  return {
    async *entries() {
      using tar = content.open();
      for await (const { path, entry, content: inner } of readTarFile(tar.fd, file.status.size, section)) {
        const place = inner.place();
        if (entry.segments !== undefined) throw sparseMember(path, `${tree.path}/${displayBytes(file.path)}`);
        const header = { ...entry, path: path === "" ? "." : path };
        if (place === undefined || entry.size === 0) yield { header };
        else yield { header, content: { open: () => ({ ...content.open(), offset: place.offset, sparse: true }) } };
      }
    },
  };
}

/** The entries of a nested tar, found again for each pass. */
export function nestedSource(archive: CheckpointArchive, path: ByteString): NestedMember["source"] {
  const source: EntrySource = {
    async *entries() {
      for await (const member of archive.members()) {
        if (member.path !== path) continue;
        const nested = await member.open();
        for await (const { path: inner, entry, content } of nested.entries()) {
          const place = content.place();
          if (entry.segments !== undefined || (entry.size > 0 && place === undefined)) {
            throw sparseMember(inner, archive.name);
          }
          const header = { ...entry, path: inner === "" ? "." : inner };
          yield place === undefined || entry.size === 0 ? { header } : { header, content: contentAt(place) };
        }
        return;
      }
    },
  };
  return source;
}

export function contentAt({ fd, offset }: { readonly fd: number; readonly offset: number }): FileContent {
  // The archive's descriptor stays open, and the archive is the caller's to leave alone.
  return { open: () => ({ fd, offset, sparse: true, verify: () => undefined, [Symbol.dispose]: () => undefined }) };
}

/** Opens a tar of metadata; a compressed one is refused with the way out. */
export async function openMetadata(path: string, signal: AbortSignal | undefined): Promise<CheckpointArchive> {
  const archive = await openArchive(path, signal === undefined ? {} : { signal });
  if (archive.repeatable && archive.compression === "none") return archive;
  await archive.close();
  const state = archive.repeatable ? `it is compressed with ${archive.compression}` : "it is no regular file";
  throw new ShaleError("FAILED_PRECONDITION", `Cannot take the metadata from ${path}: ${state}`, {
    hint: "Export it with --compress=none, or unpack it into a directory first",
  });
}

export function noImages(path: string): ShaleError {
  return new ShaleError("INVALID_ARGUMENT", `Cannot take a checkpoint from ${path}: there are no CRIU images in it`, {
    hint: "Name a container's bundle with checkpoint/, a directory that CRIU wrote, or an exported tar",
  });
}

function tooMany(path: string): ShaleError {
  return new ShaleError("RESOURCE_EXHAUSTED", `Cannot read ${path}: it has more than ${MEMBERS_MAX} files`);
}

function sparseMember(path: ByteString, archive: string): ShaleError {
  return new ShaleError(
    "UNIMPLEMENTED",
    `Cannot take ${displayBytes(path)} from ${archive}: it is a sparse or compressed member`,
    {
      hint: "Unpack the tar into a directory first",
    },
  );
}
