/**
 * Writing a checkpoint archive from CRIU's images, metadata and directories.
 *
 * Guarantees: one pass after planning, to a pipe as well; members and meaning are podman's. A file appears under its name
 * complete, durable and with mode 0600, or not at all. A source that changes meanwhile fails the archive with ABORTED. Data
 * moves by reflink, inside the kernel or through this process, in this order of preference, file by file. Never follows a
 * symlink of a source; memory does not grow with the data, nor beyond 32,000 entries of a tree.
 */
import { dirname } from "node:path";
import { displayBytes, fromUtf8 } from "../bytes/index.ts";
import { ShaleError } from "../errors/index.ts";
import { createNewFile, fileSystemStatus, findFile, Writeback, writeAt } from "../sys/index.ts";
import { type CheckpointArchive, MEMBER, type Section } from "./archive/index.ts";
import { FrameCompressor, type OutputCompression } from "./layout/compress.ts";
import { type ArchiveOutput, FileOutput, type MovedTotals, pieceSink, StreamOutput } from "./layout/output.ts";
import {
  type Alignment,
  document,
  inOrder,
  isMeasured,
  type Member,
  measure,
  type PlannedMember,
} from "./layout/plan.ts";
import { type SectionSize, type WrittenArchive, writeArchive } from "./layout/writer.ts";
import { LowerLayers } from "./sources/lower.ts";
import { archiveMembers, directoryMembers, noImages, openMetadata } from "./sources/metadata.ts";
import { Tree, treeSource } from "./sources/tree.ts";
import { checkDeletedFiles, encodeDeletedFiles, type UpperMarks, UpperSource } from "./sources/upper.ts";

export interface CheckpointSources {
  /** A directory with checkpoint/ or CRIU's images themselves, or a plain tar that an engine exported. */
  readonly metadata: string;
  /** The upper directory of the container's overlay. */
  readonly rootfsDiff?: string;
  /** Its lower directories, uppermost first; may be none. */
  readonly lower?: readonly string[];
  readonly volumes?: readonly { readonly name: string; readonly directory: string }[];
  readonly shm?: string;
}

export interface WriteOptions {
  /** A path, or where the bytes go in order; each piece may be kept. */
  readonly output: string | ((bytes: Uint8Array) => Promise<void>);
  readonly compression?: OutputCompression;
  /** What content is aligned to; by default the block of the output's file system, at least 4096. 512 is no alignment. */
  readonly alignment?: number;
  /** Files smaller than this are not aligned; 16 KiB by default. */
  readonly alignFrom?: number;
  /** Digest all data, also what moves inside the kernel: costs reading it. */
  readonly digestData?: boolean;
  /** Of the program, for the index: "shale 0.1.0". */
  readonly writer: string;
  readonly signal?: AbortSignal;
}

export interface WriteResult {
  /** Of the tar, before compression, and of what was written out. */
  readonly size: number;
  readonly written: number;
  readonly sections: readonly SectionSize[];
  /** Bytes of file content by the way they came. */
  readonly moved: MovedTotals;
  readonly deleted: number;
  /** What is right for shale's restore but can't be for podman's, as sentences. */
  readonly notices: readonly string[];
}

const UNIT_MIN = 4096;
const UNIT_MAX = 128 * 1024;
const ALIGN_FROM = 16 * 1024;

export async function writeCheckpoint(sources: CheckpointSources, options: WriteOptions): Promise<WriteResult> {
  const { signal } = options;
  await using opened = new AsyncDisposableStack();
  const { members, marks } = await planMembers(sources, alignmentOf(options), opened, signal);
  const { archive, written, moved } = await writeMembers(members, marks?.opaque ?? [], options);
  return {
    ...{ size: archive.size, written, sections: archive.sections, moved },
    ...{ deleted: marks?.deleted.length ?? 0, notices: noticesOf(sources, marks) },
  };
}

/** Writes planned members; a file gets its name when all of them are in it. `opaque` is for the index. */
export async function writeMembers(
  members: readonly PlannedMember[],
  opaque: readonly string[],
  options: WriteOptions,
): Promise<{ readonly archive: WrittenArchive; readonly written: number; readonly moved: MovedTotals }> {
  const { output, compression = "none", signal } = options;
  const alignment = alignmentOf(options);
  const index = { writer: options.writer, opaque };
  const inKernel = typeof output === "string" && compression === "none";
  const settings = { alignment, digestData: options.digestData ?? false, inKernel, ...(signal && { signal }) };
  const write = (to: ArchiveOutput) => writeArchive(members, index, to, settings);
  if (typeof output !== "string") return await toSink(compression, output, false, write);
  using file = createNewFile(output);
  if (compression === "none") {
    await using to = new FileOutput(file.fd, alignment.unit, signal);
    const archive = await write(to);
    file.publish();
    return { archive, written: archive.size, moved: to.moved };
  }
  let at = 0;
  const writeback = new Writeback(file.fd);
  const append = async (bytes: Uint8Array) => {
    signal?.throwIfAborted();
    writeAt(file.fd, bytes, at);
    at += bytes.length;
    writeback.reach(at);
  };
  try {
    const result = await toSink(compression, append, true, write);
    file.publish();
    return result;
  } finally {
    await writeback.settled();
  }
}

async function toSink<T>(
  compression: OutputCompression,
  sink: (bytes: Uint8Array) => Promise<void>,
  release: boolean,
  write: (output: ArchiveOutput) => Promise<T>,
): Promise<{ readonly archive: T; readonly written: number; readonly moved: MovedTotals }> {
  let written = 0;
  const counted = async (bytes: Uint8Array) => {
    await sink(bytes);
    written += bytes.length;
  };
  if (compression === "none") {
    const to = new StreamOutput(pieceSink(counted));
    return { archive: await write(to), written, moved: to.moved };
  }
  const compressor = new FrameCompressor(compression, counted, { release });
  try {
    const to = new StreamOutput(compressor);
    const archive = await write(to);
    await compressor.end();
    return { archive, written, moved: to.moved };
  } finally {
    await compressor.abandon();
  }
}

async function planMembers(
  sources: CheckpointSources,
  alignment: Alignment,
  opened: AsyncDisposableStack,
  signal: AbortSignal | undefined,
): Promise<{ readonly members: readonly PlannedMember[]; readonly marks: UpperMarks | undefined }> {
  const given = new Set((sources.volumes ?? []).map(({ name }) => fromUtf8(name)));
  const replaced = ({ kind, name }: Section) =>
    (kind === "shm" && sources.shm !== undefined) || (kind === "volume" && given.has(name));
  const found: Member[] = await metadataMembers(sources.metadata, replaced, opened, signal);
  const tree = (path: string, what: string) => opened.use(new Tree(path, what));
  if (sources.shm !== undefined) {
    const source = treeSource(tree(sources.shm, "the shared memory"));
    found.push({ section: { kind: "shm", name: MEMBER.shm }, path: MEMBER.shm, source });
  }
  for (const { name, directory } of sources.volumes ?? []) {
    checkVolumeName(name);
    const path = `${MEMBER.volumes}/${fromUtf8(name)}.tar`;
    const source = treeSource(tree(directory, `volume ${name}`));
    found.push({ section: { kind: "volume", name: fromUtf8(name) }, path, source });
  }
  let marks: UpperMarks | undefined;
  const members: PlannedMember[] = [];
  for (const member of found) members.push("source" in member ? await measure(member, alignment, signal) : member);
  if (sources.rootfsDiff !== undefined) {
    const lower = opened.use(new LowerLayers(sources.lower ?? []));
    const source = new UpperSource(tree(sources.rootfsDiff, "the upper directory"), lower);
    const section = { kind: "rootfs", name: MEMBER.rootfs } as const;
    members.push(await measure({ section, path: MEMBER.rootfs, source }, alignment, signal));
    marks = source.marks;
    checkDeletedFiles(marks.deleted);
    if (marks.deleted.length > 0) {
      const deleted = { kind: "deleted", name: MEMBER.deleted } as const;
      members.push(document(deleted, MEMBER.deleted, encodeDeletedFiles(marks.deleted)));
    }
  }
  checkNames(members);
  return { members: inOrder(members), marks };
}

async function metadataMembers(
  path: string,
  replaced: (section: Section) => boolean,
  opened: AsyncDisposableStack,
  signal: AbortSignal | undefined,
): Promise<Member[]> {
  if (findFile(path)?.kind === "directory")
    return directoryMembers(opened.use(new Tree(path, "the metadata")), replaced);
  const archive: CheckpointArchive = opened.use(await openMetadata(path, signal));
  const members = await archiveMembers(archive, replaced);
  if (!members.some(({ section }) => section.kind === "images" || section.kind === "pre-images")) throw noImages(path);
  return members;
}

/** Two members of one name would mean different things to different readers. */
export function checkNames(members: readonly PlannedMember[]): void {
  const names = new Set<string>();
  for (const member of members) {
    const path = isMeasured(member) ? member.header.path : member.entry.header.path;
    if (names.has(path)) {
      throw new ShaleError("INVALID_ARGUMENT", `Cannot write the checkpoint: ${displayBytes(path)} is there twice`);
    }
    names.add(path);
  }
}

function checkVolumeName(name: string): void {
  if (/^[^/\0]+$/.test(name) && name !== "." && name !== ".." && Buffer.byteLength(name) <= 200) return;
  throw new ShaleError("INVALID_ARGUMENT", `Cannot write volume ${JSON.stringify(name)}: that is no name of a volume`);
}

/** INVALID_ARGUMENT for what is no power of two within bounds. */
export function alignmentOf({ output, alignment, alignFrom = ALIGN_FROM }: WriteOptions): Alignment {
  const unit = alignment ?? (typeof output === "string" ? blockSizeOf(output) : UNIT_MIN);
  if (unit < 512 || unit > UNIT_MAX || (unit & (unit - 1)) !== 0) {
    throw new ShaleError(
      "INVALID_ARGUMENT",
      `Cannot align to ${unit} bytes: it must be a power of two from 512 to ${UNIT_MAX}`,
    );
  }
  return { unit, from: alignFrom };
}

/** Some file systems clone in units above a page (ZFS: its record size, as statfs tells). */
function blockSizeOf(output: string): number {
  const { blockSize } = fileSystemStatus(dirname(output));
  const power = blockSize > 0 && (blockSize & (blockSize - 1)) === 0;
  return power ? Math.min(Math.max(UNIT_MIN, blockSize), UNIT_MAX) : UNIT_MIN;
}

function noticesOf({ lower = [] }: CheckpointSources, marks: UpperMarks | undefined): string[] {
  if (marks === undefined || marks.opaque.length === 0 || lower.length > 0) return [];
  return [
    `${marks.opaque.length} directories of the container hide those of its image, and without the lower directories (--lower) ` +
      "podman can't be told what: its restore would show the hidden files, shale's does not",
  ];
}
