/**
 * shale.json, the last member of an archive that shale wrote: what the format has no place for. Readers that don't know it
 * put it beside the other metadata and are none the wiser.
 *
 * Two JSON values, a line each: the index, and the sha256 of the first line, so that a changed index is noticed.
 * Paths have one character a byte, and so may be any bytes.
 */
import { createHash } from "node:crypto";
import type { ByteString } from "../../bytes/index.ts";
import { FormatError, shownValue } from "../../errors/index.ts";
import type { SectionDigests } from "./digests.ts";
import { cleanPath, type SectionKind } from "./sections.ts";

/** Bytes of the member that are read; a million opaque directories of 60 bytes fit. */
export const INDEX_SIZE_MAX = 64 * 1024 * 1024;
const VERSION = 1;
const SECTIONS_MAX = 65_536;

export interface ArchiveIndex {
  /** Of whoever wrote the archive: "shale 0.1.0". */
  readonly writer: string;
  /** Bytes of the tar before this member: where its header begins. */
  readonly size: number;
  readonly digests: readonly SectionDigests[];
  /** Directories of rootfs-diff.tar that hide what the lower layers have in them; "" is the root. */
  readonly opaque: readonly ByteString[];
}

export function encodeIndex(index: ArchiveIndex): Uint8Array {
  const { writer, size, digests, opaque } = index;
  const sections = digests.map(({ section, structure, data }) => ({ ...section, structure, data: data ?? null }));
  const line = Buffer.from(JSON.stringify({ version: VERSION, writer, size, sections, opaque }));
  return Buffer.concat([line, Buffer.from(`\n"sha256:${sha256(line)}"\n`)]);
}

/** Throws FormatError, DATA_LOSS for an index that is not the one that was written; UNIMPLEMENTED for a later version. */
export function decodeIndex(bytes: Uint8Array): ArchiveIndex {
  const end = bytes.indexOf(0x0a);
  if (end < 0) throw fail("is cut off");
  const line = bytes.subarray(0, end);
  if (Buffer.from(bytes.subarray(end)).toString("latin1") !== `\n"sha256:${sha256(line)}"\n`) {
    throw fail("does not match its digest", "DATA_LOSS");
  }
  let value: unknown;
  try {
    value = JSON.parse(Buffer.from(line).toString("utf8"));
  } catch (cause) {
    throw new FormatError("checkpoint archive", "shale.json", "is no JSON", { cause });
  }
  const { version, writer, size, sections, opaque } = recordOf(value);
  if (version !== VERSION)
    throw fail(`has version ${shownValue(version)}: this shale knows ${VERSION}`, "UNIMPLEMENTED");
  if (typeof writer !== "string" || !Number.isSafeInteger(size) || !Array.isArray(sections) || !Array.isArray(opaque)) {
    throw fail("lacks writer, size, sections or opaque");
  }
  if (sections.length > SECTIONS_MAX) throw fail(`has more than ${SECTIONS_MAX} sections`, "RESOURCE_EXHAUSTED");
  return {
    writer,
    size: Number(size),
    digests: sections.map(digestsOf),
    opaque: opaque.map((path: unknown) => {
      if (typeof path !== "string") throw fail("has an opaque path that is no text");
      return cleanPath(path, (problem) => fail(`has an opaque path that ${problem}`));
    }),
  };
}

function digestsOf(value: unknown): SectionDigests {
  const { kind, name, structure, data } = recordOf(value);
  const isDigest = (text: unknown): text is string => typeof text === "string" && /^sha256:[0-9a-f]{64}$/.test(text);
  if (typeof kind !== "string" || typeof name !== "string" || !isDigest(structure)) {
    throw fail("has a section without kind, name or digest");
  }
  if (data !== null && !isDigest(data)) throw fail("has a section whose data digest is none");
  // Any kind: it is only compared with those of the members that are there.
  return { section: { kind: kind as SectionKind, name }, structure, data: data ?? undefined };
}

function recordOf(value: unknown): Readonly<Record<string, unknown>> {
  if (typeof value !== "object" || value === null) throw fail("has a value that is no object");
  return { ...value };
}

function fail(problem: string, code?: "DATA_LOSS" | "UNIMPLEMENTED" | "RESOURCE_EXHAUSTED"): FormatError {
  return new FormatError("checkpoint archive", "shale.json", problem, code === undefined ? {} : { code });
}

function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}
