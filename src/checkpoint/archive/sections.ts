/**
 * What a member of a checkpoint archive is, told by its name: the format has no index and no version. Names are those of
 * checkpointctl's lib/metadata.go, of podman (libpod/container_internal_common.go), CRI-O and containerd (pkg/cri).
 */
import type { ByteString } from "../../bytes/index.ts";
import { displayBytes } from "../../bytes/index.ts";
import { FormatError } from "../../errors/index.ts";
import type { TarEntry } from "../../formats/tar/index.ts";

export type SectionKind =
  | "config" // config.dump
  | "spec" // spec.dump
  | "network" // network.status
  | "status" // status, status.dump: containerd
  | "deleted" // deleted.files
  | "mounts" // bind.mounts: CRI-O
  | "pod" // pod.options, pod.dump: CRI-O
  | "stats" // stats-dump
  | "log" // dump.log, ctr.log, container.log
  | "images" // checkpoint/: what CRIU wrote, the memory in it
  | "pre-images" // pre-checkpoint/
  | "shm" // devshm-checkpoint.tar
  | "volume" // volumes/NAME.tar
  | "rootfs" // rootfs-diff.tar
  | "rootfs-inline" // rootfs-diff/: the changes as members of the archive itself
  | "artifacts" // artifacts/: podman
  | "index" // shale.json: what shale knows beyond the rest, see index-member.ts
  | "other";

export interface Section {
  readonly kind: SectionKind;
  /** Of a volume; else that of the member or directory it is in. */
  readonly name: ByteString;
}

export const MEMBER = {
  config: "config.dump",
  spec: "spec.dump",
  network: "network.status",
  deleted: "deleted.files",
  mounts: "bind.mounts",
  images: "checkpoint",
  preImages: "pre-checkpoint",
  shm: "devshm-checkpoint.tar",
  volumes: "volumes",
  rootfs: "rootfs-diff.tar",
  inline: "rootfs-diff",
  artifacts: "artifacts",
  index: "shale.json",
} as const;

const FILES: Readonly<Record<ByteString, SectionKind>> = {
  [MEMBER.config]: "config",
  [MEMBER.spec]: "spec",
  [MEMBER.network]: "network",
  status: "status",
  "status.dump": "status",
  [MEMBER.deleted]: "deleted",
  [MEMBER.mounts]: "mounts",
  "pod.options": "pod",
  "pod.dump": "pod",
  "stats-dump": "stats",
  "dump.log": "log",
  "ctr.log": "log",
  "container.log": "log",
  [MEMBER.shm]: "shm",
  [MEMBER.rootfs]: "rootfs",
  [MEMBER.index]: "index",
};

const DIRECTORIES: Readonly<Record<ByteString, SectionKind>> = {
  [MEMBER.images]: "images",
  [MEMBER.preImages]: "pre-images",
  [MEMBER.inline]: "rootfs-inline",
  [MEMBER.artifacts]: "artifacts",
};

/** `path` as `memberPath` gives it. The whole first component decides, so that "checkpointX" is not "checkpoint/". */
export function sectionOf(path: ByteString): Section {
  const slash = path.indexOf("/");
  const first = slash < 0 ? path : path.slice(0, slash);
  if (Object.hasOwn(DIRECTORIES, first)) return { kind: DIRECTORIES[first]!, name: first };
  if (slash < 0) return { kind: Object.hasOwn(FILES, first) ? FILES[first]! : "other", name: first };
  const volume = /^volumes\/([^/]+)\.tar$/.exec(path);
  if (volume !== null) return { kind: "volume", name: volume[1]! };
  return { kind: "other", name: first };
}

/** Sections whose one member is a tar of its own. */
export function isNested(kind: SectionKind): boolean {
  return kind === "shm" || kind === "volume" || kind === "rootfs";
}

const NAME_MAX = 255;

/**
 * The path of an entry, relative, without "." components and slashes at its end; "" is the root ("./"). Names come from
 * anywhere: absolute ones, "..", and components that no Linux file system takes are a FormatError.
 */
export function memberPath(entry: Pick<TarEntry, "path" | "headerOffset">, format = "checkpoint archive"): ByteString {
  return cleanPath(entry.path, (problem) => {
    const shown = displayBytes(entry.path.length <= 200 ? entry.path : `${entry.path.slice(0, 200)}...`);
    return new FormatError(format, `name "${shown}"`, problem, { offset: entry.headerOffset });
  });
}

/** A slash at an end or two in a row, "." or "..": nearly no path has one. */
const UNCLEAN = /^\/|\/$|\/\/|(?:^|\/)\.\.?(?:\/|$)/;

/** As {@link memberPath}, for any path; `fail` makes the error. */
export function cleanPath(path: ByteString, fail: (problem: string) => Error): ByteString {
  if (path.length > 0 && path.length <= NAME_MAX && !UNCLEAN.test(path)) return path;
  if (path.startsWith("/")) throw fail("is absolute");
  const parts: ByteString[] = [];
  for (const part of path.split("/")) {
    if (part === "" || part === ".") continue;
    if (part === "..") throw fail('has a ".." in it');
    if (part.length > NAME_MAX) throw fail(`has a component of more than ${NAME_MAX} bytes`);
    parts.push(part);
  }
  return parts.join("/");
}
