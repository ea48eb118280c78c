/**
 * Digests of an archive's sections, computed while it is written and again while it is read.
 *
 * `structure` covers every header and all content of files below 16 KiB, in the order of the archive: names, owners, links,
 * the metadata documents. `data` covers the content of larger files, in order. Data that is moved inside the kernel is not
 * seen by anyone, and reading it would cost what moving it saves; then there is no `data` (ADR 0026).
 *
 * Header bytes belong to the section of the member that follows them; padding behind content is among them. A nested tar
 * counts as its headers and its files, not as content of its member.
 */
import { createHash, type Hash } from "node:crypto";
import type { TarEntry } from "../../formats/tar/index.ts";
import type { ArchiveObserver } from "./archive.ts";
import type { Section } from "./sections.ts";

/** Content of files from this size on is data; smaller files are structure. Part of the format of shale.json, version 1. */
export const DATA_FROM = 16 * 1024;

export interface SectionDigests {
  readonly section: Section;
  /** "sha256:" and 64 hexadecimal digits. */
  readonly structure: string;
  /** Undefined when some of the data was not seen. */
  readonly data: string | undefined;
}

export interface SectionVerdict {
  readonly section: Section;
  /** What is wrong, as "does not match its digest"; undefined when nothing is. */
  readonly problem: string | undefined;
  /** Its data was compared too; else there was no digest of it, or it was not read. */
  readonly data: boolean;
}

/** What was written against what is there: sections in the order of `expected`, then those that were added. */
export function compareDigests(
  expected: readonly SectionDigests[],
  found: readonly SectionDigests[],
): SectionVerdict[] {
  const key = ({ section }: SectionDigests) => `${section.kind}/${section.name}`;
  const there = new Map(found.map((each) => [key(each), each]));
  const verdicts = expected.map((written): SectionVerdict => {
    const { section } = written;
    const actual = there.get(key(written));
    there.delete(key(written));
    if (actual === undefined) return { section, problem: "is missing", data: false };
    const data = written.data !== undefined && actual.data !== undefined;
    if (actual.structure !== written.structure) return { section, problem: "does not match its digest", data };
    const differs = data && actual.data !== written.data;
    return { section, problem: differs ? "has data that does not match its digest" : undefined, data };
  });
  for (const { section } of there.values()) {
    if (section.kind !== "index") verdicts.push({ section, problem: "was added", data: false });
  }
  return verdicts;
}

interface State {
  readonly section: Section;
  readonly structure: Hash;
  readonly data: Hash;
  complete: boolean;
}

export class SectionDigester implements ArchiveObserver {
  readonly #wantsData: boolean;
  readonly #states = new Map<string, State>();
  #last: State | undefined;

  /** With `data`, also content that its reader has no use for is read. */
  constructor(options: { readonly data?: boolean } = {}) {
    this.#wantsData = options.data ?? false;
  }

  header(section: Section, bytes: Uint8Array): void {
    this.#of(section).structure.update(bytes);
  }

  content(section: Section, entry: Pick<TarEntry, "size">, bytes: Uint8Array): void {
    const state = this.#of(section);
    (entry.size < DATA_FROM ? state.structure : state.data).update(bytes);
  }

  skipped(section: Section): void {
    this.#of(section).complete = false; // data: structure is wanted, always
  }

  wants(entry: Pick<TarEntry, "size">): boolean {
    return this.#wantsData || entry.size < DATA_FROM;
  }

  /** In the order of the archive; the digester is used up. */
  finish(): SectionDigests[] {
    return [...this.#states.values()].map(({ section, structure, data, complete }) => ({
      section,
      structure: `sha256:${structure.digest("hex")}`,
      data: complete ? `sha256:${data.digest("hex")}` : undefined,
    }));
  }

  #of(section: Section): State {
    const last = this.#last;
    if (last !== undefined && last.section.kind === section.kind && last.section.name === section.name) return last;
    const key = `${section.kind}/${section.name}`;
    let state = this.#states.get(key);
    if (state === undefined) {
      state = { section, structure: createHash("sha256"), data: createHash("sha256"), complete: true };
      this.#states.set(key, state);
    }
    this.#last = state;
    return state;
  }
}
