/** The files of a checkpoint by what they are, the same for all dialects, so that archives of two engines can be compared. */
import { createHash } from "node:crypto";
import { type ByteString, fromUtf8 } from "../../bytes/index.ts";
import { ProcessTreeReader, type ProcessTree } from "../../formats/criu/index.ts";
import type { TarEntry } from "../../formats/tar/index.ts";
import { type CheckpointArchive, type Content, isNested, MEMBER, type Section } from "../archive/index.ts";
import { decodeDeleted, MAX_METADATA } from "../show/index.ts";

/** What is compared of a file; a path that the container removed has nothing but its type. */
export interface FileFacts {
  readonly type: TarEntry["type"] | "deleted" | "opaque";
  readonly mode: number;
  readonly owner: string;
  readonly modified: string;
  readonly size: number;
  readonly linkTarget: ByteString;
  readonly device: string;
  readonly xattrs: string;
  /** SHA-256 of what the archive has of the content; "" where there is none. */
  readonly digest: string;
}

export interface SurveyedFiles {
  /** "rootfs/etc/passwd", "volumes/data/x", "shm/x", "checkpoint/core-1.img", "config.dump". */
  readonly files: ReadonlyMap<ByteString, FileFacts>;
  readonly tree: ProcessTree;
}

/** Pages are compared as memory, by address; what shale and CRIU note about the dump itself says nothing of the container. */
const PAGES = /^checkpoint\/pages-\d+\.img$/;

/** Goes through all of the archive but the memory. */
export async function surveyFiles(archive: CheckpointArchive): Promise<SurveyedFiles> {
  const files = new Map<ByteString, FileFacts>();
  const processes = new ProcessTreeReader();
  const add = (path: ByteString, facts: FileFacts) => void files.set(path, facts);
  for await (const member of archive.members()) {
    const { path, section, entry, content } = member;
    if (section.kind === "index" || PAGES.test(path)) continue;
    if (section.kind === "deleted") {
      for (const gone of decodeDeleted(await content.bytes(MAX_METADATA))) {
        add(`rootfs/${fromUtf8(gone.replace(/^\/+/, ""))}`, removed("deleted"));
      }
      continue;
    }
    if (isNested(section.kind) && entry.type === "file") {
      const { entries } = await member.open();
      for await (const inner of entries()) {
        const [place, facts] = whiteout(inner.path) ?? [inner.path, await factsOf(inner.entry, inner.content)];
        add(place === "" ? prefixOf(section) : `${prefixOf(section)}/${place}`, facts);
      }
      continue;
    }
    const name = path.slice(path.indexOf("/") + 1);
    if (section.kind === "images" && entry.type === "file" && ProcessTreeReader.wants(name, content.remaining)) {
      const bytes = await content.bytes(content.remaining);
      processes.add(name, bytes);
      add(path, ofDump(attributes(entry, createHash("sha256").update(bytes).digest("hex"))));
      continue;
    }
    const place = section.kind === "rootfs-inline" ? `rootfs${path.slice(MEMBER.inline.length)}` : path;
    if (place === "rootfs") continue;
    const facts = await factsOf(entry, content);
    add(place, section.kind === "rootfs-inline" ? facts : ofDump(facts));
  }
  return { files, tree: processes.finish() };
}

/** Of a file that was made by the dump: when, tells nothing of the container. */
function ofDump(facts: FileFacts): FileFacts {
  return { ...facts, modified: "" };
}

function prefixOf({ kind, name }: Section): ByteString {
  return kind === "volume" ? `volumes/${name}` : kind === "shm" ? "shm" : "rootfs";
}

/** containerd says by a name what the others say by a list. */
function whiteout(path: ByteString): readonly [ByteString, FileFacts] | undefined {
  const slash = path.lastIndexOf("/");
  const name = path.slice(slash + 1);
  if (!name.startsWith(".wh.")) return undefined;
  const parent = path.slice(0, Math.max(0, slash));
  if (name === ".wh..wh..opq") return [`${parent}/.`, removed("opaque")];
  return [parent === "" ? name.slice(4) : `${parent}/${name.slice(4)}`, removed("deleted")];
}

async function factsOf(entry: TarEntry, content: Content): Promise<FileFacts> {
  if (entry.type !== "file" || content.remaining === 0) return attributes(entry, "");
  const hash = createHash("sha256");
  for (let piece = await content.read(); piece !== undefined; piece = await content.read()) hash.update(piece);
  // where the holes are is part of what a sparse file is; its data alone would not tell
  if (entry.segments !== undefined) hash.update(JSON.stringify(entry.segments));
  return attributes(entry, hash.digest("hex"));
}

function attributes(entry: TarEntry, digest: string): FileFacts {
  const { type, mode, uid, gid, mtimeSeconds, mtimeNanoseconds, size, linkTarget, rdevMajor, rdevMinor, xattrs } =
    entry;
  return {
    ...{ type, mode, size, linkTarget, digest },
    owner: `${uid}:${gid}`,
    modified: `${mtimeSeconds}.${String(mtimeNanoseconds).padStart(9, "0")}`,
    device: `${rdevMajor}:${rdevMinor}`,
    xattrs: xattrs.length === 0 ? "" : JSON.stringify(xattrs.map(({ name, value }) => [name, value]).sort()),
  };
}

function removed(type: "deleted" | "opaque"): FileFacts {
  return { type, mode: 0, owner: "", modified: "", size: 0, linkTarget: "", device: "", xattrs: "", digest: "" };
}
