/** What is in an archive, file by file, the files in its nested tars too. */
import type { ByteString } from "../../bytes/index.ts";
import type { TarEntry } from "../../formats/tar/index.ts";
import { type CheckpointArchive, isNested, type SectionKind } from "../archive/index.ts";

export interface ListedFile {
  /** In the archive; of a file in a nested tar, the tar's path, a slash, and its own: "rootfs-diff.tar/etc/passwd". */
  readonly path: ByteString;
  readonly section: SectionKind;
  readonly entry: TarEntry;
  /** Bytes that the archive has of it. */
  readonly stored: number;
}

export interface ListOptions {
  /** Files of nested tars too. */
  readonly nested?: boolean;
}

/** In the order of the archive, a nested tar before its files. What is passed over is not read where the archive can seek. */
export async function* listArchive(
  archive: CheckpointArchive,
  { nested = false }: ListOptions = {},
): AsyncGenerator<ListedFile, void, undefined> {
  for await (const member of archive.members()) {
    const { path, section, entry, content } = member;
    yield { path, section: section.kind, entry, stored: content.remaining };
    if (!nested || !isNested(section.kind) || entry.type !== "file") continue;
    const tar = await member.open();
    for await (const inner of tar.entries()) {
      yield {
        path: inner.path === "" ? `${path}/` : `${path}/${inner.path}`,
        section: section.kind,
        entry: inner.entry,
        stored: inner.content.remaining,
      };
    }
  }
}
