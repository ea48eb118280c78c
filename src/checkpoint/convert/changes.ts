/**
 * What a container changed in its root file system, in one form for all dialects: entries without whiteouts, paths that are
 * gone, and directories that hide what the image has in them.
 *
 * podman removes what deleted.files names after it has unpacked the changes, so a path in both would be lost: that is how
 * `rm -rf d; mkdir d; echo x > d/new` loses d. Here such a directory is one that hides the image's, and its files stay.
 */
import type { ByteString } from "../../bytes/index.ts";
import { FormatError } from "../../errors/index.ts";
import type { EntrySource, SourceEntry } from "../sources/entry.ts";

export interface Marks {
  readonly deleted: readonly ByteString[];
  readonly opaque: readonly ByteString[];
  /** The entries have whiteouts among them: OCI image specification, layer.md. */
  readonly whiteouts: boolean;
}

export interface Changes {
  /** Entries, none of them a whiteout. Undefined when there are none. */
  readonly source: EntrySource | undefined;
  /** Relative paths, none of which is (or is above) an entry; in byte order. */
  readonly deleted: readonly ByteString[];
  /** Directories that hide what is below them in the image; in byte order. */
  readonly opaque: readonly ByteString[];
  /** Paths that the archive had both as changed and as deleted. */
  readonly recreated: number;
}

/** Marks that are kept; as many as deleted.files may have. */
const MARKS_MAX = 1_000_000;
export const WHITEOUT = ".wh.";
export const OPAQUE = ".wh..wh..opq";

/** Goes through the entries once. Undefined when nothing was changed. */
export async function changesOf(source: EntrySource | undefined, marks: Marks): Promise<Changes | undefined> {
  const deleted = new Set(marks.deleted);
  const opaque = new Set(marks.opaque);
  let any = false;
  if (source !== undefined && marks.whiteouts) {
    for await (const { header } of source.entries()) addWhiteout(header.path, deleted, opaque);
    if (deleted.size + opaque.size > MARKS_MAX) {
      throw new FormatError("checkpoint archive", "rootfs-diff.tar", `has more than ${MARKS_MAX} whiteouts`, {
        code: "RESOURCE_EXHAUSTED",
      });
    }
  }
  const plain = source === undefined ? undefined : marks.whiteouts ? withoutWhiteouts(source) : source;
  const recreated = new Set<ByteString>();
  if (plain !== undefined) {
    for await (const { header } of plain.entries()) {
      any = true;
      if (deleted.size === 0) continue;
      if (deleted.has(header.path)) {
        recreated.add(header.path);
        if (header.type === "directory") opaque.add(header.path);
      }
      for (let slash = header.path.indexOf("/"); slash >= 0; slash = header.path.indexOf("/", slash + 1)) {
        const above = header.path.slice(0, slash);
        if (!deleted.has(above)) continue;
        recreated.add(above);
        opaque.add(above);
      }
    }
  }
  for (const path of recreated) deleted.delete(path);
  if (!any && deleted.size === 0 && opaque.size === 0) return undefined;
  return {
    source: any ? plain : undefined,
    deleted: [...deleted].sort(byteOrder),
    opaque: [...opaque].sort(byteOrder),
    recreated: recreated.size,
  };
}

function addWhiteout(path: ByteString, deleted: Set<ByteString>, opaque: Set<ByteString>): void {
  const slash = path.lastIndexOf("/");
  const name = path.slice(slash + 1);
  if (!name.startsWith(WHITEOUT)) return;
  const parent = path.slice(0, Math.max(0, slash));
  if (name === OPAQUE) opaque.add(parent);
  else if (!name.startsWith(".wh..wh.")) {
    const target = name.slice(WHITEOUT.length);
    if (target === "" || target === "." || target === "..") {
      throw new FormatError("checkpoint archive", "rootfs-diff.tar", "has a whiteout of nothing");
    }
    deleted.add(parent === "" ? target : `${parent}/${target}`);
  }
}

function withoutWhiteouts(source: EntrySource): EntrySource {
  return {
    async *entries(): AsyncGenerator<SourceEntry, void, undefined> {
      for await (const entry of source.entries()) {
        const { path } = entry.header;
        if (!path.slice(path.lastIndexOf("/") + 1).startsWith(WHITEOUT)) yield entry;
      }
    },
  };
}

/** Strings here have a byte in each character. */
function byteOrder(a: ByteString, b: ByteString): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
