/**
 * The layout of an archive, computed before a byte is written: what the members are, in which order, and the exact size of
 * the tars inside. So a nested tar is written in place, without a temporary file, and to a pipe as well.
 */
import { setImmediate } from "node:timers/promises";
import type { ByteString } from "../../bytes/index.ts";
import {
  encodeTarHeader,
  TAR_END,
  type TarHeader,
  type TarPlace,
  tarHeaderLength,
  tarPadding,
} from "../../formats/tar/index.ts";
import { isNested, type Section, type SectionKind } from "../archive/index.ts";
import { eachEntry, type EntrySource, remember, type SourceEntry } from "../sources/entry.ts";

export interface Alignment {
  /** Content begins at multiples of this; 512 is none. */
  readonly unit: number;
  /** Of files of at least this size. */
  readonly from: number;
}

/** A file or directory of the archive itself. */
export interface PlainMember {
  readonly section: Section;
  readonly entry: SourceEntry;
}

/** A tar of the archive, by what is in it. */
export interface NestedMember {
  readonly section: Section;
  readonly path: ByteString;
  readonly source: EntrySource;
}

export type Member = PlainMember | NestedMember;

/** A nested tar with its size known. */
export interface MeasuredMember {
  readonly section: Section;
  readonly header: TarHeader;
  readonly source: EntrySource;
  readonly files: number;
}

export type PlannedMember = PlainMember | MeasuredMember;

/** Small metadata first: a reader learns of the container from the first blocks. */
const ORDER: readonly SectionKind[] = [
  ...(["config", "spec", "network", "status", "mounts", "pod", "stats", "log", "deleted", "other"] as const),
  ...(["artifacts", "images", "pre-images", "shm", "volume", "rootfs", "rootfs-inline", "index"] as const),
];

/** By the order of sections; members of one section stay as they are. */
export function inOrder<T extends { readonly section: Section }>(members: readonly T[]): T[] {
  return [...members].sort((a, b) => ORDER.indexOf(a.section.kind) - ORDER.indexOf(b.section.kind));
}

/** Entries, at some 20 us each. */
const BETWEEN_TURNS = 512;

/** Goes through a nested tar's entries once. Offsets in it are relative: it begins at a multiple of the unit. */
export async function measure(
  { section, path, source }: NestedMember,
  alignment: Alignment,
  signal: AbortSignal | undefined,
): Promise<MeasuredMember> {
  if (!isNested(section.kind)) throw new RangeError(`a nested tar in section ${section.kind}`);
  const remembered = remember(source);
  let size = 0;
  let files = 0;
  await eachEntry(remembered.entries(), ({ header }) => {
    signal?.throwIfAborted();
    size += tarHeaderLength(header, placeOf(header, size, alignment)) + header.size + tarPadding(header.size).length;
    return files++ % BETWEEN_TURNS === 0 ? setImmediate() : undefined; // a signal may have come
  });
  return { section, header: documentHeader(path, size + TAR_END.length), source: remembered, files };
}

/** Bytes of the whole tar up to the index member, its padding not included. */
export function plannedSize(members: readonly PlannedMember[], alignment: Alignment): number {
  let size = 0;
  for (const member of members) {
    const header = headerOf(member);
    size += tarPadding(size).length;
    size += encodeMemberHeader(member, size, alignment).length + header.size;
  }
  return size + tarPadding(size).length;
}

/** The headers of an entry at `offset`, so that its content is aligned where that is worth it. */
export function encodeHeader(header: TarHeader, offset: number, alignment: Alignment): Uint8Array {
  return encodeTarHeader(header, placeOf(header, offset, alignment));
}

function placeOf(header: TarHeader, offset: number, { unit, from }: Alignment): TarPlace | undefined {
  const aligned = header.type === "file" && header.size >= from && unit > 512;
  return aligned ? { offset, alignment: unit } : undefined;
}

/** As {@link encodeHeader}; a nested tar is always aligned, since its own entries are, relative to it. */
export function encodeMemberHeader(member: PlannedMember, offset: number, alignment: Alignment): Uint8Array {
  return encodeHeader(headerOf(member), offset, isMeasured(member) ? { ...alignment, from: 0 } : alignment);
}

export function isMeasured(member: PlannedMember): member is MeasuredMember {
  return "source" in member;
}

export function headerOf(member: PlannedMember): TarHeader {
  return isMeasured(member) ? member.header : member.entry.header;
}

/** Of a member that this program makes: for its owner alone, since the memory of processes is beside it. */
export function documentHeader(path: ByteString, size: number): TarHeader {
  return {
    ...({ type: "file", path, linkTarget: "", mode: 0o600, uid: 0, gid: 0, size } as const),
    ...{ mtimeSeconds: 0, mtimeNanoseconds: 0, rdevMajor: 0, rdevMinor: 0, xattrs: [] },
  };
}

export function document(section: Section, path: ByteString, bytes: Uint8Array): PlainMember {
  const header = documentHeader(path, bytes.length);
  return { section, entry: bytes.length === 0 ? { header } : { header, content: bytes } };
}
