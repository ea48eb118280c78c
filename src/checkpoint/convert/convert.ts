/** From one dialect to another; see index.ts for the contract. */
import { dirname } from "node:path";
import { type ByteString, displayBytes } from "../../bytes/index.ts";
import { ShaleError } from "../../errors/index.ts";
import { encodeTarHeader, TAR_END, type TarHeader, tarPadding } from "../../formats/tar/index.ts";
import { readAt } from "../../sys/index.ts";
import { type Dialect, MEMBER, type Section, sectionOf } from "../archive/index.ts";
import { compressPieces } from "../layout/compress.ts";
import {
  document,
  documentHeader,
  inOrder,
  isMeasured,
  type Member,
  measure,
  type PlannedMember,
} from "../layout/plan.ts";
import type { SectionSize } from "../layout/writer.ts";
import type { EntrySource, SourceContent, SourceEntry } from "../sources/entry.ts";
import { contentAt } from "../sources/metadata.ts";
import { checkDeletedFiles, encodeDeletedFiles } from "../sources/upper.ts";
import { alignmentOf, checkNames, type WriteOptions, writeMembers } from "../write.ts";
import { type Changes, OPAQUE, WHITEOUT } from "./changes.ts";
import { bindMounts, containerStatus, countBindMounts, criConfig, isPodmanConfig } from "./documents.ts";
import { type DocumentName, type LoadedArchive, loadArchive } from "./load.ts";
import { type Spool, spool } from "./spool.ts";

export type ConvertTarget = Exclude<Dialect, "unknown">;

export interface ConvertOptions extends WriteOptions {
  /** Refuse what `notices` would say: FAILED_PRECONDITION before anything is written. */
  readonly strict?: boolean;
}

export interface ConvertResult {
  readonly from: Dialect;
  readonly to: ConvertTarget;
  /** Of the tar, before compression, and of what was written out. */
  readonly size: number;
  readonly written: number;
  readonly sections: readonly SectionSize[];
  /** Paths that are deleted, and directories that hide those of the image. */
  readonly deleted: number;
  readonly opaque: number;
  /** What the target can't say, its engine will not use, or had to be made up; as sentences. */
  readonly notices: readonly string[];
}

/** See index.ts. `input` is a path, or "-" for stdin. */
export async function convertCheckpoint(
  input: string,
  to: ConvertTarget,
  options: ConvertOptions,
): Promise<ConvertResult> {
  const { signal } = options;
  const spoolDirectory = typeof options.output === "string" ? dirname(options.output) : "/var/tmp";
  await using opened = new AsyncDisposableStack();
  const loaded = await loadArchive(input, opened, { spoolDirectory, ...(signal && { signal }) });
  const notices: string[] = [];
  const members = [...loaded.members.map((member) => renamed(to, member)), ...documentsFor(to, loaded, notices)];
  members.push(...(await changesFor(to, loaded.changes, { opened, spoolDirectory, signal, notices })));
  const alignment = alignmentOf(options);
  const planned: PlannedMember[] = [];
  for (const member of members) {
    planned.push("source" in member ? await measure(member, alignment, signal) : member);
  }
  noteUnused(to, loaded, planned, notices);
  if (options.strict === true && notices.length > 0) {
    throw new ShaleError("FAILED_PRECONDITION", `Cannot convert ${input} to ${to}: ${notices.join("; ")}`, {
      hint: "Without --strict it is converted, and these are reported",
    });
  }
  checkNames(planned);
  const { archive, written } = await writeMembers(inOrder(planned), loaded.changes?.opaque ?? [], options);
  return {
    ...{ from: loaded.dialect, to, size: archive.size, written, sections: archive.sections },
    deleted: loaded.changes?.deleted.length ?? 0,
    opaque: loaded.changes?.opaque.length ?? 0,
    notices,
  };
}

/** The container's log has another name for containerd. CRI-O's is the one that an annotation of the spec says. */
function renamed(to: ConvertTarget, member: Member): Member {
  if ("source" in member) return member;
  const { header } = member.entry;
  const [from, name] =
    to === "containerd" ? (["ctr.log", "container.log"] as const) : (["container.log", "ctr.log"] as const);
  return header.path === from ? { ...member, entry: { ...member.entry, header: { ...header, path: name } } } : member;
}

/** Metadata as the target has it. What only another engine has is left out, and said. */
function documentsFor(to: ConvertTarget, { documents }: LoadedArchive, notices: string[]): Member[] {
  const result = new Map<DocumentName, Uint8Array>(documents);
  const config = documents.get(MEMBER.config);
  const spec = documents.get(MEMBER.spec);
  if (to === "podman" || to === "inline") {
    if (config === undefined || !isPodmanConfig(config)) {
      notices.push(
        "config.dump is not podman's complete one: podman can't restore it, shale and checkpointctl read it",
      );
    }
    if (!result.has(MEMBER.network)) result.set(MEMBER.network, Buffer.from("null")); // podman: without a network
    for (const name of ["status", "status.dump", MEMBER.mounts] as const) {
      const bytes = documents.get(name);
      result.delete(name);
      if (bytes !== undefined && !(name === MEMBER.mounts && countBindMounts(bytes) === 0)) {
        notices.push(`${name} is left out: podman has no place for it`);
      }
    }
  } else {
    if (config !== undefined) result.set(MEMBER.config, criConfig(config));
    if (to === "containerd") {
      const mounts = documents.get(MEMBER.mounts);
      result.delete(MEMBER.mounts);
      if (mounts !== undefined && countBindMounts(mounts) > 0) {
        notices.push("bind.mounts is left out: containerd has no place for it");
      }
      if (!result.has("status.dump")) {
        result.set("status.dump", containerStatus(config, spec));
        notices.push("status.dump, without which containerd does not restore, is made from config.dump and spec.dump");
      }
    } else {
      for (const name of ["status", "status.dump"] as const) {
        if (result.delete(name)) notices.push(`${name} is left out: CRI-O has no place for it`);
      }
      if (!result.has(MEMBER.mounts) && spec !== undefined) {
        const { bytes, unknown } = bindMounts(spec);
        result.set(MEMBER.mounts, bytes);
        if (unknown > 0) {
          notices.push(
            `sources of ${unknown} bind mounts must be there at the restore: whether they are files is not known`,
          );
        }
      }
    }
  }
  return [...result].map(([name, bytes]) => document(sectionOf(name), name, bytes));
}

interface ChangesContext {
  readonly opened: AsyncDisposableStack;
  readonly spoolDirectory: string;
  readonly signal: AbortSignal | undefined;
  readonly notices: string[];
}

async function changesFor(to: ConvertTarget, changes: Changes | undefined, context: ChangesContext): Promise<Member[]> {
  if (changes === undefined) return [];
  const { source, deleted, opaque, recreated } = changes;
  const { notices } = context;
  if (recreated > 0) {
    notices.push(
      `${recreated} paths are both changed and deleted: podman would lose them, here they are kept as changed`,
    );
  }
  if (to === "containerd") return [await layerMember(changes, context)];
  if (opaque.length > 0) {
    notices.push(
      `${opaque.length} directories hide those of the image: shale restores them so, podman and CRI-O only where deleted.files names what they hide`,
    );
  }
  const members: Member[] = [];
  const section: Section = { kind: "rootfs", name: MEMBER.rootfs };
  if (to === "inline") {
    members.push({ section: sectionOf(MEMBER.inline), entry: { header: directoryHeader(MEMBER.inline) } });
    if (source !== undefined) for await (const entry of source.entries()) members.push(...inlineMember(entry));
  } else if (source !== undefined) members.push({ section, path: MEMBER.rootfs, source });
  checkDeletedFiles(deleted);
  if (deleted.length > 0) {
    members.push(document({ kind: "deleted", name: MEMBER.deleted }, MEMBER.deleted, encodeDeletedFiles(deleted)));
  }
  return members;
}

function inlineMember({ header, content }: SourceEntry): Member[] {
  if (header.path === ".") return []; // the root's own attributes have no member
  const below = (path: ByteString) => `${MEMBER.inline}/${path}`;
  const moved = {
    ...header,
    path: below(header.path),
    linkTarget: header.type === "hardlink" ? below(header.linkTarget) : header.linkTarget,
  };
  const entry = content === undefined ? { header: moved } : { header: moved, content };
  return [{ section: sectionOf(MEMBER.inline), entry }];
}

function directoryHeader(path: ByteString): TarHeader {
  return { ...documentHeader(path, 0), type: "directory", mode: 0o755 };
}

/** The layer that containerd applies: gzip, with whiteouts, which come first so that no reader removes a new file by one. */
async function layerMember(
  { source, deleted, opaque }: Changes,
  { opened, spoolDirectory, signal }: ChangesContext,
): Promise<Member> {
  const whiteouts = [
    ...deleted.map((path) => {
      const slash = path.lastIndexOf("/");
      return `${path.slice(0, slash + 1)}${WHITEOUT}${path.slice(slash + 1)}`;
    }),
    ...opaque.map((path) => (path === "" ? OPAQUE : `${path}/${OPAQUE}`)),
  ];
  const layer: Spool = opened.use(
    await spool(spoolDirectory, compressPieces(layerBytes(whiteouts, source, signal), "gzip"), signal),
  );
  const header = documentHeader(MEMBER.rootfs, layer.size);
  return { section: sectionOf(MEMBER.rootfs), entry: { header, content: contentAt({ fd: layer.fd, offset: 0 }) } };
}

async function* layerBytes(
  whiteouts: readonly ByteString[],
  source: EntrySource | undefined,
  signal: AbortSignal | undefined,
): AsyncGenerator<Uint8Array, void, undefined> {
  for (const path of whiteouts) yield encodeTarHeader(documentHeader(path, 0));
  if (source !== undefined) {
    for await (const { header, content } of source.entries()) {
      signal?.throwIfAborted();
      const base = header.path.slice(header.path.lastIndexOf("/") + 1);
      if (base.startsWith(WHITEOUT)) {
        throw new ShaleError("UNIMPLEMENTED", `Cannot write ${displayBytes(header.path)} for containerd`, {
          hint: `Names that begin with ${WHITEOUT} are deletions there: use --to podman`,
        });
      }
      yield encodeTarHeader(header);
      if (content !== undefined) yield* contentBytes(content, header.size);
      yield tarPadding(header.size);
    }
  }
  yield TAR_END;
}

const PIECE = 1024 * 1024;

/** Each piece stays as it is: a compressor keeps it. */
function* contentBytes(content: SourceContent, size: number): Generator<Uint8Array, void, undefined> {
  if (content instanceof Uint8Array) {
    yield content;
    return;
  }
  using file = content.open();
  for (let at = 0; at < size; ) {
    const piece = Buffer.allocUnsafeSlow(Math.min(PIECE, size - at));
    if (readAt(file.fd, piece, file.offset + at) !== piece.length) {
      throw new ShaleError("ABORTED", "Cannot convert the archive: it became shorter meanwhile");
    }
    yield piece;
    at += piece.length;
  }
  file.verify();
}

const ENGINES: Readonly<Record<ConvertTarget, string>> = {
  podman: "podman",
  inline: "podman (PR 24984)",
  crio: "CRI-O",
  containerd: "containerd",
};

/** What stays in the archive, and what the target's engine makes nothing of. */
function noteUnused(
  to: ConvertTarget,
  { documents, unkept }: LoadedArchive,
  planned: readonly PlannedMember[],
  notices: string[],
): void {
  if (to === "crio" || to === "containerd") {
    const engine = ENGINES[to];
    const volumes = planned.filter(({ section }) => section.kind === "volume").length;
    if (volumes > 0)
      notices.push(
        `${volumes === 1 ? "a volume is" : `${volumes} volumes are`} kept, but ${engine} restores no volumes`,
      );
    // podman writes one always; of an empty one it has the root directory alone
    const hasShm = planned.some((member) => member.section.kind === "shm" && isMeasured(member) && member.files > 1);
    if (hasShm) notices.push(`/dev/shm is kept, but ${engine} does not restore it`);
    const network = documents.get(MEMBER.network);
    if (network !== undefined && Buffer.from(network).toString("latin1").trim() !== "null") {
      notices.push(`network.status is kept, but ${engine} gives the pod its own addresses`);
    }
  }
  for (const [record, count] of unkept) notices.push(`${displayBytes(record)} of ${count} members is not kept`);
}
